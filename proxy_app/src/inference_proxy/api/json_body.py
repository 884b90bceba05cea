"""Splits a JSON object into its fields: in their order, each value still the bytes that the client sent."""

import re
from collections.abc import Collection, Mapping
from itertools import accumulate
from typing import Any

import msgspec

from inference_proxy.api.errors import ApiError


class _Name(str):
    """A field's name. A type of our own makes msgspec pass each name to `dec_hook`."""

    __slots__ = ()


class _TooManyError(Exception):
    """The object has more fields than any supported API."""


class _Names:
    """Counts the names of one object, as a decoder's `dec_hook`."""

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, _: type, name: str) -> _Name:
        self.seen += 1
        if self.seen > _MOST_FIELDS:
            raise _TooManyError
        return _Name(name)


_split_list = msgspec.json.Decoder(list[msgspec.Raw]).decode
_split_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.encode

# No supported API comes near this, and an engine's own parser gives up at several hundred.
_DEPTH = 64
NESTING = (b"[", b"{")
# Above this many parts they are not checked one by one: creating their objects would delay all streams.
_MOST_PARTS = 50_000
_NO_STRUCTURE = bytes(set(range(256)) - set(b'[]{}"'))
_ONE_KIND = bytes.maketrans(b"{}", b"[]")
# One step up per opening bracket and one down per closing one, as signed bytes.
_AS_STEPS = bytes.maketrans(b"[]", b"\x01\xff")
# How many levels are removed from the whole value at once, before the rest is checked bracket by bracket.
_AT_ONCE = 3

# The position in msgspec's error message, and a possible cause there: the escape of one half of a surrogate
# pair without the other half.
_PLACE = re.compile(r"\(byte (\d{1,19})\)")
_HALF_PAIR = re.compile(
    rb"(?<!\\)(?:\\\\)*(\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F][0-9a-fA-F]{2})"
    rb"|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F][0-9a-fA-F]{2})"
)
_AROUND_BYTES = 24

# No supported API has a tenth of this.
_MOST_FIELDS = 1000
# `"":0,`: no field is shorter.
_SHORTEST_FIELD = 5

JsonFields = Mapping[str, msgspec.Raw]


def parse(body: bytes) -> JsonFields:
    """The object's fields. Values are checked to be valid JSON but not decoded. Raises ApiError 400.

    A duplicate name is refused: parsers differ in which of the two counts, so the proxy and an engine could
    read different requests.
    """
    has_room_for_many = body.count(b":") > _MOST_FIELDS
    try:
        if has_room_for_many:
            # With this many fields, creating their objects would delay all streams, so count them first.
            _check_names(body)
        fields = _split_object(body)
    except _TooManyError as error:
        message = f"The body has more than {_MOST_FIELDS} fields."
        raise ApiError(400, "too_many_fields", message) from error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        message = f"The body is not a JSON object: {_reason(body, str(error))}."
        raise ApiError(400, "invalid_json", message) from error
    if not has_room_for_many and _may_repeat(body, fields):
        _check_names(body)
    if _brackets(body, _DEPTH) <= _DEPTH:
        return fields
    for name, value in fields.items():
        if memoryview(value)[:1] in NESTING and _is_deeper(bytes(value), _DEPTH - 1):
            message = f"'{name[:64]}' nests more than {_DEPTH} levels deep."
            raise ApiError(400, "too_deep", message, param=name[:64])
    return fields


def _check_names(body: bytes) -> None:
    """Refuse a body with duplicate names or too many of them."""
    names = _Names()
    fields = msgspec.json.decode(body, type=dict[_Name, msgspec.Raw], dec_hook=names)
    if len(fields) != names.seen:
        raise ApiError(400, "duplicate_field", "The body names a field twice.")


def _reason(body: bytes, error: str) -> str:
    """msgspec's own words, except for half of a surrogate pair, which msgspec reports as a truncated body."""
    place = _PLACE.search(error)
    at = min(int(place[1]) if place else len(body), len(body))
    begin = max(at - _AROUND_BYTES, 0)
    half = _HALF_PAIR.search(body[begin : at + _AROUND_BYTES])
    if half is None:
        return error
    return (
        f"{half[1].decode()} at byte {begin + half.start(1)} is one half of a surrogate pair, which is no "
        "character. A text was cut in the middle of one, such as an emoji"
    )


def _may_repeat(body: bytes, fields: JsonFields) -> bool:
    """Whether the body is long enough to contain more than these fields.

    Clients' bodies hardly ever are, and then the names need not be counted one by one. No spelling of the
    fields is shorter than ours.
    """
    return len(body) - len(_encode(fields)) >= _SHORTEST_FIELD


def rewrite(body: bytes, fields: JsonFields, changes: Mapping[str, Any], dropped: Collection[str]) -> bytes:
    """`body` with `changes` (values to encode) and without `dropped`; the same object if there are none.

    The other fields keep their order and their bytes. If fields are only added, the body is not split.
    """
    if not changes and not dropped:
        return body
    if not dropped and fields and not changes.keys() & fields.keys():
        inside = body.index(b"{") + 1
        return b"".join((body[:inside], _encode(changes)[1:-1], b",", memoryview(body)[inside:]))
    kept = {name: value for name, value in fields.items() if name not in dropped}
    return _encode(kept | dict(changes))


def _is_deeper(value: bytes, levels: int) -> bool:
    """Whether valid JSON, an array or an object, is nested more than `levels` deep.

    Nearly free if the value has too few brackets for that. A long conversation has many: its messages are
    checked one by one, because counting depth by brackets costs ten times as much as splitting.
    """
    if _brackets(value, levels) <= levels:
        return False
    if value.count(b",") > _MOST_PARTS:
        return _depth(value) > levels
    parts = _split_list(value) if value[:1] == b"[" else _split_object(value).values()
    return any(
        memoryview(part)[:1] in NESTING
        and _brackets(text := bytes(part), levels - 1) >= levels
        and _depth(text) >= levels
        for part in parts
    )


def _brackets(value: bytes, enough: int) -> int:
    """How many brackets are opened; the count may stop above `enough`.

    Uses find(), which compares many bytes at a time; count() and split() compare one by one.
    """
    opened = 0
    for bracket in NESTING:
        at = value.find(bracket)
        while at >= 0 and opened <= enough:
            opened += 1
            at = value.find(bracket, at + 1)
    return opened


def _depth(value: bytes) -> int:
    """How deep valid JSON, an array or an object, is nested."""
    if b"\\" in value:
        value = value.replace(b"\\\\", b"").replace(b'\\"', b"")
    # Remove strings: those without brackets are adjacent quotes by now, the others lie between every second
    # quote.
    structure = value.translate(_ONE_KIND, _NO_STRUCTURE).replace(b'""', b"")
    structure = b"".join(structure.split(b'"')[::2])
    for level in range(_AT_ONCE):
        if not structure:
            return level
        # Remove empty brackets, which are the innermost level.
        structure = structure.replace(b"[]", b"")
    return _AT_ONCE + max(accumulate(memoryview(structure.translate(_AS_STEPS)).cast("b")), default=0)
