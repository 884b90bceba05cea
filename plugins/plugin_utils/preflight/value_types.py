"""The types of JSON, and how messages name them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, datetime
from typing import Any

TYPES: dict[str, tuple[tuple[type, ...], str]] = {
    "object": ((Mapping,), "a dictionary"),
    "array": ((list, tuple), "a list"),
    "string": ((str,), "a text"),
    # A text in an argument spec: numbers and dates can be used as texts, too.
    "text": ((str, int, float, date), "a text"),
    "integer": ((int,), "a whole number"),
    "number": ((int, float), "a number"),
    "boolean": ((bool,), "true or false"),
    "null": ((type(None),), "nothing"),
}
# The largest number in the rendered files: the proxy refuses larger ones.
MOST = 2**63 - 1


def has_type(value: Any, kind: str) -> bool:
    """Whether a value is of one of JSON's types."""
    if kind == "string" and isinstance(value, (date, datetime)):
        return True  # as YAML has them without quotes
    types, _ = TYPES[kind]
    # To Python a bool is an int.
    return isinstance(value, types) and (kind == "boolean") == isinstance(value, bool)


def type_in_words(value: Any) -> str:
    """A value's type in words, instead of a value that may hold secrets."""
    kinds = ("boolean", "object", "array", "integer", "number", "null", "text")
    return next((TYPES[kind][1] for kind in kinds if has_type(value, kind)), "a value of another kind")
