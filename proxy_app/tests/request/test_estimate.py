"""The estimated size of a prompt, before an engine has counted it."""

import base64
import contextlib
import json
import random
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_proxy.api.endpoints import Endpoints
from inference_proxy.api.errors import ApiError
from inference_proxy.api.json_body import parse
from inference_proxy.keys.authenticate import Key
from inference_proxy.request.estimate import estimate
from inference_proxy.request.validate import validate
from jobs import a_config, a_job

BLOB = base64.b64encode(random.Random(1).randbytes(300_000)).decode()
URL = f"data:image/png;base64,{BLOB}"
TEXT = {"type": "text", "text": "hi"}


def user(*parts: Any) -> list[Any]:
    return [{"role": "user", "content": [TEXT, *parts]}]


SOURCE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": BLOB}}
RESULT = {"type": "tool_result", "tool_use_id": "t", "content": [SOURCE]}
EMBEDDED = {
    "data url": ("/chat/completions", {"messages": user({"type": "image_url", "image_url": {"url": URL}})}),
    "data url as text": ("/chat/completions", {"messages": user({"type": "image_url", "image_url": URL})}),
    "video": ("/chat/completions", {"messages": user({"type": "video_url", "video_url": {"url": URL}})}),
    "sound": (
        "/chat/completions",
        {"messages": user({"type": "input_audio", "input_audio": {"data": BLOB, "format": "wav"}})},
    ),
    "file": ("/chat/completions", {"messages": user({"type": "file", "file": {"file_data": BLOB}})}),
    "anthropic image": ("/messages", {"messages": user(SOURCE)}),
    "anthropic tool result": ("/messages", {"messages": user(RESULT)}),
    "responses image": ("/responses", {"input": user({"type": "input_image", "image_url": URL})}),
    "responses file": ("/responses", {"input": user({"type": "input_file", "file_data": BLOB})}),
    "responses screenshot": (
        "/responses",
        {"input": [{"type": "computer_call_output", "output": {"type": "x", "image_url": URL}}]},
    ),
    "embeddings": ("/embeddings", {"messages": user({"type": "image_url", "image_url": {"url": URL}})}),
    "rerank": (
        "/rerank",
        {"query": "q", "documents": {"content": [{"type": "image_url", "image_url": {"url": URL}}]}},
    ),
}
ESCAPES = {"none": {}, "php": {"/": "\\/"}, ".net": {"+": "\\u002B", "/": "\\u002f"}}


def tokens(path: str, body: dict[str, Any], escapes: dict[str, str] | None = None) -> int:
    text = json.dumps(body)
    for plain, escaped in (escapes or {}).items():
        text = text.replace(plain, escaped)
    return a_job(path, raw=text).asked.prompt_tokens


@pytest.mark.parametrize("escapes", ESCAPES.values(), ids=ESCAPES)
@pytest.mark.parametrize(("path", "body"), EMBEDDED.values(), ids=EMBEDDED)
def test_an_embedded_medium_is_no_text(path: str, body: dict[str, Any], escapes: dict[str, str]) -> None:
    assert 1000 <= tokens(path, body, escapes) < 1100


LONG = len(BLOB) // 4
READ = {
    "a text": ("/chat/completions", {"messages": [{"role": "user", "content": BLOB}]}),
    "a text part": ("/chat/completions", {"messages": user({"type": "text", "text": URL})}),
    "a text part with data": (
        "/chat/completions",
        {"messages": user({"text": BLOB, "x": 1})},
    ),
    "a tool": (
        "/chat/completions",
        {"messages": [], "tools": [{"source": {"data": BLOB}}]},
    ),
    "a tool call's arguments": (
        "/messages",
        {"messages": user({"type": "tool_use", "id": "t", "name": "n", "input": {"image_url": URL}})},
    ),
    "a document's text": (
        "/messages",
        {"messages": user({"type": "document", "source": {"type": "text", "data": BLOB}})},
    ),
    "a prompt": ("/completions", {"prompt": BLOB}),
    "no messages at all": ("/chat/completions", {"messages": {"a": BLOB}}),
}


@pytest.mark.parametrize(("path", "body"), READ.values(), ids=READ)
def test_what_a_model_reads_is_counted(path: str, body: dict[str, Any]) -> None:
    assert tokens(path, body) >= LONG


@pytest.mark.parametrize(
    ("path", "body", "choices", "least", "most"),
    [
        ("/completions", {"prompt": "a"}, 1, 0, 1),
        ("/completions", {"prompt": ["a"] * 100}, 100, 100, 125),
        ("/completions", {"prompt": ["a"] * 100, "n": 2}, 200, 100, 125),
        ("/completions", {"prompt": [1, 2, 3] * 100}, 1, 300, 300),
        ("/completions", {"prompt": [[1, 2, 3]] * 100}, 100, 300, 300),
        ("/completions", {"prompt": []}, 1, 1, 1),
        ("/embeddings", {"input": ["a"] * 100}, 100, 100, 125),
        ("/embeddings", {"input": [7] * 100}, 1, 100, 100),
        ("/completions", {"prompt": ['"\\', "[{", ",,"] * 10}, 30, 30, 100),
        ("/completions", {"prompt": [[], [1], []]}, 3, 3, 3),
        ("/rerank", {"query": "q" * 398, "documents": [{"text": "d"}] * 10}, 1, 1000, 1200),
        ("/rerank", {"query": "q" * 398, "documents": {"content": [TEXT] * 10}}, 1, 1000, 1200),
        ("/score", {"text_1": ["q" * 398], "text_2": ["d" * 38] * 10}, 1, 1100, 1200),
        ("/score", {"text_1": {"content": [{"text": "q" * 398}]}, "text_2": ["d" * 38] * 10}, 1, 1100, 1300),
        ("/rerank", {"query": "q" * 398, "documents": ["d" * 38] * 10}, 1, 1100, 1200),
        ("/score", {"text_1": "q" * 398, "text_2": ["d" * 38] * 10}, 1, 1100, 1200),
        ("/score", {"text_1": ["q" * 398] * 10, "text_2": ["d" * 38] * 10}, 1, 1000, 1200),
    ],
)
def test_each_prompt_of_a_list_counts(
    path: str, body: dict[str, Any], choices: int, least: int, most: int
) -> None:
    asked = a_job(path, **body).asked
    assert asked.choices == choices
    assert least <= asked.prompt_tokens <= most


def test_a_query_with_an_image_costs_the_image_for_each_document() -> None:
    query = {"content": [{"type": "image_url", "image_url": {"url": URL}}]}
    assert 10_000 <= tokens("/rerank", {"query": query, "documents": ["d"] * 10}) < 11_000


@pytest.mark.parametrize("item", ["1", '""', "[]", "[1]", "{}", '{"content":[]}'])
@pytest.mark.parametrize(("path", "field"), [("/completions", "prompt"), ("/rerank", "documents")])
def test_a_list_is_counted_without_building_it(path: str, field: str, item: str) -> None:
    """A million Python objects would delay all streams, and need more memory than there is."""
    raw = f'{{"query":"q","{field}":[{",".join([item] * 300_000)}]}}'
    fields, endpoint = parse(raw.encode()), Endpoints(a_config({})).find(f"/v1{path}")
    assert endpoint is not None
    tracemalloc.start()
    try:
        prompts, _ = estimate(endpoint, fields, raw.encode())
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 4 * len(raw)
    assert prompts == (300_000 if path == "/completions" and item in ('""', "[]", "[1]") else 1)


NAMES = ["content", "source", "data", "url", "image_url", "output", "type", "file", "input_audio"]
PATHS = ["/chat/completions", "/responses", "/embeddings", "/rerank", "/completions"]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
    max_leaves=20,
)


@given(st.sampled_from(PATHS), json_values)
def test_any_json_can_be_estimated(path: str, value: Any) -> None:
    """With a long run beside it, so that the whole body is searched for media."""
    names = ("messages", "input", "prompt", "documents", "query")
    job = a_job(path, **dict.fromkeys(names, value), x="y" * 10_000)
    assert 0 <= job.asked.prompt_tokens <= len(job.asked.body) * 10


MEGABYTE = 2**20


@pytest.mark.parametrize(
    ("path", "head", "unit", "tail"),
    [
        ("/chat/completions", '"messages":[{}', ",0", "]"),
        ("/chat/completions", '"messages":[{"a":0', ',"a":0', "}]"),
        ("/chat/completions", '"messages":[{"content":[{}', ",0", "]}]"),
        ("/responses", '"input":[{}', ",0", "]"),
        ("/rerank", '"query":"q","documents":{"content":[{}', ",0", "]}"),
        ("/score", '"text_2":"t","text_1":{"a":0', ',"a":0', "}"),
        ("/chat/completions", '"messages":[],"user":[[]', ",[]", "]"),
        ("/chat/completions", '"messages":[],"model":[[]', ",[]", "]"),
        ("/messages", '"messages":[],"metadata":{"a":0', ',"a":0', "}"),
        ("/responses", '"input":"x","background":[[]', ",[]", "]"),
    ],
)
def test_no_body_costs_many_times_its_size(path: str, head: str, unit: str, tail: str) -> None:
    """Other streams wait while a body is read, so parts that are not needed are not decoded."""
    body = f'{{{head}{unit * (MEGABYTE // len(unit))}{tail},"model":"big"}}'.encode()
    endpoint = Endpoints(a_config({})).find(f"/v1{path}")
    assert endpoint is not None
    key = Key("k", "0" * 64, frozenset(), "alice", "default", "salt")
    tracemalloc.start()
    with contextlib.suppress(ApiError):
        validate(endpoint, key, {b"content-type": b"application/json"}, body)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 6 * len(body)


IMAGE = {"type": "image_url", "image_url": {"url": URL}}


def test_commas_of_a_text_are_no_parts() -> None:
    text = "a, b, " * 30_000
    job = a_job(messages=[{"role": "user", "content": [{"type": "text", "text": text}, IMAGE]}])
    assert job.asked.prompt_tokens == pytest.approx(len(text) / 4 + 1000, rel=0.1)
