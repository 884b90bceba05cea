"""Errors by which a request ends. dialects.py has the shapes in which clients get them."""

from collections.abc import Sequence

import msgspec
from starlette.types import Send

from inference_proxy.http.message import Header


class ApiError(Exception):
    """A request ends here, with this answer.

    `code` is for programs and is also the request's `outcome` in the access log (None: an engine gave none);
    `message` is for people and never holds a prompt or a key; `param` names the field of the request.
    """

    def __init__(
        self,
        status: int,
        code: str | None,
        message: str,
        *,
        kind: str | None = None,
        param: str | None = None,
        headers: Sequence[Header] = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.kind = kind or ("server_error" if status >= 500 else "invalid_request_error")
        self.param = param
        self.headers = tuple(headers)


class Unavailable(ApiError):
    """503: our capacity, not the caller's fault; worth another try after `retry_after_s` seconds."""

    def __init__(self, code: str, message: str, *, retry_after_s: int) -> None:
        super().__init__(503, code, message, headers=[(b"retry-after", str(retry_after_s).encode())])


def error_body(message: str, kind: str, param: str | None, code: str | None) -> bytes:
    return msgspec.json.encode({"error": {"message": message, "type": kind, "param": param, "code": code}})


async def send_json(send: Send, status: int, body: bytes, headers: Sequence[Header] = ()) -> None:
    start = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *headers]
    await send({"type": "http.response.start", "status": status, "headers": start})
    await send({"type": "http.response.body", "body": body})
