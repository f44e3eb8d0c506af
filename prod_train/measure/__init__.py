"""What a model still knows: metrics and the rows they are taken on."""
