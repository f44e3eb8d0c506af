"""The suffixes by which files of rows are known."""

JSON_FILES = (".jsonl", ".ndjson", ".json")
DATA_FILES = (*JSON_FILES, ".parquet")
