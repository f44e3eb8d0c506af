"""One run from its configuration to its output: jobs, steps, checkpoints, reports."""
