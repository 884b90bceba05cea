"""Which paths exist, and which parts of a request reach an engine."""

import json
from typing import Any

import pytest
from multidict import CIMultiDict
from yarl import URL

from engine import Call, Engine
from expect import expect_error
from harness import KEY, KEYS, SMALL_KEY, Files, Proxy, running_engine, running_proxy, sha256

pytestmark = pytest.mark.anyio


async def sent(engine: Engine) -> dict[str, Any]:
    body: dict[str, Any] = json.loads((await engine.next_call()).body)
    return body


OWN = {
    "priority": -5,
    "cache_salt": "x",
    "request_id": "r",
    "session_id": "s",
    "kv_transfer_params": {"do_remote_prefill": True},
    "ec_transfer_params": {},
    "vllm_xargs": {"session_id": "s"},
    "stream_interval": 1000,
    "enable_response_messages": True,
}


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1/messages", "/v1/responses", "/v1/embeddings", "/tokenize"]
)
async def test_clients_give_no_orders_to_an_engine(proxy: Proxy, engine: Engine, path: str) -> None:
    async with proxy.post(path, body=OWN | {"temperature": 1}) as response:
        assert response.status == 200
    assert await sent(engine) == {"model": "big", "temperature": 1}


@pytest.mark.parametrize("name", list(OWN))
async def test_not_even_in_disguise(proxy: Proxy, engine: Engine, name: str) -> None:
    escaped = f"\\u{ord(name[0]):04x}{name[1:]}"
    body = b'{"model":"big","%s":1}' % escaped.encode()
    async with proxy.post(data=body) as response:
        assert response.status == 200
    assert await sent(engine) == {"model": "big"}


async def test_tenants_do_not_share_a_prefix_cache(files: Files, engine: Engine) -> None:
    other, second = "carol" * 8, "alice-too" * 8
    files.write(
        files.keys,
        [
            *KEYS,
            {"name": "alice2", "owner": "alice", "sha256": sha256(second)},
            {"name": "carol", "sha256": sha256(other)},
        ],
    )
    files.configure(engine, isolate_prefix_cache=True)
    salts = []
    async with running_proxy(files) as proxy:
        for key in (KEY, KEY, second, other):
            async with proxy.post(body={"cache_salt": "mine"}, key=key) as response:
                assert response.status == 200
            salts.append((await sent(engine))["cache_salt"])
        async with proxy.post("/v1/embeddings") as response:
            assert response.status == 200
        assert (await sent(engine))["cache_salt"] == salts[0]
        async with proxy.post("/tokenize") as response:
            assert response.status == 200
        assert "cache_salt" not in await sent(engine)
    assert salts[0] == salts[1] == salts[2] != salts[3]
    assert "alice" not in salts[0]
    assert len(salts[0]) == 43


async def test_a_salt_is_put_in_without_touching_the_rest(files: Files, engine: Engine) -> None:
    files.configure(engine, isolate_prefix_cache=True)
    body = b' \n{ "model" : "big",  "x": 1.0e+2, "input": "\\u00e9" }'
    async with running_proxy(files) as proxy, proxy.post(data=body) as response:
        assert response.status == 200
    got = (await engine.next_call()).body
    assert got.startswith(b' \n{"cache_salt":"')
    assert got.endswith(body.removeprefix(b" \n{"))


async def test_the_keys_class_sets_the_engines_priority(files: Files, engine: Engine) -> None:
    files.write(files.keys, [KEYS[0] | {"priority": "batch"}, KEYS[1] | {"models": []}])
    files.configure(engine, priorities={"default": {}, "batch": {"engine_priority": 10}})
    async with running_proxy(files) as proxy:
        for path in ("/v1/chat/completions", "/v1/embeddings"):
            for key in (KEY, "bob-key-0123456789-0123456789-012345"):
                headers = {"x-vllm-priority": "-100"}
                async with proxy.post(path, key=key, headers=headers) as response:
                    assert response.status == 200
    batch, default, pooled, default_pooled = [await engine.next_call() for _ in range(4)]
    assert batch.headers["x-vllm-priority"] == "10"
    assert "x-vllm-priority" not in default.headers
    assert json.loads(pooled.body)["priority"] == 10, "pooling reads no header"
    assert "priority" not in json.loads(default_pooled.body)


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"content-type": "text/plain"}, "unsupported_media_type"),
        ({"content-type": "application/x-www-form-urlencoded"}, "unsupported_media_type"),
        ({"content-type": "application/jsonx"}, "unsupported_media_type"),
        ({"content-encoding": "gzip"}, "unsupported_encoding"),
    ],
)
async def test_json_is_what_is_read(proxy: Proxy, engine: Engine, headers: dict[str, str], code: str) -> None:
    async with proxy.post(headers=headers, data=b'{"model":"big"}') as response:
        await expect_error(response, 415, code)
    assert not engine.calls


@pytest.mark.parametrize("kind", ["application/json", "Application/JSON; charset=utf-8"])
async def test_json_by_its_names(proxy: Proxy, kind: str) -> None:
    async with proxy.post(headers={"content-type": kind}) as response:
        assert response.status == 200


@pytest.mark.parametrize(
    ("path", "body", "code", "param"),
    [
        ("/v1/chat/completions", {"max_tokens": "many"}, "invalid_type", "max_tokens"),
        ("/v1/chat/completions", {"max_completion_tokens": -1}, "invalid_value", "max_completion_tokens"),
        ("/v1/completions", {"max_tokens": True}, "invalid_type", "max_tokens"),
        ("/v1/completions", {"max_tokens": 1.5}, "invalid_type", "max_tokens"),
        ("/v1/completions", {"n": 0}, "invalid_value", "n"),
        ("/v1/completions", {"user": 3}, "invalid_type", "user"),
        ("/v1/responses", {"background": True}, "not_supported", "background"),
        ("/v1/responses", {"previous_response_id": "r1"}, "not_supported", "previous_response_id"),
    ],
)
async def test_what_the_proxy_acts_on_is_checked(
    proxy: Proxy, engine: Engine, path: str, body: dict[str, Any], code: str, param: str
) -> None:
    async with proxy.post(path, body=body) as response:
        await expect_error(response, 400, code, param)
    assert not engine.calls


async def test_what_it_does_not_act_on_is_not(proxy: Proxy, engine: Engine) -> None:
    odd = {"temperature": "hot", "messages": 3, "n": None, "stream": None, "metadata": {"user_id": 3}}
    async with proxy.post(body=odd) as response:
        assert response.status == 200
    assert await sent(engine) == {"model": "big"} | odd


async def test_nesting_is_bounded_before_an_engine_sees_it(proxy: Proxy, engine: Engine) -> None:
    for levels in (100, 5000, 400_000):
        body = b'{"model":"big","messages":' + b"[" * levels + b"]" * levels + b"}"
        async with proxy.post(data=body) as response:
            assert response.status == 400
            assert (await response.json())["error"]["code"] in ("too_deep", "invalid_json")
    assert not engine.calls


async def test_further_versions_are_the_same_api(files: Files, engine: Engine) -> None:
    files.configure(engine, api_versions=["v1", "openai/v1"])
    async with running_proxy(files) as proxy:
        async with proxy.post("/openai/v1/chat/completions") as response:
            assert response.status == 200
        assert (await engine.next_call()).path == "/v1/chat/completions"
        async with proxy.get("/openai/v1/models/big") as response:
            assert (await response.json())["id"] == "big"
        async with proxy.post("/v2/chat/completions") as response:
            await expect_error(response, 404, "not_found")
        async with proxy.post("/openai/v1/tokenize") as response:
            await expect_error(response, 404, "not_found")


CUSTOM = [
    {
        "path": "/v1/summarize",
        "upstream_path": "/v1/chat/completions",
        "defaults": {"model": "big", "temperature": 0},
        "body_limit_bytes": 1000,
    },
    {"path": "/v1/classify", "upstream_path": "/classify", "endpoint_class": "pooling"},
    {"path": "/v1/terms", "answer": {"body": {"terms": "be kind"}}},
    {"path": "/motd", "answer": {"status": 203, "body": "hello"}},
    {"path": "/v1/completions", "answer": {"status": 410, "body": {"error": {"message": "use chat"}}}},
]


async def test_operators_own_endpoints(files: Files, engine: Engine) -> None:
    files.configure(engine, custom_endpoints=CUSTOM)
    async with running_proxy(files) as proxy:
        async with proxy.post("/v1/summarize", data=b'{"messages":[]}') as response:
            assert response.status == 200
        call = await engine.next_call()
        assert call.path == "/v1/chat/completions"
        assert json.loads(call.body) == {"model": "big", "temperature": 0, "messages": []}
        async with proxy.post("/v1/summarize", data=b"{}") as response:
            assert response.status == 200
        assert await sent(engine) == {"model": "big", "temperature": 0}
        async with proxy.post("/v1/summarize", data=b'{"model":"small","temperature":1}') as response:
            assert response.status == 200
        assert await sent(engine) == {"model": "small", "temperature": 1}
        async with proxy.post("/v1/summarize", data=b" " * 1001) as response:
            await expect_error(response, 413, "body_too_large")
        async with proxy.post("/v1/classify") as response:
            assert response.status == 200
        assert (await engine.next_call()).path == "/classify"
        for path, status, body in (
            ("/v1/terms", 200, b'{"terms":"be kind"}'),
            ("/motd", 203, b"hello"),
            ("/v1/completions", 410, b'{"error":{"message":"use chat"}}'),
        ):
            async with proxy.get(path) as response:
                assert (response.status, await response.read()) == (status, body)
            async with proxy.get(path, key=None) as response:
                await expect_error(response, 401, "missing_api_key")
    assert not engine.arrived.qsize()


FORM = (
    b'--XX\r\nContent-Disposition: form-data; name="model"\r\n\r\nbig\r\n'
    b'--XX\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\nRIFF\r\n--XX--\r\n'
)
FORM_TYPE = "multipart/form-data; boundary=XX"


@pytest.mark.parametrize("path", ["/v1/audio/transcriptions", "/v1/audio/translations"])
async def test_forms_are_passed_on_as_they_are(proxy: Proxy, engine: Engine, path: str) -> None:
    async with proxy.post(path, data=FORM, headers={"content-type": FORM_TYPE}) as response:
        assert response.status == 200
    call = await engine.next_call()
    assert (call.path, call.body, call.headers["content-type"]) == (path, FORM, FORM_TYPE)
    async with proxy.post(path) as response:
        await expect_error(response, 415, "unsupported_media_type")


@pytest.mark.parametrize("endpoint_class", ["audio", "generation", None])
async def test_an_own_endpoint_takes_json_and_forms(
    files: Files, engine: Engine, endpoint_class: str | None
) -> None:
    custom = {"path": "/v1/audio/mine", "upstream_path": "/v1/audio/theirs", "defaults": {"voice": "x"}}
    if endpoint_class is not None:
        custom["endpoint_class"] = endpoint_class
    files.configure(engine, custom_endpoints=[custom])
    async with running_proxy(files) as proxy:
        for kind in (FORM_TYPE, " Multipart/Form-Data; boundary=XX"):
            async with proxy.post("/v1/audio/mine", data=FORM, headers={"content-type": kind}) as response:
                assert response.status == 200, await response.text()
            call = await engine.next_call()
            assert (call.path, call.body) == ("/v1/audio/theirs", FORM)
        async with proxy.post("/v1/audio/mine", body={"input": "hello"}) as response:
            assert response.status == 200
        assert await sent(engine) == {"model": "big", "input": "hello", "voice": "x"}
        async with proxy.post("/v1/audio/mine", headers={"content-type": "text/plain"}) as response:
            await expect_error(response, 415, "unsupported_media_type")


@pytest.mark.parametrize("path", ["/pooling", "/classify", "/rerank", "/v2/rerank", "/score", "/v1/score"])
async def test_what_pools_is_asked_where_vllm_has_it(files: Files, engine: Engine, path: str) -> None:
    usage = {"prompt_tokens": 7, "total_tokens": 7, "completion_tokens": 0}

    async def answer(call: Call) -> None:
        await call.answer(200, {"data": [{"probs": [0.4, 0.6]}], "usage": usage})

    engine.script = answer
    admin = files.admin()
    files.configure(engine, isolate_prefix_cache=True, admin=admin)
    async with running_proxy(files) as proxy:
        async with proxy.post(path, body={"input": ["a", "b"]}) as response:
            assert response.status == 200
        metrics = await proxy.admin.metrics()
    call = await engine.next_call()
    assert call.path == path
    assert "cache_salt" in json.loads(call.body), "pooling shares no prefixes either"
    assert 7 in [value for name, value in metrics.items() if "prompt" in name], metrics


async def test_a_new_endpoint_needs_no_restart(proxy: Proxy, files: Files, engine: Engine) -> None:
    async with proxy.get("/motd") as response:
        await expect_error(response, 404, "not_found")
    files.configure(engine, custom_endpoints=CUSTOM)
    await proxy.until_answer("/motd", 203)


BEARER = f"Bearer {KEY}"


@pytest.mark.parametrize(
    "headers",
    [
        [("x-api-key", KEY)],
        [("api-key", KEY)],
        [("authorization", f"bearer   {KEY}  ")],
        [("authorization", f"Bearer\t{KEY}")],
        [("authorization", "Basic Zm9vOmJhcg=="), ("x-api-key", KEY)],
        [("authorization", "Bearer "), ("x-api-key", KEY)],
        [("authorization", "Bearer dummy"), ("api-key", KEY)],
        [("authorization", "AWS4-HMAC-SHA256 Credential=x"), ("x-api-key", "dummy"), ("api-key", KEY)],
        [("authorization", BEARER), ("x-api-key", "dummy"), ("api-key", "")],
        [("authorization", BEARER), ("x-api-key", KEY), ("api-key", KEY)],
        [("authorization", "Basic Zm9vOmJhcg=="), ("authorization", BEARER)],
        [("x-api-key", ""), ("x-api-key", KEY), ("x-api-key", KEY)],
    ],
)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/models"])
async def test_whichever_header_carries_a_valid_key(
    proxy: Proxy, engine: Engine, headers: list[tuple[str, str]], path: str
) -> None:
    method = "GET" if path == "/v1/models" else "POST"
    headers = [*headers, ("content-type", "application/json")]
    async with proxy.session.request(
        method, proxy.url + path, headers=CIMultiDict(headers), data=b'{"model":"big"}'
    ) as response:
        assert response.status == 200, await response.text()
    for call in engine.calls:
        assert not {"authorization", "x-api-key", "api-key"} & call.headers.keys()
        assert KEY not in "".join(call.headers.values())


@pytest.mark.parametrize(
    ("headers", "status", "code", "names"),
    [
        ([], 401, "missing_api_key", ["Authorization", "x-api-key", "api-key"]),
        ([("authorization", "Basic Zm9vOmJhcg==")], 401, "missing_api_key", ["Authorization came", "Bearer"]),
        ([("x-api-key", " ")], 401, "missing_api_key", ["x-api-key came"]),
        ([("authorization", KEY)], 401, "missing_api_key", ["not as 'Bearer'"]),
        ([("x-api-key", "wrong")], 401, "invalid_api_key", ["looked for in x-api-key."]),
        (
            [("authorization", "Bearer a"), ("x-api-key", "b"), ("api-key", "c")],
            401,
            "invalid_api_key",
            ["Authorization, x-api-key, api-key."],
        ),
        (
            [("authorization", BEARER), ("x-api-key", SMALL_KEY)],
            400,
            "several_api_keys",
            ["Authorization, x-"],
        ),
        ([("api-key", KEY), ("api-key", SMALL_KEY)], 400, "several_api_keys", ["(api-key)"]),
        ([("authorization", BEARER), ("authorization", f"Bearer {SMALL_KEY}")], 400, "several_api_keys", []),
        ([("x-api-key", f"no-{number}") for number in range(9)], 400, "several_api_keys", ["More than 8"]),
    ],
)
async def test_no_key_that_counts(
    proxy: Proxy, engine: Engine, headers: list[tuple[str, str]], status: int, code: str, names: list[str]
) -> None:
    async with proxy.session.post(
        proxy.url + "/v1/completions", headers=CIMultiDict(headers), data=b'{"model":"big"}'
    ) as response:
        error = await expect_error(response, status, code)
    assert all(name in error["message"] for name in names), error["message"]
    assert KEY not in error["message"]
    assert not engine.calls


async def test_an_expired_key_hides_no_valid_one(files: Files, engine: Engine) -> None:
    old = "carol-key-0123456789-0123456789-0123"
    files.write(
        files.keys, [*KEYS, {"name": "carol", "sha256": sha256(old), "expires": "2020-01-01T00:00:00Z"}]
    )
    files.configure(engine)
    async with running_proxy(files) as proxy:
        async with proxy.post(key=old, headers={"x-api-key": KEY}) as response:
            assert response.status == 200
        async with proxy.post(key=old, headers={"x-api-key": "wrong"}) as response:
            await expect_error(response, 401, "expired_api_key")


async def test_an_engine_without_the_model_gets_nothing(files: Files, engine: Engine) -> None:
    async with running_engine("elsewhere") as other:
        files.configure(engine, other)
        async with running_proxy(files) as proxy, proxy.post(body={"model": "elsewhere"}) as response:
            assert response.status == 200
    assert not engine.calls


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("//v1/models", "/v1/models"),
        ("/v1//chat/completions", "/v1/chat/completions"),
        ("/v1/chat/completions/", "/v1/chat/completions"),
        ("/chat/completions", "/v1/chat/completions"),
        ("/v1/v1/chat/completions", "/v1/chat/completions"),
        ("/api/v1/embeddings", "/v1/embeddings"),
        ("/openai/deployments/big/chat/completions", "/v1/chat/completions"),
        ("/V1/Chat/Completions", "/v1/chat/completions"),
        ("/v1/tokenize", "/tokenize"),
        ("/v1/pooling", "/pooling"),
        ("/models/org/big", "/v1/models/org/big"),
        ("/v1/models/", "/v1/models"),
        ("/messages/count_tokens/", "/v1/messages/count_tokens"),
        ("/v1/summarize/", "/v1/summarize"),
        ("/metrics", None),
        ("/", None),
        ("/" * 10_000 + "v1/models", None),
    ],
)
async def test_a_path_that_is_nearly_right_is_told_the_right_one(
    files: Files, engine: Engine, path: str, meant: str | None
) -> None:
    files.configure(engine, custom_endpoints=CUSTOM)
    async with running_proxy(files) as proxy:
        url = URL(proxy.url + path, encoded=True)
        for method in ("GET", "POST"):
            async with proxy.session.request(method, url, headers={"authorization": BEARER}) as response:
                error = await expect_error(response, 404, "not_found")
            told = "" if meant is None else f" Did you mean {meant}?"
            assert error["message"] == f"There is nothing at this path.{told}"
    assert not engine.calls


async def test_errors_of_shared_paths_have_the_shape_of_who_asks(proxy: Proxy) -> None:
    version = {"anthropic-version": "2023-06-01"}
    for method, path, key, status, kind in (
        ("GET", "/messages", KEY, 404, "not_found_error"),
        ("GET", "/v1/models", "wrong", 401, "authentication_error"),
        ("GET", "/v1/models/nobody", KEY, 404, "not_found_error"),
        ("GET", "/v1/models?limit=0", KEY, 400, "invalid_request_error"),
        ("DELETE", "/v1/models", KEY, 405, "invalid_request_error"),
    ):
        headers = version | {"x-api-key": key}
        async with proxy.session.request(method, proxy.url + path, headers=headers) as response:
            body = await response.json()
            assert (response.status, body["type"], body["error"]["type"]) == (status, "error", kind)
            assert body["request_id"] == response.headers["x-request-id"] == response.headers["request-id"]
