"""Which engines and proxy workers a drain means, and whether enough others serve without them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

DOCUMENTATION = r"""
name: fleet_rotation
short_description: Find the instances that playbooks/drain.yml and undrain.yml mean
positional: _input
options:
  _input:
    description: The registered result of playbooks/files/host_report.py on each proxy and web host, by the host's name.
    type: dict
    required: true
  hosts:
    description: The hosts that are to be drained.
    type: list
    elements: str
    required: true
  ranks:
    description: >-
      The ids of engines that spread over several hosts, by each of these hosts. The id is that of the head, and whatever happens to
      one of the hosts happens to the engine.
    type: dict
    default: {}
  instances:
    description: The only instances of these hosts that are meant, such as C(engine1:qwen) and C(api1:9000); all of them if empty.
    type: str
    default: ''
"""

EXAMPLES = r"""
- ansible.builtin.debug:
    msg: "{{ results | ec2_inference.stack.fleet_rotation(['engine1']) }}"
"""

RETURN = r"""
_value:
  description: >-
    C(engines) and C(workers), the ids and ports by the host of C(hosts) that has them; C(unknown), one sentence for each instance that is not there;
    C(unserved), one sentence for what nobody else would serve.
  type: dict
"""


def fleet_rotation(
    results: Mapping[str, Mapping[str, Any]],
    hosts: list[str],
    instances: str = "",
    ranks: Mapping[str, list[str]] | None = None,
) -> dict[str, Any]:
    """The instances of `hosts` that the tiers in front of them know, or those of them that are named."""
    reports = {host: json.loads(result["stdout"]) for host, result in sorted(results.items()) if result.get("rc") == 0}
    views = {
        f"{host}:{worker['port']}": worker["ready"]["engines"]
        for host, report in reports.items()
        for worker in report["workers"]
        if worker["ready"]
    }
    upstreams = {host: report["web"]["upstream"] for host, report in reports.items() if report["web"]}
    known = {engine["id"] for engines in views.values() for engine in engines}
    known |= {worker["id"] for upstream in upstreams.values() for worker in upstream}
    shared = {instance: host for host in reversed(hosts) for instance in (ranks or {}).get(host, [])}
    places = shared | {instance: _host(instance) for instance in known if _host(instance) in hosts}
    there = sorted(known & places.keys())
    named = [name.strip() for name in instances.split(",") if name.strip()]
    # The second engine that would serve while a roll replaces a named one, too.
    meant = [one for one in there if {one, one.removesuffix(".beside")} & set(named)] if named else there
    workers = {worker["id"] for upstream in upstreams.values() for worker in upstream}
    return {
        "engines": _by_host((places[instance], instance) for instance in meant if instance not in workers),
        "workers": _by_host((_host(one), one.rpartition(":")[2]) for one in meant if one in workers),
        "unknown": list(
            _unknown(
                hosts,
                there,
                named,
                {place for one, place in places.items() if one in there} | _with_ranks(ranks, there),
            )
        ),
        "unserved": [*_models_without(views, set(meant)), *_hosts_without(upstreams, set(meant))],
    }


def _host(instance: str) -> str:
    return instance.rpartition(":")[0]


def _by_host(instances: Iterator[tuple[str, str]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for host, name in instances:
        found.setdefault(host, []).append(name)
    return found


def _with_ranks(ranks: Mapping[str, list[str]] | None, there: list[str]) -> set[str]:
    """The hosts that have a rank of one of these engines."""
    return {host for host, its in (ranks or {}).items() if set(its) & set(there)}


def _unknown(hosts: list[str], there: list[str], named: list[str], busy: set[str]) -> Iterator[str]:
    for name in named:
        if name not in there:
            yield f"{name} is no engine and no proxy worker of these hosts: {', '.join(there) or 'they have none in rotation'}"
    for host in hosts:
        if host not in busy:
            yield f"{host} has no engine that a proxy knows and no proxy worker that nginx knows, so there is nothing to take out"


def _models_without(views: Mapping[str, list[Mapping[str, Any]]], leaving: set[str]) -> Iterator[str]:
    """The models that a proxy worker has left no serving engine for."""
    without: dict[str, set[str]] = {}
    for worker, engines in views.items():
        for model in {model for engine in engines if engine["id"] in leaving for model in engine["models"]}:
            others = [one for one in engines if model in one["models"] and one["id"] not in leaving]
            if not any(one["state"] == "serving" for one in others):
                without.setdefault(model, set()).add(_host(worker))
    for model, hosts in sorted(without.items()):
        yield f"no other engine serves {model}, as {', '.join(sorted(hosts))} sees it"


def _hosts_without(upstreams: Mapping[str, list[Mapping[str, Any]]], leaving: set[str]) -> Iterator[str]:
    """The web hosts that would have no proxy worker left."""
    for host, upstream in upstreams.items():
        if any(one["id"] in leaving for one in upstream) and not any(
            one["id"] not in leaving and not one["down"] for one in upstream
        ):
            yield f"nginx on {host} would have no proxy worker left"


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Any]:
        return {"fleet_rotation": fleet_rotation}
