"""Parses an engine's error answers into ApiError."""

from typing import Any

import msgspec

from inference_proxy.api.errors import ApiError


def read_error(status: int, body: bytes) -> ApiError:
    """Parse an engine's error answer.

    Most of vLLM's errors have OpenAI's shape. Those of its guard, its router and FastAPI's validation do not:
    {"error": "Unauthorized"}, {"detail": "Not Found"}, {"detail": [{"loc": …, "msg": …}]}.
    """
    kind = "server_error" if status >= 500 else "invalid_request_error"
    message: Any = None
    param: Any = None
    code: Any = None
    try:
        document = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        document = None
    if isinstance(document, dict):
        error = document.get("error", document)
        if isinstance(error, dict):
            message = error.get("message", error.get("detail"))
            param, code = error.get("param"), error.get("code")
            kind = error["type"] if isinstance(error.get("type"), str) else kind
        else:
            message = error
    if isinstance(message, list):
        message = "; ".join(_detail(item) for item in message)
    if not isinstance(message, str) or not message:
        message = f"The engine answered {status}."
    return ApiError(
        status,
        None if code is None else str(code),
        message,
        kind=kind,
        param=None if param is None else str(param),
    )


def _detail(item: Any) -> str:
    if not isinstance(item, dict):
        return str(item)
    loc = item.get("loc")
    where = ".".join(str(part) for part in loc) if isinstance(loc, list) else ""
    return f"{where}: {item.get('msg')}"
