"""Reads the small text fields of a multipart form in place: a file beside them is not copied.

It uses python-multipart, as vLLM's server (Starlette) does, so an engine cannot find another `model` in a
form than the one that was checked here. Where Starlette would decide by itself (a duplicate field, a
charset), a form is refused if the proxy acts on that field.
"""

import logging
import re
from typing import NamedTuple

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from inference_proxy.api.errors import ApiError

_ACTED_ON = frozenset({"model", "stream"})
_CHARSETS = frozenset({b"utf-8", b"utf8", b"us-ascii"})
_PARTS_LIMIT = 100
_PADDING = re.compile(rb"[ \t]{1,64}")

# python-multipart logs a warning for each form that it refuses; the access log already has them.
logging.getLogger("python_multipart").setLevel(logging.ERROR)


class _Field(NamedTuple):
    """Where a value is in the body. `text` is None for a file."""

    start: int
    end: int
    text: bytes | None


class Form:
    """The text fields of a multipart/form-data body. Raises ApiError 415 or 400.

    `body` is what an engine gets: the client's bytes, except that blanks after the first boundary are
    removed, which RFC 2046 allows and the parser refuses.
    """

    def __init__(self, content_type: str, body: bytes) -> None:
        boundary = _boundary(content_type)
        self.body = _without_padding(body, b"--" + boundary)
        self._fields: dict[str, _Field] = {}
        for name, field in _Reader(boundary, self.body).read():
            if name in self._fields and name in _ACTED_ON:
                raise ApiError(400, "duplicate_field", f"The form has '{name}' twice.", param=name)
            self._fields[name] = field

    def names(self) -> frozenset[str]:
        return frozenset(self._fields)

    def text(self, name: str) -> str | None:
        """A field's value, or None if there is no such field. Raises ApiError 400."""
        field = self._fields.get(name)
        if field is None or field.text is None:
            return None
        try:
            return field.text.decode()
        except UnicodeDecodeError as error:
            raise ApiError(400, "invalid_type", f"'{name}' must be UTF-8 text.", param=name) from error

    def flag(self, name: str) -> bool:
        value = (self.text(name) or "").lower()
        if value not in ("", "true", "false", "1", "0"):
            raise ApiError(400, "invalid_type", f"'{name}' must be true or false.", param=name)
        return value in ("true", "1")

    def replaced(self, name: str, value: str) -> bytes:
        """The body with another value in an existing field."""
        start, end, _ = self._fields[name]
        whole = memoryview(self.body)
        return b"".join((whole[:start], value.encode(), whole[end:]))


class _Reader:
    """Reads one body. The parser calls back with positions in it."""

    def __init__(self, boundary: bytes, body: bytes) -> None:
        self._body = body
        self._boundary = boundary
        self._found: list[tuple[str, _Field]] = []
        self._complete = False

    def _parser(self) -> MultipartParser:
        return MultipartParser(
            self._boundary,
            {
                "on_part_begin": self._begin_part,
                "on_header_field": self._header_name,
                "on_header_value": self._header_value,
                "on_header_end": self._end_header,
                "on_part_data": self._data,
                "on_part_end": self._end_part,
                "on_end": self._end,
            },
        )

    def read(self) -> list[tuple[str, _Field]]:
        """Each part's name and value, in order. Raises ApiError 400."""
        try:
            # Creating the parser may fail, too: it checks the boundary.
            parser = self._parser()
            parser.write(self._body)
            parser.finalize()
        except FormParserError as error:
            raise _broken(str(error)) from error
        if not self._complete or not self._found:
            raise _broken("it has no part, or no last boundary")
        return self._found

    def _begin_part(self) -> None:
        if len(self._found) == _PARTS_LIMIT:
            raise _broken(f"it has more than {_PARTS_LIMIT} parts")
        self._disposition = b""
        self._name = self._value = b""
        self._start = self._end_at = -1

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        if self._name.lower() == b"content-disposition":
            self._disposition = self._value
        self._name = self._value = b""

    def _data(self, data: bytes, start: int, end: int) -> None:
        # For a body passed in one piece, the parser reports a part's data in one piece or in several adjacent
        # ones.
        if self._start < 0:
            self._start = start
        self._end_at = end

    def _end_part(self) -> None:
        _, options = parse_options_header(self._disposition)
        raw = options.get(b"name")
        if raw is None or not _is_clear(self._disposition, raw):
            raise _broken("a part has no name, or an unclear one, in its Content-Disposition")
        if self._start < 0:
            # The part is empty, so its position does not matter.
            self._start = self._end_at = 0
        is_file = b"filename" in options
        text = None if is_file else self._body[self._start : self._end_at]
        name = raw.decode("utf-8", "replace")
        self._found.append((name, _Field(self._start, self._end_at, text)))

    def _end(self) -> None:
        self._complete = True


def _boundary(content_type: str) -> bytes:
    kind, options = parse_options_header(content_type.encode("latin-1"))
    boundary = options.get(b"boundary")
    if kind.lower() != b"multipart/form-data" or not boundary:
        raise ApiError(415, "unsupported_media_type", "Send this as multipart/form-data with a boundary.")
    if options.get(b"charset", b"utf-8").lower() not in _CHARSETS:
        raise ApiError(415, "unsupported_media_type", "Send the form in UTF-8: its charset is another one.")
    return boundary


def _is_clear(disposition: bytes, name: bytes) -> bool:
    """Whether all parsers agree on the name, whether or not they treat a backslash as an escape."""
    if b"\\" not in disposition:
        return True
    return parse_options_header(disposition.replace(b"\\", b"_"))[1].get(b"name") == name


def _without_padding(body: bytes, delimiter: bytes) -> bytes:
    padding = _PADDING.match(body, len(delimiter))
    if padding is None or not body.startswith(delimiter):
        return body
    return b"".join((delimiter, memoryview(body)[padding.end() :]))


def _broken(why: str) -> ApiError:
    return ApiError(400, "invalid_form", f"The body is not a complete multipart/form-data form: {why}.")
