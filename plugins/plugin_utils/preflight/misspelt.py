"""Whether a name is another one, misspelt."""

from __future__ import annotations

import re

# Of fewer letters, names that differ in one are often two names.
_SHORT = 5


def is_misspelt(name: str, meant: str) -> bool:
    """Whether a name is the meant one with one slip of the hand, with hyphens for _ or in another case.

    Names that begin unlike (haproxy) or are numbered unlike (proxy2) are names of their own.
    """
    ours, theirs = _plain(name), _plain(meant)
    if name == meant or ours[:1] != theirs[:1] or _numbers(ours) != _numbers(theirs):
        return False
    return ours == theirs or is_one_slip(ours, theirs)


def is_mistyped(name: str, meant: str) -> bool:
    """Whether a name that an operator chose is the meant one with a letter missing, doubled or transposed.

    gpu-a and gpu-b, gpu-blue and gpu-blues, or qwen3-8b and qwen3-4b are two names; so are short ones.
    """
    if not is_misspelt(name, meant):
        return False
    ours, theirs = _plain(name), _plain(meant)
    if ours == theirs:
        return True
    if len(re.findall(r"[a-z]", theirs)) < _SHORT:
        return False
    at = _first_difference(ours, theirs)
    if len(ours) > len(theirs):
        return ours[at] == ours[at - 1]
    return len(ours) < len(theirs) or sorted(ours) == sorted(theirs)


def is_one_slip(name: str, meant: str) -> bool:
    """Whether one letter is missing, added or another, or two neighbours are transposed."""
    at = _first_difference(name, meant)
    ours, theirs = name[at:], meant[at:]
    return name != meant and (
        ours[1:] == theirs[1:]
        or ours[1:] == theirs
        or ours == theirs[1:]
        or (ours[:2] == theirs[:2][::-1] and ours[2:] == theirs[2:])
    )


def _first_difference(name: str, other: str) -> int:
    pairs = enumerate(zip(name, other, strict=False))
    return next((at for at, (ours, theirs) in pairs if ours != theirs), min(len(name), len(other)))


def _plain(name: str) -> str:
    """In one case, with one kind of hyphen, and with numbers such as 01 as 1."""
    return re.sub(r"(?<![0-9])0+(?=[0-9])", "", name.lower().replace("-", "_"))


def _numbers(name: str) -> list[str]:
    return re.findall(r"[0-9]+", name)
