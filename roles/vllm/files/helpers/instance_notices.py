#!/usr/bin/env python3
"""Watch for AWS's notices that this host will end, and announce it, so that the proxies drain its engines in time.

    instance_notices.py --imds http://169.254.169.254 --drain-s 900 --hook vllm-drain [--rebalance]

It asks the instance's metadata (IMDS) every 5 s for:

    spot          an interruption: announced at once, with its time
    autoscaling   the group terminates the instance: announced at once. When the engines are idle, or after --drain-s seconds, the hook is
                  completed; until then its time is prolonged
    event         a scheduled event, such as a reboot or retirement: announced --drain-s seconds before it may begin
    rebalance     a spot instance is likelier to be interrupted: announced only with --rebalance

The announcement is a file, which engines tell in a header of their answers (stack_drain_notice.py). It is removed when the notice was
cancelled. While the metadata do not answer, what was known stays. Without metadata, outside EC2, this is said once.
Standard library only (Python 3.9 or newer).
"""

from __future__ import annotations

import argparse
import calendar
import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.parse
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Set

import engine_probe
from instance_metadata import Document, Metadata, NoMetadata

FILE = Path("/run/vllm/draining.json")
# Has boto3 for Auto Scaling's API.
PYTHON = Path("/opt/vllm/current/venv/bin/python")
LOOK_EVERY_S = 5.0
# How often a host that had no metadata yet is looked at.
LOOK_ELSEWHERE_S = 60.0
# The engines have to be idle for so long before the hook is completed: the proxies ask them every 2 s, and may be late.
QUIET_S = 10.0
# The shortest time that a hook can have is 30 s, the usual one an hour.
HEARTBEAT_S = 25.0
RETRY_S = 15.0
COMMAND_S = 60.0
# The time of a notice is known to the second. A difference that is smaller does not change the file.
SAME_S = 2.5


@dataclass(frozen=True)
class Notice:
    """One notice. Times are in seconds since 1970 by the host's clock; `ends_s` is None if only the hour is known, or less."""

    kind: str
    reason: str
    since_s: float
    ends_s: Optional[float] = None

    def is_like(self, other: Optional[Notice]) -> bool:
        if other is None or replace(self, since_s=0, ends_s=None) != replace(other, since_s=0, ends_s=None):
            return False
        if self.ends_s is None or other.ends_s is None:
            return self.ends_s is other.ends_s
        return abs(self.ends_s - other.ends_s) < SAME_S


class Garbled(Exception):
    """A document that is not understood; the text says how."""


def of_spot(document: Document) -> Notice:
    told = _json(document, dict)
    action = _plain(told.get("action"))
    if not action:
        raise Garbled("it names no action")
    with contextlib.suppress(ValueError):
        ends_s = calendar.timegm(time.strptime(str(told.get("time")), "%Y-%m-%dT%H:%M:%SZ"))
        return Notice("spot", f"spot interruption ({action})", time.time(), time.time() + ends_s - document.at_s)
    # A hibernation begins at once.
    return Notice("spot", f"spot interruption ({action})", time.time())


def of_autoscaling(document: Document) -> Optional[Notice]:
    if document.text != "Terminated":
        return None
    return Notice("autoscaling", "Auto Scaling terminates the instance", time.time())


def of_rebalance(document: Document) -> Notice:
    return Notice(
        "rebalance", f"rebalance recommendation of {_plain(_json(document, dict).get('noticeTime'))}", time.time()
    )


def of_events(document: Document, lead_s: float) -> Optional[Notice]:
    """The earliest active event that may begin within `lead_s` seconds. One that is not understood hides no other."""
    found, odd = [], ""
    for event in _json(document, list):
        try:
            if event.get("State", "active").lower() != "active":
                continue
            begins_s = calendar.timegm(time.strptime(event["NotBefore"], "%d %b %Y %H:%M:%S GMT"))
        except (AttributeError, KeyError, TypeError, ValueError):
            odd = f"an event in it is {_plain(event)!r}"
            continue
        if begins_s - document.at_s <= lead_s:
            found.append((begins_s, _plain(event.get("Code"))))
    if not found and odd:
        raise Garbled(odd)
    if not found:
        return None
    begins_s, code = min(found)
    # Without an end: the event comes at some time in hours, and until then a last engine serves.
    return Notice("event", f"scheduled event {code}, from {_utc(begins_s)}", time.time())


def _json(document: Document, kind: type) -> Any:
    try:
        told = json.loads(document.text)
    except (ValueError, RecursionError) as error:
        raise Garbled(f"it is no JSON: {_plain(document.text)!r}") from error
    if not isinstance(told, kind):
        raise Garbled(f"it is {_plain(document.text)!r}")
    return told


def _plain(value: Any) -> str:
    return re.sub(r"[^ -~]", "?", str("" if value is None else value))[:80]


def _utc(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def tell(text: str) -> None:
    """Write it to the journal, and send it to systemd for ``systemctl status``."""
    print(text, flush=True)
    notify(f"STATUS={text}")


def notify(text: str) -> None:
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.sendto(text.encode(), address.replace("@", "\0", 1))


class Hook:
    """The lifecycle hook for which the group waits before it terminates the instance."""

    def __init__(self, metadata: Metadata, name: str, url: str) -> None:
        self.metadata, self.name, self.url = metadata, name, url
        self.reset()

    def reset(self) -> None:
        self.is_done = False
        self.quiet_since_s: Optional[float] = None
        self.beat_s: Optional[float] = None
        self.retry_s = 0.0
        self.told = ""

    def step(self, notice: Notice) -> None:
        """Prolong the hook while the engines work, and complete it once they are idle."""
        now_s = time.monotonic()
        left = unfinished()
        if left:
            self.quiet_since_s = None
        elif self.quiet_since_s is None:
            self.quiet_since_s = now_s
        is_quiet = self.quiet_since_s is not None and now_s - self.quiet_since_s >= QUIET_S
        is_late = notice.ends_s is not None and time.time() >= notice.ends_s
        if self.beat_s is None:
            self.beat_s = now_s
        if self.is_done:
            return
        if is_quiet or is_late:
            if now_s >= self.retry_s:
                self.retry_s = now_s + RETRY_S
                self.is_done = self.call("complete")
                if self.is_done and left:
                    tell(f"{left} requests were left after --drain-s seconds")
        elif now_s - self.beat_s >= HEARTBEAT_S:
            self.beat_s = now_s
            self.call("heartbeat")

    def call(self, what: str) -> bool:
        try:
            instance, region = self.metadata.get("instance-id"), self.metadata.get("placement/region")
        except NoMetadata as error:
            return self.report(False, str(error))
        if instance is None or region is None:
            return self.report(False, "the metadata name no instance-id or no placement/region")
        program = Path(__file__).with_name("lifecycle_action.py")
        argv = [
            str(PYTHON),
            str(program),
            what,
            "--hook",
            self.name,
            "--instance",
            instance.text,
            "--region",
            region.text,
        ]
        host = urllib.parse.urlsplit(self.url).hostname or ""
        environment = {
            **os.environ,
            "AWS_EC2_METADATA_SERVICE_ENDPOINT": self.url,
            "NO_PROXY": ",".join(filter(None, [os.environ.get("NO_PROXY", ""), host])),
        }
        environment.pop("NOTIFY_SOCKET", None)
        try:
            done = subprocess.run(
                argv,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=COMMAND_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return self.report(False, str(error))
        return self.report(done.returncode == 0, (done.stdout.strip().splitlines() or ["no reason given"])[-1])

    def report(self, succeeded: bool, text: str) -> bool:
        """Say what happened, once."""
        if text != self.told:
            self.told = text
            tell(
                text
                if succeeded
                else f"Auto Scaling's hook {self.name} cannot be completed or prolonged, tried again: {text}"
            )
        return succeeded


def unfinished() -> int:
    """The requests that this host's engines have. One that refuses connections has none, one that is silent may have one."""
    found = 0.0
    for file in engine_probe.RUN.glob("vllm-*/probe.json"):
        try:
            page = engine_probe.request(f"{json.loads(file.read_text())['url']}/metrics")
            found += engine_probe.total(engine_probe.UNFINISHED, page)
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            pass  # it is just being started or stopped
        except OSError as error:
            found += not isinstance(getattr(error, "reason", error), ConnectionRefusedError)
    return round(found)


class Watcher:
    def __init__(self, url: str, drain_s: float, hook: str, *, rebalance: bool = False) -> None:
        self.url, self.drain_s, self.rebalance = url, drain_s, rebalance
        self.metadata = Metadata(url)
        self.hook = Hook(self.metadata, hook, url) if hook else None
        # The most urgent first: its reason is announced.
        self.sources: Dict[str, tuple[str, Callable[[Document], Optional[Notice]]]] = {
            "spot": ("spot/instance-action", of_spot),
            "autoscaling": ("autoscaling/target-lifecycle-state", of_autoscaling),
            "event": ("events/maintenance/scheduled", lambda document: of_events(document, drain_s)),
            "rebalance": ("events/recommendations/rebalance", of_rebalance),
        }
        self.known: Dict[str, Optional[Notice]] = {}
        self.announced: Optional[Notice] = None
        self.said: Set[str] = set()
        self.was_there: Optional[bool] = None

    def look(self) -> None:
        """Read all notices once, and announce what there is."""
        self.announced = read()
        problems: List[str] = []
        for kind, (path, understand) in self.sources.items():
            try:
                document = self.metadata.get(path)
                self.known[kind] = self.remembered(None if document is None else understand(document))
            except Garbled as error:
                self.say_once(f"{path} is not understood, what was known before stays: {error}")
                self.known.setdefault(kind, self.announced if self.announced and self.announced.kind == kind else None)
            except NoMetadata as error:
                problems.append(str(error))
        self.there(problems[0] if problems else None)
        self.announce()
        terminating = self.known.get("autoscaling")
        if self.hook is None:
            return
        if terminating is None:
            self.hook.reset()
        else:
            self.hook.step(terminating)

    def remembered(self, notice: Optional[Notice]) -> Optional[Notice]:
        """The notice with the time when it was first seen, also by an earlier run of this program."""
        if notice is None:
            return None
        for before in (self.known.get(notice.kind), self.announced):
            if before is not None and before.kind == notice.kind:
                notice = replace(notice, since_s=before.since_s)
                break
        if notice.kind == "autoscaling":
            notice = replace(notice, ends_s=notice.since_s + self.drain_s)
        return notice

    def announce(self) -> None:
        drains = [kind for kind in self.sources if kind != "rebalance" or self.rebalance]
        notice = next((found for kind in drains if (found := self.known.get(kind)) is not None), None)
        recommended = self.known.get("rebalance")
        if recommended is not None and not self.rebalance:
            self.say_once(f"{recommended.reason}: not drained, because vllm_drain_on_rebalance is off")
        # After a start, an earlier announcement stays until everything has been read.
        if notice is None and (self.announced is None or len(self.known) < len(self.sources)):
            return
        if notice is not None and notice.is_like(self.announced):
            return
        if notice is None:
            tell("the notice was cancelled: the engines are in rotation again")
        elif self.announced is None or self.announced.reason != notice.reason:
            ends = "" if notice.ends_s is None else f", until {_utc(notice.ends_s)}"
            tell(f"the proxies drain this host's engines: {notice.reason}{ends}")
        write(notice)

    def there(self, problem: Optional[str]) -> None:
        """Say when the metadata answer, and when they no longer do."""
        if problem is None:
            if self.was_there is not True:
                tell(f"watches the instance metadata at {self.url}")
            self.was_there = True
        elif self.was_there is None:
            tell(
                f"no EC2 instance metadata at {self.url} ({problem}): no notice will be seen. It is tried every {LOOK_ELSEWHERE_S:.0f} s"
            )
            self.was_there = False
        elif self.was_there:
            tell(f"the instance metadata do not answer, what was known before stays: {problem}")
            self.was_there = False

    def say_once(self, text: str) -> None:
        if text not in self.said:
            self.said.add(text)
            tell(text)

    @property
    def pause_s(self) -> float:
        return LOOK_EVERY_S if self.known else LOOK_ELSEWHERE_S


def read() -> Optional[Notice]:
    """What is announced."""
    try:
        told = json.loads(FILE.read_text())
        return Notice(
            str(told["kind"]), str(told["reason"]), float(told["since_s"]), told["ends_s"] and float(told["ends_s"])
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        return Notice("unknown", "unknown", time.time())


def write(notice: Optional[Notice]) -> None:
    """Announce the notice, or nothing any more. A reader sees the old file or the new one."""
    if notice is None:
        FILE.unlink(missing_ok=True)
        return
    temporary = FILE.with_suffix(".new")
    temporary.write_text(json.dumps(asdict(notice)) + "\n")
    temporary.chmod(0o644)
    temporary.replace(FILE)


def main(arguments: Optional[List[str]] = None) -> int:
    parser = argparse.ArgumentParser(description="Announce AWS's notices that this host will end.")
    parser.add_argument("--imds", required=True, help="address of the instance metadata")
    parser.add_argument("--drain-s", type=float, required=True, help="seconds that draining may take")
    parser.add_argument("--hook", default="", help="name of the lifecycle hook to complete; none by default")
    parser.add_argument("--rebalance", action="store_true", help="drain also for a rebalance recommendation")
    options = parser.parse_args(arguments)
    watcher = Watcher(options.imds, options.drain_s, options.hook, rebalance=options.rebalance)
    notify("READY=1")
    while True:
        watcher.look()
        notify("WATCHDOG=1")
        time.sleep(watcher.pause_s)


if __name__ == "__main__":
    sys.exit(main())
