"""Clients of the service under test, and commands on its hosts.

The environment comes from lab/scenario: LAB_CLIENT is where the lab keeps keys and trust, LAB_PROJECT the checkout.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
from anthropic import Anthropic
from ec2lab.model import IMDS_PORT
from openai import OpenAI

CLIENT = Path(os.environ["LAB_CLIENT"])
PROJECT = Path(os.environ["LAB_PROJECT"])
MODEL = "tiny-qwen3"
SETTINGS = dict(line.split("=", 1) for line in (CLIENT / "client.env").read_text().splitlines())
# Of the machine, whose own authorities are other ones.
MACHINE_ENVIRONMENT = dict(os.environ)
# Read when the first TLS context is made.
os.environ["SSL_CERT_FILE"] = SETTINGS["SSL_CERT_FILE"]
TIMEOUT_S = 120
REBOOT_S = 300


def openai_client(**options: object) -> OpenAI:
    """An OpenAI client of the stack, without retries, so that no failure is hidden."""
    defaults = {
        "base_url": SETTINGS["OPENAI_BASE_URL"],
        "api_key": SETTINGS["OPENAI_API_KEY"],
        "max_retries": 0,
        "timeout": TIMEOUT_S,
    }
    return OpenAI(**{**defaults, **options})  # type: ignore[arg-type]


def anthropic_client() -> Anthropic:
    """An Anthropic client of the stack, without retries. It adds the version to the path itself."""
    return Anthropic(
        base_url=SETTINGS["OPENAI_BASE_URL"].removesuffix("/v1"),
        api_key=SETTINGS["OPENAI_API_KEY"],
        max_retries=0,
        timeout=TIMEOUT_S,
    )


def http_client() -> httpx2.Client:
    """An HTTPS client for any path of the stack."""
    root = SETTINGS["OPENAI_BASE_URL"].removesuffix("/v1")
    return httpx2.Client(
        base_url=root, headers={"Authorization": f"Bearer {SETTINGS['OPENAI_API_KEY']}"}, timeout=TIMEOUT_S
    )


def ssh(host: str, command: str) -> str:
    """Run `command` as root on a lab host and return its output."""
    done = subprocess.run(
        ["ssh", "-F", str(CLIENT / "ssh_config"), host, f"sudo sh -c {_quoted(command)}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, f"{host}: `{command}` ended with {done.returncode}:\n{done.stdout}{done.stderr}"
    return done.stdout


def reboot(host: str) -> None:
    """Reboot a lab host, and return when it can be reached again."""
    command = ["ssh", "-F", str(CLIENT / "ssh_config"), "-o", "ConnectTimeout=2", host]

    def boot_id() -> str:
        asked = [*command, "cat /proc/sys/kernel/random/boot_id"]
        return subprocess.run(asked, capture_output=True, text=True, timeout=60, check=False).stdout.strip()

    before = boot_id()
    assert before
    # The reboot ends the connection, so the exit status means nothing.
    subprocess.run([*command, "sudo systemctl reboot"], check=False, timeout=60)
    deadline = time.monotonic() + REBOOT_S
    while boot_id() in ("", before):
        assert time.monotonic() < deadline, f"{host} cannot be reached {REBOOT_S} s after a reboot"
        time.sleep(1)


@functools.cache
def engine_url(host: str) -> str:
    """Address and port of the host's first engine."""
    return ssh(
        host, "sed -n 's/^host: *//p; s/^port: *//p' /opt/vllm/current/engines/tiny.yml | tr -d '\"' | paste -sd: -"
    ).strip()


def metadata(host: str, path: str, value: object = None) -> None:
    """Set what a host reads in its instance metadata; None removes it."""
    address = ssh(host, "hostname -I").split()[0]
    _imds("DELETE" if value is None else "PUT", f"/lab/{address}/{path}", value)


def scaling_calls() -> list[dict[str, str]]:
    """The calls to Auto Scaling that hosts have made so far."""
    calls: list[dict[str, str]] = _imds("GET", "/lab/calls").json()
    return calls


def _imds(method: str, path: str, value: object = None) -> httpx2.Response:
    url = f"http://{urlsplit(os.environ['AWS_ENDPOINT_URL']).hostname}:{IMDS_PORT}{path}"
    body = value if isinstance(value, str) else json.dumps(value)
    with httpx2.Client(trust_env=False) as client:
        return client.request(method, url, content="" if value is None else body).raise_for_status()


def playbook(name: str, *options: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run one of the operator's playbooks against the lab. A failure shows its output."""
    done = subprocess.run(
        **_playbook(name, *options),  # type: ignore[call-overload]
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert not check or done.returncode == 0, (
        f"playbooks/{name}.yml ended with {done.returncode}:\n{done.stdout[-8000:]}{done.stderr[-2000:]}"
    )
    return done


@contextlib.contextmanager
def interrupted_playbook(name: str, *options: str) -> Iterator[Callable[[], str]]:
    """Run a playbook beside the `with` block, and kill it with all its processes at the end of the block.

    The block gets a function that returns its output so far, and fails if it has ended.
    """
    with tempfile.TemporaryFile("w+") as output:
        running = subprocess.Popen(  # type: ignore[call-overload]
            **_playbook(name, *options), stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )

        def said() -> str:
            output.seek(0)
            text = output.read()
            assert running.poll() is None, f"playbooks/{name}.yml has ended:\n{text[-8000:]}"
            return text

        try:
            yield said
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(running.pid, signal.SIGKILL)
            running.wait()


def _playbook(name: str, *options: str) -> dict[str, object]:
    """Arguments of subprocess for a run of one of the operator's playbooks."""
    inventories = ["-i", "inventory/aws_ec2.yml", "-i", str(CLIENT / "inventory")]
    return {
        "args": ["ansible-playbook", *inventories, f"playbooks/{name}.yml", *options],
        "cwd": PROJECT,
        "env": {
            **os.environ,
            "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"),
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_FORCE_COLOR": "0",
        },
    }


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"
