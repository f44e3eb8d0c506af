"""What commands print, and where it goes if nobody reads it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prod_decode.blocklist.blocklist import Blocklist
from prod_decode.blocklist.entries import Entry
from prod_decode.cli import main
from prod_decode.command.terminal import Progress, duration, exit_status
from prod_decode.errors import one_line, printable
from tests import ROOT, without_first_start

# What a terminal obeys: ESC and the other C0 and C1 controls, and the characters that reorder a line.
CONTROLS = [chr(code) for code in (*range(32), *range(127, 160), 0x200E, 0x200F, *range(0x202A, 0x202F))]


@given(st.text(st.sampled_from([*CONTROLS, "a", "\u2028", "é", "名"])))
def test_no_text_moves_the_cursor(text: str) -> None:
    shown = printable(text)
    assert not set(shown.replace("\r\n", "\n")) & (set(CONTROLS) - {"\n", "\t"})
    assert not set(one_line(text)) & {*CONTROLS, "\u2028"}


def test_an_interrupt_inside_of_a_kernel_is_an_interrupt() -> None:
    """numba raises a SystemError from it, and others while a kernel is loaded."""

    def interrupted(error: type[Exception], cause: BaseException) -> int:
        try:
            raise cause
        except BaseException:  # noqa: BLE001
            raise error("returned a result with an exception set")  # noqa: B904

    for error in (SystemError, ImportError):
        assert exit_status("x", lambda error=error: interrupted(error, KeyboardInterrupt())) == 130
        with pytest.raises(error):
            exit_status("x", lambda error=error: interrupted(error, ValueError()))


def test_what_is_escaped_can_be_read() -> None:
    assert printable("a\x1b[2Jb\r\n\tc\rd") == "a\\x1b[2Jb\r\n\tc\\rd"
    assert one_line("two\n  lines\x07 and\ta tab") == "two lines\\x07 and\\ta tab"


@pytest.mark.parametrize("size", [5_999, 6_000, 6_001, 1_000_000])
def test_a_message_keeps_its_beginning_and_its_remedy(size: int) -> None:
    line = one_line("got " + "9" * (size - 11) + " do so.")
    assert len(line) == min(size, 6_000)
    assert (line.startswith("got 999"), line.endswith("999 do so.")) == (True, True)
    assert ("..." in line) == (size > 6_000)


def test_a_megabyte_of_a_mistake_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["compile", "x.txt", "-o", "y", "--jobs", "9" * 1_000_000])
    assert len(capsys.readouterr().err) < 6_100


def test_names_and_texts_are_shown_and_not_obeyed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Blocklist.compile([Entry("a\x1b[31mb(", id="red\x1b[2J")]).save("b.prod")
    Path("c\x1b[1m\nx.py").write_text("a\x1b[31mb(\n")
    Path("bad\x1b[7m").write_bytes(b"\0")
    assert main(["scan", "b.prod", ".", "no\x1b[m"]) == 1
    assert main(["info", "b.prod", "--entries"]) == 0
    assert main(["info", "gone\x1b[m"]) == 2
    told = capsys.readouterr()
    assert "\x1b" not in told.out + told.err
    assert "c\\x1b[1m x.py:1:1: red\\x1b[2J: a\\x1b[31mb(\n" in told.out
    assert "gone\\x1b[m" in told.err


TOLD = "prohibited places: 1, files read: 1\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("streams", "status", "out", "err"),
    [
        ("", 1, "-:1:1: yaml.load(: yaml.load(\n", TOLD),
        ("2>&-", 1, "-:1:1: yaml.load(: yaml.load(\n", ""),
        (f"2<{os.devnull}", 1, "-:1:1: yaml.load(: yaml.load(\n", ""),
        (">&-", 1, "", TOLD),
        (
            f"1<{os.devnull}",
            2,
            "",
            f"{TOLD}prod-decode scan: cannot write to the standard output: Bad file descriptor\n",
        ),
        (">&- 2>&-", 1, "", ""),
        (
            "<&-",
            2,
            "",
            "prod-decode scan: cannot read the standard input: it is closed; expected text there, or name a file\n",
        ),
    ],
)
def test_streams_may_be_closed_or_refuse(tmp_path: Path, streams: str, status: int, out: str, err: str) -> None:
    """A descriptor that was opened for reading refuses to be written, as a full disk does."""
    Blocklist.compile([Entry("yaml.load(")]).save(tmp_path / "b.prod")
    done = subprocess.run(
        ["sh", "-c", f"exec '{sys.executable}' -m prod_decode.cli scan b.prod - {streams}"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""},
        input="yaml.load(",
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, without_first_start(done.stderr)) == (status, out, err)


def test_time_left_is_told_every_half_a_minute(capsys: pytest.CaptureFixture[str]) -> None:
    now = [100.0]
    progress = Progress("probing", clock=lambda: now[0])
    for seconds, share in ((29, 0.1), (30, 0.25), (59, 0.3), (61, 0.5), (290, 0.9), (9000, 0.91), (9900, 1.0)):
        now[0] = 100.0 + seconds
        progress(share)
    assert capsys.readouterr().err.splitlines() == [
        "probing: 25% done after 30 s, about 90 s left",
        "probing: 50% done after 61 s, about 61 s left",
        "probing: 90% done after 5 min, about 32 s left",
        "probing: 91% done after 2.5 h, about 15 min left",
    ]
    assert [duration(seconds) for seconds in (0.4, 119, 120, 7199, 7200)] == [
        "0 s",
        "119 s",
        "2 min",
        "120 min",
        "2.0 h",
    ]


def test_on_a_terminal_time_left_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    now = [0.0]
    progress = Progress("probing", clock=lambda: now[0])
    for seconds, share in ((1, 0.25), (4, 1.0)):
        now[0] = seconds
        progress(share)
    assert capsys.readouterr().err == f"\r{'probing:  25%, about 3 s left':<78}\r{'':<78}\r"


def test_the_rate_is_of_what_was_done_now(capsys: pytest.CaptureFixture[str]) -> None:
    """Not of what an earlier run did, which took no time now."""
    now = [0.0]
    progress = Progress("reading", "MB", 5000, already=2000, clock=lambda: now[0])
    progress(2000)
    for seconds, done in ((40, 2200), (60, 2300), (80, 2600), (300, 5000)):
        now[0] = seconds
        progress(done)
    assert capsys.readouterr().err.splitlines() == [
        "reading: 44% done after 40 s (2,200 of 5,000 MB, 300 MB per minute), about 9 min left",
        "reading: 52% done after 80 s (2,600 of 5,000 MB, 450 MB per minute), about 5 min left",
    ]
