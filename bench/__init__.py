"""What it costs and what it buys: overhead beside the peers, and the demo."""
