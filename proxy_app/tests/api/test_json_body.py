"""Splitting and joining bodies: lossless, bounded, and only when needed."""

import contextlib
import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_proxy.api.errors import ApiError
from inference_proxy.api.json_body import _DEPTH, _depth, parse, rewrite
from inference_proxy.api.multipart import Form

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
OBJECTS = st.dictionaries(st.text(), VALUES, max_size=8)


def depth(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(depth, value), default=0)
    return 0


@given(OBJECTS, st.booleans())
def test_a_body_that_nobody_changes_is_the_same_object(value: dict[str, Any], ascii_only: bool) -> None:
    body = json.dumps(value, ensure_ascii=ascii_only).encode()
    fields = parse(body)
    assert list(fields) == list(value)
    assert rewrite(body, fields, {}, frozenset()) is body


@given(OBJECTS, OBJECTS, st.data())
def test_a_change_touches_nothing_else(
    value: dict[str, Any], new: dict[str, Any], data: st.DataObject
) -> None:
    dropped = data.draw(st.sets(st.sampled_from(sorted(value)))) if value else set()
    body = json.dumps(value, indent=1).encode()
    changed = rewrite(body, parse(body), new, dropped)
    expected = {name: given for name, given in value.items() if name not in dropped} | new
    assert json.loads(changed) == expected
    # Not only the same values: the same bytes.
    before, after = parse(body), parse(changed)
    assert all(
        bytes(after[name]) == bytes(before[name]) for name in before if name not in dropped | new.keys()
    )


def test_numbers_and_unknown_fields_keep_their_spelling() -> None:
    body = (
        b'{"model":"a", "x": 1.0e+2, "big": 1234567890123456789012345, "s":"\\u0041\\/", "z":{"b":1,"a":2}}'
    )
    changed = rewrite(body, parse(body), {"model": "b"}, {"x"})
    assert changed == b'{"model":"b","big":1234567890123456789012345,"s":"\\u0041\\/","z":{"b":1,"a":2}}'


@pytest.mark.parametrize("body", [b'{"model":"a","model":"b"}', b'{"model":"a","mod\\u0065l":"b"}'])
def test_a_field_that_is_there_twice_is_refused(body: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        parse(body)
    assert (caught.value.status, caught.value.code) == (400, "duplicate_field")


SPACES = st.sampled_from(["", " ", "\n", "\t  "])
# Short names, escaped ones, and ones with more bytes than characters.
NAMES = st.sampled_from(["", "a", "model", "\u00e9", "\U0001f600", 'quo"te', "sl/ash"])


@given(st.lists(st.tuples(NAMES, st.booleans(), VALUES), max_size=6), SPACES, SPACES, SPACES)
def test_a_repeated_name_is_found_however_it_is_written(
    fields: list[tuple[str, bool, Any]], before: str, colon: str, comma: str
) -> None:
    names = [name for name, _, _ in fields]
    written = [
        json.dumps(name, ensure_ascii=escaped)
        + colon
        + ":"
        + colon
        + json.dumps(value, separators=(",", ":"))
        for name, escaped, value in fields
    ]
    body = (before + "{" + before + (comma + "," + comma).join(written) + before + "}" + before).encode()
    if len(set(names)) == len(names):
        assert list(parse(body)) == names
    else:
        with pytest.raises(ApiError) as caught:
            parse(body)
        assert caught.value.code == "duplicate_field"


@given(VALUES)
def test_depth_is_counted_outside_strings_only(value: Any) -> None:
    wrapped = [value, "[[[[", 'a"[\\', "\\"]
    assert _depth(json.dumps(wrapped).encode()) == depth(wrapped)


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}"), ('[{"a":"]}",', None)])
def test_depth_is_bounded(opening: str, closing: str | None) -> None:
    def nested(levels: int) -> bytes:
        if closing is None:
            return b'{"m":' + b'[{"a":"]}","b":' * (levels // 2) + b"1" + b"}]" * (levels // 2) + b"}"
        return f'{{"m":{opening * levels}1{closing * levels}}}'.encode()

    parse(nested(_DEPTH - 2))
    for levels in (_DEPTH + 2, 500, 100_000):
        with pytest.raises(ApiError) as caught:
            parse(nested(levels))
        assert caught.value.code in ("too_deep", "invalid_json")


def test_many_brackets_are_not_deep() -> None:
    parse(json.dumps({"messages": [{"content": [{"text": "[[[[{{{{" * 50}]}] * 200}).encode())


@pytest.mark.parametrize("item", ["[]", "{}", "1,[]", '"",[]', '{"a":[1]}'])
def test_many_parts_are_not_built_to_see_how_deep_they_are(item: str) -> None:
    """The largest body delayed all streams for seconds, and took half a gigabyte."""
    body = f'{{"model":"m","input":[{",".join([item] * 200_000)}]}}'.encode()
    deep = body.replace(b"[]" if b"[]" in body else b"[1]", b"[" * _DEPTH + b"]" * _DEPTH, 1)
    tracemalloc.start()
    try:
        parse(body)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 10 * len(body)
    if deep != body:
        with pytest.raises(ApiError) as caught:
            parse(deep)
        assert caught.value.code == "too_deep"


BOUNDARY = "multipart/form-data; boundary=xYz"


def form(*parts: tuple[str, bytes], end: bytes = b"--xYz--\r\n") -> bytes:
    return b"".join(
        b"--xYz\r\ncontent-disposition: form-data; %s\r\n\r\n%s\r\n" % (head.encode(), value)
        for head, value in parts
    ) + end  # fmt: skip


def test_a_form_gives_its_fields_and_leaves_its_file() -> None:
    # A file's content is not parsed, even if it looks like a field.
    inside = b'RIFF\r\n\r\ncontent-disposition: form-data; name="stream"\r\n\r\ntrue\r\n--xY'
    body = form(('name="file"; filename="a.wav"', inside), ('name="model"', "größe".encode()))
    found = Form(BOUNDARY, body)
    assert found.names() == {"file", "model"}
    assert found.text("model") == "größe"
    assert found.flag("stream") is False
    assert found.replaced("model", "m") == form(
        ('name="file"; filename="a.wav"', inside), ('name="model"', b"m")
    )


@pytest.mark.parametrize(
    ("content_type", "body", "status"),
    [
        ("application/json", b"{}", 415),
        ("multipart/form-data", b"", 415),
        (BOUNDARY, b"", 400),
        (BOUNDARY, b"--xYz--\r\n", 400),
        (BOUNDARY, form(('name="model"', b"a"), end=b""), 400),
        (BOUNDARY, form(('name="model"', b"a"), ('name="model"', b"b")), 400),
        (BOUNDARY, b"--xYz\r\ncontent-disposition: form-data; name=\"model\"", 400),
        (BOUNDARY, form(*[(f'name="f{number}"', b"") for number in range(200)]), 400),
        (f"multipart/form-data; boundary={'x' * 300}", b"", 400),
    ],
)  # fmt: skip
def test_a_form_that_is_none(content_type: str, body: bytes, status: int) -> None:
    with pytest.raises(ApiError) as caught:
        Form(content_type, body)
    assert caught.value.status == status


@given(st.binary(max_size=300))
def test_no_form_brings_it_down(noise: bytes) -> None:
    for body in (noise, form(('name="a"', noise)), noise + form(('name="a"', b"1"))):
        with contextlib.suppress(ApiError):
            Form(BOUNDARY, body)


@pytest.mark.parametrize(
    "head",
    [
        "name=model",
        "name*=utf-8''model",
        'name="mod\\el"',
        'name="file"; filename="a"; name="model"',
        'name="file"; filename="a\\"; name="model"',
        'name="x"\r\ncontent-disposition: form-data; name="model"',
        'name="x"\r\n ; name="model"',
        'name="x"\ncontent-disposition: form-data; name="model"',
        'name="model"; filename="a"',
    ],
)
def test_no_second_model_in_disguise(head: str) -> None:
    with pytest.raises(ApiError):
        Form(BOUNDARY, form(('name="model"', b"allowed"), (head, b"forbidden")))


@pytest.mark.parametrize(
    ("text", "half", "at"),
    [
        (b'{"a":"\\ud83d"}', "\\ud83d", 6),
        (b'{"a":"' + b"x" * 5000 + b'\\ud83d and more","b":1}', "\\ud83d", 5006),
        (b'{"a":"\\ude00"}', "\\ude00", 6),
        (b'{"a":"\\uD83D\\u0041"}', "\\uD83D", 6),
        (b'{"a":"\\\\\\ud83d!"}', "\\ud83d", 8),
        (b'{"a":"\\ud83d\\ude00\\ude01"}', "\\ude01", 18),
    ],
)
def test_half_a_character_is_named(text: bytes, half: str, at: int) -> None:
    with pytest.raises(ApiError, match="surrogate pair") as caught:
        parse(text)
    assert f"{half} at byte {at} " in caught.value.message


@pytest.mark.parametrize(
    "text", [b'{"a":"x', b'{"a":"\\ud83d\\ude00",}', b'{"a":"\\u12"}', b'{"a":"\\\\ud83d",}']
)
def test_other_faults_are_not_blamed_on_it(text: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        parse(text)
    assert caught.value.code == "invalid_json"
    assert "surrogate" not in caught.value.message


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        (",".join(f'"{number:x}":0' for number in range(1001)), "too_many_fields"),
        (",".join(['"a":0'] * 1001), "too_many_fields"),
        (",".join(f'"{number:x}":0' for number in range(1000)), ""),
        ('"text":"' + ":" * 2000 + '","a":1', ""),
        ('"text":"' + ":" * 2000 + '","a":1,"a":1', "duplicate_field"),
    ],
)
def test_fields_are_bounded_in_number(fields: str, code: str) -> None:
    if not code:
        parse(b"{%s}" % fields.encode())
        return
    with pytest.raises(ApiError) as caught:
        parse(b"{%s}" % fields.encode())
    assert caught.value.code == code
