"""The screen of playbooks/status.yml, and what it says needs attention."""

from __future__ import annotations

import calendar
import json
import time
from typing import Any

import pytest
from fleet_status import fleet_status

NOW_S = 1_795_730_400.0  # 2026-11-26T22:00:00Z
DAY_S = 86_400
ACTIVE = {"state": "active", "sub_state": "running", "restarts": 0, "status": "", "active_s": 7200.0}
SYSTEM = {
    "up_s": 200_000.0,
    "load_1min": 0.5,
    "cores": 8,
    "memory_used_share": 0.25,
    "clock_synchronized": True,
    "failed_units": [],
    "reboot_required": False,
    "disks": [{"path": "/", "free_gb": 80.0, "used_share": 0.2}],
}


def report(**parts: Any) -> dict[str, Any]:
    empty = {"at_s": NOW_S, "system": SYSTEM, "gpus": None, "engines": [], "workers": [], "web": None, "drained": []}
    return empty | parts


def engine(**changed: Any) -> dict[str, Any]:
    whole = {
        "name": "qwen",
        "url": "http://10.0.0.5:8000",
        "model": "qwen3-8b",
        "release": "r1",
        "environment": "0.33.0-abc",
    }
    load = {"running": 3.0, "waiting": 1.0, "kv_cache_share": 0.5}
    return {**ACTIVE, **whole, "runs_current_release": True, "last_start_s": 84, "answers": True, **load, **changed}


def worker(state: str = "serving", ready: dict[str, Any] | None = None, **changed: Any) -> dict[str, Any]:
    sees = [{"id": "engine1:qwen", "state": state, "in_flight": 3}]
    view = {"status": "ready", "in_flight": 4, "engines": sees, **(ready or {})}
    return {**ACTIVE, "port": 9000, "release": "1.0-a", "runs_current_release": True, "ready": view, **changed}


def web(days: float = 60, *, down: bool = False, **changed: Any) -> dict[str, Any]:
    certificate = {"path": "/c.pem", "names": ["llm.example.com"], "issuer": "CA", "ends_at_s": NOW_S + days * DAY_S}
    return {**ACTIVE, "upstream": [{"id": "api1:9000", "down": down}], "certificates": [certificate], **changed}


def fleet(**changed: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The results of a fleet with one host of each tier, as Ansible registers them."""
    healthy = {"engine1": report(engines=[engine()]), "api1": report(workers=[worker()]), "web1": report(web=web())}
    return {host: {"rc": 0, "stdout": json.dumps(one)} for host, one in {**healthy, **changed}.items()}


def attention(results: dict[str, dict[str, Any]], **wanted: list[str]) -> list[str]:
    found: list[str] = fleet_status(results, wanted, NOW_S)["attention"]
    return found


def test_a_host_that_will_end() -> None:
    notice = {"kind": "spot", "reason": "spot interruption (terminate)", "since_s": NOW_S, "ends_s": NOW_S + 120}
    results = fleet(engine1=report(engines=[engine()], notice=notice), api1=report(workers=[worker(state="draining")]))
    assert attention(results) == [
        "engine1 will end, at 2026-11-26T22:02:00Z at the latest: spot interruption (terminate); since 2026-11-26T22:00:00Z. "
        "Other engines get the requests for its models, where there are any"
    ]


@pytest.mark.parametrize("notice", [{"a": 1}, {"reason": 7, "since_s": "x", "ends_s": "y"}, {"since_s": 1e300}])
def test_a_notice_that_makes_no_sense_is_shown_nevertheless(notice: dict[str, Any]) -> None:
    (line,) = attention(fleet(engine1=report(engines=[engine()], notice=notice)))
    assert "engine1 will end" in line
    assert "since an unknown time" in line


def test_a_healthy_fleet_on_one_screen() -> None:
    lines = fleet_status(fleet(), {"engine1": ["qwen"]}, NOW_S)["lines"]
    assert lines == [
        "engines",
        "  engine        state   proxies see  model     vLLM        requests       cache  up",
        "  engine1:qwen  active  serving      qwen3-8b  0.33.0-abc  3 run, 1 wait  50 %   2 h 0 min",
        "",
        "proxy workers",
        "  worker     state  nginx    release  requests  engines  up",
        "  api1:9000  ready  serving  1.0-a    4         1 of 1   2 h 0 min",
        "",
        "web hosts",
        "  host  state   proxy workers  certificate                    up",
        "  web1  active  1 of 1         llm.example.com, 60 days left  2 h 0 min",
        "",
        "hosts",
        "  host     load      memory  fullest disk  GPUs  up",
        "  api1     0.5 of 8  25 %    / 20 %        -     2 d 7 h",
        "  engine1  0.5 of 8  25 %    / 20 %        -     2 d 7 h",
        "  web1     0.5 of 8  25 %    / 20 %        -     2 d 7 h",
        "",
        "nothing needs attention",
    ]


CASES: dict[str, tuple[dict[str, Any], str]] = {
    "an engine in its crash pause": (
        {
            "engine1": report(
                engines=[engine(state="activating", sub_state="start-pre", status="crash 3: next start in 40 s")]
            )
        },
        "engine engine1:qwen is activating (start-pre): crash 3: next start in 40 s; its log is in `journalctl -u vllm@qwen` on engine1",
    ),
    "an engine that does not answer": (
        {"engine1": report(engines=[engine(answers=False, running=None)])},
        "engine engine1:qwen runs and does not answer: it is loading its model, or it hangs; see `journalctl -u vllm@qwen` on engine1",
    ),
    "an engine of an interrupted roll": (
        {"engine1": report(engines=[engine(runs_current_release=False)])},
        "engine engine1:qwen does not run the host's current release: run playbooks/vllm.yml",
    ),
    "an engine that is not there": (
        {"engine1": report()},
        "engine engine1:qwen is in vllm_engines and not on the host: run playbooks/vllm.yml",
    ),
    "an ejected engine": (
        {"api1": report(workers=[worker(state="ejected")])},
        "proxy workers see engine engine1:qwen as ejected: `reason` in /admin/engines says why",
    ),
    "a worker that failed": (
        {"api1": report(workers=[worker(state="serving", ready=None) | {"state": "failed", "ready": None}])},
        "worker api1:9000 is failed; its log is in `journalctl -u proxy@9000` on api1",
    ),
    "a worker with a fault": (
        {"api1": report(workers=[worker(ready={"fault": "KeyError"})])},
        'worker api1:9000 has a fault: KeyError (docs/operations.md, "A worker with a fault")',
    ),
    "a worker that refuses its configuration": (
        {"api1": report(workers=[worker(ready={"config_error": "limits: unknown key"})])},
        "worker api1:9000 refuses its configuration and goes on with the last good one: limits: unknown key",
    ),
    "nginx that was stopped": (
        {"web1": report(web=web(state="inactive", sub_state="dead"))},
        "nginx on web1 is inactive; see `journalctl -u nginx` and /var/log/nginx/error.log there",
    ),
    "no worker in rotation": (
        {"web1": report(web=web(down=True))},
        "nginx on web1 has no proxy worker in rotation: every request gets 502",
    ),
    "a certificate at its end": (
        {"web1": report(web=web(2.5))},
        "the certificate of llm.example.com on web1 expires in 2.5 days: run playbooks/nginx.yml",
    ),
    "an expired certificate": (
        {"web1": report(web=web(-1))},
        "the certificate of llm.example.com on web1 has expired: run playbooks/nginx.yml",
    ),
    "a full disk": (
        {
            "api1": report(
                workers=[worker()],
                system=SYSTEM | {"disks": [{"path": "/var/log", "free_gb": 0.4, "used_share": 0.98}]},
            )
        },
        "api1: /var/log is 98 % full, 0.4 GB are left",
    ),
    "a clock that is off": (
        {"api1": report(workers=[worker()], at_s=NOW_S - 90)},
        "api1: its clock is -90 s off the controller's; certificates and log times depend on it",
    ),
    "a failed unit of the system": (
        {
            "api1": report(
                workers=[worker()], system=SYSTEM | {"failed_units": ["certbot.service", "proxy@9000.service"]}
            )
        },
        "api1: failed units: certbot.service",
    ),
    "a drained engine": (
        {
            "api1": report(
                workers=[worker(state="drained")],
                drained=[
                    {
                        "tier": "proxy",
                        "instance": "engine1:qwen",
                        "text": "new disk; by alice@ops1; since 2026-11-26T10:00:00Z",
                    }
                ],
            )
        },
        "engine1:qwen is drained on api1 for 12 h 0 min: new disk; by alice@ops1",
    ),
    "two releases": (
        {"api2": report(workers=[worker(release="1.1-b")])},
        "the proxy's release differs between hosts: 1.0-a on api1; 1.1-b on api2; playbooks/proxy.yml makes them alike",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_one_sentence_for_what_is_wrong(name: str) -> None:
    changed, sentence = CASES[name]
    assert attention(fleet(**changed), engine1=["qwen"]) == [sentence]


def test_a_host_that_gives_no_report() -> None:
    results = fleet() | {"web1": {"unreachable": True, "msg": "Connection timed out"}}
    assert attention(results) == ["web1 gives no report: Connection timed out"]
    lines = fleet_status(results, {}, NOW_S)["lines"]
    assert any(line.split() == ["web1", "no", "answer", "-", "-", "-", "-"] for line in lines)


def test_a_host_whose_report_failed() -> None:
    results = fleet() | {"api1": {"rc": 1, "stderr": "Traceback\nOSError: broken", "stdout": ""}}
    assert attention(results) == ["api1 gives no report: OSError: broken"]


def test_an_engine_that_is_drained_on_several_hosts_is_one_line() -> None:
    text = "new disk; by alice@ops1 (drain); a start takes 84 s; since 2026-11-26T10:00:0{}Z"
    markers = [[{"tier": "proxy", "instance": "engine1:qwen", "text": text.format(second)}] for second in (0, 7)]
    fleet_of_two = fleet(
        api1=report(workers=[worker(state="drained")], drained=markers[0]),
        api2=report(workers=[worker(state="drained")], drained=markers[1]),
    )
    assert attention(fleet_of_two) == [
        "engine1:qwen is drained on api1, api2 for 12 h 0 min: new disk; by alice@ops1 (drain)"
    ]


@pytest.mark.parametrize("text", ["", "by hand", "disk; by alice; since yesterday"])
def test_a_marker_in_another_form_is_shown_as_it_is(text: str) -> None:
    marker = {"tier": "proxy", "instance": "engine1:qwen", "text": text}
    said = attention(fleet(api1=report(workers=[worker(state="drained")], drained=[marker])))
    assert said == [f"engine1:qwen is drained on api1: {text or 'its marker is empty'}"]


def test_the_absence_of_a_second_engine_is_normal_and_its_presence_is_told() -> None:
    sees = [{"id": "engine1:qwen", "state": "serving"}, {"id": "engine1:qwen.beside", "state": "absent"}]
    quiet = fleet(api1=report(workers=[worker(ready={"engines": sees})]))
    assert attention(quiet, engine1=["qwen"]) == []
    assert "1 of 1" in "\n".join(fleet_status(quiet, {}, NOW_S)["lines"])
    sees[1]["state"] = "serving"
    left = fleet(
        engine1=report(engines=[engine(), engine(name="qwen.beside")]),
        api1=report(workers=[worker(ready={"engines": sees})]),
    )
    assert attention(left, engine1=["qwen"]) == [
        "engine engine1:qwen.beside serves while qwen is replaced: if no roll runs, one was interrupted, so run playbooks/vllm.yml"
    ]


def test_who_changes_the_stack_is_told_once() -> None:
    lock = {"id": "1", "who": "alice@ops1", "runs": "site.yml", "since": "2026-11-25T20:50:30Z"}
    reports = {"a": report(lock=lock), "b": report(lock=lock), "c": report(lock=None)}
    results = {host: {"rc": 0, "stdout": json.dumps(one)} for host, one in reports.items()}
    began_s = calendar.timegm(time.strptime(lock["since"], "%Y-%m-%dT%H:%M:%SZ"))
    lines = fleet_status(results, now_s=began_s + 720)["lines"]
    said = "being changed: alice@ops1 runs site.yml, since 2026-11-25T20:50:30Z (12 min)"
    assert [line for line in lines if "alice" in line] == [said]
