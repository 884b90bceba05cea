"""How messages show names and values: shortened, and never a secret."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import date
from typing import Any

from .value_types import MOST, type_in_words

# Values under these names are never shown. Neither is an option's name that does not look like one: it may be a key
# that stands where its name should be.
_SECRET = re.compile(r"(^|_)(key|password|secret|token|sha256)$", re.IGNORECASE)
# In this variable, any text may be a key in the wrong place.
_KEYS = "proxy_keys"
_LONGEST_SHOWN = 60
# Texts of this length may be keys. The few names that are as long are found by their beginning.
_SECRET_LENGTH = 16
_MOMENT = re.compile(r"\d{4}-\d\d-\d\d")
_HUGE = "a number of more than 64 bits"


def may_be_secret(text: str) -> bool:
    """Whether a text in the variable of keys may be a key."""
    return len(text) >= _SECRET_LENGTH or text.startswith("sk-")


def quoted(text: str, among_keys: bool = True) -> str:
    """A text as messages show it: shortened, and only the beginning of what may be a key."""
    if among_keys and may_be_secret(text):
        return repr(text[: min(4, len(text) // 4)] + "…")
    return repr(text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + "…")


def as_text(value: Any) -> str:
    """A value as a text."""
    try:
        return str(value)
    except ValueError:
        return _HUGE  # Python refuses to write out a number of some thousand digits


def is_among_keys(where: str) -> bool:
    """Whether a path leads into the variable of keys."""
    return where.startswith(_KEYS)


def shown_name(where: str, name: Any) -> str:
    """A name as a part of a path."""
    text = as_text(name)
    if (is_among_keys(where) and may_be_secret(text)) or len(text) > _LONGEST_SHOWN:
        return quoted(text, is_among_keys(where))
    return text


def shown(where: str, value: Any, schema: Mapping[str, Any] | None = None) -> str:
    """A value as messages show it; its type instead, if it may hold a secret."""
    schema = schema or {}
    if isinstance(value, (Mapping, list, tuple)):
        return type_in_words(value)
    if value is None:
        return "empty"
    if schema.get("x-hidden"):
        return type_in_words(value)
    if _SECRET.search(where.rpartition(".")[2]):
        return "a value of another kind"
    if isinstance(value, int) and abs(value) > MOST:
        return _HUGE
    if is_among_keys(where) and not isinstance(value, (str, date)) and may_be_secret(str(value)):
        return f"a number of {len(str(value))} digits"
    if isinstance(value, date) or (isinstance(value, str) and _MOMENT.match(value)):
        return quoted(str(value), among_keys=False)
    if isinstance(value, str):
        is_address = schema.get("x-address") or "://" in value
        return quoted(_host_only(value) if is_address else value, is_among_keys(where))
    return repr(value)


def _host_only(address: str) -> str:
    """A URL without its credentials, path and query, any of which may hold a token."""
    scheme, slashes, rest = address.rpartition("://")
    if "@" in rest:
        return f"{scheme}{slashes}***"
    host = re.split(r"[/?#\s]", rest, maxsplit=1)[0]
    return f"{scheme}{slashes}{host}" + ("/…" if len(host) < len(rest) else "")
