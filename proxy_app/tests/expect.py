"""What every error answer must look like."""

from typing import Any

import aiohttp


async def expect_error(
    response: aiohttp.ClientResponse, status: int, code: str | None, param: str | None = None
) -> dict[str, Any]:
    body = await response.json()
    assert response.status == status, body
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    assert list(body) == ["error"]
    error: dict[str, Any] = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert error["message"]
    assert (error["code"], error["param"]) == (code, param), error
    return error
