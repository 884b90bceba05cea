"""Compare the wanted fleet of an environment with what AWS has of it. Runs on the controller, and changes nothing."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from ansible.plugins.action import ActionBase

UTILS = Path(__file__).resolve().parents[1] / "plugin_utils"
# The groups of the hosts in memory by which variables of a tier are read before it has a host.
EXAMPLE = "__stack_example_{tier}"


def load(subject: str, name: str) -> ModuleType:
    """A module of a package of plugin_utils. Only an installed collection has an import path, so the package is loaded from its file."""
    package = f"ec2_inference_stack_{subject}"
    if package not in sys.modules:
        spec = importlib.util.spec_from_file_location(package, UTILS / subject / "__init__.py")
        assert spec is not None, f"{UTILS / subject} is a package"
        assert spec.loader is not None
        sys.modules[package] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[package])
    return importlib.import_module(f"{package}.{name}")


class ActionModule(ActionBase):  # type: ignore[misc]  # ansible-core ships no types
    """Changes nothing. In check mode it is `changed` if there is something to make or remove, with the difference."""

    TRANSFERS_FILES = False
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """With `state: present` return the `steps` to make, with `state: absent` those to remove; `report` tells them to people.

        With `state: scaled` the `steps` that bring the engine hosts `pool` to `count` (without `scale_in` at least to it), and `leaving`, those
        that go; `serving` has the ids of instances whose engines serve somebody.

        With `failed`, the result of a failed task, return `failure`: what AWS refused and what to do.
        """
        super().run(tmp, task_vars)
        variables, args = task_vars or {}, self._task.args
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or ""
        if "failed" in args:
            texts = [
                str(row.get("msg", row)) for row in args["failed"].get("results", [args["failed"]]) if row.get("failed")
            ]
            return {
                "changed": False,
                "failure": "\n".join(load("fleet", "present").refusal(text, region) for text in texts),
            }
        try:
            if args["state"] == "scaled":
                _add_examples(variables["hostvars"])
            fleet = self._fleet(variables, region, absent=args["state"] == "absent")
            if args["state"] == "scaled":
                told = self._scaled(fleet, variables, str(args.get("pool") or ""), args.get("count", ""))
            else:
                told = self._removed(fleet) if args["state"] == "absent" else self._made(fleet, variables)
        except load("fleet", "present").FleetError as error:
            return {"failed": True, "msg": _together(error.problems)}
        goes = told["steps"] if args["state"] == "absent" else told.get("leaving", [])
        comes = [] if args["state"] == "absent" else told["steps"]
        told["changed"] = bool(self._task.check_mode and (goes or comes))
        if told["changed"]:
            before, after = ("".join(f"{step['text']}\n" for step in steps) for steps in (goes, comes))
            told["diff"] = {"before": before, "after": after}
        return told

    def _fleet(self, variables: dict[str, Any], region: str, absent: bool) -> Any:
        """The fleet that the variables say, with what is wrong in them."""
        wanted, fail = load("fleet", "wanted"), load("fleet", "present").FleetError
        if not region:
            raise fail(["no region is named: export AWS_REGION, such as AWS_REGION=eu-central-1"])
        fleets = self._templar.template(variables.get("stack_fleets") or {})
        if not isinstance(fleets, dict):
            raise fail(["stack_fleets is no dictionary: write the name of an environment, and below it its fleet"])
        asked = variables.get("stack_environment") or os.environ.get("STACK_ENVIRONMENT")
        names = ", ".join(map(str, fleets)) or "none"
        if not asked and len(fleets) != 1:
            raise fail(
                [
                    f"stack_fleets has {names}: name an environment, with -e stack_environment=NAME or STACK_ENVIRONMENT=NAME"
                ]
            )
        environment = str(asked or next(iter(fleets)))
        if environment not in fleets:
            raise fail([f"environment {environment} is unknown: stack_fleets has {names}"])
        given = fleets[environment]
        self._check_form(f"stack_fleets.{environment}", given)
        settings = wanted.with_defaults("fleet", given)
        kinds = {str(name): wanted.with_defaults("hosts", kind) for name, kind in settings["hosts"].items()}
        ports, models, hook = self._of_roles(variables)
        domain = str(self._templar.template(variables.get("stack_domain") or "")).lower()
        fleet = wanted.Fleet(environment, region, settings, kinds, domain, ports, models, hook)
        found = list(load("fleet", "problems").of_variables(fleet))
        if any("vllm" in kind["tiers"] for kind in kinds.values()) and not ports.engines:
            found.append(
                "vllm_engines and vllm_clusters are empty: name the engines in group_vars/vllm.yml, whose ports the proxies must reach"
            )
        if found and not absent:
            raise fail(found)
        return fleet

    @staticmethod
    def _check_form(where: str, given: Any) -> None:
        """Stop at names and types that are wrong."""
        schema, specs = load("preflight", "schema"), load("fleet", "wanted").SPECS
        found = list(schema.problems(where, given, schema.of_spec(specs["fleet"]["options"])))
        if not found:
            of_hosts = schema.of_spec(specs["hosts"]["options"])
            found = [
                p
                for name, kind in given["hosts"].items()
                for p in schema.problems(f"{where}.hosts.{name}", kind, of_hosts)
            ]
        if not found:
            # What a group has is in tables of its own, so that each is one in the documentation.
            groups = {
                f"{where}.hosts.{name}.auto_scaling": kind.get("auto_scaling") or {}
                for name, kind in given["hosts"].items()
            }
            parts = {
                f"{place}.{key}": (key, group[key])
                for place, group in groups.items()
                for key in ("hours", "join")
                if group.get(key)
            }
            named = {place: ("auto_scaling", group) for place, group in groups.items() if group} | parts
            for place, (key, value) in named.items():
                found += schema.problems(place, value, schema.of_spec(specs[key]["options"]))
        if found:
            raise load("fleet", "present").FleetError(found)

    @staticmethod
    def _of_roles(variables: dict[str, Any]) -> tuple[Any, tuple[str, ...], str]:
        """The ports that tiers listen on, the models, and the engines' lifecycle hook, as the tiers' variables say them."""
        roles, wanted = load("preflight", "roles"), load("fleet", "wanted")
        defaults = roles.role_defaults(roles.role_options())
        proxy, vllm = (_Variables(variables["hostvars"], tier, defaults) for tier in ("proxy", "vllm"))
        workers = proxy.number("proxy_workers") or wanted.MOST_WORKERS
        first = proxy.number("proxy_port")
        store = proxy.number("proxy_store_port") if proxy.get("proxy_store_host") else None
        engines = [engine for engine in vllm.get("vllm_engines") or [] if isinstance(engine, dict)]
        # An engine over several hosts has the same port on all of them, by its position in the list.
        clusters = [cluster for cluster in vllm.get("vllm_clusters") or [] if isinstance(cluster, dict)]
        every = load("preflight", "clusters").FIRST_PORT
        engines += [{"port": every + number} | cluster for number, cluster in enumerate(clusters)]
        listening = [engine.get(key) for engine in engines for key in ("port", "beside_port")]
        ports = wanted.Ports(
            (first, first + workers - 1), store, tuple(port for port in listening if isinstance(port, int))
        )
        models = tuple(str(engine["model"]) for engine in engines if engine.get("model"))
        return ports, models, str(vllm.get("vllm_lifecycle_hook") or "")

    def _made(self, fleet: Any, variables: dict[str, Any]) -> dict[str, Any]:
        plans, public_key = load("fleet", "plans"), self._public_key(fleet)
        with load("fleet", "present").errors_in_words(fleet.region):
            clients = _clients(fleet.region)
            present = load("fleet", "present").read(clients, fleet)
        scaling = load("fleet", "scaling")
        for pool in scaling.pools(fleet):
            kind = fleet.kinds[pool]
            kind["numbers"] = scaling.numbers(pool, kind["count"], scaling.members(pool, present))
        steps = self._steps(fleet, variables, clients, present, public_key)
        notices, parts = (
            plans.surplus(fleet, present),
            plans.costs(fleet, load("planner", "reports").INSTANCES, present),
        )
        return {
            **_told(fleet, present, public_key),
            "steps": steps,
            "report": plans.report_of_making(fleet, steps, notices, parts),
        }

    def _scaled(self, fleet: Any, variables: dict[str, Any], pool: str, count: Any) -> dict[str, Any]:
        scaling, present_of, wanted = (load("fleet", name) for name in ("scaling", "present", "wanted"))
        found = list(scaling.of_request(fleet, pool, count))
        if found:
            raise present_of.FleetError(found)
        kind, public_key, serving = fleet.kinds[pool], self._public_key(fleet), set(self._task.args.get("serving", []))
        said = kind["count"]
        with present_of.errors_in_words(fleet.region):
            clients = _clients(fleet.region)
            present = present_of.read(clients, fleet)
        if kind["auto_scaling"]:
            return self._group_scaled(fleet, variables, clients, present, pool, int(count))
        rows = scaling.members(pool, present)
        kind["count"] = self._goal(int(count), len(rows))
        goes = scaling.leaving(rows, kind["count"], serving)
        kind["numbers"] = scaling.numbers(pool, kind["count"], [row for row in rows if row not in goes])
        every = self._steps(fleet, variables, clients, present, public_key, pool)
        found = scaling.not_provisioned(fleet, pool, every, wanted.role_name(fleet, pool))
        if found:
            raise present_of.FleetError(found)
        steps = scaling.own_steps(fleet, pool, every)
        change = scaling.usd_per_hour(fleet, pool, steps, goes, present, load("planner", "reports").INSTANCES)
        return {
            **_told(fleet, present, public_key),
            "steps": steps,
            "pool": pool,
            "members": [row["InstanceId"] for row in rows if row not in goes],
            "leaving": [
                {"id": row["InstanceId"], "text": f"instance {present_of.name_of(row)} ({row['InstanceId']})"}
                for row in goes
            ],
            "report": scaling.report(fleet, pool, len(rows), said, steps, goes, serving, change),
        }

    def _goal(self, count: int, now: int) -> int:
        """How many hosts a pool that has `now` is to have: without `scale_in` never fewer."""
        return count if self._task.args.get("scale_in", True) else max(count, now)

    def _group_scaled(
        self, fleet: Any, variables: dict[str, Any], clients: Any, present: dict[str, Any], pool: str, count: int
    ) -> dict[str, Any]:
        """The same for an Auto Scaling group, which launches and terminates by itself."""
        scaling, wanted, fail = load("fleet", "scaling"), load("fleet", "wanted"), load("fleet", "present").FleetError
        every = self._steps(fleet, variables, clients, present, self._public_key(fleet), pool)
        found = scaling.not_provisioned(fleet, pool, every, wanted.role_name(fleet, pool))
        if found:
            raise fail(found)
        name = wanted.scaling_group_name(fleet, pool)
        (row,) = (row for row in present["scaling_groups"] if row["name"] == name)
        count = self._goal(count, row["desired"])
        may_be_last = str(self._task.args.get("last", "")).lower() in ("true", "yes", "1")
        found = list(scaling.of_group(fleet, pool, row, count, may_be_last))
        if found:
            raise fail(found)
        is_other = row["desired"] != count
        step = {"kind": "desired", "name": name, "text": f"Auto Scaling group {name}: {count} hosts", "count": count}
        return {
            **_told(fleet, present, ""),
            "steps": [step] if is_other else [],
            "pool": pool,
            "group": name,
            "members": [],
            "leaving": [],
            "report": scaling.report_of_group(fleet, pool, row, count, load("planner", "reports").INSTANCES),
        }

    def _steps(
        self,
        fleet: Any,
        variables: dict[str, Any],
        clients: Any,
        present: dict[str, Any],
        public_key: str,
        pool: str = "",
    ) -> list[dict[str, Any]]:
        """The steps that make what is missing. Raises all that stands against it; with a pool, against its hosts only."""
        present_of, plans, problems = (load("fleet", name) for name in ("present", "plans", "problems"))

        def missing_hosts() -> list[Any]:
            return [host for host in plans.missing_hosts(fleet, present) if pool in ("", host.kind)]

        with present_of.errors_in_words(fleet.region):
            missing, of_groups = missing_hosts(), load("fleet", "groups").examples(fleet)
            wanted_images = {host.image for host in [*missing, *of_groups]}
            images, found = present_of.images(clients, wanted_images, present["images"])
            self._choose_types(fleet, {host.kind for host in missing}, images, clients, variables)
            missing = missing_hosts()
            types = sorted({host.instance_type for host in [*missing, *of_groups]})
            offers = present_of.offers(clients("ec2"), types)
        found += [*problems.of_names(fleet, present), *problems.of_account(fleet, present, offers, images, missing)]
        if found:
            raise present_of.FleetError(found)
        made: list[dict[str, Any]] = plans.to_make(fleet, present, images, public_key)
        return made

    def _removed(self, fleet: Any) -> dict[str, Any]:
        present_of, plans = load("fleet", "present"), load("fleet", "plans")
        with present_of.errors_in_words(fleet.region):
            present = present_of.read(_clients(fleet.region), fleet)
        steps = plans.to_remove(fleet, present)
        return {
            "steps": steps,
            "report": plans.report_of_removing(fleet, steps, plans.kept(present)),
            "environment": fleet.environment,
            "region": fleet.region,
            "settings": dict(fleet.settings),
            "domain": fleet.domain,
            "record": plans.current_values(present["record"]),
            "balancer_zone": ((present["record"] or {}).get("AliasTarget") or {}).get("HostedZoneId"),
        }

    @staticmethod
    def _public_key(fleet: Any) -> str:
        name = fleet.settings["public_key_file"]
        try:
            return Path(name).expanduser().read_text().strip() if name else ""
        except (OSError, UnicodeDecodeError) as error:
            where = f"stack_fleets.{fleet.environment}.public_key_file"
            raise load("fleet", "present").FleetError(
                [f"{where}: {name} cannot be read ({error}): name a file such as ~/.ssh/id_ed25519.pub"]
            ) from error

    @staticmethod
    def _choose_types(fleet: Any, kinds: set[str], images: Any, clients: Any, variables: dict[str, Any]) -> None:
        """Put the cheapest type that runs the model and is offered in the zones in place of `planner`."""
        present_of, found = load("fleet", "present"), []
        for name in sorted(kinds):
            kind, where = fleet.kinds[name], f"stack_fleets.{fleet.environment}.hosts.{name}"
            if kind["type"] != "planner":
                continue
            try:
                fleet.kinds[name]["type"] = _planned(fleet, kind, where, images, clients, variables)
            except (present_of.FleetError, load("planner", "flags").PlanError) as error:
                found += [problem if problem.startswith(where) else f"{where}: {problem}" for problem in error.problems]
        if found:
            raise present_of.FleetError(found)


def _planned(fleet: Any, kind: Any, where: str, images: Any, clients: Any, variables: dict[str, Any]) -> str:
    """The cheapest fitting type."""
    reports, plans, present_of = load("planner", "reports"), load("planner", "plans"), load("fleet", "present")
    example = _Variables(variables["hostvars"], "vllm", {})
    engines = [engine for engine in example.get("vllm_engines") or [] if isinstance(engine, dict)]
    models = sorted({str(engine.get("model")) for engine in engines})
    if not kind["model"] and len(models) != 1:
        raise present_of.FleetError([f"{where}.model: vllm_engines has {len(models)} models: name the one to plan for"])
    model = kind["model"] or models[0]
    engine = next((engine for engine in engines if engine.get("model") == model), {})
    args = {**(example.get("vllm_args") or {}), **(engine.get("args") or {})}
    version = reports.version_of(example.get("vllm_version") or "0.33.0")
    told = reports.plan_of_model(model, str(engine.get("revision") or ""), None, args, plans.Wanted(), version)
    fitting = [row["instance_type"] for row in told["instance_types"] if row["usd_per_hour"] is not None]
    suited = [name for name in fitting if not kind["efa"] or _has_adapters(fleet, name)]
    wanted = [name for name in suited if not kind["types"] or name in kind["types"]]
    if not wanted:
        among = f"none of {', '.join(kind['types'])}" if kind["types"] else "no type with a known price"
        hint = f"; {', '.join(suited[:3])} would" if suited else ""
        adapters = (
            f" with Elastic Fabric Adapters{' in a network of its own' if fleet.own_network else ''}"
            if kind["efa"]
            else ""
        )
        raise present_of.FleetError(
            [
                f"{where}.types: {among} runs {model}{adapters}{hint}: name others, or see playbooks/plan.yml -e plan_model={model}"
            ]
        )
    offers, image = present_of.offers(clients("ec2"), wanted), images.get(kind["image"])
    zones = set(load("fleet", "wanted").zones_of(fleet, kind)[: kind["count"]])
    for name in wanted:
        offer = offers.get(name)
        if offer and zones <= offer["zones"] and (not image or image["Architecture"] in offer["architectures"]):
            return str(name)
    raise present_of.FleetError(
        [
            f"{where}: {', '.join(wanted[:5])} run {model}, but none is offered in all of {', '.join(sorted(zones))} for this image: name other zones or types"
        ]
    )


def _has_adapters(fleet: Any, instance_type: str) -> bool:
    """Whether a type has Elastic Fabric Adapters, and a way out with them: with several interfaces it gets no public address."""
    count = len(load("fleet", "adapters").interfaces(instance_type))
    return count == 1 or (count > 1 and not fleet.own_network)


def _told(fleet: Any, present: dict[str, Any], public_key: str) -> dict[str, Any]:
    """What the tasks need that make the steps."""
    present_of, plans, wanted = (load("fleet", name) for name in ("present", "plans", "wanted"))
    ours = present["given_subnets"] or present["subnets"]
    return {
        "environment": fleet.environment,
        "region": fleet.region,
        "base": fleet.base,
        "tags": fleet.tags(),
        "settings": dict(fleet.settings),
        "own_network": fleet.own_network,
        "vpc": ours[0]["VpcId"] if ours else None,
        "subnets": wanted.subnets(fleet),
        "subnet_of_zone": {row["AvailabilityZone"]: row["SubnetId"] for row in ours},
        "groups": [
            {"name": g["name"], "rules": plans.module_rules(g), "rules_out": plans.module_rules(g, out=True)}
            for g in wanted.security_groups(fleet)
        ],
        "instances": {present_of.name_of(row): row["InstanceId"] for row in present["instances"]},
        "web": [host.name for host in wanted.hosts(fleet) if "nginx" in host.tiers],
        "public_key": public_key,
        "domain": fleet.domain,
        "record": plans.record_values(fleet, present),
        "balancer_zone": next((row["CanonicalHostedZoneId"] for row in present["balancers"] if row["ours"]), None),
    }


def _add_examples(hostvars: Any) -> None:
    """Add the examples of the tiers to this process's copy of the inventory: the run itself goes on to real hosts, and must not see them."""
    for tier in ("proxy", "vllm"):
        hostvars._inventory.add_dynamic_host(
            {"host_name": EXAMPLE.format(tier=tier), "groups": [tier]}, {"refresh": True}
        )


class _Variables:
    """The variables that a host of a tier would have."""

    def __init__(self, hostvars: Any, tier: str, defaults: dict[str, Any]) -> None:
        name = EXAMPLE.format(tier=tier)
        # hostvars.get would return something undefined instead of the default.
        self._variables = hostvars[name] if name in hostvars else {}  # noqa: SIM401
        self._defaults = defaults

    def get(self, name: str) -> Any:
        return self._variables.get(name, self._defaults.get(name))

    def number(self, name: str) -> int:
        value = self.get(name)
        return value if isinstance(value, int) else int(self._defaults[name])


def _clients(region: str) -> Any:
    """Clients of boto3 by their service's name."""
    try:
        import boto3
    except ImportError as error:
        raise load("fleet", "present").FleetError(
            ["boto3 is not installed: install requirements/controller.txt"]
        ) from error
    return lambda service: boto3.client(service, region_name=region)


def _together(problems: list[str]) -> str:
    """All problems in one text."""
    noun = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return f"{noun}; nothing was changed:\n" + "\n".join(f"  - {problem}" for problem in dict.fromkeys(problems))
