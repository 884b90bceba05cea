#!/usr/bin/env python3
"""Wait until every worker of this proxy host sees an engine as wanted, and print how that went, as JSON.

    engine_view.py idle    HOST:NAME ADDRESS SECONDS     none has a request at the engine, and none sends it new ones
    engine_view.py back    HOST:NAME ADDRESS SECONDS     each that knows it can send it requests, unless it is one that runs at times only
    engine_view.py serving HOST:NAME ADDRESS SECONDS     each knows it, and can send it requests

Workers are asked at ADDRESS. ``waited_s`` is how long requests needed to finish after the workers had taken the engine out; ``problems``
has a line for each worker that did not see it so in time. Standard library only (Python 3.9 or newer).
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from typing import Any, Callable, Dict, List, Optional

PAUSE_S = 0.25
ANSWER_S = 5.0
# One is `draining` if its host will end.
SERVING = ("serving", "draining")

# What a worker tells of the engine: nothing if it does not know it, None if it does not answer.
View = Optional[List[Dict[str, Any]]]


def workers(address: str) -> List[str]:
    """The health addresses of the workers that run."""
    command = ["systemctl", "list-units", "--state=active", "--plain", "--no-legend", "--full", "proxy@*.service"]
    units = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    host = f"[{address}]" if ":" in address else address
    return [f"http://{host}:{port}/health/ready" for port in re.findall(r"^proxy@(\d+)\.service", units, re.MULTILINE)]


def view(url: str, engine: str) -> View:
    # The host's own address: never through a proxy that the environment names.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        try:
            answer = opener.open(url, timeout=ANSWER_S)
        except urllib.error.HTTPError as error:
            answer = error  # a worker that is not ready answers with 503, and tells the same
        with answer:
            return [one for one in json.load(answer)["engines"] if one["id"] == engine]
    except (OSError, ValueError, KeyError, TypeError):
        return None


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


GOOD = {"back": is_back, "serving": is_serving}


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


def main(arguments: List[str]) -> int:
    wanted, engine, address, timeout = arguments
    end_s = time.monotonic() + float(timeout)
    urls, waited_s = workers(address), 0.0
    if wanted in GOOD:
        others = wait(urls, engine, GOOD[wanted], end_s)
    else:
        wait(urls, engine, is_out, end_s)
        out_s = time.monotonic()
        others = wait(urls, engine, is_idle, end_s)
        waited_s = time.monotonic() - out_s
    print(json.dumps({"waited_s": round(waited_s, 2), "problems": [told(url, seen) for url, seen in others.items()]}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
