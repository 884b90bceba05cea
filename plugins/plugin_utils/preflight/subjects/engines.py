"""Engines: their names, models and options."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import product
from typing import Any

from ansible.module_utils.common.yaml import yaml_load

from ..directories import see_example
from ..forms import as_dict, as_dicts
from ..inventory import Inventory
from ..roles import ROLES_DIRECTORY
from ..served import serve_args

_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")
# An engine's id, host:name, is the name of a file on the proxies.
_ID_MAX = 255


def check_engines(inventory: Inventory) -> Iterator[str]:
    """Engines are complete, and have names of their own."""
    for host in inventory.hosts("vllm"):
        value = inventory.get(host, "vllm_engines")
        if inventory.is_empty(host, "vllm_engines"):
            continue  # values.check_types reports it
        if value == [] and inventory.engines(host):
            value = inventory.engines(host)  # the host's engines spread over several hosts
        if not isinstance(value, list) or not value:
            if not any(key.startswith("vllm_engines") for key in inventory.unreadable):
                yield f"host {host}: vllm_engines lists no engine; {see_example('group_vars/vllm.yml', 'vllm')}"
            continue
        for number, engine in enumerate(value):
            if not isinstance(engine, Mapping):
                yield f"host {host}: vllm_engines[{number}] is not a dictionary; {see_example('group_vars/vllm.yml', 'vllm')}"
        seen = set()
        for number, engine in enumerate(inventory.engines(host)):
            where = f"host {host}: engine {engine.get('name', f'number {number + 1}')!r}"
            name = str(engine.get("name", ""))
            if engine.get("model") and not name:
                yield f"{where}: no name can be made of its model's, which has neither letters nor digits of a unit's name: set name"
            if engine.get("model") and not engine.get("served_model_name"):
                yield f"{where}: what clients ask for cannot be made of its model's name: set served_model_name"
            if name and not _NAME.fullmatch(name):
                yield f"{where}: use lower-case letters, digits and '-' in its name, which becomes a systemd unit's"
            if name and name in seen:
                yield f"{where} stands twice in vllm_engines: give each engine a name of its own (without one, it has its model's)"
            seen.add(name)
            yield from _not_pinned(where, engine)
            for adapter in as_dicts(engine.get("adapters")):
                yield from _not_pinned(f"{where}, adapter {adapter.get('name')!r}", adapter)
            for double in sorted({one for one in engine["served_models"] if engine["served_models"].count(one) > 1}):
                yield f"{where} serves two models as {double!r}: give each adapter a name of its own"


def _not_pinned(where: str, entry: Mapping[str, Any]) -> Iterator[str]:
    """What to say of a model or an adapter from a hub whose content may change."""
    model = str(entry.get("model", ""))
    hub = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model)
    if hub and not re.fullmatch(r"[0-9a-f]{40}", str(entry.get("revision", ""))):
        yield f"{where}: model {model} comes from a hub, so pin it: set revision to the 40 digits of a commit"


def check_streams(inventory: Inventory) -> Iterator[str]:
    """Only a model in S3 is read from there at each start, and by no other loader."""
    for host in inventory.hosts("vllm"):
        for engine in inventory.engines(host):
            where = f"host {host}: engine {engine.get('name')!r}"
            if engine.get("stream") is not True:
                continue
            if not str(engine.get("model", "")).startswith("s3://"):
                yield f"{where}: stream reads a model from S3, but model is {engine.get('model')}: take stream out, or give an s3:// address"
            for variable, args in {"vllm_args": inventory.get(host, "vllm_args"), "args": engine.get("args")}.items():
                for name, value in as_dict(args).items():
                    if str(name).replace("_", "-") == "load-format" and not str(value).startswith("runai_streamer"):
                        yield f"{where}: stream is vLLM's load-format runai_streamer, but {variable} says {value}: take one of them out"


def check_models_are_visible(inventory: Inventory) -> Iterator[str]:
    """No model is in a directory that the unit's sandbox hides."""
    for host in inventory.hosts("vllm"):
        for engine in inventory.engines(host):
            for model, hidden in product(_directories(engine), _role_variables()["__vllm_hidden_paths"]):
                if f"{model}/".startswith(f"{hidden}/"):
                    yield (
                        f"host {host}: engine {engine.get('name')!r}: model {model} lies in {hidden}, which the engine's sandbox hides; "
                        "move it, say, to /srv/models"
                    )


def _directories(engine: Mapping[str, Any]) -> list[str]:
    """Where an engine reads its model and its adapters, or what they are downloaded from."""
    return [str(entry.get("model", "")) for entry in (engine, *as_dicts(engine.get("adapters")))]


def check_engine_args(inventory: Inventory) -> Iterator[str]:
    """No option of `vllm serve` overrides what the role sets: an engine would listen everywhere, or serve another model."""
    role = _role_variables()
    reserved, why = role["__vllm_reserved_args"], role["__vllm_reserved_why"]
    for host in inventory.hosts("vllm"):
        args = {"vllm_args": inventory.get(host, "vllm_args")}
        args |= {f"engine {engine.get('name')!r}: args": engine.get("args") for engine in inventory.engines(host)}
        for where, value in args.items():
            for name in as_dict(value):
                if str(name).replace("_", "-") in reserved:
                    yield f"host {host}: {where} must not have {name}: take it out; {why}"
        for engine in inventory.engines(host):
            if engine.get("adapters") and "lora-modules" in serve_args(inventory, host, engine):
                yield f"host {host}: engine {engine.get('name')!r} has adapters, over which lora-modules of its args would win: take one out"
            policy = serve_args(inventory, host, {"args": engine.get("args")}).get("scheduling-policy")
            if engine.get("priority_scheduling") is True and policy != "priority":
                yield f"host {host}: engine {engine.get('name')!r} has priority_scheduling, but its args say scheduling-policy {policy}: take one out"


def check_beside(inventory: Inventory) -> Iterator[str]:
    """Only an engine of a single host is replaced while a second one serves beside it."""
    for host in inventory.hosts("vllm"):
        for engine in inventory.engines(host):
            nodes = str(serve_args(inventory, host, engine).get("nnodes") or 1)
            if "beside_port" in engine and nodes != "1":
                yield (
                    f"host {host}: engine {engine.get('name')!r} spreads over {nodes} hosts (nnodes), and has beside_port: take it out; only an engine "
                    "of a single host can have a second one beside it"
                )


def check_engine_ids(inventory: Inventory) -> Iterator[str]:
    """Each engine's id can be the name of a file."""
    for host in inventory.hosts("vllm"):
        for engine in inventory.engines(host):
            suffix = ".beside" if "beside_port" in engine else ""
            if (length := len(f"{host}:{engine.get('name')}{suffix}")) > _ID_MAX:
                yield (
                    f"host {host}: the name of one of its engines and that of the host are together {length} characters long: "
                    f"at most {_ID_MAX} fit, so shorten it"
                )


@cache
def _role_variables() -> dict[str, Any]:
    """The role's internal variables. Asked for each engine of each host."""
    found: dict[str, Any] = yaml_load((ROLES_DIRECTORY / "vllm" / "vars" / "main.yml").read_text())
    return found
