"""What is kept on disk, for later and for other processes: artifacts, shared copies, compiled kernels."""
