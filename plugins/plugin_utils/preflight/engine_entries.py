"""Entries of vllm_engines as roles and checks read them: what an operator leaves out follows from the model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import count
from typing import Any

from .forms import as_dict, as_dicts

FIRST_PORT = 8000
# A revision in the cache of Hugging Face's tools, whose directory is named after the commit: …/models--Qwen--Qwen3-8B/snapshots/<commit>.
# Hub ids contain no "--".
_HUB_CACHE = re.compile(r"/models--(?P<id>[^/]+)/snapshots/[^/]+/*$")


def completed(engines: Any) -> list[dict[str, Any]]:
    """The engines of one host, with a name, a served name, a port, and `served_models`: all names that clients can ask for.

    What an entry says itself is never changed.

    What cannot be derived is left out, and preflight reports it.
    """
    entries = as_dicts(engines)
    # As texts, because a port may come from a template.
    ports = {str(entry[key]) for entry in entries for key in ("port", "beside_port") if _is_set(entry, key)}
    found = []
    for position, entry in enumerate(entries):
        derived: dict[str, Any] = {"name": _name(entry), "served_model_name": _served_model_name(entry)}
        if not _is_set(entry, "port"):
            derived["port"] = next(port for port in count(FIRST_PORT + position) if str(port) not in ports)
            ports.add(str(derived["port"]))
        complete = dict(entry) | {key: value for key, value in derived.items() if value and not _is_set(entry, key)}
        if not _is_set(complete, "beside_port"):
            complete.pop("beside_port", None)
        complete["served_models"] = [
            str(name)
            for name in (
                complete.get("served_model_name"),
                *(one.get("name") for one in as_dicts(entry.get("adapters"))),
            )
            if name
        ]
        found.append(_with_priorities(complete))
    return found


def adapters_of(engines: list[dict[str, Any]]) -> list[dict[str, str]]:
    """The adapters of completed engines, each with its engine's name, and nothing else of the engine's entry."""
    return [
        {
            "id": f"{engine['name']}:{adapter.get('name')}",
            "engine": engine["name"],
            **{key: str(adapter.get(key) or "") for key in ("name", "model", "revision")},
        }
        for engine in engines
        for adapter in as_dicts(engine.get("adapters"))
    ]


def _is_set(entry: Mapping[str, Any], key: str) -> bool:
    return entry.get(key) not in (None, "")


def _hub_id(entry: Mapping[str, Any]) -> str:
    """The hub id in a path of the hub's cache, or an empty text."""
    found = _HUB_CACHE.search(str(entry.get("model") or ""))
    return found["id"].replace("--", "/") if found else ""


def _last_part(entry: Mapping[str, Any]) -> str:
    """The last part of a model's path, hub id or S3 address."""
    return (_hub_id(entry) or str(entry.get("model") or "")).rstrip("/").rpartition("/")[2]


def _name(entry: Mapping[str, Any]) -> str:
    """A name that can be a systemd unit's."""
    return re.sub(r"[^a-z0-9]+", "-", _last_part(entry).lower()).strip("-")


def _served_model_name(entry: Mapping[str, Any]) -> str:
    """A hub id as it is; of a directory or an S3 address, only its last part means something to clients."""
    model = str(entry.get("model") or "")
    return _hub_id(entry) or (_last_part(entry) if model.startswith(("/", "s3://")) else model)


def _with_priorities(entry: dict[str, Any]) -> dict[str, Any]:
    """With the option that `priority_scheduling` stands for, unless the engine's args have it."""
    args = as_dict(entry.get("args"))
    if entry.get("priority_scheduling") is not True or "scheduling-policy" in {str(n).replace("_", "-") for n in args}:
        return entry
    return entry | {"args": {**args, "scheduling-policy": "priority"}}
