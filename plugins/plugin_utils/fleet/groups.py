"""Auto Scaling groups of engine hosts: what is wanted of them, and how what is there differs. Pure: nothing here asks AWS."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .present import Row
from .wanted import MOST_HOSTS, Fleet, Host, group_name, role_name, scaling_group_name, with_defaults

LAUNCH_HOOK = "vllm-launch"
# A hook that nobody completes ends so long after its last sign of life, of which the watcher gives one each 25 s.
DRAIN_SIGN_S = 300
METRIC = {"Namespace": "ec2-inference", "MetricName": "inference_proxy_waiting_requests"}
_TIME = re.compile(r"([01]\d|2[0-3]):([0-5]\d)")
_DAY = r"(?:[0-7]|SUN|MON|TUE|WED|THU|FRI|SAT)"
_DAYS = re.compile(rf"\*|{_DAY}(?:-{_DAY})?(?:,{_DAY}(?:-{_DAY})?)*")
_JOIN = (Path(__file__).parent / "join.sh").read_text()


def kinds_of(fleet: Fleet) -> list[str]:
    """The kinds of hosts that are Auto Scaling groups."""
    return [name for name, kind in fleet.kinds.items() if kind["auto_scaling"]]


def settings_of(fleet: Fleet, kind: str) -> dict[str, Any]:
    """A group's settings, with their defaults at any depth."""
    found = with_defaults("auto_scaling", fleet.kinds[kind]["auto_scaling"])
    return found | {name: with_defaults(name, found[name]) if found[name] else {} for name in ("hours", "join")}


def examples(fleet: Fleet) -> list[Host]:
    """A host in each zone of each group, to be checked like those that are made."""
    return [
        Host(
            scaling_group_name(fleet, name), name, ("vllm",), kind["type"], kind["image"], zone, kind["disk_gb"],
            kind["spot"], kind["cluster"], efa=False,
        )
        for name in kinds_of(fleet)
        for kind in [fleet.kinds[name]]
        for zone in fleet.settings["zones"]
    ]  # fmt: skip


def of_variables(where: str, fleet: Fleet, name: str) -> Iterator[str]:
    """What the variables say wrong of a group."""
    kind, its = fleet.kinds[name], settings_of(fleet, name)
    here = f"{where}.auto_scaling"
    if list(kind["tiers"]) != ["vllm"]:
        yield f"{here} is for engines: give them hosts of their own (tiers: [vllm])"
    if kind["type"] == "planner" or kind["efa"]:
        yield f"{here} needs the name of one type without efa: write what playbooks/plan.yml says, or leave auto_scaling out"
    if not 0 <= its["min"] <= kind["count"] <= its["max"] <= MOST_HOSTS:
        yield f"{here}: min is {its['min']}, count {kind['count']} and max {its['max']}: they have to rise, from 0 to {MOST_HOSTS}"
    if its["target_waiting"] < 0:
        yield f"{here}.target_waiting is {its['target_waiting']}: use 0 or more requests"
    if not 30 <= its["prove_timeout_s"] <= 7200:
        yield f"{here}.prove_timeout_s is {its['prove_timeout_s']}: use 30 to 7200, the longest time of a hook"
    if not fleet.hook:
        yield f"{here}: vllm_lifecycle_hook is empty, so nobody would drain a host before it goes: name a hook in group_vars/vllm.yml"
    if its["hours"]:
        yield from _of_hours(f"{here}.hours", its["hours"], its["max"])
    join = its["join"]
    if join and not re.fullmatch(r"https?://[^\s'\"]+", join["awx_url"]):
        yield f"{here}.join.awx_url is {join['awx_url']}: write an address such as https://awx.example.com"
    if join and not re.fullmatch(r"[A-Za-z0-9/._-]+", join["key_parameter"]):
        yield f"{here}.join.key_parameter is {join['key_parameter']}: write the name of an SSM parameter"


def _of_hours(here: str, hours: Mapping[str, Any], most: int) -> Iterator[str]:
    for name in ("start", "end"):
        if not _TIME.fullmatch(hours[name]):
            yield f'{here}.{name} is {hours[name]}: write a time in quotes, such as "07:30"'
    if hours["start"] >= hours["end"]:
        yield f"{here}: start is {hours['start']} and end {hours['end']}: end has to be later on the same day"
    if not _DAYS.fullmatch(hours["days"].upper()):
        yield f"{here}.days is {hours['days']}: write days as cron has them, such as 1-5 or MON-FRI"
    if not re.fullmatch(r"[A-Za-z]+(/[A-Za-z0-9_+-]+)*", hours["time_zone"]):
        yield f"{here}.time_zone is {hours['time_zone']}: write a name such as Europe/Berlin"
    if not 0 <= hours["outside"] <= most:
        yield f"{here}.outside is {hours['outside']}: use 0 to max, {most}"


def wanted(fleet: Fleet, name: str) -> dict[str, Any]:
    """A group as it has to be, in Auto Scaling's words, but for the ids of its subnets."""
    kind, its = fleet.kinds[name], settings_of(fleet, name)
    hooks = {
        fleet.hook: {
            "LifecycleTransition": "autoscaling:EC2_INSTANCE_TERMINATING",
            "HeartbeatTimeout": DRAIN_SIGN_S,
            "DefaultResult": "CONTINUE",
        }
    }
    if its["join"]:
        hooks[LAUNCH_HOOK] = {
            "LifecycleTransition": "autoscaling:EC2_INSTANCE_LAUNCHING",
            "HeartbeatTimeout": its["prove_timeout_s"],
            "DefaultResult": "ABANDON",
        }
    metric = METRIC | {"Dimensions": [{"Name": "Environment", "Value": fleet.environment}], "Statistic": "Sum"}
    policies = {"waiting": {"TargetValue": float(its["target_waiting"]), "CustomizedMetricSpecification": metric}}
    schedules = _schedules(its, kind["count"]) if its["hours"] else {}
    return {
        # Those of the day, and by the schedule those of the night.
        "sizes": sorted({(its["min"], its["max"]), *((one["MinSize"], one["MaxSize"]) for one in schedules.values())}),
        "min": its["min"],
        "max": its["max"],
        "count": kind["count"],
        "hooks": hooks,
        "policies": policies if its["target_waiting"] else {},
        "schedules": schedules,
    }


def _schedules(its: Mapping[str, Any], count: int) -> dict[str, Any]:
    hours = its["hours"]

    def at(time: str, least: int, most: int, wanted_now: int) -> dict[str, Any]:
        hour, minute = (int(part) for part in time.split(":"))
        sizes = {"MinSize": least, "MaxSize": most, "DesiredCapacity": wanted_now}
        return {"Recurrence": f"{minute} {hour} * * {hours['days'].upper()}", "TimeZone": hours["time_zone"], **sizes}

    outside = hours["outside"]
    return {
        "hours-begin": at(hours["start"], its["min"], its["max"], count),
        "hours-end": at(hours["end"], outside, outside, outside),
    }


def differences(fleet: Fleet, name: str, row: Row | None, subnets: list[str]) -> list[str]:
    """How a group that is there differs from the wanted one, in words; its number of hosts is its own affair."""
    goal = wanted(fleet, name)
    if row is None:
        return [f"{goal['min']} to {goal['max']} hosts, {goal['count']} at first", *_in_words(goal)]
    found = []
    if (row["min"], row["max"]) not in goal["sizes"]:
        found.append(f"{goal['min']} to {goal['max']} hosts instead of {row['min']} to {row['max']}")
    if sorted(row["subnets"]) != sorted(subnets):
        found.append("its subnets")
    found += [f"hook {key}" for key, value in goal["hooks"].items() if row["hooks"].get(key) != value]
    for part, word in (("policies", "policy"), ("schedules", "schedule")):
        found += [
            f"{word} {key}" for key in sorted({*goal[part], *row[part]}) if goal[part].get(key) != row[part].get(key)
        ]
    return found


def _in_words(goal: Mapping[str, Any]) -> list[str]:
    words = [f"hook {name}" for name in goal["hooks"]]
    words += [f"policy {name}: {policy['TargetValue']:g} requests" for name, policy in goal["policies"].items()]
    return words + [
        f"schedule {name}: {one['DesiredCapacity']} hosts at '{one['Recurrence']}' {one['TimeZone']}"
        for name, one in goal["schedules"].items()
    ]


def launch_data(fleet: Fleet, name: str, image: Row, has_key: bool) -> dict[str, Any]:
    """The data of a group's launch template, but for the ids of its security groups."""
    kind = fleet.kinds[name]
    tags = [{"Key": key, "Value": value} for key, value in fleet.tags(Name=name, Tier="vllm").items()]
    disk = {"VolumeType": "gp3", "VolumeSize": kind["disk_gb"], "Encrypted": True, "DeleteOnTermination": True}
    found = {
        "ImageId": image.get("ImageId"),
        "InstanceType": kind["type"],
        "IamInstanceProfile": {"Name": role_name(fleet, name)},
        "MetadataOptions": {"HttpEndpoint": "enabled", "HttpTokens": "required", "HttpPutResponseHopLimit": 1},
        "BlockDeviceMappings": [{"DeviceName": image.get("RootDeviceName", "/dev/xvda"), "Ebs": disk}],
        "TagSpecifications": [{"ResourceType": what, "Tags": tags} for what in ("instance", "volume")],
    }
    if has_key:
        found["KeyName"] = fleet.base
    script = join_script(fleet, name)
    if script:
        found["UserData"] = base64.b64encode(script.encode()).decode()
    return found


def security_groups_of(fleet: Fleet, name: str) -> list[str]:
    """The security groups of a group's hosts."""
    return [group_name(fleet, part) for part in ("vllm", *(["cluster"] if fleet.kinds[name]["cluster"] else []))]


def digest(data: Mapping[str, Any], groups: list[str], spot: bool) -> str:
    """What a template's description says of its data, by which a difference is seen."""
    text = json.dumps([data, groups, spot], sort_keys=True)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def join_script(fleet: Fleet, name: str) -> str:
    """The user data of a group's hosts; "" if they do not join by themselves."""
    its = settings_of(fleet, name)
    if not its["join"]:
        return ""
    join, values = its["join"], {}
    values["region"], values["group"] = fleet.region, scaling_group_name(fleet, name)
    values["hook"], values["parameter"] = LAUNCH_HOOK, join["key_parameter"]
    values["callback"] = f"{join['awx_url'].rstrip('/')}/api/v2/job_templates/{join['template']}/callback/"
    found = _JOIN
    for key, value in values.items():
        found = found.replace(f"@{key}@", shlex.quote(value))
    found = found.replace("@ports@", " ".join(str(port) for port in sorted(set(fleet.ports.engines))))
    return found.replace("@timeout_s@", str(its["prove_timeout_s"]))
