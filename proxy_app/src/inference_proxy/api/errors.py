"""Errors that end a request. dialects.py renders them for clients."""

from collections.abc import Sequence

import msgspec
from starlette.types import Send

from inference_proxy.http.message import Header


class ApiError(Exception):
    """Ends a request with this error answer.

    `code` is for programs and is also the request's `outcome` in the access log (None if an engine gave
    none). `message` is for people and never contains a prompt or a key. `param` names the request's field.
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
    """503: a lack of capacity, not the caller's fault. Worth a retry after `retry_after_s` seconds."""

    def __init__(self, code: str, message: str, *, retry_after_s: int) -> None:
        super().__init__(503, code, message, headers=[(b"retry-after", str(retry_after_s).encode())])


def error_body(message: str, kind: str, param: str | None, code: str | None) -> bytes:
    return msgspec.json.encode({"error": {"message": message, "type": kind, "param": param, "code": code}})


async def send_json(send: Send, status: int, body: bytes, headers: Sequence[Header] = ()) -> None:
    start = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *headers]
    await send({"type": "http.response.start", "status": status, "headers": start})
    await send({"type": "http.response.body", "body": body})
