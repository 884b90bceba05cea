"""Fixtures: two engines, the files, and proxies in front of one engine or both."""

import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from engine import Engine
from harness import Files, Log, Proxy, running_engine, running_proxy
from inference_proxy import reload
from inference_proxy.accounting import accounts, logs
from inference_proxy.engines import poller

# No time limit per example: the speed of the machine does not matter.
settings.register_profile("proxy", deadline=None, max_examples=50)
settings.load_profile("proxy")


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": True}


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten intervals, not deadlines: how often the proxy polls engines and checks its files."""
    monkeypatch.setattr(poller, "_INTERVAL_S", 0.03)
    monkeypatch.setattr(reload, "_INTERVAL_S", 0.02)
    monkeypatch.setattr(accounts, "_LINGER_S", 0)


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    async with running_engine("big", "small") as engine:
        yield engine


@pytest.fixture
async def other() -> AsyncIterator[Engine]:
    async with running_engine("big") as engine:
        yield engine


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


@pytest.fixture
async def proxy(files: Files, engine: Engine) -> AsyncIterator[Proxy]:
    files.configure(engine, body_limit_bytes=4 << 20)
    async with running_proxy(files) as proxy:
        yield proxy


@pytest.fixture
async def pair(files: Files, engine: Engine, other: Engine) -> AsyncIterator[Proxy]:
    files.configure(engine, other)
    async with running_proxy(files) as proxy:
        yield proxy


@pytest.fixture
def log(capsys: pytest.CaptureFixture[str]) -> Iterator[Log]:
    handler = logs.JsonHandler()
    logging.getLogger().addHandler(handler)
    yield Log(capsys)
    logging.getLogger().removeHandler(handler)
