"""From sources to a corpus index: what is read, the steps of a build, and where they run."""
