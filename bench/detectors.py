"""Precision and recall of insecure-code detectors on rows with known labels: our rules, bandit, semgrep, and unions.

    python -m bench detectors DATA [--semgrep RULES] [--json FILE]

`DATA` holds `sven_python.jsonl` (vulnerable functions and their fixes) and `cyberseceval_autocomplete_python.jsonl`
(code that its own analyzers call insecure). A row is found if a detector names a weakness of the row's own kind in it.
"""

from __future__ import annotations

import ast
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.metrics import wilson
from bench.programs.syntax import parse_fragment
from bench.tasks.insecure import same_weakness
from bench.tasks.insecure_rules import find_insecure, self_check
from prod_decode.blocklist.sources import read_json_lines
from prod_decode.command.options import Parser
from prod_decode.command.terminal import exit_status
from prod_decode.errors import ProdError
from prod_decode.storage.files import write_whole

# bandit files these under shell injection, and XML and Jinja under others; its test says better what it found.
_BANDIT = {
    "B102": "CWE-94",
    "B307": "CWE-94",
    "B311": "CWE-338",
    "B701": "CWE-79",
    "B702": "CWE-79",
    "B703": "CWE-79",
    "B202": "CWE-22",
}


@dataclass(frozen=True, slots=True)
class Labelled:
    """Code with a known label.

    Attributes:
        id: unique.
        set: `sven` or `cyberseceval`.
        cwe: the family of the weakness that the row is about.
        insecure: whether it has it.
        held_out: whether the rules were written without looking at it.
        code: a whole function or a fragment.
    """

    id: str
    set: str
    cwe: str
    insecure: bool
    held_out: bool
    code: str


@dataclass(frozen=True, slots=True)
class Rate:
    """Hits of n, with the Wilson interval of 95 %; None where n is 0."""

    hits: int
    n: int
    value: float | None
    low: float | None
    high: float | None

    @classmethod
    def of(cls, hits: int, n: int) -> Rate:
        """The rate and its interval."""
        if not n:
            return cls(hits, n, None, None, None)
        low, high = wilson(hits, n)
        return cls(hits, n, hits / n, low, high)

    def __str__(self) -> str:
        if self.value is None:
            return "-"
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}] n={self.n}"


Detector = Callable[[Sequence[Labelled]], Mapping[str, set[str]]]


def read_labelled(folder: Path) -> list[Labelled]:
    """The rows of both sets."""
    rows: list[Labelled] = []
    for number, (_, row) in enumerate(read_json_lines(folder / "sven_python.jsonl")):
        for key, insecure in (("before", True), ("after", False)):
            code = textwrap.dedent(row[key].replace("\r\n", "\n").expandtabs(4))
            rows.append(
                Labelled(
                    f"sven-{key}-{number}", "sven", same_weakness(row["cwe"]), insecure, row["split"] == "val", code
                )
            )
    for number, (_, row) in enumerate(read_json_lines(folder / "cyberseceval_autocomplete_python.jsonl")):
        code = row["origin_code"]
        held_out = hashlib.sha256(code.encode()).digest()[0] % 2 == 1
        rows.append(
            Labelled(f"cse-{number}", "cyberseceval", same_weakness(row["cwe_identifier"]), True, held_out, code)
        )
    return rows


def rules(rows: Sequence[Labelled]) -> dict[str, set[str]]:
    """This project's rules, findings of low confidence included: the row's own kind is asked for."""
    self_check()
    return {row.id: {same_weakness(finding.cwe) for finding in find_insecure(row.code)} for row in rows}


def bandit(rows: Sequence[Labelled]) -> dict[str, set[str]]:
    """Bandit on the code as it is; it reports nothing for what it cannot parse."""
    return _bandit({row.id: row.code for row in rows})


def bandit_repaired(rows: Sequence[Labelled]) -> dict[str, set[str]]:
    """Bandit on as much as `parse_fragment` makes parse."""
    return _bandit({row.id: _repaired(row.code) for row in rows})


def _repaired(code: str) -> str:
    parts = []
    for tree in parse_fragment(code).trees:
        try:
            parts.append(ast.unparse(tree))
        except (ValueError, RecursionError):
            continue
    return "\n".join(parts) + "\n"


def _bandit(sources: Mapping[str, str]) -> dict[str, set[str]]:
    with tempfile.TemporaryDirectory() as folder:
        _write(Path(folder), sources)
        run = subprocess.run(
            [sys.executable, "-m", "bandit", "-q", "-r", "-f", "json", folder], capture_output=True, check=False
        )
        found: dict[str, set[str]] = {name: set() for name in sources}
        for issue in _json(run, "bandit")["results"]:
            number = issue.get("issue_cwe", {}).get("id")
            cwe = _BANDIT.get(issue["test_id"]) or (f"CWE-{number}" if number else None)
            if cwe:
                found[Path(issue["filename"]).stem].add(same_weakness(cwe))
    return found


def semgrep(rules_folder: str) -> Detector:
    """Semgrep with a folder of rules, on code as it is."""

    def detect(rows: Sequence[Labelled]) -> dict[str, set[str]]:
        with tempfile.TemporaryDirectory() as folder:
            _write(Path(folder), {row.id: row.code for row in rows})
            command = ["semgrep", "scan", "--config", rules_folder, "--metrics", "off", "--json", "-j", "1"]
            run = subprocess.run([*command, "--no-git-ignore", folder], capture_output=True, check=False)
            found: dict[str, set[str]] = {row.id: set() for row in rows}
            for issue in _json(run, "semgrep")["results"]:
                metadata = issue["extra"]["metadata"]
                cwe = str(metadata.get("cwe_id") or metadata.get("cwe") or "").split(":")[0]
                if cwe.upper().startswith("CWE-"):
                    found[Path(issue["path"]).stem].add(same_weakness(cwe))
        return found

    return detect


def once(detector: Detector) -> Detector:
    """The detector, run a single time for one list of rows: bandit and semgrep take minutes."""
    known: dict[tuple[str, ...], Mapping[str, set[str]]] = {}

    def detect(rows: Sequence[Labelled]) -> Mapping[str, set[str]]:
        key = tuple(row.id for row in rows)
        if key not in known:
            known[key] = detector(rows)
        return known[key]

    return detect


def union(*detectors: Detector) -> Detector:
    """Whatever any finds."""

    def detect(rows: Sequence[Labelled]) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {row.id: set() for row in rows}
        for detector in detectors:
            for name, cwes in detector(rows).items():
                found[name] |= cwes
        return found

    return detect


def _write(folder: Path, sources: Mapping[str, str]) -> None:
    for name, code in sources.items():
        (folder / f"{name}.py").write_bytes(code.encode("utf-8", "replace"))


def _json(run: subprocess.CompletedProcess[bytes], name: str) -> dict[str, Any]:
    try:
        report: dict[str, Any] = json.loads(run.stdout)
    except ValueError:
        reason = (run.stderr.decode(errors="replace").strip().splitlines() or ["no output"])[-1]
        raise ProdError(f"{name} did not run: {reason} (pip install {name})") from None
    return report


def measure(name: str, detector: Detector, rows: Sequence[Labelled]) -> Iterator[dict[str, Any]]:
    """Recall, false-positive rate and precision of a detector: of all rows, of those held out, and a set and kind.

    Raises:
        ProdError: it finds nothing at all.
    """
    found = detector(rows)
    if not any(found.values()):
        raise ProdError(f"{name} found nothing in {len(rows)} rows, most of them insecure: it does not work here")
    parts: dict[str, list[Labelled]] = {}
    for row in rows:
        for held in ("all", "held out") if row.held_out else ("all",):
            parts.setdefault(f"{row.set}, {held}", []).append(row)
        parts.setdefault(f"{row.set}, {row.cwe}", []).append(row)
    for part, members in sorted(parts.items()):
        bad = [row for row in members if row.insecure]
        good = [row for row in members if not row.insecure]
        hits = sum(row.cwe in found[row.id] for row in bad)
        false = sum(row.cwe in found[row.id] for row in good)
        yield {
            "detector": name,
            "part": part,
            "recall": Rate.of(hits, len(bad)),
            "false_positive_rate": Rate.of(false, len(good)),
            "precision": Rate.of(hits, hits + false if good else 0),
        }


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print a table; returns 0, or 2 for a mistake of the user."""
    parser = Parser(prog="python -m bench detectors", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("data", metavar="DATA", help="the folder of the two files")
    parser.add_argument("--semgrep", metavar="RULES", help="a folder of semgrep rules; needs semgrep on the PATH")
    parser.add_argument("--json", metavar="FILE", help="write the figures there as JSON lines")
    options = parser.parse_args(argv)
    return exit_status("bench detectors", lambda: run(Path(options.data), options.semgrep, options.json))


def run(data: Path, semgrep_rules: str | None, out: str | None) -> int:
    """See `main`."""
    rows = read_labelled(data)
    own, repaired = once(rules), once(bandit_repaired)
    detectors: dict[str, Detector] = {"rules": own, "bandit": bandit, "bandit, repaired": repaired}
    if semgrep_rules is not None:
        if shutil.which("semgrep") is None:
            raise ProdError("--semgrep: expected the command semgrep on the PATH, found none: pip install semgrep")
        detectors["semgrep"] = with_semgrep = once(semgrep(semgrep_rules))
        detectors["rules or semgrep"] = union(own, with_semgrep)
    detectors["rules or bandit"] = union(own, repaired)
    figures = [figure for name, detector in detectors.items() for figure in measure(name, detector, rows)]
    for figure in figures:
        print(
            f"{figure['part']:24} {figure['detector']:18} recall {figure['recall']!s:30} "
            f"false positives {figure['false_positive_rate']!s:30} precision {figure['precision']!s}"
        )
    if out is not None:
        lines = [
            json.dumps({key: asdict(value) if isinstance(value, Rate) else value for key, value in figure.items()})
            for figure in figures
        ]
        with write_whole(out) as file:
            file.write(("\n".join(lines) + "\n").encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
