"""The admin API: who may use it, what it shows, and draining engines and putting them back."""

import asyncio
import base64
from collections.abc import AsyncIterator

import aiohttp
import pytest
from starlette.types import Message

from engine import WAIT_S, Call, Engine
from expect import expect_error
from harness import ADMIN_KEY, KEY, Admin, Files, Log, Proxy, running_proxy
from inference_proxy.admin.api import Admin as AdminApp
from inference_proxy.admin.listener import AdminServer
from inference_proxy.admin.readings import Readings
from inference_proxy.settings import Settings
from inference_proxy.state import State

pytestmark = pytest.mark.anyio

DRAIN = "/admin/engines/host1:e/drain"
UNDRAIN = "/admin/engines/host1:e/undrain"


@pytest.fixture
async def seen(files: Files, engine: Engine, other: Engine) -> AsyncIterator[Proxy]:
    files.configure(engine, other, admin=files.admin(), usage={"directory": str(files.usage)})
    async with running_proxy(files) as proxy:
        yield proxy


def basic(text: str) -> str:
    return "Basic " + base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer", f"Bearer {KEY}", f"Bearer {ADMIN_KEY}x", f"Bearer {ADMIN_KEY} x", "Bearer \u00e9",
     "Basic", "Basic ?", basic(ADMIN_KEY), basic(f"{ADMIN_KEY}:"), basic(f"admin:{ADMIN_KEY}x")],
)  # fmt: skip
async def test_nothing_without_the_admin_key(seen: Proxy, authorization: str | None) -> None:
    headers = {} if authorization is None else {"authorization": authorization}
    for method, path in [("GET", "/"), ("GET", "/admin/engines"), ("POST", DRAIN), ("GET", "/nothing")]:
        async with seen.admin.request(method, path, key=None, headers=headers) as response:
            assert response.status == 401
            assert response.headers["www-authenticate"].startswith("Basic")
            assert (await response.json())["error"]["code"] == "invalid_admin_key"
    assert not list(seen.files.drained.iterdir())


@pytest.mark.parametrize(
    "authorization", [f"bearer  {ADMIN_KEY}", basic(f":{ADMIN_KEY}"), basic(f"me:{ADMIN_KEY}")]
)
async def test_bearer_and_basic(seen: Proxy, authorization: str) -> None:
    async with seen.admin.request("GET", "/", headers={"authorization": authorization}) as response:
        assert response.status == 200


async def test_without_a_key_there_are_metrics_only(files: Files, engine: Engine) -> None:
    files.configure(engine, admin={"port_offset": files.admin()["port_offset"]})
    async with running_proxy(files) as proxy:
        assert await proxy.admin.metrics()
        for authorization in ("", "Bearer ", "Bearer None", basic(":")):
            headers = {"authorization": authorization}
            async with proxy.admin.request("GET", "/admin/engines", headers=headers) as response:
                assert response.status == 401


async def test_clients_do_not_meet_it(seen: Proxy) -> None:
    for path in ("/metrics", "/admin/engines", "/admin/usage"):
        async with seen.get(path, key=ADMIN_KEY) as response:
            await expect_error(response, 404, "not_found")


async def test_metrics_need_no_key_on_this_host(seen: Proxy) -> None:
    async with seen.admin.request("GET", "/metrics", key=None) as response:
        assert response.status == 200


@pytest.mark.parametrize(
    ("client", "status"), [("10.0.0.9", 401), ("2001:db8::1", 401), ("127.0.0.2", 200), ("::1", 200)]
)
async def test_metrics_need_the_key_from_elsewhere(
    files: Files, engine: Engine, client: str, status: int
) -> None:
    files.configure(engine, admin=files.admin())
    statuses = []

    async def send(message: Message) -> None:
        statuses.append(message.get("status"))

    async def receive() -> Message:
        return {"type": "http.request"}

    scope = {"type": "http", "method": "GET", "path": "/metrics", "query_string": b"", "headers": [],
             "client": (client, 1)}  # fmt: skip
    state = State(Settings.load(files.config))
    await AdminApp(state, Readings(state))(scope, receive, send)
    assert statuses[0] == status


async def test_engines_can_be_read(seen: Proxy, engine: Engine) -> None:
    first, second = (await seen.admin.get("/admin/engines"))["engines"]
    assert (first["id"], first["url"], first["models"]) == ("host1:e", engine.url, ["big", "small"])
    assert (first["state"], first["breaker"], first["in_flight"]) == ("serving", "closed", 0)
    assert first["drained_because"] is None
    assert second["id"] == "host2:e"


async def test_drain_keeps_new_requests_away_and_lets_others_finish(
    seen: Proxy, engine: Engine, other: Engine
) -> None:
    go_on = asyncio.Event()

    async def pause(call: Call) -> None:
        await go_on.wait()
        await call.answer(200, {"id": "late"})

    engine.script = pause
    running = asyncio.create_task(seen.post(body={"model": "small"}).__aenter__())
    await engine.next_call()

    async with seen.admin.request("POST", DRAIN, json={"reason": "fan\nbroken"}) as response:
        assert response.status == 200
        answer = await response.json()
    assert (answer["state"], answer["in_flight"]) == ("drained", 1)
    assert answer["drained_because"] == "admin: fan broken"
    for _ in range(5):
        async with seen.post() as response:
            assert response.status == 200
    assert (len(engine.calls), len(other.calls)) == (1, 5)

    waiting = asyncio.create_task(seen.admin.request("POST", DRAIN + "?wait_s=60").__aenter__())
    go_on.set()
    async with await asyncio.wait_for(running, WAIT_S) as response:
        assert await response.json() == {"id": "late"}
    async with await asyncio.wait_for(waiting, WAIT_S) as response:
        assert (await response.json())["in_flight"] == 0

    async with seen.admin.request("POST", UNDRAIN) as response:
        assert (await response.json())["state"] == "serving"
    assert not list(seen.files.drained.iterdir())


async def test_a_drain_stands_after_a_restart(
    seen: Proxy, files: Files, engine: Engine, other: Engine
) -> None:
    async with seen.admin.request("POST", DRAIN) as response:
        assert response.status == 200
    files.configure(engine, other)
    async with running_proxy(files) as again:
        states = {engine["id"]: engine["state"] for engine in (await again.ready())["engines"]}
    assert states == {"host1:e": "drained", "host2:e": "serving"}


async def test_what_others_drained_stays(seen: Proxy) -> None:
    marker = seen.files.drained / "host1:e"
    marker.write_text("rolling update\n")
    for path, status in ((DRAIN, 200), (UNDRAIN, 409)):
        async with seen.admin.request("POST", path) as response:
            assert response.status == status
            text = await response.text()
    assert "rolling update" in text
    assert marker.read_text() == "rolling update\n"


async def test_undrain_of_what_is_not_drained(seen: Proxy) -> None:
    async with seen.admin.request("POST", UNDRAIN) as response:
        assert (response.status, (await response.json())["state"]) == (200, "serving")


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("POST", "/admin/engines/none/drain", 404, "engine_not_found"),
        ("POST", "/admin/engines/..%2fkeys.yml/undrain", 404, "not_found"),
        ("GET", DRAIN, 405, "method_not_allowed"),
        ("POST", "/admin/engines", 405, "method_not_allowed"),
        ("POST", DRAIN + "?wait_s=long", 400, "invalid_type"),
        ("GET", "/admin/nothing", 404, "not_found"),
        ("GET", "/admin/usage?since=yesterday", 400, "invalid_type"),
    ],
)
async def test_what_it_refuses(seen: Proxy, method: str, path: str, status: int, code: str) -> None:
    async with seen.admin.request(method, path) as response:
        assert (response.status, (await response.json())["error"]["code"]) == (status, code)


@pytest.mark.parametrize(
    ("body", "status"), [(b"{", 400), (b"[]", 400), (b'{"reason": 1}', 400), (b" " * 5000, 413), (b"", 200)]
)
async def test_the_reason(seen: Proxy, body: bytes, status: int) -> None:
    async with seen.admin.request("POST", DRAIN, data=body) as response:
        assert response.status == status


@pytest.mark.parametrize("origin", ["http://elsewhere.example", "null"])
async def test_another_site_cannot_use_an_operators_browser(seen: Proxy, origin: str) -> None:
    async with seen.admin.request("POST", DRAIN, headers={"origin": origin}) as response:
        assert response.status == 403
    assert not list(seen.files.drained.iterdir())


async def test_a_directory_that_cannot_be_written_is_named(files: Files, engine: Engine) -> None:
    files.configure(engine, admin=files.admin(), drained_dir="/proc/nowhere")
    async with running_proxy(files) as proxy, proxy.admin.request("POST", DRAIN) as response:
        error = (await response.json())["error"]
        assert (response.status, error["code"]) == (500, "storage_failed")
        assert "/proc/nowhere" in error["message"]


async def test_it_opens_moves_and_closes_with_the_configuration(
    files: Files, engine: Engine, log: Log
) -> None:
    files.configure(engine)
    async with running_proxy(files) as proxy:
        files.configure(engine, admin=files.admin())
        admin = Admin(proxy.session, files.admin_port)
        await until_listening(admin)

        files.configure(engine, admin=files.admin())
        moved = Admin(proxy.session, files.admin_port)
        await until_listening(moved)
        await until_closed(admin)

        files.configure(engine, admin={**files.admin(), "port_offset": proxy.port})
        async with asyncio.timeout(WAIT_S):
            while not any("cannot listen" in line["message"] for line in log.lines("log")):
                await asyncio.sleep(0.01)
        assert await moved.get("/admin/engines")

        files.configure(engine)
        await until_closed(moved)


async def test_it_does_not_start_where_its_port_is_taken(files: Files, engine: Engine, log: Log) -> None:
    files.configure(engine, admin=files.admin())
    async with running_proxy(files):
        with pytest.raises(SystemExit):
            async with running_proxy(files):
                pass
    assert any("cannot listen" in line.get("traceback", line["message"]) for line in log.lines("log"))


async def until_listening(admin: Admin) -> None:
    async with asyncio.timeout(WAIT_S):
        while True:
            try:
                await admin.get("/admin/engines")
                return
            except aiohttp.ClientConnectionError:
                await asyncio.sleep(0.01)


async def until_closed(admin: Admin) -> None:
    async with asyncio.timeout(WAIT_S):
        while True:
            try:
                async with admin.request("GET", "/admin/engines"):
                    await asyncio.sleep(0.01)
            except aiohttp.ClientConnectionError:
                return


async def test_what_others_put_into_views_has_a_path_and_a_table(files: Files, engine: Engine) -> None:
    files.configure(engine, admin=files.admin())
    state = State(Settings.load(files.config))
    server = AdminServer(state)
    server._readings.views["queues"] = lambda: [{"model": "<b>", "waiting": 3, "oldest_s": None}]
    await server.start()
    async with aiohttp.ClientSession() as session:
        admin = Admin(session, files.admin_port)
        assert (await admin.get("/admin/queues"))["queues"][0]["waiting"] == 3
        async with admin.request("GET", "/") as response:
            page = await response.text()
    await server.close()
    assert "<caption>Queues</caption>" in page
    assert '<td>&lt;b&gt;</td><td class="number">3</td><td>-</td>' in page
