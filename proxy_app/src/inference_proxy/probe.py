"""Does an engine work? One token tells, or one vector."""

import asyncio

import msgspec

from .fleet import Engine
from .upstream import EngineLost, Upstream

_ANSWER_LIMIT = 1024 * 1024
_QUESTIONS: dict[str, dict[str, object]] = {
    "completions": {"prompt": "1", "max_tokens": 1, "temperature": 0},
    "embeddings": {"input": "1"},
}


class _Vector(msgspec.Struct):
    embedding: list[float]


class _Usage(msgspec.Struct):
    completion_tokens: int


class _Vectors(msgspec.Struct):
    data: list[_Vector]


class _Completion(msgspec.Struct):
    choices: list[dict[str, object]]
    usage: _Usage


async def probe(upstream: Upstream, engine: Engine, timeout_s: float) -> str | None:
    """Ask for a real answer of one token, on the way that clients' requests take. Returns what is wrong with
    it; None: nothing. An engine that says it is full (503) is not wrong."""
    body = msgspec.json.encode(_QUESTIONS[engine.probe] | {"model": min(engine.models)})
    try:
        async with asyncio.timeout(timeout_s):
            status, document = await _ask(upstream, engine, body, timeout_s)
    except TimeoutError:
        return f"no token within {timeout_s:g} s"
    except EngineLost as error:
        return f"probe failed: {error}"
    if status == 503:
        return None
    if status != 200:
        return f"its answer to a probe was {status}"
    return _flaw(engine, document)


async def _ask(upstream: Upstream, engine: Engine, body: bytes, timeout_s: float) -> tuple[int, bytes]:
    headers = {"content-type": "application/json"}
    path = f"/v1/{engine.probe}"
    answer = await upstream.request(engine, "POST", path, headers, body, connect_s=timeout_s)
    try:
        document = bytearray()
        while piece := await answer.read():
            document += piece
            if len(document) > _ANSWER_LIMIT:
                raise EngineLost(f"more than {_ANSWER_LIMIT} bytes for one token")
        return answer.status, bytes(document)
    finally:
        answer.close()


def _flaw(engine: Engine, document: bytes) -> str | None:
    try:
        if engine.probe == "embeddings":
            made = any(vector.embedding for vector in msgspec.json.decode(document, type=_Vectors).data)
        else:
            completion = msgspec.json.decode(document, type=_Completion)
            made = bool(completion.choices) and completion.usage.completion_tokens > 0
    except msgspec.MsgspecError as error:
        return f"its answer to a probe makes no sense: {error}"
    return None if made else "its answer to a probe holds nothing"
