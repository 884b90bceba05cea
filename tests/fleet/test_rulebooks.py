"""The rulebooks for Event-Driven Ansible, run by ansible-rulebook: an alert in Alertmanager's form starts the right job, in a stand-in of AWX."""

from __future__ import annotations

import json
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
RULEBOOK = ROOT / "extensions/eda/rulebooks/alerts.yml"
TOKEN = "s3cret-of-alertmanager"
TEMPLATES = ["diagnose", "drain", "roll back", "scale"]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ansible-rulebook, in an environment of its own."""
    venv = tmp_path_factory.mktemp("rulebook") / "venv"
    uv = Path(sys.executable).parent / "uv"
    for options in (
        ["venv", "--quiet", f"--python={sys.executable}", venv],
        [
            *("pip", "install", "--quiet", f"--python={venv}/bin/python", "--require-hashes"),
            *("--requirement", ROOT / "requirements/rulebook.txt"),
        ],
    ):
        done = subprocess.run([uv, *options], capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, done.stderr
    return venv


class Controller:
    """As much of AWX's API as ansible-rulebook uses."""

    def __init__(self) -> None:
        self.launched: queue.Queue[tuple[str, dict[str, Any]]] = queue.Queue()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self, body: dict[str, Any], status: int = 200) -> None:
                text = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def do_GET(self) -> None:
                url = urllib.parse.urlsplit(self.path)
                wanted = urllib.parse.parse_qs(url.query).get("name", [""])[0]
                if "templates" in url.path:
                    found = [
                        {
                            "type": "job_template",
                            "id": number,
                            "name": f"EC2 inference: {name}",
                            "launch": f"/api/v2/job_templates/{number}/launch/",
                            "summary_fields": {"organization": {"name": "Default"}},
                            "related": {"launch": f"/api/v2/job_templates/{number}/launch/"},
                            "ask_limit_on_launch": True,
                            "ask_inventory_on_launch": False,
                            "ask_variables_on_launch": False,
                            "ask_labels_on_launch": False,
                            "survey_enabled": True,
                        }
                        for number, name in enumerate(TEMPLATES)
                        if wanted == f"EC2 inference: {name}"
                    ]
                    self.answer({"count": len(found), "results": found})
                else:
                    self.answer({"status": "successful", "id": 1, "version": "24.6.1", "artifacts": {}, "results": []})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"{}")
                number = int(self.path.split("/")[4])
                outer.launched.put((TEMPLATES[number], body))
                self.answer({"id": 1, "url": "/api/v2/jobs/1/", "type": "job"}, 201)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)


def post(port: int, body: dict[str, Any], token: str = TOKEN) -> int:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/alerts",
        json.dumps(body).encode(),
        {"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def alert(status: str = "firing", **labels: str) -> dict[str, Any]:
    """As Alertmanager posts it, a group of one alert."""
    labels = {"alertname": "EngineDown", **labels}
    return {
        "version": "4",
        "groupKey": f"{{}}:{labels}",
        "status": status,
        "receiver": "stack",
        "commonLabels": labels,
        "alerts": [{"status": status, "labels": labels, "annotations": {}}],
    }


@pytest.fixture(scope="module")
def rulebook(environment: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Controller]]:
    """ansible-rulebook with its port, and the controller that it uses."""
    if shutil.which("java") is None:
        pytest.skip("ansible-rulebook needs Java 17 to run rules")
    directory = tmp_path_factory.mktemp("run")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    variables = {
        "alerts_port": port,
        "alerts_token": TOKEN,
        "automation_name": "EC2 inference",
        "automation_organization": "Default",
    }
    (directory / "vars.yml").write_text(yaml.safe_dump(variables))
    (directory / "inventory.yml").write_text("all: {hosts: {localhost: {ansible_connection: local}}}\n")
    controller = Controller()
    controller.thread.start()
    with (directory / "log").open("w") as log:
        process = subprocess.Popen(
            [
                environment / "bin/ansible-rulebook",
                *("--rulebook", RULEBOOK, "--vars", "vars.yml", "--inventory", "inventory.yml"),
                *("--controller-url", controller.url, "--controller-token", "x"),
            ],
            cwd=directory,
            # It looks for ansible-galaxy there.
            env={**os.environ, "PATH": f"{environment / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        until = time.monotonic() + 180
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert process.poll() is None, (directory / "log").read_text()
                assert time.monotonic() < until, (directory / "log").read_text()
                time.sleep(0.2)
        yield port, controller
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=60)
        controller.server.shutdown()
        controller.thread.join()
        controller.server.server_close()


def test_the_schema_of_ansible_rulebook_takes_it(environment: Path) -> None:
    program = "import sys, yaml; from ansible_rulebook.validators import Validate; Validate.rulebook(yaml.safe_load(sys.stdin))"
    with RULEBOOK.open() as text:
        done = subprocess.run(
            [environment / "bin/python", "-c", program],
            stdin=text,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == 0, done.stderr


def test_its_jobs_ask_only_what_their_templates_take() -> None:
    """A variable that is in no survey would be ignored."""
    loader = yaml.SafeLoader
    loader.add_constructor("!unsafe", lambda loader, node: loader.construct_scalar(node))
    jobs = yaml.load((ROOT / "playbooks/vars/automation.yml").read_text(), loader)["__automation_jobs"]
    templates = {job["name"].split(": ")[1]: job for job in jobs}
    (rules,) = yaml.safe_load(RULEBOOK.read_text())
    for rule in rules["rules"]:
        job = rule["action"]["run_job_template"]
        template = templates[job["name"].split(": ")[1]]
        questions = {question["variable"]: question for question in template["survey_spec"]["spec"]}
        told = job["job_args"]["extra_vars"]
        assert set(told) <= set(questions)
        assert [
            name
            for name, question in questions.items()
            if question["required"] and not question.get("default") and name not in told
        ] == []
        assert "limit" not in job["job_args"] or template["ask_limit_on_launch"]


@pytest.mark.parametrize(
    ("labels", "job", "limit", "variables"),
    [
        ({"stack_action": "diagnose"}, "diagnose", "all", {"diagnose_hours": 1}),
        (
            {"stack_action": "drain", "stack_host": "engine1"},
            "drain",
            "engine1",
            {"drain_reason": "alert EngineDown"},
        ),
        ({"stack_action": "rollback", "stack_tier": "engine"}, "roll back", "all", {"tier": "engine"}),
        (
            {"stack_action": "wake", "stack_pool": "night"},
            "scale",
            "all",
            {"pool": "night", "count": 1, "scale_in": "false"},
        ),
    ],
)
def test_an_alert_starts_its_job_once(
    rulebook: tuple[int, Controller], labels: dict[str, str], job: str, limit: str, variables: dict[str, Any]
) -> None:
    port, controller = rulebook
    # None of these is to start a job: over, without an action, without what the action needs, and not from Alertmanager.
    incomplete = (alert(stack_action=action) for action in ("drain", "rollback", "wake"))
    for body in (alert("resolved", **labels), alert(), *incomplete):
        assert post(port, body) == 200
    assert post(port, alert(**labels), token="wrong") in (401, 403)
    assert post(port, alert(**labels)) == 200
    started, body = controller.launched.get(timeout=60)
    assert started == job
    assert body.get("limit") == limit
    told = body["extra_vars"]
    told = json.loads(told) if isinstance(told, str) else told
    assert variables.items() <= told.items()
    # The repetition of the same alert starts none; the next test would find its job.
    assert post(port, alert(**labels)) == 200
    assert controller.launched.empty()
