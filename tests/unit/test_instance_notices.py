"""The watcher of AWS's notices, with the lab's stand-in for instance metadata."""

from __future__ import annotations

import asyncio
import email.utils
import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import instance_metadata
import instance_notices
import pytest
import stack_drain_notice
from ec2lab.imds import LIFECYCLE_STATE, Imds, instance_id
from instance_notices import Hook, Watcher

HOST = "127.0.0.1"
SPOT, EVENTS, REBALANCE = (
    "spot/instance-action",
    "events/maintenance/scheduled",
    "events/recommendations/rebalance",
)
DRAIN_S = 900.0


class Service(Imds):
    """The stand-in, which may also be down, silent or off by some seconds."""

    def __init__(self) -> None:
        super().__init__(HOST, 0)
        self.threads = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.threads.start()
        self.url = f"http://{HOST}:{self.server_port}"

    def set(self, path: str, value: Any) -> None:
        self.documents[HOST, path] = value if isinstance(value, str) else json.dumps(value)

    def cancel(self, path: str) -> None:
        del self.documents[HOST, path]


@pytest.fixture
def service() -> Iterator[Service]:
    with Service() as running:
        yield running
        running.shutdown()


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "run" / "draining.json"
    path.parent.mkdir()
    monkeypatch.setattr(instance_notices, "FILE", path)
    monkeypatch.setattr(stack_drain_notice, "FILE", path)
    monkeypatch.setattr(instance_notices.engine_probe, "RUN", tmp_path)
    return path


def watcher(service: Service, *, hook: str = "", rebalance: bool = False) -> Watcher:
    return Watcher(service.url, DRAIN_S, hook, rebalance=rebalance)


def spot(in_s: float, action: str = "terminate") -> dict[str, str]:
    return {"action": action, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + in_s))}


def event(in_s: float, state: str = "active", code: str = "system-reboot") -> dict[str, str]:
    begins = time.strftime("%d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + in_s))
    return {"NotBefore": begins, "Code": code, "State": state, "EventId": "instance-event-1"}


def announced(file: Path) -> str | None:
    """The reason that is announced; None if nothing is."""
    return json.loads(file.read_text())["reason"] if file.exists() else None


def header() -> str | None:
    """What engines of this host say in their answers."""
    sent: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})
        await send({"type": "http.response.body", "body": b""})

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(stack_drain_notice.DrainNotice(app)({"type": "http", "path": "/v1/models"}, None, send))
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    return dict(sent[0]["headers"]).get(b"x-engine-draining", b"").decode() or None


def test_a_spot_notice_is_announced_and_its_cancellation_too(service: Service, file: Path) -> None:
    watching = watcher(service)
    watching.look()
    assert announced(file) is None
    assert header() is None

    service.set(SPOT, spot(120))
    watching.look()
    assert announced(file) == "spot interruption (terminate)"
    assert file.stat().st_mode & 0o777 == 0o644
    value = header() or ""
    assert value.startswith("spot interruption (terminate); since 20"), value
    assert 60 < int(value.split("ends in ")[1].removesuffix(" s")) <= 121

    written = file.read_bytes()
    watching.look()
    assert file.read_bytes() == written, "a notice that stays the same is not written again"

    service.cancel(SPOT)
    watching.look()
    assert announced(file) is None
    assert header() is None


@pytest.mark.parametrize(
    ("notices", "reason"),
    [
        ({SPOT: spot(100, "stop")}, "spot interruption (stop)"),
        ({SPOT: {"action": "hibernate"}}, "spot interruption (hibernate)"),
        ({SPOT: {"action": "hibernate", "time": "soon"}}, "spot interruption (hibernate)"),
        ({LIFECYCLE_STATE: "Terminated"}, "Auto Scaling terminates the instance"),
        ({LIFECYCLE_STATE: "InService"}, None),
        ({LIFECYCLE_STATE: "Terminated", SPOT: spot(100)}, "spot interruption (terminate)"),
        ({REBALANCE: {"noticeTime": "2026-11-27T03:00:00Z"}}, None),
        ({EVENTS: []}, None),
        ({EVENTS: [event(DRAIN_S + 3600)]}, None),
        ({EVENTS: [event(DRAIN_S - 60, "completed"), event(DRAIN_S - 60, "canceled")]}, None),
        ({EVENTS: [7, {"NotBefore": 7}, event(60)]}, "scheduled event system-reboot"),
        ({EVENTS: [event(DRAIN_S + 3600), event(-5, code="instance-stop")]}, "scheduled event instance-stop"),
    ],
)
def test_what_drains_the_host(service: Service, file: Path, notices: dict[str, Any], reason: str | None) -> None:
    for path, value in notices.items():
        service.set(path, value)
    watcher(service).look()
    told = announced(file)
    assert told is None if reason is None else (told or "").startswith(reason)


def test_a_rebalance_recommendation_drains_only_where_it_should(
    service: Service, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    service.set(REBALANCE, {"noticeTime": "2026-11-27T03:00:00Z"})
    quiet = watcher(service)
    for _ in range(3):
        quiet.look()
    assert capsys.readouterr().out.count("rebalance recommendation of 2026-11-27T03:00:00Z: not drained") == 1
    watcher(service, rebalance=True).look()
    assert announced(file) == "rebalance recommendation of 2026-11-27T03:00:00Z"
    assert "ends in" not in (header() or "ends in")


def test_a_scheduled_event_drains_in_time_and_not_before(service: Service, file: Path) -> None:
    watching = watcher(service)
    service.set(EVENTS, [event(DRAIN_S + 30)])
    watching.look()
    assert announced(file) is None
    service.set(EVENTS, [event(DRAIN_S - 30)])
    watching.look()
    assert (announced(file) or "").startswith("scheduled event system-reboot, from 20")
    service.set(EVENTS, [event(DRAIN_S - 30, "canceled")])
    watching.look()
    assert announced(file) is None


def test_a_token_that_ended_early_is_renewed(service: Service, file: Path) -> None:
    """Watchers that kept their token saw 401 for the rest of their lives."""
    watching = watcher(service)
    watching.look()
    service.tokens.clear()
    service.set(SPOT, spot(120))
    watching.look()
    assert announced(file)


def test_a_token_is_renewed_before_it_ends(service: Service, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watching = watcher(service)
    watching.look()
    assert len(service.tokens) == 1
    began_s = time.monotonic()
    monkeypatch.setattr(instance_metadata.time, "monotonic", lambda: began_s + instance_metadata.TOKEN_S)
    watching.look()
    assert len(service.tokens) == 2


def test_outside_ec2_it_says_so_once(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Service() as closed:
        closed.shutdown()
    watching = Watcher(closed.url, DRAIN_S, "")
    for _ in range(3):
        watching.look()
    assert capsys.readouterr().out.count("\n") == 1
    assert watching.pause_s == instance_notices.LOOK_ELSEWHERE_S


@pytest.mark.parametrize("status", [401, 403, 500, 503])
def test_while_the_metadata_fail_what_was_known_stays(
    service: Service, file: Path, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    service.set(SPOT, spot(120))
    watching = watcher(service)
    watching.look()
    monkeypatch.setattr(Imds, "document", lambda *_: None)
    handler = service.RequestHandlerClass
    with monkeypatch.context() as broken:
        broken.setattr(handler, "do_GET", lambda self: self._answer(status, "broken"))
        for _ in range(3):
            watching.look()
    assert announced(file)
    assert capsys.readouterr().out.count("what was known before stays") == 1
    watching.look()
    assert announced(file) is None, "a 404 is a cancellation"


def test_silence_is_no_cancellation(service: Service, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service.set(SPOT, spot(120))
    watching = watcher(service)
    watching.look()
    monkeypatch.setattr(instance_metadata, "TIMEOUT_S", 0.05)
    release = threading.Event()
    monkeypatch.setattr(service.RequestHandlerClass, "do_GET", lambda self: release.wait(30))
    watching.look()
    release.set()
    assert announced(file)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (SPOT, "<html>"),
        (SPOT, "[]"),
        (SPOT, "{}"),
        (SPOT, '{"action": null}'),
        (SPOT, "[" * 50_000),
        (SPOT, "9" * 70_000),
        (EVENTS, "{}"),
        (EVENTS, "[7]"),
        (EVENTS, "[null, [], {}]"),
        (EVENTS, '[{"NotBefore": "tomorrow", "State": "active"}]'),
        (REBALANCE, "\x00\x1b[31m"),
    ],
)
def test_garbage_changes_nothing_and_is_said_once(
    service: Service, file: Path, capsys: pytest.CaptureFixture[str], path: str, text: str
) -> None:
    service.set(LIFECYCLE_STATE, "Terminated")
    service.set(path, text)
    watching = watcher(service)
    for _ in range(2):
        watching.look()
    assert announced(file) == "Auto Scaling terminates the instance"
    said = [line for line in capsys.readouterr().out.splitlines() if "is not understood" in line]
    assert len(said) == 1
    assert said[0].isprintable()


@pytest.mark.parametrize("still_there", [True, False])
def test_a_restart_in_the_middle_keeps_what_was_announced(
    service: Service, file: Path, *, still_there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.set(LIFECYCLE_STATE, "Terminated")
    watcher(service).look()
    first = json.loads(file.read_text())
    later_s = time.time() + 100
    monkeypatch.setattr(instance_notices.time, "time", lambda: later_s)
    again = watcher(service)
    if not still_there:
        service.set(LIFECYCLE_STATE, "InService")
    with monkeypatch.context() as away:
        away.setattr(service.RequestHandlerClass, "do_GET", lambda self: self._answer(500, ""))
        again.look()
        assert json.loads(file.read_text()) == first, "nothing is known yet, so nothing is cancelled"
    again.look()
    assert (json.loads(file.read_text()) if file.exists() else None) == (first if still_there else None)


def test_the_host_s_clock_does_not_matter(service: Service, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service.set(SPOT, spot(120))
    wrong_s = time.time() + 86_400
    monkeypatch.setattr(
        service.RequestHandlerClass,
        "date_time_string",
        lambda self, at=None: email.utils.formatdate(time_s, usegmt=True),
    )
    time_s = time.time()
    monkeypatch.setattr(instance_notices.time, "time", lambda: wrong_s)
    watcher(service).look()
    assert 60 < int((header() or "").split("ends in ")[1].removesuffix(" s")) <= 121


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "7", '{"reason": 7, "since_s": 1e999}', '{"reason": "x", "since_s": "y"}']
)
def test_an_announcement_that_makes_no_sense_drains_until_the_watcher_has_read_all(
    service: Service, file: Path, text: str
) -> None:
    file.write_text(text)
    assert header() == "its host will end"
    watcher(service).look()
    assert announced(file) is None


def test_other_answers_of_an_engine_have_no_header(service: Service, file: Path) -> None:
    service.set(SPOT, spot(120))
    watcher(service).look()
    sent: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(stack_drain_notice.DrainNotice(app)({"type": "http", "path": "/v1/completions"}, None, send))
    assert sent == [{"type": "http.response.start", "status": 200, "headers": []}]


# Auto Scaling's hook.


class Group:
    """An instance whose group terminates it. `load` is what its engines run; time passes with `after`."""

    def __init__(self, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
        self.service, self.load, self.now_s = service, 0, 1000.0
        began_s = time.time() - self.now_s
        monkeypatch.setattr(instance_notices, "PYTHON", Path(sys.executable))
        monkeypatch.setattr(instance_notices, "unfinished", lambda: self.load)
        monkeypatch.setattr(instance_notices.time, "monotonic", lambda: self.now_s)
        monkeypatch.setattr(instance_notices.time, "time", lambda: began_s + self.now_s)
        monkeypatch.setenv("AWS_ENDPOINT_URL_AUTO_SCALING", service.url)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
            monkeypatch.delenv(name, raising=False)
        service.set(LIFECYCLE_STATE, "Terminated")
        self.watching = watcher(service, hook="vllm-drain")
        self.watching.look()

    def after(self, seconds: float) -> list[str]:
        """The actions that were asked of Auto Scaling in that time."""
        before, end_s = len(self.service.calls), self.now_s + seconds
        while self.now_s < end_s:
            self.now_s += instance_notices.LOOK_EVERY_S
            self.watching.look()
        return [call["Action"] for call in self.service.calls[before:]]


@pytest.fixture
def group(service: Service, file: Path, monkeypatch: pytest.MonkeyPatch) -> Group:
    return Group(service, monkeypatch)


def test_the_hook_is_completed_when_the_engines_are_idle_and_the_proxies_have_seen_it(group: Group) -> None:
    group.load = 2
    assert group.after(30) == ["RecordLifecycleActionHeartbeat"]
    group.load = 0
    assert group.after(5) == [], "a proxy may just have sent a request"
    assert group.after(15) == ["CompleteLifecycleAction"]
    assert group.after(60) == []
    call = group.service.calls[-1]
    assert (call["LifecycleHookName"], call["AutoScalingGroupName"]) == ("vllm-drain", "engines")
    assert (call["InstanceId"], call["LifecycleActionResult"]) == (instance_id(HOST), "CONTINUE")


def test_an_engine_that_is_never_idle_holds_the_group_up_no_longer_than_it_may(
    group: Group, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, float]] = []
    monkeypatch.setattr(Hook, "call", lambda self, what: calls.append((what, group.now_s)) or True)
    group.load, began_s = 2, group.now_s
    group.after(DRAIN_S + 60)
    assert [what for what, _ in calls].index("complete") == len(calls) - 1
    assert DRAIN_S <= calls[-1][1] - began_s <= DRAIN_S + instance_notices.LOOK_EVERY_S
    assert "2 requests were left" in capsys.readouterr().out


def test_a_hook_that_is_not_there_yet_is_tried_again(
    group: Group, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = group.service.RequestHandlerClass._answer_call
    with monkeypatch.context() as early:
        early.setattr(
            group.service.RequestHandlerClass,
            "_answer_call",
            lambda self, action, result: (
                answer(self, action, result)
                if action.startswith("Describe")
                else self._answer(
                    400,
                    "<ErrorResponse><Error><Code>ValidationError</Code><Message>No active Lifecycle Action found</Message></Error></ErrorResponse>",
                )
            ),
        )
        assert group.after(30) == ["CompleteLifecycleAction"] * 2
    said = capsys.readouterr().out
    assert said.count("No active Lifecycle Action found") == 1, said
    assert "hook vllm-drain" in said
    assert group.after(20) == ["CompleteLifecycleAction"]


def test_a_second_termination_after_a_cancelled_one_completes_its_own_hook(group: Group, file: Path) -> None:
    assert group.after(20) == ["CompleteLifecycleAction"]
    group.service.set(LIFECYCLE_STATE, "InService")
    assert group.after(20) == []
    assert announced(file) is None
    group.service.set(LIFECYCLE_STATE, "Terminated")
    assert group.after(20) == ["CompleteLifecycleAction"]


def test_a_silent_engine_is_not_idle_and_one_that_is_down_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instance_notices.engine_probe, "RUN", tmp_path)
    for name, url in (("down", "http://127.0.0.1:1"), ("odd", None)):
        (tmp_path / f"vllm-{name}").mkdir()
        (tmp_path / f"vllm-{name}" / "probe.json").write_text(json.dumps({"url": url} if url else []))
    assert instance_notices.unfinished() == 0
    monkeypatch.setattr(instance_notices.engine_probe, "request", lambda url: (_ for _ in ()).throw(TimeoutError()))
    assert instance_notices.unfinished() == 1
