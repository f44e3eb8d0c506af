"""`probe`: what a model recites, before anybody trains it."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prod_decode.command.options import Once, positive
from prod_decode.command.terminal import Progress, note, to_json
from prod_decode.errors import one_line, printable
from prod_train.command.finding import COMMAND, MEANING, Finding, Others
from prod_train.command.rows import add_reading, reading, require_rows_output, write_rows

if TYPE_CHECKING:
    from prod_decode.command.options import Commands
    from prod_train.data.reading import Record
    from prod_train.measure.probe import Probed

# The rows that are printed; all are in the JSON.
MOST_ROWS = 10


def add_to(commands: Commands) -> None:
    """Add the sub-command."""
    add = commands.add_parser(
        "probe",
        help="what a model recites of some rows, before anybody trains it",
        description="What a model recites of some rows, before anybody trains it.",
        allow_abbrev=False,
    )
    add.add_argument(
        "--model",
        required=True,
        metavar="M",
        help="a hub id, a directory, a .gguf file, a LoRA adapter's directory, or `bundled`",
    )
    add.add_argument(
        "--forget",
        required=True,
        metavar="F",
        help="the rows, as for `run`: JSONL, CSV, parquet, a folder of them, a `save_to_disk` directory, or a hub "
        "name[:split]; `prod-train data` makes them from source files",
    )
    add_reading(add)
    add.add_argument(
        "--blocklist",
        action=Once,
        metavar="B",
        help="a compiled blocklist, a corpus index, or `list:NAME`: also show what is recited with it enforced",
    )
    some = add.add_mutually_exclusive_group()
    some.add_argument("--rows", type=positive(int), metavar="N", help="the first N rows that can be measured (all)")
    some.add_argument(
        "--likeliest",
        type=positive(int),
        metavar="N",
        help="read all rows, which is fast, and let the model write those N that it is likeliest to recite",
    )
    add.add_argument(
        "--batch-size", type=positive(int), default=8, metavar="N", help="rows that are written at once (8)"
    )
    add.add_argument("--json", action="store_true", help="print one JSON object, with every row and what was written")
    add.add_argument(
        "--recited",
        metavar="OUT",
        help="also write the rows that it recites, from the prompt or with a quarter or half of the text given, to a "
        ".jsonl file: what `run` should make it forget",
    )
    add.add_argument(
        "--html",
        metavar="PAGE",
        help="also write a page, with a bar for each row and the text beside what was written; no other file than such "
        "a page is written over",
    )
    add.set_defaults(run=_probe)


def _probe(options: argparse.Namespace) -> int:
    from prod_decode.command.options import load_source
    from prod_decode.command.page import beginning, write_page
    from prod_decode.storage.artifact import require_output
    from prod_decode.storage.models import quiet

    if options.html is not None:
        inputs = filter(None, [options.forget, options.blocklist, options.model])
        require_output(options.html, inputs, replaces=(beginning(COMMAND), "page of a probe"))
    if options.recited is not None:
        require_rows_output(options.recited, [options.forget])
    source = None if options.blocklist is None else load_source(options.blocklist)
    quiet()
    from prod_train.data.rows import load_rows
    from prod_train.loss.objective import Encoder
    from prod_train.measure.evaluate import measurable
    from prod_train.measure.probe import likeliest, probe
    from prod_train.model.modeling import load_for_reading, tokenizer_of

    tokenizer = tokenizer_of(options.model)
    rows = load_rows(
        options.forget,
        tokenizer,
        eos=tokenizer.eos_token_id is not None,
        form=options.format,
        **reading(options),
    )
    rows, left_out = measurable(rows, tokenizer, options.rows)
    matcher = None if source is None else source.bind(tokenizer)
    model = load_for_reading(options.model, options.dtype)
    encoder = Encoder(model)
    others = None
    if options.likeliest is not None:
        batch, told, of = options.batch_size, Progress("reading"), len(rows)
        rows, run = likeliest(model, encoder, tokenizer, rows, options.likeliest, batch_size=batch, tell=told)
        others = Others(of - len(rows), run)
    found = probe(
        model,
        encoder,
        tokenizer,
        rows,
        batch_size=options.batch_size,
        matcher=matcher,
        tell=Progress("probing"),
    )
    found.sort(key=_known, reverse=True)
    records = _records(options, found)
    named = [_source(one.row.place, records.get(one.row.place, {})) for one in found]
    finding = Finding(options.model, options.forget, options.blocklist, found, named, left_out, others)
    if options.json:
        print(to_json(finding.record()))
    else:
        _print(finding)
    if options.html is not None:
        from prod_train.command.probe_page import probe_page

        write_page(options.html, probe_page(finding))
        note(f"the page: {options.html}")
    if options.recited is not None:
        _write_recited(options.recited, found, records)
    return 0


def _known(one: Probed) -> tuple[Any, ...]:
    """What is recited from less comes before what is recited from more."""
    given = [answer.given for answer in one.answers if answer.verbatim]
    return -min(given, default=1.0), max(answer.run for answer in one.answers), one.extraction_strength


def _records(options: argparse.Namespace, found: Sequence[Probed]) -> dict[str, Record]:
    """The records of the rows, by place, in their order in the data."""
    from prod_train.data.reading import read_records

    places = _places(found)
    records = read_records(options.forget, form=options.format, columns=options.columns)
    return {place: record for place, record in records if place in places}


def _places(found: Iterable[Probed]) -> set[str]:
    """Of the rows and of their records: several answers of a chat are rows of one record."""
    places = {one.row.place for one in found}
    return places | {place.rpartition(", message ")[0] for place in places}


def _source(place: str, record: Record) -> str:
    """File and lines that a row's code is from; its place if the record does not name both."""
    source, lines = record.get("source"), record.get("lines")
    return f"{source}:{lines}" if source and lines else place


def _write_recited(output: str, found: Sequence[Probed], records: Mapping[str, Record]) -> None:
    """The records of rows that are recited; of a chat, all of it if one of its answers is."""
    places = _places(one for one in found if any(answer.verbatim for answer in one.answers))
    if not places:
        note(f"not written, as no row is recited: {output}")
        return
    kept = [record for place, record in records.items() if place in places]
    write_rows({output: kept})
    note(f"rows that it recites, from the prompt or given more: {len(kept)}, in {output}")


def _print(finding: Finding) -> None:
    print(printable(finding.verdict()))
    for line in finding.details():
        print(printable(line))
    guards = ["masked"] if finding.blocklist is not None else []
    print("\nrun: the longest that the model writes of a text; behind `of`, the characters of the text")
    head = ["run", "of", "1/4 given", "1/2 given", *guards, "strength", "p", "row"]
    lines = [head, *(_columns(row, source) for row, source in zip(finding.rows, finding.sources, strict=True))]
    shown = lines[: MOST_ROWS + 1]
    widths = [max(len(line[at]) for line in shown) for at in range(len(head) - 1)]
    for columns in shown:
        cells = [cell.rjust(width) for cell, width in zip(columns[:-1], widths, strict=True)]
        print(one_line("  ".join([*cells, columns[-1]])))
    if len(lines) > len(shown):
        print(f"and {len(lines) - len(shown):,} more rows: --json and --html show them")
    print(f"\n{MEANING}")


def _columns(row: Probed, source: str) -> list[str]:
    """What a table says of a row."""
    runs = {answer.given: f"{answer.run}" for answer in row.answers}
    guarded = [f"{row.guarded[0].run}"] if row.guarded else []
    return [
        runs[0.0],
        f"{row.answers[0].size}",
        runs.get(0.25, "-"),
        runs.get(0.5, "-"),
        *guarded,
        f"{row.extraction_strength:.2f}",
        f"{row.probability:.2f}",
        source,
    ]
