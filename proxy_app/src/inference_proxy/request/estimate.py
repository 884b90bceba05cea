"""Estimates how many prompts and tokens a body has, from the size of its fields and without decoding them."""

import re
from collections.abc import Iterator, Mapping

import msgspec

from inference_proxy.api.endpoints import Endpoint
from inference_proxy.api.numbers import MOST_TOKENS

# A token of English prose has about four bytes. Limits finally count the engine's own number; this one only
# has to be close to it when a request is admitted.
_BYTES_PER_TOKEN = 4
# An image or a sound costs an engine by its pixels or seconds, not by its bytes in the body.
_MEDIUM_TOKENS = 1000
# A medium smaller than this counts by its bytes, which gives about the same. So only bodies that contain a
# long run without a blank are searched for media: one sample every _STRIDE_BYTES finds each run of twice that
# length.
_STRIDE_BYTES = 2048
_SAMPLE_BYTES = 64

# Where the APIs of OpenAI, Anthropic and vLLM put media: in a part of a message, as its own text or as an
# object that holds it. Nowhere else: the model reads what is in `text`, in tools or in a tool call's
# arguments.
_MEDIA = frozenset({"image_url", "audio_url", "video_url", "image_embeds", "audio_embeds", "file_data"})
_HOLDERS = frozenset({"source", "input_audio", "image_url", "audio_url", "video_url", "file", "output"})
_DATA = frozenset({"data", "url", "file_data", "image_url"})
_LISTS = frozenset({"content", "output"})
# A document's source may also be plain text.
_TEXT = b'"text"'
_NOT_MESSAGES = "tools"
# Above this, all of the body counts as text: no client sends as many message parts, and checking each would
# take too long.
_MOST_PARTS = 20_000
_MOST_QUOTES = 20 * _MOST_PARTS
_NOT_STRUCTURE = bytes(set(range(256)) - set(b'",'))
_STRINGS = re.compile(rb'"[^"]*"')
# Messages contain parts, and a part (a tool's result) may contain parts again.
_DEPTH = 6

_Object = Mapping[str, msgspec.Raw]
_list = msgspec.json.Decoder(list[msgspec.Raw]).decode
_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_LIST, _OBJECT, _STRING = b"[", b"{", b'"'
_FIRST = re.compile(rb"\[\s*(.)", re.DOTALL)


def estimate(endpoint: Endpoint, fields: _Object, body: bytes) -> tuple[int, int]:
    """How many prompts (1 or more), and the tokens of all of them together."""
    prompts, tokens = 1, 0
    looks = _may_hold_media(body)
    for name in endpoint.prompt:
        if (raw := fields.get(name)) is None:
            continue
        if name == endpoint.batch and (batch := _batch(raw)) is not None:
            prompts = batch[0]
            tokens += batch[1]
        else:
            tokens += _tokens(raw, looks and name != _NOT_MESSAGES)
    for first, second in endpoint.pairs:
        if first in fields and second in fields:
            tokens += _repeated(fields[first], fields[second], looks)
    return prompts, min(tokens, MOST_TOKENS)


def _tokens(raw: msgspec.Raw, looks: bool) -> int:
    """The tokens of a text, or of a value that contains text."""
    size, media = len(raw), 0
    if looks:
        for medium in _media(raw):
            size -= len(medium)
            media += 1
    return size // _BYTES_PER_TOKEN + media * _MEDIUM_TOKENS


def _begins(raw: msgspec.Raw) -> bytes:
    return bytes(memoryview(raw)[:1])


def _may_hold_media(body: bytes) -> bool:
    end = len(body) - _SAMPLE_BYTES
    if end <= _STRIDE_BYTES:
        return False
    if all(body.find(b" ", at, at + _SAMPLE_BYTES) >= 0 for at in range(_STRIDE_BYTES, end, _STRIDE_BYTES)):
        return False
    return _parts(body) <= _MOST_PARTS


# Lists are counted by their bytes. Decoding the items of the largest body would take a second and half a
# gigabyte.


def _batch(raw: msgspec.Raw) -> tuple[int, int] | None:
    """Prompts and tokens of a list of texts, of lists of token ids, or of token ids (which is one prompt).

    None for anything else. An empty list counts as one prompt; the engine refuses it.
    """
    if _begins(raw) != _LIST:
        return None
    text = bytes(raw)
    kind = _first_of(text)
    if kind == _OBJECT:
        return None
    if kind == _STRING:
        prompts = _strings(text)
        return prompts, max(len(text) // _BYTES_PER_TOKEN, prompts)
    return (text.count(_LIST) - 1) or 1, text.count(b",") + 1


def _first_of(text: bytes) -> bytes:
    """The first byte of a list's first item."""
    found = _FIRST.match(text)
    return found[1] if found else b""


def _strings(text: bytes) -> int:
    if b"\\" in text:
        text = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    return text.count(_STRING) // 2


def _parts(text: bytes) -> int:
    """An upper bound for the items and fields of valid JSON at all levels, which is what decoding it costs.

    Exact where the bound would be large. Commas inside strings do not count.
    """
    commas = text.count(b",")
    if commas <= _MOST_PARTS or text.count(_STRING) > _MOST_QUOTES:
        return commas
    if b"\\" in text:
        text = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    # Remove strings: those without commas are adjacent quotes by now, the others are removed one by one.
    structure = text.translate(None, _NOT_STRUCTURE).replace(b'""', b"")
    return _STRINGS.sub(b"", structure).count(b",")


def _items(raw: msgspec.Raw) -> int:
    """A lower bound for the texts to compare: the items of a list, or of an object's `content`."""
    parts = _parts(bytes(raw))
    if parts > _MOST_PARTS:
        return parts
    kind = _begins(raw)
    if kind == _OBJECT:
        content = _object(raw).get("content")
        return 1 if content is None or _begins(content) != _LIST else _items(content)
    if kind != _LIST:
        return 1
    text = bytes(raw)
    return len(_list(raw)) if _first_of(text) == _OBJECT else _strings(text)


def _repeated(first: msgspec.Raw, second: msgspec.Raw, looks: bool) -> int:
    """Additional tokens for a text that is compared with several others.

    It is read again for each one after the first.
    """
    if _items(first) != 1:
        return 0
    return max(_items(second) - 1, 0) * _tokens(first, looks)


def _media(raw: msgspec.Raw) -> Iterator[msgspec.Raw]:
    """The embedded images, sounds and files of messages, as encoded in the body."""
    try:
        yield from _in_parts(raw, _DEPTH)
    except msgspec.MsgspecError:
        # Not a shape that the APIs know: all of it counts as text.
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
            is_text = bytes(memoryview(held.get("type", raw))[:7]) == _TEXT
            for inner, value in held.items():
                if inner in _DATA and _begins(value) == _STRING and not is_text:
                    yield value
                elif inner in _LISTS:
                    yield from _in_parts(value, depth)
        elif name in _LISTS and kind == _LIST:
            yield from _in_parts(raw, depth)
