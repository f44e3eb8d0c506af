"""How much of which document a text gives away: pieces in common, counted as the text grows."""
