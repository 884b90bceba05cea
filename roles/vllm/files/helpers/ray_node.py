#!/usr/bin/env python3
"""Run this host's part of an engine on Ray: a node of its Ray cluster and, on the head, the engine itself.

    ray_node.py --ray PROGRAM --head 10.0.0.1:29500 --address 10.0.0.2 --gpus 4 vllm serve --config NAME.yml …

``PROGRAM`` is Ray's own; ``--head`` is where Ray's head listens, and ``--address`` is this
host's. cluster_member.py runs this program on all hosts at once, and ends it on all when it ends on one: with a process of Ray, or with the
engine. RAY_AUTH_MODE and RAY_AUTH_TOKEN_PATH in the environment say how nodes know each other.

A worker's node waits for the head. On the head, SIGTERM goes to the engine alone, which finishes its requests with the help of the other nodes.
Standard library only (Python 3.9 or newer).
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import List, Optional

LOOK_EVERY_S = 0.2
CONNECT_S = 3.0
# Nothing large goes through Ray's own memory: the ranks' messages have their own, and weights come from files.
OBJECT_STORE_BYTES = 256 * 1024 * 1024


def node_command(options: argparse.Namespace, scratch: Path) -> List[str]:
    """Ray's node in the foreground, which ends when one of its processes does. It offers the GPUs of the engine's ranks, and no others."""
    host, _, port = options.head.rpartition(":")
    place = ["--head", f"--port={port}", "--include-dashboard=false"]
    if options.address != host:
        place = [f"--address={options.head}"]
    return [
        *(options.ray, "start", "--block", *place),
        f"--node-ip-address={options.address}",
        f"--num-gpus={options.gpus}",
        # A core means nothing here but a process that Ray keeps ready.
        "--num-cpus=1",
        # Ports that the kernel gives. Otherwise Ray takes some between 10002 and 19999, which may be those of other services.
        *("--min-worker-port=0", "--max-worker-port=0"),
        f"--object-store-memory={OBJECT_STORE_BYTES}",
        f"--temp-dir={scratch}",
    ]


def run_worker(command: List[str], head: str) -> None:
    """Become the node once the head listens; Ray itself would give up when a head starts slowly."""
    host, _, port = head.rpartition(":")
    print(f"waits for Ray's head, {head}", flush=True)
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
            break
        except OSError:
            time.sleep(LOOK_EVERY_S)
    os.execv(command[0], command)


def run_head(command: List[str], engine_command: List[str], scratch: Path) -> int:
    """The node, and the engine once the node is complete. The status is that of what ends first."""
    engine: Optional["subprocess.Popen[bytes]"] = None

    def stop(*_: object) -> None:
        if engine is None:
            sys.exit(1)
        engine.terminate()

    signal.signal(signal.SIGTERM, stop)
    # Ray writes it as the last thing, and for this purpose.
    complete = scratch / "ray_current_cluster"
    complete.unlink(missing_ok=True)
    node = subprocess.Popen(command)
    while not complete.exists():
        if node.poll() is not None:
            print(f"Ray's head ended with status {node.returncode} before it was complete", flush=True)
            return 1
        time.sleep(LOOK_EVERY_S)
    engine = subprocess.Popen(engine_command)
    ended, waited = os.wait()
    status = os.waitstatus_to_exitcode(waited)
    print(f"{'the engine' if ended == engine.pid else 'the node of Ray'} ended with status {status}", flush=True)
    return status if ended == engine.pid else 1


def main(arguments: List[str]) -> int:
    parser = argparse.ArgumentParser(description="One host's part of an engine on Ray.")
    parser.add_argument("--ray", required=True, help="Ray's program")
    parser.add_argument("--head", required=True, help="address and port of Ray's head")
    parser.add_argument("--address", required=True, help="this host's address")
    parser.add_argument("--gpus", type=int, required=True, help="how many of this host's GPUs the engine uses")
    parser.add_argument("engine", nargs=argparse.REMAINDER, help="the engine's command, which the head runs")
    options = parser.parse_args(arguments)
    scratch = Path(tempfile.gettempdir()) / "ray"
    command = node_command(options, scratch)
    if "--head" not in command:
        run_worker(command, options.head)
    return run_head(command, options.engine, scratch)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
