"""Whether a name is another one, misspelt."""

from __future__ import annotations

import re


def is_misspelt(name: str, meant: str) -> bool:
    """Whether a name is the meant one with one slip of the hand, with hyphens for _ or in another case.

    Names that begin unlike (haproxy) or are numbered unlike (proxy2) are names of their own.
    """
    ours, theirs = _plain(name), _plain(meant)
    if name == meant or ours[:1] != theirs[:1] or _numbers(ours) != _numbers(theirs):
        return False
    return ours == theirs or is_one_slip(ours, theirs)


def is_one_slip(name: str, meant: str) -> bool:
    """Whether one letter is missing, added or another, or two neighbours are transposed."""
    begin = 0
    while begin < min(len(name), len(meant)) and name[begin] == meant[begin]:
        begin += 1
    ours, theirs = name[begin:], meant[begin:]
    return name != meant and (
        ours[1:] == theirs[1:]
        or ours[1:] == theirs
        or ours == theirs[1:]
        or (ours[:2] == theirs[:2][::-1] and ours[2:] == theirs[2:])
    )


def _plain(name: str) -> str:
    return name.lower().replace("-", "_")


def _numbers(name: str) -> list[str]:
    return re.findall(r"[0-9]+", name)
