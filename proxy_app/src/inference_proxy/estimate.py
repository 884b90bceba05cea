"""How many prompts a body has, and how many tokens, about: by the size of its fields, not building them."""

from collections.abc import Iterator, Mapping

import msgspec

from .endpoints import Endpoint
from .numbers import MOST_TOKENS

# A token of English prose has about four bytes. What is counted against limits is the engine's own number in
# the end; this one only has to be near it when a request is let in.
_BYTES_A_TOKEN = 4
# An image or a sound costs an engine by its pixels or seconds, not by its bytes in the body.
_MEDIUM_TOKENS = 1000
# One that is smaller than this counts by its bytes, which comes to the same. So only bodies with a long run
# without a blank are looked at closely: a sample of each _STRIDE_BYTES finds every run of twice as many.
_STRIDE_BYTES = 2048
_SAMPLE_BYTES = 64

# Where the APIs of OpenAI, Anthropic and vLLM put media. In a part of a message: its own text, or an object
# with it. Nowhere else: what stands in `text`, in tools or in a tool call's arguments is read by the model.
_MEDIA = frozenset({"image_url", "audio_url", "video_url", "image_embeds", "audio_embeds", "file_data"})
_HOLDERS = frozenset({"source", "input_audio", "image_url", "audio_url", "video_url", "file", "output"})
_DATA = frozenset({"data", "url", "file_data", "image_url"})
_LISTS = frozenset({"content", "output"})
_NOT_MESSAGES = "tools"
# A message holds parts, a part (a tool's result) parts again.
_DEPTH = 6

_Object = Mapping[str, msgspec.Raw]
_list = msgspec.json.Decoder(list[msgspec.Raw]).decode
_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_LIST, _OBJECT, _STRING = b"[", b"{", b'"'


def estimate(endpoint: Endpoint, fields: _Object, body: bytes) -> tuple[int, int]:
    """Prompts (1 or more) and tokens of all of them together."""
    size = media = tokens = 0
    prompts = 1
    looks = _may_hold_media(body)
    for name in endpoint.prompt:
        if (raw := fields.get(name)) is None:
            continue
        if name == endpoint.batch and _begins(raw) == _LIST:
            prompts, of_them = _batch(raw)
            tokens += of_them
            continue
        size += len(raw)
        if looks and name != _NOT_MESSAGES:
            for medium in _media(raw):
                size -= len(medium)
                media += 1
    tokens += size // _BYTES_A_TOKEN + media * _MEDIUM_TOKENS
    for first, second in endpoint.pairs:
        tokens += _repeated(fields.get(first), fields.get(second))
    return prompts, min(tokens, MOST_TOKENS)


def _begins(raw: msgspec.Raw) -> bytes:
    return bytes(memoryview(raw)[:1])


def _may_hold_media(body: bytes) -> bool:
    end = len(body) - _SAMPLE_BYTES
    return any(body.find(b" ", at, at + _SAMPLE_BYTES) < 0 for at in range(_STRIDE_BYTES, end, _STRIDE_BYTES))


def _batch(raw: msgspec.Raw) -> tuple[int, int]:
    """Of a list of prompts, each a text or a list of token ids; or of one list of token ids. An empty one has
    one prompt, for the engine to refuse."""
    items = _list(raw)
    if not items:
        return 1, 1
    if _begins(items[0]) not in (_STRING, _LIST, _OBJECT):
        return 1, len(items)
    return len(items), sum(_of_prompt(item) for item in items)


def _of_prompt(item: msgspec.Raw) -> int:
    if _begins(item) == _LIST:
        return bytes(item).count(b",") + 1
    return len(item) // _BYTES_A_TOKEN or 1


def _repeated(first: msgspec.Raw | None, second: msgspec.Raw | None) -> int:
    """What is read once more for each further text that it is compared with."""
    if first is None or second is None or _begins(first) == _LIST or _begins(second) != _LIST:
        return 0
    return max(len(_list(second)) - 1, 0) * (len(first) // _BYTES_A_TOKEN)


def _media(raw: msgspec.Raw) -> Iterator[msgspec.Raw]:
    """The embedded images, sounds and files of a list of messages, or of one, as they stand in the body."""
    try:
        yield from _in_parts(raw, _DEPTH)
    except msgspec.MsgspecError:
        # Not what an API knows: then all of it is text.
        return


def _in_parts(raw: msgspec.Raw, depth: int) -> Iterator[msgspec.Raw]:
    kind = _begins(raw)
    if kind == _LIST and depth:
        for item in _list(raw):
            if _begins(item) == _OBJECT:
                yield from _in_part(_object(item), depth - 1)
    elif kind == _OBJECT:
        yield from _in_part(_object(raw), depth)


def _in_part(part: _Object, depth: int) -> Iterator[msgspec.Raw]:
    for name, raw in part.items():
        kind = _begins(raw)
        if name in _MEDIA and kind == _STRING:
            yield raw
        elif name in _HOLDERS and kind == _OBJECT:
            held = _object(raw)
            for inner, value in held.items():
                if inner in _DATA and _begins(value) == _STRING:
                    yield value
                elif inner in _LISTS:
                    yield from _in_parts(value, depth)
        elif name in _LISTS and kind == _LIST:
            yield from _in_parts(raw, depth)
