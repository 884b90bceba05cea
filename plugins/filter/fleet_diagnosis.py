"""What is wrong with a fleet, from the reports of its hosts and from what they can reach."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

DOCUMENTATION = r"""
name: fleet_diagnosis
short_description: Find what is wrong with a stack
description:
  - For playbooks/diagnose.yml.
positional: _input
options:
  _input:
    description: The result of the filter C(fleet_status).
    type: dict
    required: true
  looks:
    description: The registered results of playbooks/files/look_around.py, by the host's name; the controller is C(localhost).
    type: dict
    required: true
"""

EXAMPLES = r"""
- ansible.builtin.debug:
    msg: "{{ (results | ec2_inference.stack.fleet_status | ec2_inference.stack.fleet_diagnosis(looks)).lines }}"
"""

RETURN = r"""
_value:
  description:
    - C(lines), for people; C(findings), one sentence each, the worst first; C(ways), milliseconds from each host to the next tier, or why
      there is no way; C(errors), the last error lines by host and log; C(logs), each with C(name) and C(text), if they were asked for.
  type: dict
"""

SLOW_MS = 100.0
Report = Mapping[str, Any]
# Reports' fields that should be the same on all hosts of a tier, in words.
ALIKE: dict[str, Callable[[Report], list[str | None]]] = {
    "the system": lambda report: [report["system"].get("os")] if report["engines"] else [],
    "the GPUs' driver": lambda report: [gpu.get("driver") for gpu in report["gpus"] or []],
    "nginx": lambda report: [report["web"].get("version")] if report["web"] else [],
}


def fleet_targets(status: Mapping[str, Any], host: str, hours: int, bundle: bool = False) -> dict[str, Any]:
    """What `host` has to look at: the tier behind it has to answer, and the others' ports must not. `localhost` is the controller."""
    there = {name: report for name, report in status["reports"].items() if "lost" not in report}
    of_host = there.get(host, {"workers": [], "web": None, "engines": []})
    engines, workers = dict(_engine_ports(there)), dict(_worker_ports(there))
    reach = {**(engines if of_host["workers"] else {}), **(workers if of_host["web"] else {})}
    # A host with all tiers reaches itself, whatever its firewall says.
    closed = {
        name: place
        for name, place in {**engines, **workers}.items()
        if name not in reach and name.rpartition(":")[0] != host
    }
    return {"reach": reach, "closed": closed, "hours": hours, "bundle": bundle}


def _engine_ports(there: Mapping[str, Report]) -> Iterator[tuple[str, list[Any]]]:
    for host, report in there.items():
        for engine in report["engines"]:
            place = urlsplit(engine["url"] or "")
            if place.hostname and place.port:
                yield f"{host}:{engine['name']}", [place.hostname, place.port]


def _worker_ports(there: Mapping[str, Report]) -> Iterator[tuple[str, list[Any]]]:
    for host, report in there.items():
        for worker in report["workers"]:
            if worker.get("address"):
                yield f"{host}:{worker['port']}", [worker["address"], worker["port"]]


def fleet_diagnosis(status: Mapping[str, Any], looks: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The findings, the ways between the tiers and the last errors, as lines and as data."""
    told = {host: json.loads(look["stdout"]) for host, look in sorted(looks.items()) if look.get("rc") == 0}
    there = {host: report for host, report in sorted(status["reports"].items()) if "lost" not in report}
    findings = [*status["attention"], *_of_ways(told), *_of_open_ports(told), *_of_gpus(there), *_of_differences(there)]
    findings += [f"{host} could not look around: {_reason(looks[host])}" for host in sorted(set(there) - set(told))]
    ways = {host: look["ways"] for host, look in told.items() if look["ways"]}
    errors = {host: look["errors"] for host, look in told.items() if look["errors"]}
    logs = [
        {"name": f"{host}-{name}", "text": text}
        for host, look in told.items()
        for name, text in look.get("logs", {}).items()
    ]
    lines = [*_findings(findings), *_ways(ways), *_errors(errors)]
    return {"lines": lines, "findings": findings, "ways": ways, "errors": errors, "logs": logs}


def _reason(look: Mapping[str, Any]) -> str:
    words = str(look.get("stderr") or look.get("msg") or "see above").strip()
    return words.splitlines()[-1]


def _of_ways(told: Mapping[str, Report]) -> Iterator[str]:
    for host, look in told.items():
        for name, way in look["ways"].items():
            if isinstance(way, str):
                yield f"{host} cannot reach {name}: {way}; if it runs, open its port to the hosts of the tier in front (security groups)"
            elif way > SLOW_MS:
                yield f"{host} needs {way:.0f} ms for a connection to {name}: are they in one region, and is one of them overloaded?"


def _of_open_ports(told: Mapping[str, Report]) -> Iterator[str]:
    """Ports that answer to hosts which are not of the tier in front, each with all those hosts."""
    found: dict[str, list[str]] = {}
    for host, look in told.items():
        for name in look["open"]:
            found.setdefault(name, []).append("the controller" if host == "localhost" else host)
    for name, hosts in sorted(found.items()):
        yield f"{name} accepts connections from {', '.join(hosts)}: its security group should admit the tier in front only"


def _of_gpus(there: Mapping[str, Report]) -> Iterator[str]:
    for host, report in there.items():
        for gpu in report["gpus"] or []:
            count = str(gpu.get("uncorrected_errors", ""))
            if count.isdigit() and int(count):
                yield (
                    f"{host}: GPU {gpu['index']} had {count} uncorrected memory errors since its driver was loaded: "
                    "restart its engines, or replace the instance if they go on"
                )


def _of_differences(there: Mapping[str, Report]) -> Iterator[str]:
    for what, values in ALIKE.items():
        found: dict[str, list[str]] = {}
        for host, report in there.items():
            for value in {value for value in values(report) if value}:
                found.setdefault(value, []).append(host)
        if len(found) > 1:
            listed = "; ".join(f"{value} on {', '.join(hosts)}" for value, hosts in sorted(found.items()))
            yield f"{what} differs between hosts: {listed}"


def _findings(findings: list[str]) -> list[str]:
    return ["what is wrong", *(f"  - {finding}" for finding in findings)] if findings else ["nothing is wrong"]


def _ways(ways: Mapping[str, Mapping[str, Any]]) -> list[str]:
    rows = [
        f"  {host} to {name}: {f'{way:.1f} ms' if isinstance(way, float | int) else way}"
        for host, found in ways.items()
        for name, way in found.items()
    ]
    return ["", "ways to the next tier", *rows] if rows else []


def _errors(errors: Mapping[str, Mapping[str, Any]]) -> list[str]:
    rows = []
    for host, found in errors.items():
        for log, its in found.items():
            rows.append(f"  {host}, {log}: {its['count']}, the last of them:")
            rows += [f"    {''.join(c if c.isprintable() else '?' for c in line)}" for line in its["last"]]
    return ["", "errors in the logs", *rows] if rows else []


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Any]:
        """The filters by their names."""
        return {"fleet_diagnosis": fleet_diagnosis, "fleet_targets": fleet_targets}
