"""Waiting for a place at an engine: the order, the limits, and requests that leave."""

import asyncio
import tracemalloc
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference_proxy.api.errors import Unavailable
from inference_proxy.config import Config
from inference_proxy.engines.fleet import Fleet
from inference_proxy.faults import Faults
from inference_proxy.scheduling.fair_queue import FairQueue
from inference_proxy.scheduling.queues import Place, Queues
from jobs import Clock, a_config, a_fleet, a_job

SHARES = {"interactive": 8, "default": 4, "batch": 1}

classes = st.sampled_from(sorted(SHARES))
arrivals = st.lists(st.tuples(classes, st.integers(1, 2000)), min_size=1, max_size=200)

pytestmark = pytest.mark.anyio


def join(queue: FairQueue[Any], item: Any, name: str, tokens: int = 1, most: int = 10**6) -> Any:
    return queue.add(item, name, SHARES[name], tokens, most)


@given(arrivals)
def test_within_a_class_first_come_first_served(requests: list[tuple[str, int]]) -> None:
    queue: FairQueue[tuple[str, int]] = FairQueue()
    for number, (name, tokens) in enumerate(requests):
        join(queue, (name, number), name, tokens)
    served = [queue.take() for _ in range(len(requests))]
    assert queue.length == 0
    for name in SHARES:
        numbers = [number for other, number in served if other == name]
        assert numbers == sorted(numbers)


@given(arrivals, st.integers(1, 150))
def test_no_class_gets_less_than_its_share_while_it_waits(
    requests: list[tuple[str, int]], turns: int
) -> None:
    """So none starves, however much the others send: batch has a thirteenth even beside endless chats."""
    queue: FairQueue[tuple[str, int]] = FairQueue()
    backlog = Counter[str]()
    for name, tokens in requests:
        join(queue, (name, tokens), name, tokens)
        backlog[name] += 1
    waiting = set(backlog)
    shares = sum(SHARES[name] for name in waiting)
    largest = max(tokens for _, tokens in requests)
    served: Counter[str] = Counter()
    for _ in range(turns):
        name, tokens = queue.take()
        served[name] += tokens
        backlog[name] -= 1
        if not backlog[name]:
            break
        for other in waiting:
            # Short of its share by its own next request and by what others are ahead with theirs.
            fair = SHARES[other] / shares * served.total()
            assert served[other] >= fair - largest * (1 + SHARES[other])


@given(arrivals, st.integers(1, 20))
def test_a_line_is_bounded_and_a_flood_shuts_nobody_out(requests: list[tuple[str, int]], most: int) -> None:
    queue: FairQueue[int] = FairQueue()
    for number, (name, tokens) in enumerate(requests):
        gone = join(queue, number, name, tokens, most)
        assert queue.length <= most
        assert queue.length == sum(queue.counts().values())
        if gone == number:
            others = queue.counts()
            mine = (others[name] + 1) / SHARES[name]
            assert all(mine >= count / SHARES[other] for other, count in others.items())


def test_a_class_does_not_save_up_turns_while_it_is_away() -> None:
    queue: FairQueue[str] = FairQueue()
    for _ in range(100):
        join(queue, "batch", "batch")
    for _ in range(50):
        queue.take()
    for _ in range(100):
        join(queue, "interactive", "interactive")
    assert Counter(queue.take() for _ in range(27))["batch"] >= 2


def test_a_class_that_uses_less_than_it_asked_for_gets_no_turns_in_advance() -> None:
    """Large caps, short answers: a refund puts a class ahead of no one who came meanwhile or comes later."""
    queue: FairQueue[str] = FairQueue()
    for _ in range(60):
        join(queue, "batch", "batch", 10**6)
    for _ in range(10):
        queue.take()
    join(queue, "interactive", "interactive", 100)
    while queue.take() != "interactive":
        pass
    for _ in range(10):
        queue.settle("batch", 100 - 10**6)
    for name in ("interactive", "default"):
        for _ in range(5):
            join(queue, name, name, 100)
    assert Counter(queue.take() for _ in range(11)) == {"interactive": 5, "default": 5, "batch": 1}


@settings(max_examples=300)
@given(st.data())
def test_no_class_starves_whatever_the_others_ask_for_and_use(data: st.DataObject) -> None:
    """However requests came and ended: a new one has at most one turn of each other class before it."""
    queue: FairQueue[tuple[str, int]] = FairQueue()
    running: list[tuple[str, int]] = []
    for step in data.draw(st.lists(st.sampled_from(["come", "turn", "end"]), min_size=10, max_size=30)):
        if step == "come":
            name = data.draw(st.sampled_from(["interactive", "default"]))
            tokens = data.draw(st.sampled_from([1, 10**9]))
            for _ in range(4):
                join(queue, (name, tokens), name, tokens)
        elif step == "turn" and queue.length:
            running.append(queue.take())
        elif step == "end" and running:
            name, tokens = running.pop(data.draw(st.integers(0, len(running) - 1)))
            queue.settle(name, data.draw(st.sampled_from([0, 1, tokens])) - tokens)
    join(queue, ("batch", 1), "batch")
    for name, tokens in running:
        queue.settle(name, -tokens)
    turns = [queue.take() for _ in range(queue.length)]
    assert turns.index(("batch", 1)) <= 2


def test_who_leaves_is_gone_and_leaving_twice_does_nothing() -> None:
    queue: FairQueue[str] = FairQueue()
    join(queue, "a", "default")
    join(queue, "b", "default")
    queue.leave("a", "default")
    queue.leave("a", "default")
    assert queue.length == 1
    assert queue.take() == "b"


# In front of engines.


class Desk:
    """Queues at engines that take one request each, unless configured otherwise."""

    def __init__(self, *engines: dict[str, Any], **settings: Any) -> None:
        self.clock = Clock()
        self.config: Config = a_config(*engines, **settings)
        self.fleet: Fleet = a_fleet(*engines, clock=self.clock, **settings)
        self.queues = Queues(self.fleet, Faults())

    def task(self, **asked: Any) -> "asyncio.Task[Place]":
        return asyncio.create_task(self.queues.enter(a_job(**asked), self.config))

    async def waiting(self, **asked: Any) -> "asyncio.Task[Place]":
        task = self.task(**asked)
        await asyncio.sleep(0)
        assert not task.done()
        return task

    def counts(self) -> list[dict[str, int]]:
        return [view.waiting for view in self.queues.snapshot(self.config)]


ONE = {"max_in_flight": 1}


async def served(tasks: "dict[asyncio.Task[Place], str]") -> tuple[Place, str]:
    """The next place, and the name of the request that got it."""
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    (task,) = done
    return await task, tasks.pop(task)


async def settled(*tasks: "asyncio.Task[Place]") -> list[Place | BaseException]:
    return await asyncio.gather(*tasks, return_exceptions=True)


async def test_there_is_no_line_while_there_is_room() -> None:
    desk = Desk(ONE, ONE)
    first, second = await desk.task(), await desk.task()
    assert first.engine is not second.engine
    assert not desk.counts()
    first.leave()
    second.leave()
    assert [(e.in_flight, e.tokens) for e in desk.fleet.engines] == [(0, 0), (0, 0)]


async def test_what_has_gone_through_leaves_nothing_behind() -> None:
    """litellm#12685, production-stack#687: memory grew with every new prefix."""
    desk = Desk({}, {}, {})

    async def some(names: range) -> None:
        for number in names:
            place = await desk.queues.enter(
                a_job(session=f"s{number}", messages=[{"role": "user", "content": f"{number}" * 2000}]),
                desk.config,
            )
            place.leave()

    await some(range(100))
    tracemalloc.start()
    await some(range(100, 1100))
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 100_000
    assert not desk.counts()


async def test_the_next_in_line_gets_the_place_that_is_left() -> None:
    desk = Desk(ONE)
    place = await desk.task()
    tasks = [await desk.waiting() for _ in range(3)]
    assert desk.counts() == [{"default": 3}]
    for task in tasks:
        place.leave()
        assert desk.fleet.engines[0].in_flight == 1, "nobody can slip in between"
        place = await task
    place.leave()
    assert not desk.counts()


async def test_classes_share_the_places() -> None:
    desk = Desk(ONE)
    place = await desk.task()
    order: list[str] = []
    tasks: dict[asyncio.Task[Place], str] = {}
    for priority in ["batch"] * 20 + ["interactive"] * 20:
        tasks[await desk.waiting(priority=priority)] = priority
    for _ in range(18):
        place.leave()
        place, turn = await served(tasks)
        order.append(turn)
    assert Counter(order) == {"interactive": 16, "batch": 2}
    for task in tasks:
        task.cancel()
    await settled(*tasks)
    assert not desk.counts()


@pytest.mark.complaint(2)
async def test_a_client_that_leaves_the_line_is_out_at_once() -> None:
    """production-stack#634, while queued: it must not get a place that it will never use."""
    desk = Desk(ONE)
    place = await desk.task()
    gone, stays = await desk.waiting(), await desk.waiting()
    gone.cancel()
    await settled(gone)
    assert desk.counts() == [{"default": 1}]
    place.leave()
    (await stays).leave()
    assert desk.fleet.engines[0].in_flight == 0


async def test_a_client_that_leaves_as_its_turn_comes_gives_the_place_on() -> None:
    desk = Desk(ONE)
    place = await desk.task()
    gone, stays = await desk.waiting(), await desk.waiting()
    place.leave()
    gone.cancel()
    await settled(gone)
    (await stays).leave()
    assert desk.fleet.engines[0].in_flight == 0


async def test_the_wait_has_an_end_with_a_reason() -> None:
    desk = Desk(ONE, queue={"max_wait_s": 0.01})
    place = await desk.task()
    with pytest.raises(Unavailable) as refused:
        await desk.task()
    assert refused.value.code == "queue_timeout"
    assert not desk.counts()
    place.leave()


async def test_a_full_line_refuses_with_the_wait_that_it_expects() -> None:
    desk = Desk(ONE, queue={"max_waiting": 4, "max_wait_s": 1000})
    place = await desk.task(max_tokens=100)
    tasks = [await desk.waiting(max_tokens=100) for _ in range(4)]
    for task in tasks[:2]:
        desk.clock.now += 20
        place.leave()
        place = await task
        tasks.append(await desk.waiting(max_tokens=100))
    with pytest.raises(Unavailable) as refused:
        await desk.task(max_tokens=100)
    assert refused.value.code == "queue_full"
    # Four are ahead of a new request, and so far one started every 20 s.
    assert dict(refused.value.headers)[b"retry-after"] == b"80"
    for task in tasks[2:]:
        task.cancel()
    await settled(*tasks[2:])
    place.leave()


async def test_a_flood_of_batch_gives_way_to_a_chat() -> None:
    desk = Desk(ONE, queue={"max_waiting": 3})
    place = await desk.task()
    batch = [await desk.waiting(priority="batch") for _ in range(3)]
    chat = await desk.waiting(priority="interactive")
    (refused,) = await settled(batch[2])
    assert isinstance(refused, Unavailable)
    assert refused.code == "queue_full"
    place.leave()
    place = await chat
    for task in batch[:2]:
        place.leave()
        place = await task
    place.leave()


async def test_when_the_last_engine_goes_nobody_waits_for_it() -> None:
    desk = Desk(ONE)
    place = await desk.task()
    task = await desk.waiting()
    desk.fleet.set_drained(frozenset({"host1:e"}))
    (refused,) = await settled(task)
    assert isinstance(refused, Unavailable)
    assert refused.code == "model_unavailable"
    place.leave()


@pytest.mark.parametrize(
    ("engines", "drained", "starts_s", "retry_after_s"),
    [
        ([ONE], ["host1:e"], {"host1:e": 84}, 84),
        ([ONE, ONE], ["host1:e", "host2:e"], {"host1:e": 84, "host2:e": 60}, 60),
        ([ONE, ONE], ["host1:e", "host2:e"], {"host1:e": 84}, 5),
        ([ONE], ["host1:e"], {}, 5),
        # An engine that runs at times only, and not now.
        ([ONE, ONE | {"optional": True}], ["host1:e"], {"host1:e": 84}, 84),
    ],
)
async def test_while_all_engines_of_a_model_restart_requests_come_back_after_a_start(
    engines: list[dict[str, Any]], drained: list[str], starts_s: dict[str, int], retry_after_s: int
) -> None:
    desk = Desk(*engines)
    for engine in desk.fleet.engines:
        engine.reachable = not engine.optional
    desk.fleet.set_drained(frozenset(drained), starts_s.get)
    with pytest.raises(Unavailable) as refused:
        await desk.task()
    assert dict(refused.value.headers) == {b"retry-after": b"%d" % retry_after_s}


async def test_an_engine_that_comes_back_is_used_at_once() -> None:
    desk = Desk(ONE, ONE)
    desk.fleet.set_drained(frozenset({"host2:e"}))
    place = await desk.task()
    task = await desk.waiting()
    desk.fleet.set_drained(frozenset())
    assert (await task).engine.id == "host2:e"
    place.leave()


async def test_an_engine_that_asked_for_rest_gets_it() -> None:
    desk = Desk({}, {})
    desk.fleet.engines[0].no_requests_until = desk.clock() + 5
    assert {(await desk.task()).engine.id for _ in range(5)} == {"host2:e"}
    desk.fleet.engines[1].no_requests_until = desk.clock() + 9
    task = await desk.waiting()
    desk.clock.now += 5
    desk.queues.wake()
    assert (await task).engine.id == "host1:e"


async def test_models_take_turns_at_an_engine_that_they_share() -> None:
    both = ONE | {"models": ["big", "small"]}
    desk = Desk(both)
    place = await desk.task()
    order: list[str] = []
    tasks: dict[asyncio.Task[Place], str] = {}
    for model in ["big"] * 3 + ["small"] * 3:
        tasks[await desk.waiting(model=model)] = model
    for _ in range(6):
        place.leave()
        place, turn = await served(tasks)
        order.append(turn)
    assert order == ["big", "small"] * 3


async def test_a_full_pool_is_in_nobody_elses_way() -> None:
    desk = Desk(ONE | {"pool": "long"}, ONE, routing={"pools": {"long": {"max_tokens": 4000}}})
    long = await desk.task(max_tokens=5000)
    waits = await desk.waiting(max_tokens=5000)
    short = await desk.task(max_tokens=5)
    assert (long.engine.id, short.engine.id) == ("host1:e", "host2:e")
    long.leave()
    assert (await waits).engine.id == "host1:e"


async def test_requests_of_other_workers_take_places_too() -> None:
    desk = Desk({"max_in_flight": 3})
    desk.fleet.engines[0].others = 2
    place = await desk.task()
    task = await desk.waiting()
    desk.fleet.engines[0].others = 1
    desk.queues.wake()
    await task
    place.leave()


def test_no_engine_can_make_a_class_wait_by_what_it_tells() -> None:
    """Usage in an answer may be wrong by any factor: what counts is bounded by what a model can do."""
    fleet = a_fleet({})
    queue: FairQueue[str] = FairQueue()
    join(queue, "default", "default", 100)
    place = Place(fleet, fleet.engines[0], 100, (queue, queue.take()))
    place.leave()
    place.settle(10**12, 1000)
    for _ in range(20):
        join(queue, "batch", "batch", 100)
    join(queue, "default", "default", 100)
    assert "default" in [queue.take() for _ in range(5)]
