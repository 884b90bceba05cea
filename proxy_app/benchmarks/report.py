"""Turns results into tables and a chart, and writes both into docs/performance.md."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any
from xml.sax.saxutils import escape

from .cases import CASES
from .measure import Result

BEGIN, END = "<!-- benchmark: begin -->", "<!-- benchmark: end -->"
# The share of chunks that a candidate must pass on in time; with less, its core is saturated.
_KEEPS_UP = 0.95
# Bars longer than this many times the median one are cut, so that one slow candidate does not hide the rest.
_LONGEST = 2.5


class Medians:
    """The median of each field over the repeats, by candidate and case; of errors, the sum."""

    def __init__(self, results: Sequence[Result]) -> None:
        self._results = results
        self.candidates = list(dict.fromkeys(result["candidate"] for result in results))
        self.cases = list(dict.fromkeys(result["case"] for result in results))

    def value(self, candidate: str, case: str, name: str) -> float | None:
        found = [
            value
            for result in self._results
            if result["candidate"] == candidate and result["case"] == case
            for value in [_number(result, name)]
            if value is not None
        ]
        if not found:
            return None
        return sum(found) if name == "errors" else median(found)

    def added(self, candidate: str, case: str, name: str) -> float | None:
        """What the candidate adds to the figure without a candidate."""
        with_it, without = self.value(candidate, case, name), self.value("direct", case, name)
        return None if with_it is None or without is None else with_it - without

    def keeps_up(self, candidate: str, case: str) -> bool:
        chunks, wanted = (
            self.value(candidate, case, "chunks_per_s"),
            self.value("direct", case, "chunks_per_s"),
        )
        return not chunks or not wanted or chunks >= _KEEPS_UP * wanted


def _number(result: Result, name: str) -> float | None:
    value: Any = result[name]  # type: ignore[literal-required]
    return value if isinstance(value, int | float) else None


def tables(results: Sequence[Result]) -> str:
    """One table per case, in Markdown."""
    medians = Medians(results)
    parts = []
    for case in medians.cases:
        parts.append(f"**{case}**: {CASES[case].what}\n")
        rows = [_row(medians, candidate, case) for candidate in medians.candidates]
        head = [
            "",
            "CPU µs/chunk",
            "CPU µs/request",
            "chunks/s",
            "requests/s",
            "first token + p50/p99 ms",
            "chunk + p50/p99 ms",
            "RSS MB",
            "errors",
        ]
        # Omit columns without content in this case.
        used = [at for at in range(len(head)) if any(row[at] not in ("", "0") for row in rows)]
        for row in [head, ["---"] * len(head), *rows]:
            parts.append("| " + " | ".join(row[at] for at in used) + " |")
        parts.append("")
    return "\n".join(parts)


def _row(medians: Medians, candidate: str, case: str) -> list[str]:
    def plain(name: str, digits: int) -> str:
        value = medians.value(candidate, case, name)
        return "" if value is None else f"{value:,.{digits}f}"

    def added(name: str) -> str:
        pair = [medians.added(candidate, case, f"{name}_{share}_ms") for share in ("p50", "p99")]
        if None in pair or candidate == "direct":
            return ""
        return " / ".join(f"{value:.2f}" for value in pair)

    behind = "" if CASES[case].interval_us == 0 or medians.keeps_up(candidate, case) else " (falls behind)"
    return [
        candidate + behind,
        plain("cpu_us_per_chunk", 1) if CASES[case].stream else "",
        "" if CASES[case].stream else plain("cpu_us_per_request", 0),
        plain("chunks_per_s", 0) if CASES[case].stream else "",
        "" if CASES[case].stream else plain("requests_per_s", 0),
        added("ttft"),
        added("chunk"),
        plain("rss_mb", 0),
        plain("errors", 0),
    ]


def chart(results: Sequence[Result]) -> str:
    """Bars of CPU per chunk and per request, as SVG."""
    medians = Medians(results)
    panels = [
        ("CPU per streamed chunk, 512 streams at 50/s (µs)", "paced512", "cpu_us_per_chunk"),
        ("CPU per small JSON request (µs)", "json", "cpu_us_per_request"),
    ]
    width, label, bar, gap = 720, 130, 22, 8
    parts: list[str] = []
    y = 10
    for title, case, name in panels:
        bars = [(candidate, medians.value(candidate, case, name)) for candidate in medians.candidates]
        known = [(candidate, value) for candidate, value in bars if value is not None]
        if not known:
            continue
        parts.append(f'<text x="10" y="{y + 16}" class="title">{escape(title)}</text>')
        y += 28
        longest = min(max(value for _, value in known), _LONGEST * median(value for _, value in known))
        for candidate, value in known:
            length = (width - label - 90) * min(value, longest) / longest
            cut = " (cut)" if value > longest else ""
            kind = "ours" if candidate == "ours" else "other"
            parts += [
                f'<text x="{label - 8}" y="{y + 16}" class="name">{escape(candidate)}</text>',
                f'<rect x="{label}" y="{y}" width="{length:.1f}" height="{bar}" class="{kind}"/>',
                f'<text x="{label + length + 6:.1f}" y="{y + 16}">{value:,.1f}{cut}</text>',
            ]
            y += bar + gap
        y += 14
    style = (
        "text{font:13px sans-serif;fill:#333}.title{font-weight:bold}.name{text-anchor:end}"
        ".other{fill:#9db4c8}.ours{fill:#1f6f54}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {y}" width="{width}" height="{y}" '
        f'role="img" aria-label="CPU cost of gateways">\n<style>{style}</style>\n'
        f'<rect width="{width}" height="{y}" fill="#fff"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def write_page(page: Path, results: Sequence[Result], conditions: Iterable[str]) -> None:
    """Replace the text between the markers in docs/performance.md, and draw the chart beside the file."""
    text = page.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"{page}: needs one line {BEGIN} and, after it, one line {END}")
    drawing = page.with_name("performance.svg")
    drawing.write_text(chart(results))
    section = [
        f"![CPU of each candidate per chunk and per request]({drawing.name})",
        "",
        *(f"- {condition}" for condition in conditions),
        "",
        tables(results),
    ]
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    page.write_text(before + BEGIN + "\n\n" + "\n".join(section) + "\n" + END + after)
