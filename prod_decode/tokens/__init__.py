"""Which bytes a token stands for, derived from a tokenizer and proved against its own decoder."""
