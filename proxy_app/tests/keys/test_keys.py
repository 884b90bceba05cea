"""Keys that expire, are bound to networks, are added and revoked; and that timing reveals no key."""

import asyncio
import contextlib
import gc
import ipaddress
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import WAIT_S, Engine
from expect import expect_error
from harness import KEY, KEYS, Files, Proxy, running_proxy, sha256
from inference_proxy.config import IpNetwork, KeyConfig
from inference_proxy.keys.authenticate import KeyRing
from inference_proxy.keys.client_address import client_address
from process import running_process

pytestmark = pytest.mark.anyio


def alice(**fields: Any) -> list[dict[str, Any]]:
    return [{"name": "alice", "sha256": sha256(KEY), **fields}]


@contextlib.asynccontextmanager
async def proxy_with(
    files: Files, engine: Engine, keys: list[dict[str, Any]], **settings: Any
) -> AsyncIterator[Proxy]:
    files.write(files.keys, keys)
    files.configure(engine, **settings)
    async with running_proxy(files) as proxy:
        yield proxy


def moment(**away: float) -> datetime:
    return datetime.now(UTC) + timedelta(**away)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/models"])
async def test_an_expired_key(files: Files, engine: Engine, path: str) -> None:
    method = "GET" if path == "/v1/models" else "POST"
    headers = {"authorization": f"Bearer {KEY}"}
    async with (
        proxy_with(files, engine, alice(expires=moment(days=-1))) as proxy,
        proxy.session.request(method, proxy.url + path, headers=headers) as response,
    ):
        await expect_error(response, 401, "expired_api_key")
        assert response.headers["www-authenticate"] == "Bearer"
    assert not engine.calls


async def test_a_key_expires_without_a_change_of_its_file(
    files: Files, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with proxy_with(files, engine, alice(expires=moment(hours=1))) as proxy:
        async with proxy.post() as response:
            assert response.status == 200
        later = moment(hours=2).timestamp()
        monkeypatch.setattr("inference_proxy.keys.authenticate.time.time", lambda: later)
        async with proxy.post() as response:
            await expect_error(response, 401, "expired_api_key")


@pytest.mark.parametrize(
    ("trusted", "headers", "status"),
    [
        ([], {}, 403),
        ([], {"x-forwarded-for": "10.1.2.3", "x-real-ip": "10.1.2.3"}, 403),
        (["10.0.0.0/8"], {"x-forwarded-for": "10.1.2.3"}, 403),
        (["127.0.0.1"], {}, 403),
        (["127.0.0.1"], {"x-forwarded-for": "10.1.2.3"}, 200),
        (["127.0.0.1"], {"x-real-ip": "10.1.2.3"}, 200),
        (["127.0.0.1"], {"x-forwarded-for": "10.1.2.3, 192.0.2.1"}, 403),
        (["127.0.0.1"], {"x-forwarded-for": "192.0.2.1, 10.1.2.3"}, 200),
        (["127.0.0.1"], {"x-forwarded-for": "10.1.2.3, 127.0.0.1"}, 200),
        (["127.0.0.1"], {"x-forwarded-for": "10.1.2.3, nonsense"}, 403),
        (["127.0.0.1"], {"x-forwarded-for": "::ffff:10.1.2.3"}, 200),
    ],
)
async def test_a_key_of_a_network(
    files: Files, engine: Engine, trusted: list[str], headers: dict[str, str], status: int
) -> None:
    keys = alice(cidrs=["10.1.0.0/16"])
    async with (
        proxy_with(files, engine, keys, trusted_proxies=trusted) as proxy,
        proxy.post(headers=headers) as response,
    ):
        if status == 200:
            assert response.status == 200
        else:
            await expect_error(response, 403, "network_not_allowed")
    assert len(engine.calls) == (status == 200)


addresses = st.ip_addresses().map(str)
anything = st.one_of(addresses, st.text(max_size=8), st.just(""))


@given(
    peer=addresses,
    entries=st.lists(anything, max_size=4),
    trusted=st.lists(st.ip_addresses(v=4).map(ipaddress.ip_network), max_size=3),
)
def test_nobody_but_a_trusted_proxy_says_who_the_client_is(
    peer: str, entries: list[str], trusted: list[IpNetwork]
) -> None:
    """Whatever is in the headers, the address is the peer's or the last one that trusted proxies report."""
    text = ",".join(entries).encode("utf-8", "replace")
    scope = {"client": (peer, 1), "headers": [(b"x-forwarded-for", text)]}
    found = client_address(scope, trusted)
    at = ipaddress.ip_address(peer)
    # How a dual-stack socket shows an IPv4 client.
    at = getattr(at, "ipv4_mapped", None) or at
    if not any(at in network for network in trusted):
        assert found == at
    elif found is not None and found != at:
        assert not any(found in network for network in trusted)


async def test_a_revoked_key_fails_on_a_connection_that_was_kept(proxy: Proxy, files: Files) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)

    async def status() -> int:
        writer.write(b"GET /v1/models HTTP/1.1\r\nhost: x\r\nauthorization: Bearer %s\r\n\r\n" % KEY.encode())
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), WAIT_S)
        length = next(line for line in head.split(b"\r\n") if line.startswith(b"content-length"))
        await reader.readexactly(int(length.split(b":")[1]))
        return int(head.split(b" ")[1])

    try:
        assert await status() == 200
        files.write(files.keys, KEYS[1:])
        async with asyncio.timeout(WAIT_S):
            while (latest := await status()) == 200:
                await asyncio.sleep(0.01)
        assert latest == 401
    finally:
        writer.close()


async def test_every_worker_hears_of_a_revoked_key(files: Files, engine: Engine) -> None:
    """Real processes, with their real intervals for checking files."""
    files.configure(engine)
    async with running_process(files) as one, running_process(files) as two:
        for worker in (one, two):
            async with worker.proxy.post() as response:
                assert response.status == 200
        files.write(files.keys, KEYS[1:])
        for worker in (one, two):
            await worker.line(message="configuration loaded")
            async with worker.proxy.post() as response:
                await expect_error(response, 401, "invalid_api_key")
            assert worker.process.returncode is None


class Work:
    """Records the calls that a piece of code makes, to Python and C functions, in order."""

    def __init__(self) -> None:
        self.steps: list[str] = []

    def __enter__(self) -> "Work":
        sys.setprofile(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)
        self.steps.pop()  # this method itself

    def _note(self, frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            self.steps.append(frame.f_code.co_qualname)
        elif event == "c_call":
            self.steps.append(argument.__qualname__)


def test_an_unknown_key_costs_what_a_known_one_does() -> None:
    ring = KeyRing([KeyConfig(name=str(n), sha256=sha256(str(n))) for n in range(1000)])

    def work(token: bytes) -> list[str]:
        with Work() as work:
            ring.find(token)
        return work.steps

    known = work(b"7")
    assert known == work(b"x") == work(b"")
    assert "compare_digest" in " ".join(known)


@pytest.mark.complaint(1)
def test_unknown_keys_leave_nothing_behind() -> None:
    ring = KeyRing([KeyConfig(name="a", sha256=sha256("a"))])
    gc.collect()
    before = len(gc.get_objects())
    for number in range(10_000):
        assert ring.find(b"guess %d" % number) is None
    gc.collect()
    assert len(gc.get_objects()) - before < 100
