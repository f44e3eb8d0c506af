"""The lists that come with the package: they are true, what they say to write is free, and `--target`."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import json
import platform
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.version import Version

from bench.tasks.deprecated import api_pairs
from bench.tasks.insecure_rules import KNOWN_BAD, KNOWN_GOOD
from prod_decode import Blocklist, Entry, ProdError, read_list
from prod_decode.blocklist.commit import common_length, head_length
from prod_decode.blocklist.ready import READY, ReadyEntry, Targets, ready_entries
from prod_decode.blocklist.sources import read_entries
from prod_decode.cli import main
from tests import ROOT
from tests.smollm2 import smollm2_tokenizer

NAMES = tuple(READY)
ENTRIES = [(name, entry) for name in NAMES for entry in ready_entries(name)]
DEPRECATED = [entry for name, entry in ENTRIES if name == "deprecated-python"]


@pytest.fixture(scope="module")
def both() -> Blocklist:
    return Blocklist.compile([entry for name in NAMES for entry in read_list(name)])


def found(blocklist: Blocklist, text: str) -> list[str]:
    return [match.entry_id for match in blocklist.scan(text)]


# --- every entry ------------------------------------------------------------------------------------------------------


def test_every_entry_says_what_it_is_and_who_says_so() -> None:
    for name, entry in ENTRIES:
        assert entry.boundary in ("start", "both"), entry
        assert entry.source.startswith("https://"), entry
        assert not (entry.replacement and entry.instead), entry
        assert bool(entry.cwe and re.fullmatch(r"CWE-\d+", entry.cwe)) == (name == "insecure-python"), entry
        assert entry.library or entry.cwe, entry
        since, gone = (Version(version) if version else None for version in (entry.since, entry.gone))
        assert not (since and gone) or since <= gone, entry
    assert len({entry.text for _, entry in ENTRIES}) == len(ENTRIES)
    assert set(NAMES) == {path.stem for path in (ROOT / "prod_decode/blocklist/lists").iterdir()}


def test_every_replacement_can_be_written_and_is_free(both: Blocklist) -> None:
    """`Blocklist.compile` refuses a replacement that any entry of either list prohibits, as it stands alone."""
    replaced = {entry.text for _, entry in ENTRIES if entry.replacement}
    assert {phrase for phrase, _, _ in both.report.replacements} == replaced
    assert both.unreached() == []
    for _, entry in ENTRIES:
        assert found(both, f"x = {entry.replacement}(a)\n") == [], entry


def test_what_else_is_proposed_is_free(both: Blocklist) -> None:
    assert [entry.text for _, entry in ENTRIES if entry.instead and found(both, f"x = {entry.instead}\n")] == []


def test_every_phrase_is_found(both: Blocklist) -> None:
    for _, entry in ENTRIES:
        assert entry.text in found(both, f"x\n{entry.text}\n"), entry


@pytest.mark.parametrize("code", KNOWN_GOOD)
def test_good_code_is_free(both: Blocklist, code: str) -> None:
    """But for the one call that is good by what stands in its brackets; the guide says so."""
    assert found(both, code) == (["yaml.load("] if "yaml.load(" in code else [])


HARMLESS = """
model.eval()
tree = ast.literal_eval(text)
cursor.execute("SELECT * FROM t WHERE n = ?", (name,))
def eval(self): return self.exec()
log.warning(np.float64(1), np.int32(2), np.object_, np.bool_)
six.iteritems(d); etree.tostring(tree); df.apply(f).map(g).first(); queue.append(tf.argmax(x)); rotation.as_matrix()
import importlib, collections.abc; from dateutil import parser
yaml.safe_load(f); hashlib.sha256(b); pickle.dumps(x); subprocess.run(["ls"]); tempfile.mkstemp()
skplt.metrics.plot_confusion_matrix(a, b); torch.normal(a, b); nn.init.normal_(w); tf.summary.scalar("a", b)
"""


def test_harmless_code_of_others_is_free(both: Blocklist) -> None:
    assert found(both, HARMLESS) == []


# Not where a program renames what it imports, and not where the same text is good elsewhere, as `random.choice(` is.
PHRASED = {"CWE-78", "CWE-89", "CWE-94", "CWE-295", "CWE-328", "CWE-377"}


def test_known_bad_code_is_found_where_a_phrase_can(both: Blocklist) -> None:
    assert {cwe for cwe, code in KNOWN_BAD if found(both, code)} == PHRASED


# --- the paper's pairs ------------------------------------------------------------------------------------------------

# Why a pair is not in the list; the guide says how many.
LEFT_OUT = {
    "pandas.DataFrame.first": "a name of many other things",
    "pandas.DataFrame.last": "a name of many other things",
    "pandas.DataFrame.select": "a method of Spark's and Polars' tables",
    "pandas.io.formats.style.Styler.render": "a name of many other things",
    "seaborn.despine": "not deprecated in 0.13",
}
_SPELLED = {
    "numpy": "np",
    "pandas": "pd",
    "tensorflow": "tf",
    "seaborn": "sns",
    "pandas.DataFrame": "df",
    "pandas.Series": "series",
}


def test_the_pairs_of_the_paper_are_in_the_list_or_left_out_for_a_reason(both: Blocklist) -> None:
    """By the full path, and as code usually has it."""
    missing = set()
    for pair in api_pairs():
        path = pair.deprecated
        owner = max((o for o in _SPELLED if path.startswith(f"{o}.")), key=len, default=None)
        short = path if owner is None else _SPELLED[owner] + path.removeprefix(owner)
        uses = [short] if pair.kind == "method" else [short, path]
        if any(not found(both, f"x = {use}(y)\n") for use in uses):
            missing.add(path)
    assert missing == LEFT_OUT.keys()
    page = (ROOT / "docs" / "guide" / "ready-lists.md").read_text()
    assert f"{len(LEFT_OUT)} of the {len(api_pairs())} pairs" in page
    assert f"{sum(entry.replacement is not None for _, entry in ENTRIES)} entries have a replacement" in page


# --- against the libraries that are installed -------------------------------------------------------------------------

_MODULES = {"scikit-learn": "sklearn", "pyyaml": "yaml"}
_HEADS = {
    "np": "numpy", "pd": "pandas", "sns": "seaborn", "nn": "torch.nn", "F": "torch.nn.functional",
    "df": "pandas.DataFrame", "series": "pandas.Series", "cuda": "torch.cuda", "cpu": "torch.cpu",
    "testing": "torch.testing", "self": "unittest.TestCase", "logger": "logging.Logger",
    "datetime": "datetime.datetime", "ndimage": "scipy.ndimage",
}  # fmt: skip
# Whose methods those are that stand behind a dot alone, and whose arguments those that end with `=`.
_CLASSES = {
    "pandas": ["pandas.DataFrame"],
    "python": [
        "threading.Thread", "threading.Condition", "unittest.TestCase", "xml.etree.ElementTree.Element",
        "configparser.ConfigParser",
    ],
    "scikit-learn": ["sklearn.feature_extraction.text.CountVectorizer"],
    "transformers": ["transformers.PreTrainedTokenizerBase", "transformers.Wav2Vec2ForCTC"],
}  # fmt: skip
_CALLS = {"pandas": ["pandas.read_csv", "pandas.to_datetime"], "transformers": ["transformers.TrainingArguments"]}


def version_of(library: str) -> Version:
    if library == "python":
        return Version(platform.python_version())
    try:
        return Version(importlib.metadata.version(library))
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"needs {library}")


def resolve(path: str) -> Any:
    """What a dotted path leads to.

    Raises:
        LookupError: nothing.
    """
    parts = path.split(".")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for count in range(len(parts), 0, -1):
            try:
                value = importlib.import_module(".".join(parts[:count]))
            except ImportError:
                continue
            try:
                for part in parts[count:]:
                    value = getattr(value, part)
            except (AttributeError, ImportError):  # scikit-learn tells of `load_boston` with one
                break
            return value
    raise LookupError(path)


def paths_of(text: str, library: str) -> list[str]:
    """The full paths that a phrase or a replacement may stand for."""
    text = text.rstrip("([")
    if imported := re.fullmatch(r"from ([\w.]+) import (\w+)", text):
        return [f"{imported[1]}.{imported[2]}"]
    if module := re.fullmatch(r"(?:from|import) ([\w.]+)(?: import)?", text):
        return [module[1]]
    if text.startswith("."):
        return [f"{owner}{text}" for owner in _CLASSES[library]]
    head, _, rest = text.rstrip(".").partition(".")
    top = _MODULES.get(library, library)
    full = f"{_HEADS.get(head, head)}.{rest}".rstrip(".")
    return [full] if full.split(".")[0] in (top, "unittest", "logging") or library == "python" else [f"{top}.{full}"]


def is_there(text: str, library: str) -> bool:
    if text.endswith("="):
        calls = [resolve(path) for path in _CALLS[library]]
        return any(text[:-1] in inspect.signature(call).parameters for call in calls)
    for path in paths_of(text.removeprefix(".fillna") if "method=" in text else text, library):
        try:
            resolve(path)
        except LookupError:
            continue
        return True
    return False


SLOW = [
    pytest.param(name, marks=pytest.mark.slow)
    for name in dict.fromkeys(entry.library for entry in DEPRECATED)
    if name not in ("numpy", "python")
]


@pytest.mark.parametrize("library", ["numpy", "python", *SLOW])
def test_what_is_gone_is_gone_and_what_replaces_it_is_there(library: str) -> None:
    version = version_of(library)
    wrong = []
    for entry in DEPRECATED:
        if entry.library != library or entry.text in _UNRESOLVED:
            continue
        there = is_there(entry.text, library)
        if there and entry.gone and Version(entry.gone) <= version and entry.text not in _STUBS:
            wrong.append(f"{entry.text} is there in {version}")
        if library in ("numpy", "python") and not there and entry.gone and Version(entry.gone) > version:
            wrong.append(f"{entry.text} is gone in {version}")
        is_future = entry.since is not None and Version(entry.since) > version
        if entry.replacement and not is_future and not is_there(entry.replacement, library):
            wrong.append(f"{entry.replacement} is not there")
    assert wrong == []


# A stub that raises.
_STUBS = {"interpolate.interp2d", "from scipy.interpolate import interp2d"}
# Text of which no path follows.
_UNRESOLVED = {".fillna(method=", ".ix["}


def names_behind(head: str) -> set[str]:
    """What else can stand behind the beginning of a phrase, in libraries that are always installed."""
    if head == ".":
        return {name for owner in (str, list, dict, set, bytes) for name in dir(owner)}.union(
            *(dir(resolve(path)) for path in _CLASSES["python"])
        )
    path = paths_of(head + "x", "python")[0].removesuffix(".x")
    return set(dir(resolve(path))) if path.split(".")[0] in ("numpy", *sys.stdlib_module_names) else set()


@pytest.mark.slow
def test_no_replacement_takes_what_other_names_begin_with() -> None:
    """A token that goes on in a phrase is moved to its replacement; a name may be written with the same token."""
    tokenizer = smollm2_tokenizer()
    taken, checked = [], 0
    heads: dict[str, list[ReadyEntry]] = {}
    for _, entry in ENTRIES:
        if entry.replacement:
            heads.setdefault(entry.text[: head_length(entry.text.encode())], []).append(entry)
    for head, entries in heads.items():
        own = {entry.text[len(head) :].rstrip("(") for _, entry in ENTRIES if entry.text.startswith(head)}
        others = sorted(names_behind(head) - own) if re.fullmatch(r"(from [\w.]+ import |[\w.]*\.)", head) else []
        lines = [
            f"{head}{name}(a)" if head[0] == "f" else f"x = {'y' * (head == '.')}{head}{name}(a)" for name in others
        ]
        spans = (
            tokenizer(lines, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"] if lines else []
        )
        for line, tokens in zip(lines, spans, strict=True):
            written = line[line.index(head) :]
            for start, end in ((a - line.index(head), b - line.index(head)) for a, b in tokens):
                token = written[max(start, 0) : max(end, 0)]
                taken += [
                    (entry.text, written)
                    for entry in entries
                    if entry.replacement
                    and 0 < start <= common_length(entry.text.encode(), entry.replacement.encode()) < end
                    and written[:start] == entry.text[:start]
                    and _goes_on(token, entry.text[start:])
                    and not _goes_on(token, entry.replacement[start:])
                ]
            checked += 1
    assert checked > 1000
    assert taken == []


def _goes_on(token: str, rest: str) -> bool:
    return rest.startswith(token) or token.startswith(rest)


# --- versions ---------------------------------------------------------------------------------------------------------

NUMBERS = st.lists(st.integers(0, 3), min_size=1, max_size=3)


def text_of(numbers: list[int] | None) -> str | None:
    return None if numbers is None else ".".join(map(str, numbers))


def padded(numbers: list[int]) -> list[int]:
    return [*numbers, 0, 0, 0][:3]


@given(NUMBERS, st.none() | NUMBERS, st.none() | NUMBERS)
def test_a_target_keeps_what_is_deprecated_or_gone_by_then(
    target: list[int], since: list[int] | None, gone: list[int] | None
) -> None:
    entry = ReadyEntry("a.b(", "start", "https://x", library="A_b", since=text_of(since), gone=text_of(gone))
    known = [padded(numbers) for numbers in (since, gone) if numbers is not None]
    expected = not known or any(numbers <= padded(target) for numbers in known)
    targets = Targets([f"a-b=={text_of(target)}", "other==1"])
    assert targets.keeps(entry) == expected
    assert Targets(["other==1"]).keeps(entry)
    assert (targets.kept["a-b"], targets.left_out["a-b"]) == (int(expected), int(not expected))
    assert targets.unused() == ["other"]


def test_targets_leave_out_entries_of_their_library_alone() -> None:
    whole = {entry.text for entry in read_list("deprecated-python")}
    left = whole - {entry.text for entry in read_list("deprecated-python", targets=["NumPy==1.19", "python == 3.9"])}
    assert {"np.trapz", "np.float", "inspect.formatargspec", "datetime.utcnow("} & left == {
        "np.trapz",
        "np.float",
        "datetime.utcnow(",
    }
    assert {entry.library for entry in DEPRECATED if entry.text in left} == {"numpy", "python"}
    assert "np.asscalar" not in left  # deprecated in 1.16


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["numpy"], "expected a library and its version, as numpy==2.1, got 'numpy'"),
        (["numpy>=2"], "expected a library and its version, as numpy==2.1, got 'numpy>=2'"),
        (["numpy==two"], "expected a version such as 2.1 behind numpy==, got 'two'"),
        (["numpy==2", "NumPy==2.1"], "expected one version of numpy, got 2 and 2.1: drop one"),
    ],
)
def test_what_is_no_version(targets: list[str], message: str) -> None:
    with pytest.raises(ProdError, match=re.escape(message)):
        read_list("deprecated-python", targets=targets)


# --- as a source ------------------------------------------------------------------------------------------------------


def test_a_list_is_read_beside_files(tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text("gets(\n")
    entries = list(read_entries([str(tmp_path / "own.txt"), "list:insecure-python"], boundary="none"))
    assert entries[0] == Entry("gets(", source=f"{tmp_path}/own.txt:1", boundary="none")
    assert entries[1:] == read_list("insecure-python")
    assert entries[1].boundary == "start"
    assert entries[1].source is not None
    assert entries[1].source.startswith("list:insecure-python, CWE-78, https://")


def test_a_list_that_there_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unknown = (
        "unknown list 'insecure-pyton', expected one of deprecated-python, insecure-python; did you mean "
        "'insecure-python'?"
    )
    with pytest.raises(ProdError) as error:
        list(read_entries(["list:insecure-pyton", "insecure-python"]))
    assert error.value.mistakes == (
        unknown,
        "cannot read insecure-python: No such file or directory; did you mean 'list:insecure-python'?",
    )
    with pytest.raises(ProdError, match=re.escape(unknown)):
        read_list("insecure-pyton")
    monkeypatch.chdir(tmp_path)
    Path("list:x").write_text("eval(")
    assert [entry.id for entry in read_entries(["./list:x"])] == ["list:x"]


def test_the_command_shows_compiles_and_scans(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["lists", "--json"]) == 0
    shown = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["list"], row["entries"]) for row in shown] == [(n, len(list(ready_entries(n)))) for n in NAMES]
    assert main(["lists", "insecure-python"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["text", "replacement", "instead", "library", "since", "gone", "cwe", "source"]
    assert len(lines) == shown[1]["entries"]
    assert next(line for line in lines if line.startswith("yaml.load(")).split()[:7] == [
        "yaml.load(", "yaml.safe_load(", "-", "pyyaml", "-", "-", "CWE-502",
    ]  # fmt: skip
    # What it prints as JSON is a list of one's own.
    assert main(["lists", "insecure-python", "--json"]) == 0
    Path("own.jsonl").write_text(capsys.readouterr().out)
    own = [(entry.text, entry.boundary, entry.replacement) for entry in read_entries(["own.jsonl"])]
    assert own == [(entry.text, entry.boundary, entry.replacement) for entry in read_list("insecure-python")]
    Path("a.py").write_text("f(verify = False)\n")
    assert main(["scan", "list:insecure-python", "a.py"]) == 1
    assert capsys.readouterr().out == "a.py:1:3: verify=False: verify = False\n"
    assert main(["info", "list:insecure-python"]) == 2
    assert "see `prod-decode lists insecure-python`" in capsys.readouterr().err
    assert main(["lists", "insecure"]) == 2
    assert "unknown list 'insecure', expected one of" in capsys.readouterr().err


@pytest.mark.slow
def test_what_a_target_does_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.txt").write_text("gets(\n")

    def said(*arguments: str) -> list[str]:
        assert main(list(arguments)) == 0
        return capsys.readouterr().err.splitlines()

    known = [entry for entry in DEPRECATED if entry.library == "numpy"]
    young = [entry for entry in known if (entry.since or "") in ("1.24", "1.25", "2.0")]
    assert said("compile", "list:deprecated-python", "--target", "numpy==1.23.5", "-o", "x.prod")[0] == (
        f"left out: {len(young)} of {len(known)} entries of numpy, which 1.23.5 does not deprecate"
    )
    assert len(Blocklist.load("x.prod")) == len(DEPRECATED) - len(young)
    assert said("compile", "own.txt", "--target", "numpy==2", "-o", "y.prod") == [
        "no effect: --target: for lists that come with the package, and there is none among the sources: list:NAME"
    ]
    assert said("lists", "deprecated-python", "--json", "--target", "nmpy==2") == [
        "no effect: --target nmpy: the lists have no entries of it; did you mean 'numpy'?"
    ]
    assert said("lists", "--target", "numpy==2")[0].startswith("no effect: --target: for lists")
