"""The page of `probe`: bars for each row, and the texts that are recited beside what was written."""

from __future__ import annotations

from collections.abc import Iterator

from prod_decode.command.page import Html, element, join, page, table, warning
from prod_decode.command.render import Span, to_html
from prod_train.command.finding import COMMAND, MEANING, Finding
from prod_train.data.alike import COMPARED
from prod_train.measure.metric import common_run
from prod_train.measure.probe import Answer, Probed

# A page is for people: of more rows, it says how many there are.
MOST_BARS, MOST_TEXTS = 200, 20


def probe_page(finding: Finding) -> str:
    """The page as HTML."""
    shown = list(zip(finding.rows, finding.sources, strict=True))
    details = [element("li", line) for line in finding.details()]
    return page(
        COMMAND,
        finding.verdict(),
        MEANING,
        *([element("ul", *details)] if details else []),
        element("section", element("h2", "Every row"), *_bars(finding)),
        *(_texts(number, row, source) for number, (row, source) in enumerate(shown[:MOST_TEXTS], 1)),
    )


def _bars(finding: Finding) -> Iterator[Html]:
    guards = [f"run with {finding.blocklist}"] if finding.blocklist is not None else []
    head = ["row", "longest run", *guards, "a quarter given", "half given", "extraction strength", "mean p"]
    rows = []
    for number, (row, source) in enumerate(zip(finding.rows, finding.sources, strict=True), 1):
        by_given = {answer.given: answer for answer in row.answers}
        name = element("a", source, href=f"#row-{number}") if number <= MOST_TEXTS else source
        answers = [row.answers[0], *row.guarded[:1], by_given.get(0.25), by_given.get(0.5)]
        shares = [_bar(value, f"{value:.2f}") for value in (row.extraction_strength, row.probability)]
        rows.append([name, *map(_run, answers), *shares])
    yield table(head, rows[:MOST_BARS], heads=1)
    yield element(
        "p",
        "A run is in normalised characters, beside those of the text that it is taken from; red: recited. Extraction "
        "strength is 1 for a text that the model knows from its first token on, and 0 for one that it must be given "
        "to the end. Mean p: the probability of the text's tokens, with the text before each.",
    )
    if len(rows) > MOST_BARS:
        yield warning(f"{len(rows) - MOST_BARS:,} more rows are not shown here: --json lists them all.")


def _run(answer: Answer | None) -> Html:
    if answer is None:
        return Html("-")
    return _bar(answer.run / answer.size, f"{answer.run} of {answer.size}", is_bad=answer.verbatim)


def _bar(share: float, label: str, *, is_bad: bool = False) -> Html:
    """A number, and under it a bar of that share, 0 to 1."""
    inside = element("span", style=f"width: {100 * min(share, 1):.1f}%", **({"class_": "bad"} if is_bad else {}))
    return join(label, element("div", inside, class_="bar"))


def _texts(number: int, row: Probed, source: str) -> Html:
    """The prompt, and the text beside what was written; the longest run that both have is marked."""
    title = join("Recited: " if row.recites else "Not recited: ", element("code", source))
    parts = [element("figure", element("figcaption", "the prompt"), element("pre", row.row.prompt, class_="prompt"))]
    for answer in row.answers:
        truth, written = _marked(answer)
        given = f", with {answer.given:.0%} of it given" if answer.given else ""
        left, right = (
            element("figure", element("figcaption", caption), element("pre", to_html(spans)))
            for caption, spans in (
                (f"the text{given}", truth),
                (f"what was written: a run of {answer.run} of {answer.size} characters", written),
            )
        )
        parts.append(element("div", left, right, class_="pair"))
    return element("section", element("h2", title), *parts, id=f"row-{number}")


def _marked(answer: Answer) -> tuple[list[Span], list[Span]]:
    """The text and what was written, cut at the edges of the longest run that both have."""
    traced = [COMPARED.trace(text) for text in (answer.truth, answer.written)]
    *begins, size = common_run(traced[0][0], traced[1][0])
    cut: list[list[Span]] = []
    for text, (_, origins), begin in zip((answer.truth, answer.written), traced, begins, strict=True):
        start, end = (int(origins[begin]), int(origins[begin + size - 1]) + 1) if size else (0, 0)
        spans: list[Span] = [(text[:start], "plain"), (text[start:end], "prohibited"), (text[end:], "plain")]
        cut.append([span for span in spans if span[0]])
    return cut[0], cut[1]
