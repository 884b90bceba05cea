"""A JSON object as it came: its fields in their order, each still the bytes that the client wrote."""

import re
from collections.abc import Collection, Mapping
from itertools import accumulate
from typing import Any

import msgspec

from inference_proxy.api.errors import ApiError


class _Name(str):
    """A field's name. Of a type of our own, so that msgspec hands over each that it meets."""

    __slots__ = ()


class _TooManyError(Exception):
    """No API has as many fields."""


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

# No API that is spoken here comes near it, and an engine's own parser gives up at several hundred.
_DEPTH = 64
NESTING = (b"[", b"{")
# More parts than this are not looked at one by one: their objects would hold up everybody's streams.
_MOST_PARTS = 50_000
_NO_STRUCTURE = bytes(set(range(256)) - set(b'[]{}"'))
_ONE_KIND = bytes.maketrans(b"{}", b"[]")
# Up and down, as signed bytes.
_AS_STEPS = bytes.maketrans(b"[]", b"\x01\xff")
# Levels that are taken away for all of a value together, before the rest is gone through bracket by bracket.
_AT_ONCE = 3

# Where msgspec found a fault, and what it may have found there: an escape for the first half of a character
# without the second, or the second without the first.
_PLACE = re.compile(r"\(byte (\d{1,19})\)")
_HALF_PAIR = re.compile(
    rb"(?<!\\)(?:\\\\)*(\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F][0-9a-fA-F]{2})"
    rb"|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F][0-9a-fA-F]{2})"
)
_AROUND_BYTES = 24

# No API that is spoken here has a tenth of it.
_MOST_FIELDS = 1000
# `"":0,`: no field takes less.
_SHORTEST_FIELD = 5

JsonFields = Mapping[str, msgspec.Raw]


def parse(body: bytes) -> JsonFields:
    """The fields of the object; values are checked to be JSON, not built. Raises ApiError 400.

    A name that is there twice is refused: which of the two counts differs from parser to parser, so that the
    proxy and an engine could read different requests.
    """
    has_room_for_many = body.count(b":") > _MOST_FIELDS
    try:
        if has_room_for_many:
            # For so many fields that their objects would hold up everybody's streams: counted first.
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
    """One by one: that none is there twice, nor too many of them."""
    names = _Names()
    fields = msgspec.json.decode(body, type=dict[_Name, msgspec.Raw], dec_hook=names)
    if len(fields) != names.seen:
        raise ApiError(400, "duplicate_field", "The body names a field twice.")


def _reason(body: bytes, error: str) -> str:
    """msgspec's own words, but for half of a surrogate pair, of which it says that the body was truncated."""
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
    """Whether the body has room for more than these fields: what clients write has hardly any, and then the
    names need not be counted one by one. No spelling of the fields is shorter than ours."""
    return len(body) - len(_encode(fields)) >= _SHORTEST_FIELD


def rewrite(body: bytes, fields: JsonFields, changes: Mapping[str, Any], dropped: Collection[str]) -> bytes:
    """`body` with `changes` (values to encode) and without `dropped`; the same object when there are none.

    JsonFields keep their order and their bytes. Where fields are only added, the body is not taken apart.
    """
    if not changes and not dropped:
        return body
    if not dropped and fields and not changes.keys() & fields.keys():
        inside = body.index(b"{") + 1
        return b"".join((body[:inside], _encode(changes)[1:-1], b",", memoryview(body)[inside:]))
    kept = {name: value for name, value in fields.items() if name not in dropped}
    return _encode(kept | dict(changes))


def _is_deeper(value: bytes, levels: int) -> bool:
    """Whether valid JSON, an array or an object, nests more than `levels` deep.

    Nearly free where it cannot, for want of brackets. A long conversation has many: its messages are looked
    at one by one, since reading brackets costs ten times what splitting does.
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
    """How many are opened; not all are counted where they are more than `enough`.

    By find(), which looks at many bytes at a time; count() and split() look at one by one.
    """
    opened = 0
    for bracket in NESTING:
        at = value.find(bracket)
        while at >= 0 and opened <= enough:
            opened += 1
            at = value.find(bracket, at + 1)
    return opened


def _depth(value: bytes) -> int:
    """Levels of valid JSON that is an array or an object."""
    if b"\\" in value:
        value = value.replace(b"\\\\", b"").replace(b'\\"', b"")
    # Strings without brackets go at once: of two neighbours, the quotes between them.
    structure = value.translate(_ONE_KIND, _NO_STRUCTURE).replace(b'""', b"")
    structure = b"".join(structure.split(b'"')[::2])
    for level in range(_AT_ONCE):
        if not structure:
            return level
        # All that holds nothing, which is the innermost level.
        structure = structure.replace(b"[]", b"")
    return _AT_ONCE + max(accumulate(memoryview(structure.translate(_AS_STEPS)).cast("b")), default=0)
