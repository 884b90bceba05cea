"""The small fields of a multipart form, found where they lie: a file beside them is not copied.

Strict on purpose. What parsers read differently (RFC 7578 leaves much open) is refused, so that an engine
cannot find another `model` in a form than the one that was checked here.
"""

import re

from .errors import ApiError

_BOUNDARY = re.compile(
    r"""multipart/form-data\s*;\s*boundary=("?)([A-Za-z0-9'()+_,./:=?-]{1,70})\1""", re.IGNORECASE
)
_DISPOSITION = re.compile(
    rb'content-disposition:[ \t]*form-data;[ \t]*name="([\w.\[\]-]{1,64})"'
    rb'(;[ \t]*filename="[^"\r\n]*"(?:;[ \t]*filename\*=[^;"\r\n]*)?)?',
    re.IGNORECASE | re.ASCII,
)
_OTHER_HEADER = re.compile(rb"(?!content-disposition)[a-z-]+:[^\r\n]*", re.IGNORECASE)
_HEAD_LIMIT_BYTES = 8192
_PARTS_LIMIT = 100


class Form:
    """The text fields of a multipart/form-data body. Raises ApiError 415, 400."""

    def __init__(self, content_type: str, body: bytes) -> None:
        match = _BOUNDARY.fullmatch(content_type)
        if match is None:
            raise ApiError(415, "unsupported_media_type", "Send this as multipart/form-data with a boundary.")
        self._body = body
        self._spans: dict[str, tuple[int, int]] = {}
        self._files: set[str] = set()
        self._scan(b"--" + match[2].encode())

    def names(self) -> frozenset[str]:
        return frozenset(self._spans) | self._files

    def text(self, name: str) -> str | None:
        """A field's value; None where there is none. Raises ApiError 400."""
        if (span := self._spans.get(name)) is None:
            return None
        try:
            return self._body[slice(*span)].decode()
        except UnicodeDecodeError as error:
            raise ApiError(400, "invalid_type", f"'{name}' must be UTF-8 text.", param=name) from error

    def flag(self, name: str) -> bool:
        value = (self.text(name) or "").lower()
        if value not in ("", "true", "false", "1", "0"):
            raise ApiError(400, "invalid_type", f"'{name}' must be true or false.", param=name)
        return value in ("true", "1")

    def replaced(self, name: str, value: str) -> bytes:
        """The body with another value in a field that it has."""
        start, end = self._spans[name]
        whole = memoryview(self._body)
        return b"".join((whole[:start], value.encode(), whole[end:]))

    def _scan(self, delimiter: bytes) -> None:
        body, at = self._body, 0
        if not body.startswith(delimiter + b"\r\n"):
            raise _broken()
        for _ in range(_PARTS_LIMIT):
            head = at + len(delimiter) + 2
            head_end = body.find(b"\r\n\r\n", head, head + _HEAD_LIMIT_BYTES)
            end = body.find(b"\r\n" + delimiter, head_end + 2)
            if head_end < 0 or end < 0:
                raise _broken()
            self._note(body[head:head_end], head_end + 4, end)
            at = end + 2
            after = body[at + len(delimiter) : at + len(delimiter) + 2]
            if after == b"--":
                return
            if after != b"\r\n":
                raise _broken()
        raise _broken()

    def _note(self, head: bytes, start: int, end: int) -> None:
        lines = head.split(b"\r\n")
        dispositions = [match for line in lines if (match := _DISPOSITION.fullmatch(line))]
        others = [line for line in lines if _OTHER_HEADER.fullmatch(line)]
        if len(dispositions) != 1 or len(others) != len(lines) - 1:
            raise _broken()
        name = dispositions[0][1].decode()
        if name in self.names():
            raise ApiError(400, "duplicate_field", f"The form has '{name}' twice.", param=name)
        if dispositions[0][2]:
            self._files.add(name)
        else:
            self._spans[name] = (start, end)


def _broken() -> ApiError:
    return ApiError(400, "invalid_form", "The body is not a multipart/form-data form, or not a complete one.")
