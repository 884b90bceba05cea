"""Forms as real clients write them, and as an attacker would."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import Engine
from expect import expect_error
from harness import SMALL_KEY, Proxy
from inference_proxy.api.errors import ApiError
from inference_proxy.api.multipart import Form

pytestmark = pytest.mark.anyio

SOUND = b"RIFF....WAVE\r\n--X\r\n\r\n--\x00"
TYPE = "multipart/form-data; boundary=XX"
END = b"--XX--\r\n"


def part(disposition: str, value: bytes, *headers: str) -> bytes:
    head = "".join(f"{line}\r\n" for line in (f"Content-Disposition: form-data; {disposition}", *headers))
    return b"--XX\r\n" + head.encode() + b"\r\n" + value + b"\r\n"


def field(name: str, value: str, *headers: str) -> bytes:
    return part(f'name="{name}"', value.encode(), *headers)


MODEL = field("model", "big")
FILE = part('name="file"; filename="a.wav"', SOUND, "Content-Type: audio/wav")
GRANULARITY = "timestamp_granularities[]"
FORMS = {
    "curl": (TYPE, MODEL + FILE + END),
    "OpenAI's SDK": (TYPE, MODEL + field(GRANULARITY, "word") + field(GRANULARITY, "segment") + FILE + END),
    ".NET": (
        'multipart/form-data; boundary="XX"',
        part("name=model", b"big", "Content-Type: text/plain; charset=utf-8")
        + part("name=file; filename=a.wav; filename*=utf-8''a.wav", SOUND)
        + END,
    ),
    "Spring": ("multipart/form-data;charset=UTF-8;boundary=XX", MODEL + FILE + END),
    "Apache HttpClient": ("multipart/form-data; boundary=XX; charset=UTF-8", MODEL + FILE + END),
    "OkHttp": (TYPE, field("model", "big", "Content-Length: 3") + FILE + END),
    "digits in a header's name": (TYPE, field("model", "big", "X-B3: 3") + FILE + END),
    "leading CRLF": (TYPE, b"\r\n" + MODEL + FILE + END),
    "blanks after boundaries": (TYPE, (MODEL + FILE + END).replace(b"--XX\r\n", b"--XX \t\r\n")),
    "escaped quote": (TYPE, MODEL + part(r'name="file"; filename="a\"b.wav"', SOUND) + END),
    "filename first": (TYPE, MODEL + part('filename="a.wav"; name="file"', SOUND) + END),
    "no blanks": (TYPE, (MODEL + FILE + END).replace(b"; ", b";")),
    "UTF-8": (TYPE, MODEL + part('name="file"; filename="äö.wav"', SOUND) + END),
    "no last CRLF": (TYPE, MODEL + FILE + b"--XX--"),
    "an epilogue": (TYPE, MODEL + FILE + END + b"bye"),
    "model last": (TYPE, FILE + MODEL + END),
}


@pytest.mark.parametrize(("content_type", "body"), FORMS.values(), ids=FORMS)
async def test_a_real_clients_form_is_taken(
    proxy: Proxy, engine: Engine, content_type: str, body: bytes
) -> None:
    headers = {"content-type": content_type}
    async with proxy.post("/v1/audio/transcriptions", data=body, headers=headers) as response:
        assert response.status == 200, await response.text()
    call = await engine.next_call()
    assert call.headers["content-type"] == content_type
    assert call.body.replace(b" \t", b"") == body.replace(b" \t", b"")


HIDDEN = {
    "twice": (TYPE, MODEL + field("model", "small") + FILE + END),
    "twice, as a file": (TYPE, MODEL + part('name="model"; filename="m"', b"small") + FILE + END),
    "by another charset": (f"{TYPE}; charset=utf-7", field("+AG0AbwBkAGUAbA-", "small") + FILE + END),
    "after the end": (TYPE, FILE + END + MODEL),
    "without an end": (TYPE, MODEL + FILE),
    "without a name": (TYPE, MODEL + part('filename="a"', b"x") + END),
    "in a preamble": (TYPE, b"hello\r\n" + MODEL + FILE + END),
    "many parts": (TYPE, MODEL + field("a", "b") * 200 + END),
}


@pytest.mark.parametrize(("content_type", "body"), HIDDEN.values(), ids=HIDDEN)
async def test_what_could_be_read_in_two_ways_is_refused(
    proxy: Proxy, engine: Engine, content_type: str, body: bytes
) -> None:
    headers = {"content-type": content_type}
    async with proxy.post("/v1/audio/transcriptions", data=body, headers=headers) as response:
        assert response.status in (400, 415), await response.text()
    assert not engine.calls


async def test_a_key_cannot_name_another_model_in_a_second_way(proxy: Proxy, engine: Engine) -> None:
    body = part('name="x"; name="model"', b"big") + FILE + END
    headers = {"content-type": TYPE}
    async with proxy.post("/v1/audio/transcriptions", data=body, headers=headers, key=SMALL_KEY) as response:
        await expect_error(response, 404, "model_not_found", "model")
    assert not engine.calls


@given(
    st.lists(
        st.tuples(st.sampled_from(["model", "stream", "file", "x[]"]), st.binary(max_size=30)), max_size=6
    ),
    st.binary(max_size=20),
)
def test_any_bytes_are_a_form_or_an_error(parts: list[tuple[str, bytes]], rest: bytes) -> None:
    body = b"".join(part(f'name="{name}"', value) for name, value in parts) + END + rest
    try:
        form = Form(TYPE, body)
        if (model := form.text("model")) is None:
            return
    except ApiError:
        return
    assert dict(parts)["model"].decode() == model
    if model:
        assert Form(TYPE, form.replaced("model", "other")).text("model") == "other"
