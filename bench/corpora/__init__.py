"""How large a corpus may be: the index beside other guards, what it bans for nothing, and what it costs as it grows."""
