"""What an Auto Scaling group of engines is made of, and what its hosts run at their first boot."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from stack_fleet import load
from test_wanted_fleet import engines, fleet

groups, plans, problems, scaling = (load("fleet", name) for name in ("groups", "plans", "problems", "scaling"))
JOIN = {"awx_url": "https://awx.example.com/", "template": 7, "key_parameter": "/stack/awx-key"}
ROOT = Path(__file__).resolve().parents[2]


def group(**settings: Any) -> Any:
    """A fleet with one pool of 2 engines that is a group of 1 to 4."""
    its = fleet(engines(2, auto_scaling={"min": 1, "max": 4, **settings}))
    return dataclasses.replace(its, hook="vllm-drain")


def test_user_data_is_a_script_without_a_secret(tmp_path: Path) -> None:
    script = groups.join_script(group(join=JOIN), "engine")
    file = tmp_path / "join.sh"
    file.write_text(script)
    subprocess.run(["bash", "-n", file], check=True)
    subprocess.run([Path(sys.executable).parent / "shellcheck", file], check=True)
    assert "callback=https://awx.example.com/api/v2/job_templates/7/callback/" in script
    assert "group=ec2-inference-staging-engine hook=vllm-launch parameter=/stack/awx-key" in script
    assert "ports=(8000 8001)" in script
    assert groups.join_script(group(), "engine") == ""


FAKES = {
    "aws": 'echo "aws $*" >> "$LOG"\ncase "$*" in *get-parameter*) echo the-secret ;; esac',
    "curl": """case "$*" in
  *api/token*) echo token ;;
  *instance-id*) echo i-0abc ;;
  */callback/*)
    for word; do case "$word" in @*) cat "${word#@}" >> "$LOG" ;; esac; done
    echo "callback $*" >> "$LOG" ;;
  */health*) echo "asked $*" >> "$LOG"; [ "$(grep -c asked "$LOG")" -ge 3 ] ;;
esac""",
    "sleep": ":",
    "logger": "cat > /dev/null",
}


def test_a_new_host_asks_awx_and_is_in_service_when_its_engines_answer(tmp_path: Path) -> None:
    """Run for real, up to AWS and AWX, whose programs are stand-ins."""
    for name, text in FAKES.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    log = tmp_path / "log"
    script = groups.join_script(group(join=JOIN), "engine")
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "LOG": str(log), "TMPDIR": str(tmp_path)}
    subprocess.run(["bash", "-c", script], env=environment, check=True, timeout=60)
    lines = log.read_text().splitlines()
    assert "host_config_key=the-secret" in lines
    assert not any("the-secret" in line for line in lines if line.startswith(("callback", "aws"))), "in an argument"
    last = lines[-1]
    assert last.startswith("aws autoscaling complete-lifecycle-action --region eu-central-1")
    assert last.endswith("--instance-id i-0abc --lifecycle-action-result CONTINUE")
    assert [line.rpartition(":")[2] for line in lines if line.startswith("asked")] == ["8000/health"] * 3 + [
        "8001/health"
    ]
    assert not list(tmp_path.glob("tmp.*")), "the file with the secret is removed"


def test_office_hours_are_two_scheduled_actions() -> None:
    hours = {"start": "07:30", "end": "19:05", "days": "mon-fri", "time_zone": "Europe/Berlin"}
    assert groups.wanted(group(hours=hours), "engine")["schedules"] == {
        "hours-begin": {
            "Recurrence": "30 7 * * MON-FRI",
            "TimeZone": "Europe/Berlin",
            "MinSize": 1,
            "MaxSize": 4,
            "DesiredCapacity": 2,
        },
        "hours-end": {
            "Recurrence": "5 19 * * MON-FRI",
            "TimeZone": "Europe/Berlin",
            "MinSize": 0,
            "MaxSize": 0,
            "DesiredCapacity": 0,
        },
    }


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"max": 1}, "min is 1, count 2 and max 1: they have to rise"),
        ({"hours": {"start": "7:30", "end": "19:00"}}, 'hours.start is 7:30: write a time in quotes, such as "07:30"'),
        ({"hours": {"start": "19:00", "end": "07:30"}}, "end has to be later on the same day"),
        ({"hours": {"start": "07:30", "end": "19:00", "days": "workdays"}}, "hours.days is workdays"),
        ({"hours": {"start": "07:30", "end": "19:00", "outside": 5}}, "hours.outside is 5: use 0 to max, 4"),
        ({"join": JOIN | {"awx_url": "awx"}}, "join.awx_url is awx: write an address"),
        ({"prove_timeout_s": 9000}, "prove_timeout_s is 9000: use 30 to 7200"),
        ({}, None),
    ],
)
def test_what_a_group_cannot_be_is_refused(settings: dict[str, Any], told: str | None) -> None:
    found = list(problems.of_variables(group(**settings)))
    assert (found == []) if told is None else any(told in problem for problem in found), found
    assert any(
        "vllm_lifecycle_hook is empty" in p for p in problems.of_variables(dataclasses.replace(group(), hook=""))
    )


def test_only_what_differs_is_said() -> None:
    its = group(hours={"start": "07:30", "end": "19:00"})
    row = {"subnets": ["s-1"], "min": 1, "max": 4, "desired": 3} | {
        key: groups.wanted(its, "engine")[key] for key in ("hooks", "policies", "schedules")
    }
    assert groups.differences(its, "engine", row, ["s-1"]) == []
    assert groups.differences(its, "engine", row | {"min": 0, "max": 0}, ["s-1"]) == [], "that is the night"
    other = row | {"max": 9, "hooks": {}, "policies": {"waiting": {}}}
    assert groups.differences(its, "engine", other, ["s-2"]) == [
        "1 to 4 hosts instead of 1 to 9",
        "its subnets",
        "hook vllm-drain",
        "policy waiting",
    ]


def test_the_metric_of_the_policy_is_one_that_the_agent_sends() -> None:
    """The configuration of the CloudWatch agent in docs/, and the proxy's own metric."""
    folder = ROOT / "docs" / "cloudwatch"
    agent = json.loads((folder / "agent.json").read_text())
    sent = agent["logs"]["metrics_collected"]["prometheus"]["emf_processor"]
    assert sent["metric_namespace"] == groups.METRIC["Namespace"]
    (declared,) = sent["metric_declaration"]
    assert declared["metric_selectors"] == [f"^{groups.METRIC['MetricName']}$"]
    assert declared["dimensions"] == [["Environment"]]
    (job,) = yaml.safe_load((folder / "prometheus.yml").read_text())["scrape_configs"]
    assert job["static_configs"][0]["labels"].keys() >= {"Environment"}
    gauges = (ROOT / "proxy_app/src/inference_proxy/admin/readings.py").read_text()
    assert f'watch("{groups.METRIC["MetricName"].removeprefix("inference_proxy_")}"' in gauges
