"""The clocks alone, with a simulated time: the speed of the machine does not matter."""

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from inference_proxy.faults import Faults
from inference_proxy.request.clocks import Clocks
from inference_proxy.request.guard import GRAIN_S, Guard, Guards, Interrupted, Reason

pytestmark = pytest.mark.anyio

CLOCKS = Clocks(connect_s=1, first_byte_s=10, between_chunks_s=2, total_s=60)


class Clock:
    """The part of an event loop that a guard uses."""

    def __init__(self) -> None:
        self._now = 0.0
        self._due: tuple[float, Callable[[], Any]] | None = None

    def time(self) -> float:
        return self._now

    def call_at(self, when: float, callback: Callable[..., Any], *arguments: Any) -> None:
        self._due = when, functools.partial(callback, *arguments)

    @property
    def idle(self) -> bool:
        return self._due is None

    async def advance(self, seconds: float) -> None:
        end = self._now + seconds
        while self._due is not None and self._due[0] <= end:
            (self._now, callback), self._due = self._due, None
            callback()
        self._now = end
        await asyncio.sleep(0)  # where a cancellation arrives


@pytest.fixture
async def clock() -> Clock:
    return Clock()


@pytest.fixture
async def guard(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Guard:
    with monkeypatch.context() as patch:
        patch.setattr(asyncio, "get_running_loop", lambda: clock)
        return Guard(Guards(Faults()), 100)


@contextlib.asynccontextmanager
async def ended_by(guard: Guard, reason: Reason) -> AsyncIterator[None]:
    ended = None
    try:
        with guard:
            yield
    except Interrupted as interrupted:
        ended = interrupted.reason
    assert ended is reason


def stream(guard: Guard) -> None:
    guard.start(CLOCKS)
    guard.first_byte_came()


async def read_chunk(guard: Guard, clock: Clock, after_s: float) -> None:
    guard.reading_since = guard.now()
    await clock.advance(after_s)
    guard.reading_since = None


async def test_the_first_byte_may_take_its_time(guard: Guard, clock: Clock) -> None:
    with guard:
        guard.start(CLOCKS)
        await clock.advance(9.9)


async def test_but_no_longer(guard: Guard, clock: Clock) -> None:
    async with ended_by(guard, Reason.FIRST_BYTE):
        guard.start(CLOCKS)
        await clock.advance(10 + 2 * GRAIN_S)


@pytest.mark.complaint(8)
async def test_a_steady_stream_outlasts_the_clock_between_chunks(guard: Guard, clock: Clock) -> None:
    with guard:
        stream(guard)
        for _ in range(20):
            await read_chunk(guard, clock, after_s=1.9)


async def test_a_gap_ends_it(guard: Guard, clock: Clock) -> None:
    async with ended_by(guard, Reason.BETWEEN_CHUNKS):
        stream(guard)
        for _ in range(20):
            await read_chunk(guard, clock, after_s=1.9)
        await read_chunk(guard, clock, after_s=2 + 2 * GRAIN_S)


async def test_a_client_that_does_not_read_is_not_the_engines_fault(guard: Guard, clock: Clock) -> None:
    with guard:
        stream(guard)
        await read_chunk(guard, clock, after_s=1)
        await clock.advance(30)  # sending
        await read_chunk(guard, clock, after_s=1.9)


async def test_nothing_outlasts_the_total(guard: Guard, clock: Clock) -> None:
    async with ended_by(guard, Reason.TOTAL):
        stream(guard)
        await clock.advance(60 + 2 * GRAIN_S)


async def test_a_second_engine_gets_no_more_in_all(guard: Guard, clock: Clock) -> None:
    async with ended_by(guard, Reason.TOTAL):
        for _ in range(7):
            guard.start(CLOCKS)
            await clock.advance(9)


async def test_nor_does_what_came_before_an_engine(guard: Guard, clock: Clock) -> None:
    async with ended_by(guard, Reason.TOTAL):
        await clock.advance(95)
        guard.start(CLOCKS)
        await clock.advance(5 + 2 * GRAIN_S)


async def test_the_first_reason_stands(guard: Guard, clock: Clock) -> None:
    async with ended_by(guard, Reason.CLIENT_GONE):
        guard.interrupt(Reason.CLIENT_GONE)
        guard.interrupt(Reason.SHUTDOWN)
        await clock.advance(0)


async def test_a_cancellation_from_elsewhere_is_not_swallowed(guard: Guard, clock: Clock) -> None:
    async def guarded() -> None:
        with guard:
            guard.interrupt(Reason.SHUTDOWN)
            await asyncio.sleep(3600)

    task = asyncio.create_task(guarded())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_after_its_block_it_does_nothing(guard: Guard, clock: Clock) -> None:
    with guard:
        guard.start(CLOCKS)
    await clock.advance(100)
    guard.interrupt(Reason.SHUTDOWN)
    await asyncio.sleep(0)


async def test_one_timer_serves_all_and_nothing_is_left_of_those_that_are_over(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    guards = Guards(Faults())
    with monkeypatch.context() as patch:
        patch.setattr(asyncio, "get_running_loop", lambda: clock)
        many = [Guard(guards, limit_s) for limit_s in (5.0, 20.0, 50.0)]
    with contextlib.ExitStack() as entered:
        for guard in many:
            entered.enter_context(guard)
        assert len(guards) == 3
        await clock.advance(4)
    assert list(guards) == []
    await clock.advance(60)
    assert clock.idle, "no timer runs for nobody"


async def test_a_hung_engine_need_not_be_the_end(guard: Guard, clock: Clock) -> None:
    with guard:
        guard.start(CLOCKS)
        guard.interrupt(Reason.ENGINE_HUNG)
        with pytest.raises(asyncio.CancelledError):
            await asyncio.sleep(0)
        assert guard.outlive()
        await asyncio.sleep(0)
        guard.start(CLOCKS)


async def test_a_client_that_leaves_while_its_engine_hangs_is_the_end(guard: Guard, clock: Clock) -> None:
    async with ended_by(guard, Reason.CLIENT_GONE):
        guard.interrupt(Reason.ENGINE_HUNG)
        guard.interrupt(Reason.CLIENT_GONE)
        try:
            await asyncio.sleep(0)
        finally:
            assert not guard.outlive()


async def test_who_is_cancelled_by_somebody_else_as_well_does_not_outlive_that(
    guard: Guard, clock: Clock
) -> None:
    task = asyncio.current_task()
    assert task is not None
    with contextlib.suppress(asyncio.CancelledError), guard:
        guard.interrupt(Reason.ENGINE_HUNG)
        task.cancel()
        try:
            await asyncio.sleep(0)
        finally:
            assert not guard.outlive()
    assert task.uncancel() == 0
