"""Reads the whole body of a request, up to its limit."""

from starlette.types import Receive

from inference_proxy.api.errors import ApiError
from inference_proxy.http.server_protocol import ClientConnection


class ClientGone(Exception):
    """The client left before its request was complete: there is no one to answer."""


def body_at_once(connection: ClientConnection | None, limit: int) -> bytes | None:
    """The whole body if it arrived together with its head, otherwise None: use read_body().

    Raises ApiError 413 above `limit` bytes.
    """
    body = None if connection is None else connection.body()
    if body is not None and len(body) > limit:
        raise _too_large(limit)
    return body


async def read_body(receive: Receive, declared: bytes | None, limit: int) -> bytes:
    """The whole body, at most `limit` bytes. Raises ApiError 413, ClientGone.

    The declared length only serves to refuse early. What counts is what arrives, so a chunked upload meets
    the same limit.
    """
    if declared is not None and declared.isdigit() and int(declared) > limit:
        raise _too_large(limit)
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        part: bytes = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise _too_large(limit)
        parts.append(part)
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)


def _too_large(limit: int) -> ApiError:
    return ApiError(413, "body_too_large", f"The body is larger than the {limit} bytes that are allowed.")
