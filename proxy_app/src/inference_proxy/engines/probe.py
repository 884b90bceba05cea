"""Health probes: the smallest request with a real answer."""

import io
import wave
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from inference_proxy.engines.fleet import Engine
from inference_proxy.http.answer import EngineLost
from inference_proxy.http.client import EngineClient

_BOUNDARY = "inference-proxy-probe"


class _Vector(msgspec.Struct):
    embedding: list[float]


class _Vectors(msgspec.Struct):
    data: list[_Vector]


class _Pooled(msgspec.Struct):
    data: list[Any]


class _Probabilities(msgspec.Struct):
    probs: list[float]


class _Classes(msgspec.Struct):
    data: list[_Probabilities]


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


class Flaw(NamedTuple):
    """What is wrong with an engine's answer.

    `is_silence`: no answer came in time. `is_full`: the engine accepted no request. Neither is a fault in an
    engine that otherwise shows signs of work.
    """

    what: str
    is_silence: bool = False
    is_full: bool = False


class _Probe(NamedTuple):
    """A probe: its request, and what the answer must contain.

    `ask` makes content type and body for a model. `answer` is the answer's shape; `made` checks its content.
    """

    path: str
    ask: Callable[[str], tuple[str, bytes]]
    answer: type[msgspec.Struct]
    made: Callable[[Any], bool]


def _json(**fields: object) -> Callable[[str], tuple[str, bytes]]:
    return lambda model: ("application/json", msgspec.json.encode({**fields, "model": model}))


def _silence(model: str) -> tuple[str, bytes]:
    """A form with a tenth of a second of silence."""
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
    "pooling": _Probe(
        "/pooling",
        _json(input="1"),
        _Pooled,
        lambda answer: bool(answer.data),
    ),
    "classify": _Probe(
        "/classify",
        _json(input="1"),
        _Classes,
        lambda answer: any(entry.probs for entry in answer.data),
    ),
    "rerank": _Probe(
        "/v1/rerank", _json(query="1", documents=["1"]), _Ranking, lambda answer: bool(answer.results)
    ),
    # Silence has no words, so any text is accepted.
    "transcriptions": _Probe("/v1/audio/transcriptions", _silence, _Transcript, lambda _: True),
}


async def probe(client: EngineClient, engine: Engine, timeout_s: float) -> Flaw | None:
    """Send the engine's probe. Returns what is wrong with its answer, or None."""
    question = _PROBES[engine.probe]
    content_type, body = question.ask(min(engine.models))
    headers = {"content-type": content_type}
    try:
        status, document, _ = await client.ask(
            "POST", f"{engine.url}{question.path}", headers, body, timeout_s=timeout_s
        )
    except TimeoutError:
        return Flaw(f"no token within {timeout_s:g} s", is_silence=True)
    except EngineLost as error:
        return Flaw(f"probe failed: {error}")
    if status == 503:
        return Flaw("it says that it is full, and generates nothing", is_full=True)
    if status != 200:
        return Flaw(f"its answer to a probe was {status}")
    return _flaw(question, document)


def _flaw(question: _Probe, document: bytes) -> Flaw | None:
    try:
        made = question.made(msgspec.json.decode(document, type=question.answer))
    except msgspec.MsgspecError as error:
        return Flaw(f"its answer to a probe makes no sense: {error}")
    return None if made else Flaw("its answer to a probe holds nothing")
