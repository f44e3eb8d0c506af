"""The same matching for vLLM's V2 model runner, whose tokens never leave the GPU."""
