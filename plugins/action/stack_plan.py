"""Plan engines on GPUs, and print the plan. Runs on the controller and touches no host."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

UTILS = Path(__file__).resolve().parents[1] / "plugin_utils"


def load(name: str, subject: str = "planner") -> ModuleType:
    """A module of a package. Only an installed collection has an import path, so the package is loaded from its file."""
    package = f"ec2_inference_stack_{subject}"
    if package not in sys.modules:
        spec = importlib.util.spec_from_file_location(package, UTILS / subject / "__init__.py")
        assert spec is not None, f"{UTILS / subject} is a package"
        assert spec.loader is not None
        sys.modules[package] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[package])
    return importlib.import_module(f"{package}.{name}")


class ActionModule(ActionBase):  # type: ignore[misc]  # ansible-core ships no types
    """Changes nothing, with or without check mode."""

    TRANSFERS_FILES = False
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Print a plan: of `model` (with `instance_type`, `args`, …), or of the engines of all hosts in the group vllm.

        With `format: json` one line holds the plan as an object, or as a list of objects for a fleet. With `engines`, print
        nothing, and return the plans of those engines of this host (planner's reports.plan_of_host).
        """
        super().run(tmp, task_vars)
        variables, args = task_vars or {}, self._task.args
        try:
            if "engines" in args:
                environment = self._templar.template(variables.get("vllm_environment")) or {}
                return {"changed": False, **self._of_host(variables, args, environment)}
            told, text = self._of_model(args) if args.get("model") else self._of_fleet(variables, args)
        except load("flags").PlanError as error:
            return {"failed": True, "msg": "\n".join(error.problems)}
        Display().display(json.dumps(told) if args.get("format") == "json" else text)
        return {"changed": False, "plan": told}

    @staticmethod
    def _of_model(args: dict[str, Any]) -> tuple[Any, str]:
        reports, own = load("reports"), args.get("args") or {}
        if not isinstance(own, dict):
            raise load("flags").PlanError(
                ['plan_args is no dictionary: write -e \'{"plan_args": {"max-model-len": 8192}}\'']
            )
        told = reports.plan_of_model(
            str(args["model"]),
            str(args.get("revision") or ""),
            args.get("instance_type"),
            own,
            _wanted(args),
            reports.version_of(args["version"]),
        )
        return told, reports.text_of_model(told)

    @staticmethod
    def _of_host(variables: dict[str, Any], args: dict[str, Any], environment: dict[str, Any]) -> dict[str, Any]:
        reports = load("reports")
        empty: dict[str, Any] = {"flags": {}, "plans": {}, "gpus": {}, "problems": []}
        try:
            host = reports.host_of(args.get("smi") or "", variables.get("aws_instance_type"))
        except load("flags").PlanError as error:
            return empty | {"problems": error.problems}
        if host is None:
            return empty
        common, directories = args.get("args") or {}, args.get("directories") or {}
        engines = [
            {**engine, **_visible(engine, environment), "args": {**common, **(engine.get("args") or {})}}
            for engine in args["engines"]
            # That only the build for CPUs reads.
            if not any(name.startswith("VLLM_CPU_") for name in {**environment, **(engine.get("environment") or {})})
        ]
        configs = args.get("configs") or {}
        its = {engine["name"]: configs.get(directories.get(engine["name"], engine.get("model"))) for engine in engines}
        complete = bool(args.get("complete"))
        told: dict[str, Any] = reports.plan_of_host(engines, host, its, reports.version_of(args["version"]), complete)
        return told

    @staticmethod
    def _of_fleet(variables: dict[str, Any], args: dict[str, Any]) -> tuple[Any, str]:
        reports, engines_of, fleet = load("reports"), load("clusters", "preflight").engines_of, []
        for host in sorted(variables["groups"].get("vllm", [])):
            its = variables["hostvars"][host]
            entries = engines_of(host, its.get("vllm_engines"), its.get("vllm_clusters"))
            for number, engine in enumerate(entries):
                name = engine.get("name", f"number {number + 1}")
                fleet.append({**engine, "name": name, "host": host, "instance_type": its.get("aws_instance_type")})
                fleet[-1]["args"] = {**(its.get("vllm_args") or {}), **(engine.get("args") or {})}
        told = reports.plan_of_fleet(fleet, reports.version_of(args["version"]))
        return told, reports.text_of_fleet(told)


def _visible(engine: dict[str, Any], environment: dict[str, Any]) -> dict[str, list[int]]:
    """The GPUs that an operator gives an engine by CUDA's own variable. One that is named by its id, or a part of one, has no number: -1."""
    own = {**environment, **(engine.get("environment") or {})}.get("CUDA_VISIBLE_DEVICES")
    if engine.get("gpus") or not own:
        return {}
    return {"gpus": [int(part) if part.strip().isdigit() else -1 for part in str(own).split(",")]}


def _wanted(args: dict[str, Any]) -> Any:
    """What an operator wants, as whole numbers."""
    problems: list[str] = []
    found = {name: _whole(name, args.get(name), problems) for name in ("context_tokens", "concurrency")}
    if problems:
        raise load("flags").PlanError(problems)
    return load("plans").Wanted(**found)


def _whole(name: str, value: Any, problems: list[str]) -> int | None:
    if value in (None, ""):
        return None
    with contextlib.suppress(TypeError, ValueError):
        if 0 < int(value) <= 10**9:
            return int(value)
    problems.append(f"plan_{name} is {str(value)[:40]!r}: write a whole number from 1")
    return None
