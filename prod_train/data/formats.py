"""The suffixes by which files of rows are known, and the forms that rows come in."""

JSON_FILES = (".jsonl", ".ndjson", ".json")
TABLES = (".csv", ".tsv")
PACKED = ".gz"  # behind one of these
DATA_FILES = (*JSON_FILES, *TABLES, ".parquet")

FORMS = ("auto", "messages", "sharegpt", "alpaca")


def suffix_of(name: str) -> str:
    """The suffix that says what a file holds, in lower case, without that of its compression."""
    name = name.lower().removesuffix(PACKED)
    return name[name.rfind(".") :] if "." in name.rpartition("/")[2] else ""
