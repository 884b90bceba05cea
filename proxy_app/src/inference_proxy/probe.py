"""Does an engine work? The least that it can do tells: one token, one vector, one rank, one silent word."""

import asyncio
import io
import wave
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from .engine_answer import EngineLost
from .engine_client import EngineClient
from .fleet import Engine

_ANSWER_LIMIT = 1024 * 1024
_BOUNDARY = "inference-proxy-probe"


class _Vector(msgspec.Struct):
    embedding: list[float]


class _Vectors(msgspec.Struct):
    data: list[_Vector]


class _Usage(msgspec.Struct):
    completion_tokens: int


class _Completion(msgspec.Struct):
    choices: list[dict[str, object]]
    usage: _Usage


class _Rank(msgspec.Struct):
    relevance_score: float


class _Ranking(msgspec.Struct):
    results: list[_Rank]


class _Transcript(msgspec.Struct):
    text: str


class _Probe(NamedTuple):
    """What is asked, given the model: content type and body; and what an answer has to look like and hold."""

    path: str
    ask: Callable[[str], tuple[str, bytes]]
    answer: type[msgspec.Struct]
    made: Callable[[Any], bool]


def _json(**fields: object) -> Callable[[str], tuple[str, bytes]]:
    return lambda model: ("application/json", msgspec.json.encode({**fields, "model": model}))


def _silence(model: str) -> tuple[str, bytes]:
    """A form with a tenth of a second in which nobody speaks."""
    sound = io.BytesIO()
    with wave.open(sound, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(bytes(2 * 1600))
    field = f'--{_BOUNDARY}\r\ncontent-disposition: form-data; name="'
    begin = f'{field}model"\r\n\r\n{model}\r\n{field}file"; filename="silence.wav"\r\n'
    begin += "content-type: audio/wav\r\n\r\n"
    body = begin.encode() + sound.getvalue() + f"\r\n--{_BOUNDARY}--\r\n".encode()
    return f"multipart/form-data; boundary={_BOUNDARY}", body


_PROBES = {
    "completions": _Probe(
        "/v1/completions",
        _json(prompt="1", max_tokens=1, temperature=0),
        _Completion,
        lambda answer: bool(answer.choices) and answer.usage.completion_tokens > 0,
    ),
    "embeddings": _Probe(
        "/v1/embeddings",
        _json(input="1"),
        _Vectors,
        lambda answer: any(vector.embedding for vector in answer.data),
    ),
    "rerank": _Probe(
        "/v1/rerank", _json(query="1", documents=["1"]), _Ranking, lambda answer: bool(answer.results)
    ),
    # Silence has no words, so any text will do.
    "transcriptions": _Probe("/v1/audio/transcriptions", _silence, _Transcript, lambda _: True),
}


async def probe(client: EngineClient, engine: Engine, timeout_s: float) -> str | None:
    """Ask for a real, small answer, on the way that clients' requests take. Returns what is wrong with
    it; None: nothing. An engine that says it is full (503) is not wrong."""
    question = _PROBES[engine.probe]
    try:
        async with asyncio.timeout(timeout_s):
            status, document = await _ask(client, engine, question, timeout_s)
    except TimeoutError:
        return f"no token within {timeout_s:g} s"
    except EngineLost as error:
        return f"probe failed: {error}"
    if status == 503:
        return None
    if status != 200:
        return f"its answer to a probe was {status}"
    return _flaw(question, document)


async def _ask(client: EngineClient, engine: Engine, question: _Probe, timeout_s: float) -> tuple[int, bytes]:
    content_type, body = question.ask(min(engine.models))
    headers = {"content-type": content_type}
    answer = await client.request(engine.url, "POST", question.path, headers, body, connect_s=timeout_s)
    try:
        document = bytearray()
        while piece := await answer.read():
            document += piece
            if len(document) > _ANSWER_LIMIT:
                raise EngineLost(f"more than {_ANSWER_LIMIT} bytes for one token")
        return answer.status, bytes(document)
    finally:
        answer.close()


def _flaw(question: _Probe, document: bytes) -> str | None:
    try:
        made = question.made(msgspec.json.decode(document, type=question.answer))
    except msgspec.MsgspecError as error:
        return f"its answer to a probe makes no sense: {error}"
    return None if made else "its answer to a probe holds nothing"
