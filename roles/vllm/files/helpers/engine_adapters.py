#!/usr/bin/env python3
"""Give a running engine the LoRA adapters that it should have, without a restart.

    engine_adapters.py NAME --release /opt/vllm/current [--adapters JSON] [--dry-run]

The wanted adapters are those of the release, or JSON: their directories by their names. vLLM calls a directory an adapter's root.
Prints one line of JSON: the names of adapters to ``load``, to ``unload``, and to ``replace`` because they have another directory now.

Requests that run with an adapter that is unloaded or replaced finish with the weights that they began with. An adapter is replaced by one
that was loaded under another name and then takes over its name (files/engine/stack_adapter_guard.py), so the engine knows the name all the
time. The engine should nevertheless be out of the proxies' rotation, without requests: vLLM (0.32) takes two adapters of one name in a step
for one, and ends if it then has too few places for adapters.
Exit status 1 with a message if an adapter cannot be loaded. Standard library only (Python 3.9 or newer).
"""

from __future__ import annotations

import argparse
import json
import sys
import urllib.error
from pathlib import Path
from typing import Dict, List, Optional

from engine_probe import Engine, ProbeError, request

# Reading an adapter from a slow disk, while the engine is busy.
ANSWER_S = 300.0
# Appended to the name of an adapter that is loaded to replace another. What an interrupted run left there is unloaded by the next.
NEXT = "@next"


def loaded(engine: Engine) -> Dict[str, str]:
    """Directories of the adapters that the engine has, by their names. A model without a parent is the engine's own."""
    try:
        told = json.loads(request(f"{engine.url}/v1/models", timeout=30))
        return {model["id"]: str(model["root"]) for model in told["data"] if model.get("parent")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ProbeError(
            f"{engine.unit} does not say which adapters it has ({engine.url}/v1/models): {error}"
        ) from error


def difference(have: Dict[str, str], wanted: Dict[str, str]) -> Dict[str, List[str]]:
    return {
        "load": sorted(wanted.keys() - have.keys()),
        "unload": sorted(have.keys() - wanted.keys()),
        "replace": sorted(name for name in wanted.keys() & have.keys() if wanted[name] != have[name]),
    }


def call(engine: Engine, path: str, **body: str) -> None:
    """Raises ProbeError with vLLM's own words."""
    try:
        request(engine.url + path, json.dumps(body).encode(), timeout=ANSWER_S)
    except OSError as error:
        words = error.read().decode(errors="replace")[:500] if isinstance(error, urllib.error.HTTPError) else ""
        place = f" in {body['lora_path']}" if "lora_path" in body else ""
        raise ProbeError(
            f"{engine.unit} refuses {path} for adapter {body['lora_name'].removesuffix(NEXT)}{place}: {error} {words}".rstrip()
        ) from error


def load(engine: Engine, name: str, directory: str) -> None:
    call(engine, "/v1/load_lora_adapter", lora_name=name, lora_path=directory)


def unload(engine: Engine, name: str) -> None:
    call(engine, "/v1/unload_lora_adapter", lora_name=name)


def replace(engine: Engine, name: str, directory: str) -> None:
    """If the new one cannot be loaded, the old one stays."""
    load(engine, name + NEXT, directory)
    try:
        call(engine, "/stack/rename_lora_adapter", lora_name=name + NEXT, new_name=name)
    except ProbeError:
        unload(engine, name + NEXT)
        raise


def change(engine: Engine, wanted: Dict[str, str]) -> Dict[str, List[str]]:
    """Bring the engine's adapters to what is wanted, and have it confirm them."""
    steps = difference(loaded(engine), wanted)
    for name in steps["unload"]:
        unload(engine, name)
    for name in steps["replace"]:
        replace(engine, name, wanted[name])
    for name in steps["load"]:
        load(engine, name, wanted[name])
    left = difference(loaded(engine), wanted) if any(steps.values()) else {}
    if any(left.values()):
        raise ProbeError(
            f"{engine.unit} accepted a change of its adapters, but {engine.url}/v1/models lacks it: {json.dumps(left)}"
        )
    return steps


def main(arguments: Optional[List[str]] = None) -> int:
    parser = argparse.ArgumentParser(description="Change the adapters of a running engine.")
    parser.add_argument("name", help="the engine's")
    parser.add_argument(
        "--release", type=Path, required=True, help="directory of the release that describes the engine"
    )
    parser.add_argument("--adapters", type=json.loads, help="directories by names, instead of the release's")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be changed")
    options = parser.parse_args(arguments)
    try:
        engine = Engine.read(options.name, options.release)
        wanted = engine.adapters if options.adapters is None else options.adapters
        if wanted is None:
            steps = difference({}, {})
        elif options.dry_run:
            steps = difference(loaded(engine), wanted)
        else:
            steps = change(engine, wanted)
    except (OSError, ProbeError) as error:
        print(error)
        return 1
    print(json.dumps(steps))
    return 0


if __name__ == "__main__":
    sys.exit(main())
