"""Plans as tables for people and as JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import hosts, placement, plans
from .flags import PlanError
from .model_files import read_model
from .shapes import Shape, read_shape

INSTANCES: dict[str, Any] = json.loads((Path(__file__).parent / "instances.json").read_text())
# Columns of the tables: what a plan calls it, and the heading.
_COLUMNS = {
    "fits": "fits",
    "gpus": "GPUs",
    "weights_gib": "weights GiB/GPU",
    "kv_gib": "KV GiB/GPU",
    "kv_tokens": "KV tokens",
    "requests": "requests",
    "binds": "binds",
    "estimated": "known",
}


def version_of(text: str) -> tuple[int, int]:
    """The first two numbers of vLLM's version. Raises PlanError if the text is no version."""
    parts = str(text).split(".")
    try:
        return int(parts[0]), int(parts[1])
    except (ValueError, IndexError):
        raise PlanError([f"vllm_version is {text!r}: write a version such as 0.33.0"]) from None


def plan_of_model(
    model: str,
    revision: str,
    instance_type: str | None,
    args: Mapping[str, Any],
    wanted: plans.Wanted,
    version: tuple[int, int],
) -> dict[str, Any]:
    """The plan of a model on an instance type; without a type, `instance_types` lists those that fit, the cheapest first."""
    files = read_model(model, revision)
    if instance_type:
        host = hosts.host_of_type(instance_type, INSTANCES)
        told = plan_with_types(files.config, host, args, wanted, files.weights_bytes, version=version)
        return {"model": model, "instance_type": instance_type, "usd_per_hour": host.usd_per_hour, **told}
    every = hosts.all_hosts(INSTANCES)
    found = list(plans.fitting_hosts(files.config, every, args, wanted, files.weights_bytes, version))
    sure = any(row["fits"] for row in found)
    return {"model": model, "fits": sure or (None if found else False), "instance_types": found}


def plan_with_types(
    config: Mapping[str, Any],
    host: hosts.Host,
    args: Mapping[str, Any],
    wanted: plans.Wanted,
    weights_bytes: int | None = None,
    gpus: int | None = None,
    version: tuple[int, int] = plans.VERSION,
) -> dict[str, Any]:
    """The plan of one engine (plans.plan). If it does not fit, the changes end with more GPUs of the host and the cheapest type that would do."""
    told = plans.plan(config, host, args, wanted, weights_bytes, gpus, version)
    if told["fits"] is False:
        whole = plans.plan(config, host, args, wanted, weights_bytes, None, version)
        if whole["fits"]:
            told["changes"].append(f"more GPUs: {whole['gpus']} of the host's {host.gpus} instead of {gpus}")
        every = hosts.all_hosts(INSTANCES)
        larger = next(plans.fitting_hosts(config, every, args, wanted, weights_bytes, version), None)
        told["changes"].append(
            f"another instance type: {larger['instance_type']} is the cheapest that fits ({_dollars(larger['usd_per_hour'])} USD/hour)"
            if larger
            else "more than one host: no single instance type fits it"
        )
    return told


def plan_of_fleet(fleet: list[dict[str, Any]], version: tuple[int, int]) -> list[dict[str, Any]]:
    """The plans of a fleet's engines: `fleet` has dictionaries with host, instance_type and the engine's keys.

    An engine that cannot be planned has `problems` instead.
    """
    by_host: dict[str, list[dict[str, Any]]] = {}
    for engine in fleet:
        by_host.setdefault(engine["host"], []).append(engine)
    return [row for engines in by_host.values() for row in _plan_of_fleet_host(engines, version)]


def _plan_of_fleet_host(engines: list[dict[str, Any]], version: tuple[int, int]) -> list[dict[str, Any]]:
    """The rows of one host's engines."""
    rows = {
        engine["name"]: {"host": engine["host"], "engine": engine["name"], "instance_type": engine["instance_type"]}
        for engine in engines
    }

    def needed(engine: Mapping[str, Any], left: int) -> int:
        row = rows[engine["name"]]
        try:
            files = read_model(engine["model"], engine.get("revision") or "")
            wanted = plans.Wanted(engine.get("context_tokens"), engine.get("concurrency"))
            args = engine.get("args") or {}
            row.update(plan_with_types(files.config, host, args, wanted, files.weights_bytes, left or None, version))
            return row.get("gpus") or 1
        except PlanError as error:
            row.update(fits=None, problems=error.problems)
            return 1

    try:
        if not engines[0]["instance_type"]:
            raise PlanError(["its instance type is not known: set aws_instance_type for the host"])
        host = hosts.host_of_type(engines[0]["instance_type"], INSTANCES)
    except PlanError as error:
        return [{**row, "fits": None, "problems": error.problems} for row in rows.values()]
    for engine in (one for one in engines if one.get("gpus")):
        needed(engine, len(engine["gpus"]))
    places, _ = placement.place(engines, host.gpus, needed)
    for name, row in rows.items():
        if name not in places and "problems" not in row:
            own = placement.held(next(engine for engine in engines if engine["name"] == name))
            row.update(
                fits=False,
                problems=[placement.no_room_beside(own / 2)]
                if own > 1
                else ["too few GPUs of the host are left for it: give engines gpus, or a larger instance type"],
            )
    return list(rows.values())


# An engine with less than this share of the memory that it needs is refused: no plan has ever been wrong by more.
_SURELY_TOO_LITTLE = 0.85


def host_of(smi: str, instance_type: str | None) -> hosts.Host | None:
    """A host's GPUs as nvidia-smi lists them; by its instance type where there is no driver yet. None if neither is known."""
    found = hosts.host_of_gpus(smi, INSTANCES)
    if found or not instance_type or instance_type not in INSTANCES:
        return found
    return hosts.host_of_type(instance_type, INSTANCES)


def plan_of_host(
    engines: list[dict[str, Any]],
    host: hosts.Host,
    configs: Mapping[str, Any],
    version: tuple[int, int],
    complete: bool = False,
) -> dict[str, Any]:
    """The plans of a host's engines, by name: `flags` that differ from vLLM's defaults, the `gpus` of those that name none, and `problems`.

    `configs` has the config.json of the engines whose models are on the host, by the engine's name, or None. A model that can
    be read nowhere has no plan. `complete` says that all are there that will be; then such an engine has to say how many GPUs it takes.
    """
    told: dict[str, Any] = {"flags": {}, "plans": {}, "gpus": {}, "problems": []}
    shapes: dict[str, Shape] = {}

    def needed(engine: Mapping[str, Any], left: int) -> int:
        """How many GPUs an engine takes if so many are left. Notes its plan."""
        found = _plan_in(engine, host, configs.get(engine["name"]), left, version)
        if found is None:
            # Guessed, it might be another number in the next run, and engines would move.
            if complete and min(len(engines), host.gpus) > 1 and not placement.is_spread(engine.get("args") or {}):
                raise PlanError(
                    [
                        f"the config.json of {engine['model']} cannot be read, so how many GPUs it takes is not known: set gpus"
                    ]
                )
            return placement.spread(engine.get("args") or {})
        told["plans"][engine["name"]], shapes[engine["name"]] = found
        return found[0].get("gpus") or 1

    def planned(engine: Mapping[str, Any], left: int) -> int:
        try:
            return needed(engine, left) if left else placement.spread(engine.get("args") or {})
        except PlanError as error:
            told["problems"] += [f"engine {engine['name']}: {problem}" for problem in error.problems]
            return 1

    for engine in (one for one in engines if one.get("gpus")):
        planned(engine, len(engine["gpus"]))
    places, problems = placement.place(engines, host.gpus, planned)
    told["problems"] += problems
    told["gpus"] = {
        one["name"]: places[one["name"]] for one in engines if not one.get("gpus") and one["name"] in places
    }
    for engine in (one for one in engines if one["name"] in told["plans"]):
        found, name = told["plans"][engine["name"]], engine["name"]
        few = found.get("needed_tokens") and found["kv_tokens"] >= _SURELY_TOO_LITTLE * found["needed_tokens"]
        if (
            found["fits"] is False
            and not few
            and (not found["weights_gib"] or found["kv_gib"] < 0 or not found["estimated"])
        ):
            changes = "; ".join(found["changes"])
            lines = "; ".join(found["why"])
            told["problems"].append(
                f"engine {name}: {engine['model']} does not fit on {host.name}: {lines}. It would fit with: {changes}"
            )
        told["flags"][name] = (
            _differing(found, host, shapes[name].context, engine) if found["fits"] is not False else {}
        )
    return told


def _plan_in(
    engine: Mapping[str, Any], host: hosts.Host, config: Mapping[str, Any] | None, gpus: int, version: tuple[int, int]
) -> tuple[dict[str, Any], Shape] | None:
    """The plan of an engine on so many of a host's GPUs, and its model's shape; None for a model that cannot be read, or is no decoder."""
    size = None
    try:
        if config is None:
            files = read_model(engine["model"], engine.get("revision") or "")
            config, size = files.config, files.weights_bytes
        shape = read_shape(config)
    except PlanError:
        return None  # vLLM itself decides
    wanted = plans.Wanted(engine.get("context_tokens"), engine.get("concurrency"))
    return plan_with_types(config, host, engine.get("args") or {}, wanted, size, gpus, version), shape


def _differing(found: Mapping[str, Any], host: hosts.Host, context: int, engine: Mapping[str, Any]) -> dict[str, Any]:
    """The derived options that are not vLLM's defaults anyway, so that an engine that needs none keeps its configuration."""
    given = {str(name).replace("_", "-") for name in engine.get("args") or {}}
    usual = {
        "tensor-parallel-size": 1,
        "pipeline-parallel-size": 1,
        "max-model-len": context,
        "max-num-seqs": host.card.default_seqs,
        "max-num-batched-tokens": host.card.default_batched_tokens,
        "gpu-memory-utilization": plans.UTILIZATION,
    }
    return {name: value for name, value in found["flags"].items() if name not in given and usual.get(name) != value}


def text_of_model(told: Mapping[str, Any]) -> str:
    """The plan of one model for people."""
    if "instance_types" in told:
        if told["fits"] is False:
            return f"{told['model']} fits on no instance type. Plan it with plan_instance_type to see the arithmetic."
        rows = [
            [_dollars(row["usd_per_hour"]), row["instance_type"], *_cells(row), _flags(row)]
            for row in told["instance_types"]
        ]
        return _table([["USD/hour", "instance type", *_COLUMNS.values(), "options"], *rows])
    lines = [f"{told['model']} on {told['instance_type']}: {_FITS[told['fits']]}", *told["why"]]
    if told["fits"] is not False:
        lines.append(f"options: {_flags(told)}")
    lines += [f"it would fit with {change}" for change in told.get("changes", [])]
    lines += [f"an estimate, because {reason}" for reason in told.get("estimated_because", [])]
    return "\n".join(lines)


_FITS = {True: "fits", False: "does not fit", None: "it cannot be said whether it fits"}


def text_of_fleet(told: list[dict[str, Any]]) -> str:
    """The plans of a fleet's engines for people."""
    if not told:
        return "no engine to plan: the group vllm has no host with vllm_engines. To plan a model without hosts, set plan_model."
    rows = [[row["host"], row["engine"], row["instance_type"] or "?", *_cells(row), _flags(row)] for row in told]
    lines = [_table([["host", "engine", "instance type", *_COLUMNS.values(), "options"], *rows])]
    for row in told:
        where = f"{row['host']}, engine {row['engine']}"
        lines += [f"{where}: {problem}" for problem in row.get("problems", [])]
        if row["fits"] is False:
            lines += [
                f"{where} does not fit:",
                *(f"  {line}" for line in [*row["why"], *(f"it would fit with {change}" for change in row["changes"])]),
            ]
    return "\n".join(lines)


def _cells(row: Mapping[str, Any]) -> list[str]:
    shown = {**row, "fits": {True: "yes", False: "no", None: "?"}[row["fits"]]}
    if row.get("estimated") is not None:
        shown["estimated"] = "estimate" if row["estimated"] else "yes"
    return [str(shown.get(name) if shown.get(name) is not None else "") for name in _COLUMNS]


def _flags(row: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in row.get("flags", {}).items())


def _dollars(price: float | None) -> str:
    return "?" if price is None else f"{price:.2f}"


def _table(rows: list[list[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
