#!/usr/bin/env python3
"""An engine's rotation, as the workers of this proxy host see it. Prints JSON.

    engine_view.py look -- HOST:NAME DIRECTORY ADDRESS
        The engines as a worker that answers sees them; nothing if this host has no proxy.
    engine_view.py out [--check] -- HOST:NAME DIRECTORY MARKER
        Take the engine out: write the file HOST:NAME into the directory of markers, unless one is there.
    engine_view.py idle -- HOST:NAME ADDRESS SECONDS
        Wait until no worker has a request at the engine, and none sends it new ones.
    engine_view.py back [--check] [--serving] -- HOST:NAME DIRECTORY OURS ADDRESS SECONDS
        If the marker matches the regular expression OURS, remove it and wait until each worker that knows the engine can send it requests,
        unless it is one that runs at times only. With --serving, each worker has to know it.

Workers are asked at ADDRESS. ``changed`` tells whether a marker was written or removed, and ``marker`` what a removed one said. ``waited_s`` is how
long requests needed to finish after the workers had taken the engine out; ``problems`` has a line for each worker that did not see the engine as
wanted in time. With --check no marker is changed and nothing is waited for. ``--`` is there because a person's reason may begin with a dash.
Standard library only (Python 3.9 or newer).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

PAUSE_S = 0.25
ANSWER_S = 5.0
# One is `draining` if its host will end.
SERVING = ("serving", "draining")

# What a worker tells of engines: nothing of one that it does not know, None if it does not answer.
View = Optional[List[Dict[str, Any]]]


def workers(address: str) -> List[str]:
    """The health addresses of the workers that run."""
    command = ["systemctl", "list-units", "--state=active", "--plain", "--no-legend", "--full", "proxy@*.service"]
    units = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    host = f"[{address}]" if ":" in address else address
    return [f"http://{host}:{port}/health/ready" for port in re.findall(r"^proxy@(\d+)\.service", units, re.MULTILINE)]


def engines(url: str) -> View:
    """All engines that a worker knows."""
    # The host's own address: never through a proxy that the environment names.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        try:
            answer = opener.open(url, timeout=ANSWER_S)
        except urllib.error.HTTPError as error:
            answer = error  # a worker that is not ready answers with 503, and tells the same
        with answer:
            found: List[Dict[str, Any]] = json.load(answer)["engines"]
            return found
    except (OSError, ValueError, KeyError, TypeError):
        return None


def view(url: str, engine: str) -> View:
    """What it tells of this one."""
    seen = engines(url)
    return None if seen is None else [one for one in seen if one["id"] == engine]


def is_out(seen: View) -> bool:
    """A worker that does not answer, or does not know the engine, sends it nothing."""
    return all(one["state"] == "drained" for one in seen or [])


def is_idle(seen: View) -> bool:
    return is_out(seen) and all(one["in_flight"] == 0 for one in seen or [])


def is_back(seen: View) -> bool:
    """A worker that does not know the engine yet learns of it with its next configuration. An `absent` one runs at times only."""
    return seen is not None and all(one["state"] in (*SERVING, "absent") for one in seen)


def is_serving(seen: View) -> bool:
    return bool(seen) and all(one["state"] in SERVING for one in seen or [])


def wait(urls: List[str], engine: str, good: Callable[[View], bool], end_s: float) -> Dict[str, View]:
    """Wait until all see it so. Returns what the others see at the end."""
    while True:
        views = {url: view(url, engine) for url in urls}
        others = {url: seen for url, seen in views.items() if not good(seen)}
        if not others or time.monotonic() >= end_s:
            return others
        time.sleep(PAUSE_S)


def told(url: str, seen: View) -> str:
    if seen is None:
        return f"the worker at {url} does not answer"
    states = "; ".join(f"{one['state']}, {one['in_flight']} requests" for one in seen)
    return (
        f"the worker at {url} sees it as {states}"
        if states
        else f"the worker at {url} does not know it: run playbooks/proxy.yml first"
    )


def look(options: argparse.Namespace) -> Optional[Dict[str, Any]]:
    if not options.directory.is_dir():
        return None
    answers = (engines(url) for url in workers(options.address))
    return {"engines": next((seen for seen in answers if seen is not None), None)}


def out(options: argparse.Namespace) -> Dict[str, Any]:
    marker = options.directory / options.engine
    if marker.exists() or options.check:
        return {"changed": not marker.exists()}
    # If this is killed, it must not leave half a marker, which nobody would know as a roll's; nor any file beside the markers, which would count as one.
    half = options.directory.with_name(f".{options.engine}.{os.getpid()}")
    half.write_text(f"{options.marker}\n")
    half.chmod(0o644)
    try:
        # Unlike a rename it does not replace a marker that an operator writes at this moment.
        os.link(half, marker)
    except FileExistsError:
        return {"changed": False}
    finally:
        half.unlink()
    return {"changed": True}


def idle(options: argparse.Namespace) -> Dict[str, Any]:
    end_s = time.monotonic() + options.seconds
    urls = workers(options.address)
    wait(urls, options.engine, is_out, end_s)
    out_s = time.monotonic()
    others = wait(urls, options.engine, is_idle, end_s)
    return {"waited_s": round(time.monotonic() - out_s, 2), "problems": [told(*one) for one in others.items()]}


def back(options: argparse.Namespace) -> Dict[str, Any]:
    marker = options.directory / options.engine
    try:
        text = marker.read_text(errors="replace").strip()
    except OSError:
        # There is none, or one that cannot be read: no roll's.
        text = None
    if text is None or not re.match(options.ours, text):
        return {"changed": False, "problems": []}
    if options.check:
        return {"changed": True, "marker": text, "problems": []}
    # An operator may have been faster.
    with contextlib.suppress(FileNotFoundError):
        marker.unlink()
    good = is_serving if options.serving else is_back
    others = wait(workers(options.address), options.engine, good, time.monotonic() + options.seconds)
    return {"changed": True, "marker": text, "problems": [told(*one) for one in others.items()]}


def known_address(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("the proxy host has no stack_address")
    return text


def main(arguments: List[str]) -> int:
    parser = argparse.ArgumentParser(description="An engine's rotation, as the workers of this proxy host see it.")
    verbs = parser.add_subparsers(required=True)
    kinds: Dict[str, Dict[str, Any]] = {
        "directory": {"type": Path},
        "seconds": {"type": float},
        # Without one all workers would seem to be silent.
        "address": {"type": known_address},
    }
    for act, words, flags in (
        (look, ["directory", "address"], []),
        (out, ["directory", "marker"], ["--check"]),
        (idle, ["address", "seconds"], []),
        (back, ["directory", "ours", "address", "seconds"], ["--check", "--serving"]),
    ):
        verb = verbs.add_parser(act.__name__)
        verb.set_defaults(act=act)
        verb.add_argument("engine")
        for word in words:
            verb.add_argument(word, **kinds.get(word, {}))
        for flag in flags:
            verb.add_argument(flag, action="store_true")
    options = parser.parse_args(arguments)
    answer = options.act(options)
    if answer is not None:
        print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
