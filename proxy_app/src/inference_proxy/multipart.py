"""The small fields of a multipart form, found where they lie: a file beside them is not copied."""

import re

from .errors import ApiError

_BOUNDARY = re.compile(r"""multipart/form-data\s*;.*?boundary=("?)([^";,\s]{1,70})\1""", re.IGNORECASE)
_NAME = re.compile(rb'^content-disposition:\s*form-data\s*;[^\r\n]*?\bname="([^"\r\n]*)"', re.I | re.M)
_FILE = re.compile(rb"^content-disposition:[^\r\n]*\bfilename\*?=", re.I | re.M)
_HEAD_LIMIT = 8192
_PARTS_LIMIT = 100


class Form:
    """The text fields of a multipart/form-data body (RFC 7578). Raises ApiError 415, 400."""

    def __init__(self, content_type: str, body: bytes) -> None:
        match = _BOUNDARY.match(content_type)
        if match is None:
            raise ApiError(415, "unsupported_media_type", "Send this as multipart/form-data with a boundary.")
        self._body = body
        self._spans: dict[str, tuple[int, int]] = {}
        self._scan(b"--" + match[2].encode("latin-1"))

    def names(self) -> frozenset[str]:
        return frozenset(self._spans)

    def text(self, name: str) -> str | None:
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
        return b"".join((self._body[:start], value.encode(), self._body[end:]))

    def _scan(self, delimiter: bytes) -> None:
        body = self._body
        at = 0 if body.startswith(delimiter) else body.find(b"\r\n" + delimiter) + 2
        for _ in range(_PARTS_LIMIT):
            at += len(delimiter)
            if at <= len(delimiter) + 1 or body[at : at + 2] == b"--":
                break
            head_end = body.find(b"\r\n\r\n", at, at + _HEAD_LIMIT)
            end = body.find(b"\r\n" + delimiter, head_end + 2)
            if head_end < 0 or end < 0:
                break
            self._note(body[at:head_end], head_end + 4, end)
            at = end + 2
        if not (self._spans and body[at : at + 2] == b"--"):
            raise ApiError(400, "invalid_form", "The body is not a complete multipart/form-data form.")

    def _note(self, head: bytes, start: int, end: int) -> None:
        name = _NAME.search(head)
        if name is None or _FILE.search(head):
            return
        text = name[1].decode("utf-8", "replace")
        if text in self._spans:
            raise ApiError(400, "duplicate_field", f"The form has '{text[:64]}' twice.", param=text[:64])
        self._spans[text] = (start, end)
