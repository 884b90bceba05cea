"""Problems as a person reads them."""

from __future__ import annotations

import re

# Longer words and longer messages are cut.
WORD_MAX, SENTENCE_MAX = 200, 4000


def printable(problem: str) -> str:
    """The problem in a form that is safe on a terminal: one line of limited length, without control characters."""
    plain = "".join(
        character if character.isprintable() else character.encode("unicode_escape", "surrogatepass").decode()
        for character in problem
    )
    cut = re.sub(rf"\S{{{WORD_MAX},}}", lambda word: word[0][: WORD_MAX // 2] + "…", plain)
    return cut if len(cut) <= SENTENCE_MAX else cut[:SENTENCE_MAX] + "…"


def report(problems: list[str]) -> str:
    """All problems in one text."""
    if not problems:
        return "The inventory is in order."
    noun = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return f"{noun} in the inventory; nothing was changed:\n" + "\n".join(f"  - {problem}" for problem in problems)
