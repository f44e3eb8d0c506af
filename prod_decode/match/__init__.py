"""An automaton of patterns meets a vocabulary: states, bans, the texts of a batch, and whole texts."""
