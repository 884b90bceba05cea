"""One Debian 12 host with all three tiers: the same playbook, variables and service."""

from __future__ import annotations

import subprocess
import time

import openai
from helpers.service import ServiceTests
from helpers.stack import CLIENT, MODEL, openai_client, ssh

testinfra_hosts = ["ssh://all1"]


class TestService(ServiceTests):
    engine_host = "all1"


def boot_id() -> str | None:
    """The id of the host's current boot, or None while it cannot be reached."""
    command = [
        "ssh",
        "-F",
        str(CLIENT / "ssh_config"),
        "-o",
        "ConnectTimeout=2",
        "all1",
        "cat /proc/sys/kernel/random/boot_id",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def generates() -> bool:
    try:
        answer = openai_client().completions.create(model=MODEL, prompt="Hello", max_tokens=1)
    except (openai.APIConnectionError, openai.InternalServerError):
        return False  # the tiers start one after the other
    return bool(answer.choices)


def test_everything_serves_again_after_a_reboot() -> None:
    before = boot_id()
    assert before is not None
    # The reboot ends the connection, so the exit status means nothing.
    subprocess.run(["ssh", "-F", str(CLIENT / "ssh_config"), "all1", "sudo systemctl reboot"], check=False, timeout=60)
    deadline = time.monotonic() + 300
    while boot_id() in (None, before) or not generates():
        assert time.monotonic() < deadline, "it does not serve 300 s after a reboot"
        time.sleep(1)
    assert ssh("all1", "systemctl list-units --failed --no-legend --plain").strip() == ""
