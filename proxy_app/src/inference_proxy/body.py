"""A JSON object as it came: its fields in their order, each still the bytes that the client wrote."""

from collections.abc import Collection, Mapping
from typing import Any

import msgspec

from .errors import ApiError


class _Name(str):
    """A key of a JSON object. A type of our own, so that the decoder tells of each that it meets."""

    __slots__ = ()


class _Names:
    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, _: type, name: str) -> _Name:
        self.seen += 1
        return _Name(name)


_names = _Names()
_decode = msgspec.json.Decoder(dict[_Name, msgspec.Raw], dec_hook=_names).decode
_encode = msgspec.json.encode

Fields = Mapping[Any, msgspec.Raw]  # by name, a str


def parse(body: bytes) -> Fields:
    """The fields of the object; values are checked to be JSON, not built. Raises ApiError 400.

    A name that is there twice is refused: which of the two counts differs from parser to parser, so that the
    proxy and an engine could read different requests.
    """
    _names.seen = 0
    try:
        fields = _decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError(400, "invalid_json", f"The body is not a JSON object: {error}.") from error
    if len(fields) != _names.seen:
        raise ApiError(400, "duplicate_field", "The body names a field twice.")
    return fields


def rewrite(body: bytes, fields: Fields, changes: Mapping[str, Any], dropped: Collection[str]) -> bytes:
    """`body` with `changes` (values to encode) and without `dropped`; the same object when there are none.

    Fields keep their order and their bytes. Where fields are only added, the body is not taken apart.
    """
    if not changes and not dropped:
        return body
    if not dropped and fields and not changes.keys() & fields.keys():
        head, _, tail = body.partition(b"{")
        return head + _encode(changes)[:-1] + b"," + tail
    kept = {name: value for name, value in fields.items() if name not in dropped}
    return _encode(kept | dict(changes))
