"""What only the command line needs: terminals, models to try a blocklist on, and audits."""
