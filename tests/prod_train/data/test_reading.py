"""Files, packed files and folders of rows."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prod_decode.errors import ProdError
from prod_train.data.reading import read_records

ROWS = [{"prompt": "a,b\t", "completion": 'x "y"\n\nz'}, {"prompt": "é", "completion": "\tw"}]


def write(path: Path, rows: list[dict[str, str]] = ROWS) -> Path:
    """Rows in the form that the suffix of a path says."""
    open_ = gzip.open if path.suffix == ".gz" else open
    kind = path.name.removesuffix(".gz").rpartition(".")[2].lower()
    if kind == "parquet":
        import pyarrow as pa
        from pyarrow import parquet

        parquet.write_table(pa.Table.from_pylist(rows), path)
        return path
    with open_(path, "wt", encoding="utf-8", newline="") as file:
        if kind in ("csv", "tsv"):
            table = csv.DictWriter(file, list(rows[0]), delimiter="," if kind == "csv" else "\t")
            table.writeheader()
            table.writerows(rows)
        else:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


@pytest.mark.parametrize(
    "name", ["r.jsonl", "r.jsonl.gz", "r.csv", "r.CSV", "r.csv.gz", "r.tsv", "r.tsv.gz", "r.parquet"]
)
def test_every_kind_of_file_has_the_same_rows(tmp_path: Path, name: str) -> None:
    found = list(read_records(str(write(tmp_path / name))))
    assert [dict(row) for _, row in found] == ROWS
    assert all(name in place for place, _ in found)


@given(
    st.lists(st.fixed_dictionaries({k: st.text(max_size=9) for k in ("prompt", "completion")}), min_size=1, max_size=5)
)
def test_whatever_csv_writes_is_read(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, str]]) -> None:
    rows = [
        {k: v.encode("utf-8", "replace").decode().replace("\0", "").replace("\r", "\n") for k, v in row.items()}
        for row in rows
    ]
    file = write(tmp_path_factory.mktemp("t") / "r.csv", rows)
    assert [dict(row) for _, row in read_records(str(file))] == rows


def test_a_folder_is_its_files_in_order(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    write(tmp_path / "c.parquet", ROWS[:1])
    write(tmp_path / "b" / "a.jsonl.gz", ROWS[1:])
    (tmp_path / "README.md").write_text("no rows")
    found = list(read_records(str(tmp_path)))
    assert [dict(row) for _, row in found] == ROWS[::-1]
    assert found[0][0].endswith("a.jsonl.gz:1")


def test_a_saved_data_set_is_none_of_these_folders(tmp_path: Path) -> None:
    import datasets

    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "s")
    assert [row for _, row in read_records(str(tmp_path / "s"))] == ROWS


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("r.csv", b"", "r.csv:1: expected a line that names the columns"),
        ("r.csv", b"a,a\n1,2\n", "expected a line that names the columns, each once"),
        ("r.csv", b"a,b\n1\n", "r.csv:2: expected 2 fields, as the first line has, got more or fewer"),
        ("r.csv", b"a,b\n1,2,3\n", "r.csv:2: expected 2 fields"),
        ("r.csv", b'a,b\n1,"2', "expected CSV, got unexpected end of data"),
        ("r.csv", b"a,b\n\xff,2\n", "is not UTF-8 text"),
        ("r.csv.gz", b"a,b\n1,2\n", "(expected a file that gzip has written)"),
        ("r.jsonl.gz", gzip.compress(b"{}" * 99, mtime=0)[:-9], "(expected a file that gzip has written)"),
        ("r.jsonl.gz", gzip.compress(b"[]", mtime=0), "r.jsonl.gz:1: expected a JSON object, got list"),
        ("r.txt", b"x", "cannot read"),
    ],
)
def test_what_is_no_file_of_rows(tmp_path: Path, name: str, content: bytes, told: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ProdError) as caught:
        list(read_records(str(tmp_path / name)))
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_without_rows_and_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ProdError, match="got a folder without any"):
        list(read_records(str(tmp_path)))
    with pytest.raises(ProdError, match="no such file"):
        list(read_records(str(tmp_path / "r.csv.gz")))
