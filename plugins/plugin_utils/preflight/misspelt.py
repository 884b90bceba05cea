"""Tells whether a name is a misspelling of another one."""

from __future__ import annotations

import re

# Shorter names that differ in one letter are often two different names.
_SHORT = 5


def is_misspelt(name: str, meant: str) -> bool:
    """Whether a name is the intended one with one typing error, with hyphens instead of _ or in another case.

    A name with another beginning (haproxy) or another number (proxy2) is not a misspelling.
    """
    ours, theirs = _plain(name), _plain(meant)
    if name == meant or ours[:1] != theirs[:1] or _numbers(ours) != _numbers(theirs):
        return False
    return ours == theirs or is_one_slip(ours, theirs)


def is_mistyped(name: str, meant: str) -> bool:
    """Whether a name that an operator chose is the intended one with a letter missing, doubled or transposed.

    These are different names: gpu-a and gpu-b, gpu-blue and gpu-blues, qwen3-8b and qwen3-4b, and all short names.
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
    """Whether the texts differ by one letter that is missing, added or replaced, or by two transposed neighbours."""
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
    """The name in lower case, with one kind of hyphen, and with 1 instead of 01."""
    return re.sub(r"(?<![0-9])0+(?=[0-9])", "", name.lower().replace("-", "_"))


def _numbers(name: str) -> list[str]:
    return re.findall(r"[0-9]+", name)
