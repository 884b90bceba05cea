"""One pool of engine hosts with another number of them: which instances go, and what the change costs. Pure: nothing here asks AWS."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from . import prices
from .plans import Step, hour_and_month
from .present import Row, name_of
from .wanted import MOST_HOSTS, Fleet, Host, hosts

# The tasks that scaling does itself. What else is missing is provisioning's.
OWN_STEPS = ("instance", "start", "template", "placement_group")


def pools(fleet: Fleet) -> list[str]:
    """The kinds of hosts that run engines and nothing else."""
    return [name for name, kind in fleet.kinds.items() if list(kind["tiers"]) == ["vllm"]]


def of_request(fleet: Fleet, pool: str, count: Any) -> Iterator[str]:
    """What is wrong with the pool and the number that somebody asks for."""
    there = ", ".join(pools(fleet)) or "none"
    where = f"stack_fleets.{fleet.environment}.hosts"
    if not pool:
        yield f"no pool is named: add -e pool=NAME; {where} has {there}"
    elif pool not in fleet.kinds:
        yield f"pool {pool} is unknown: {where} has {there}"
    elif pool not in pools(fleet):
        yield (
            f"pool {pool} is of the tiers {', '.join(fleet.kinds[pool]['tiers'])}, and only hosts that are engines and nothing else are scaled: "
            f"change {where}.{pool}.count, and run playbooks/provision.yml and site.yml"
        )
    if str(count) == "":
        yield f"the number is not named: add -e count=N, of 0 to {MOST_HOSTS}"
    elif not re.fullmatch(r"\d{1,4}", str(count)) or int(count) > MOST_HOSTS:
        yield f"count is {count}: use a whole number of 0 to {MOST_HOSTS}"


def members(pool: str, present: Row) -> list[Row]:
    """The pool's instances."""
    return [row for row in present["instances"] if re.fullmatch(rf"{re.escape(pool)}-\d+", name_of(row))]


def leaving(rows: list[Row], count: int, serving: Collection[str]) -> list[Row]:
    """Those that go if `count` stay: first who serves nobody, as stopped and drained ones do, then the newest. `serving` has the others' ids."""

    def first_who_stays(row: Row) -> tuple[bool, str, str]:
        is_needed = row["State"]["Name"] not in ("stopped", "stopping") and row["InstanceId"] in serving
        return not is_needed, str(row["LaunchTime"]), row["InstanceId"]

    return sorted(rows, key=first_who_stays)[count:]


def numbers(pool: str, count: int, staying: list[Row]) -> list[int]:
    """The numbers in the names of the pool's hosts: those that stay keep theirs, and new ones fill the gaps."""
    taken = sorted({int(name_of(row).rpartition("-")[2]) for row in staying})[:count]
    free = (number for number in range(1, MOST_HOSTS + len(taken) + 1) if number not in taken)
    return sorted([*taken, *(next(free) for _ in range(count - len(taken)))])


def not_provisioned(fleet: Fleet, pool: str, steps: list[Step], role: str) -> list[str]:
    """What new hosts of the pool need and provisioning has to make first."""
    needed = [
        step["text"]
        for step in steps
        if step["kind"] in ("network", "key", "group") or (step["kind"], step["name"]) == ("role", role)
    ]
    needed += [
        step["text"] for step in steps if step["kind"] == "scaling_group" and step["name"] == f"{fleet.base}-{pool}"
    ]
    if not needed:
        return []
    return [
        f"the fleet is not as stack_fleets.{fleet.environment} wants it: run playbooks/provision.yml first, which makes {'; '.join(needed)}"
    ]


def own_steps(fleet: Fleet, pool: str, steps: list[Step]) -> list[Step]:
    """The steps that make the pool's own hosts."""
    names = {host.name for host in hosts(fleet) if host.kind == pool} | {f"{fleet.base}-{pool}"}
    return [step for step in steps if step["kind"] in OWN_STEPS and step["name"] in names]


def of_group(fleet: Fleet, pool: str, row: Row, count: int, may_be_last: bool) -> Iterator[str]:
    """What stands against a number of hosts in a pool that is an Auto Scaling group."""
    if not row["min"] <= count <= row["max"]:
        yield (
            f"Auto Scaling group {row['name']} has {row['min']} to {row['max']} hosts now, so not {count}: change auto_scaling of "
            f"stack_fleets.{fleet.environment}.hosts.{pool} (min, max, hours), and run playbooks/provision.yml"
        )
    if count == 0 and row["desired"] > 0 and not may_be_last:
        yield f"pool {pool} would have no engine left: to scale in nevertheless, add -e drain_last=true"


def report_of_group(fleet: Fleet, pool: str, row: Row, count: int, table: Mapping[str, Any]) -> str:
    """What the group would do, and what it costs."""
    kind, more = fleet.kinds[pool], count - row["desired"]
    price = prices.usd_per_hour_of_type(kind["type"], table)
    around = prices.usd_per_hour_of_disk(kind["disk_gb"]) + (prices.PUBLIC_IPV4 if fleet.own_network else 0.0)
    words = {
        1: f"+ it launches {more}",
        -1: f"- it terminates {-more}, each when its engines are idle",
        0: "nothing is to be done",
    }
    return "\n".join(
        [
            f"Pool {pool} of fleet {fleet.environment} in {fleet.region} is an Auto Scaling group: {row['desired']} hosts wanted now, {count} from now on",
            f"  {words[(more > 0) - (more < 0)]}",
            *_costs(None if price is None else more * (price + around), kind["spot"]),
        ]
    )


def usd_per_hour(
    fleet: Fleet, pool: str, steps: list[Step], goes: list[Row], present: Row, table: Mapping[str, Any]
) -> float | None:
    """The change of the fleet's price; None if a type's price is not known."""
    by_name: dict[str, Host] = {host.name: host for host in hosts(fleet)}
    rows = {name_of(row): row for row in present["instances"]}
    parts: list[float | None] = []
    kind = fleet.kinds[pool]
    around = prices.usd_per_hour_of_disk(kind["disk_gb"]) + (prices.PUBLIC_IPV4 if fleet.own_network else 0.0)
    for step in steps:
        if step["kind"] == "instance":
            parts += [prices.usd_per_hour_of_type(by_name[step["name"]].instance_type, table), around]
        elif step["kind"] == "start":
            parts.append(prices.usd_per_hour_of_type(rows[step["name"]]["InstanceType"], table))
    for row in goes:
        price = prices.usd_per_hour_of_type(row["InstanceType"], table)
        is_stopped = row["State"]["Name"] in ("stopped", "stopping")
        parts += [0.0 if is_stopped else None if price is None else -price, -around]
    return None if None in parts else sum(part for part in parts if part is not None)


def report(
    fleet: Fleet,
    pool: str,
    now: int,
    said: int,
    steps: list[Step],
    goes: list[Row],
    serving: Collection[str],
    change: float | None,
) -> str:
    """What would be done, and what it costs."""
    kind = fleet.kinds[pool]
    lines = [f"Pool {pool} of fleet {fleet.environment} in {fleet.region}: {now} hosts now, {kind['count']} wanted"]
    lines += [f"  + {step['text']}" for step in steps]
    for row in goes:
        why = "the newest" if row["InstanceId"] in serving else "serves nobody"
        lines.append(f"  - instance {name_of(row)} ({row['InstanceId']}): {row['InstanceType']}, {why}")
    lines += [] if steps or goes else ["  nothing is to be launched or terminated"]
    if said != kind["count"]:
        lines.append(
            f"  ! stack_fleets.{fleet.environment}.hosts.{pool}.count is {said}: write {kind['count']} there, or the next playbooks/provision.yml "
            f"{'makes the others again' if said > kind['count'] else 'reports them as not wanted'}"
        )
    return "\n".join([*lines, *_costs(change, kind["spot"])])


def _costs(change: float | None, spot: bool) -> list[str]:
    return [
        "",
        f"Costs change by the prices of us-east-1, July 2026, without traffic (US dollars per hour, per month of {prices.HOURS_OF_A_MONTH} hours):",
        f"  {hour_and_month(change)}{' (spot: at most)' if spot else ''}",
    ]
