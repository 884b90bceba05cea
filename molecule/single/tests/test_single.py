"""One Debian 12 host with all three tiers: the same playbook, variables and service."""

from __future__ import annotations

import time

import openai
from helpers.service import ServiceTests
from helpers.stack import MODEL, openai_client, reboot, ssh

testinfra_hosts = ["ssh://all1"]


class TestService(ServiceTests):
    engine_host = "all1"


def generates() -> bool:
    try:
        with openai_client() as client:
            answer = client.completions.create(model=MODEL, prompt="Hello", max_tokens=1)
    except (openai.APIConnectionError, openai.InternalServerError):
        return False  # the tiers start one after the other
    return bool(answer.choices)


def test_everything_serves_again_after_a_reboot() -> None:
    reboot("all1")
    deadline = time.monotonic() + 300
    while not generates():
        assert time.monotonic() < deadline, "it does not serve 300 s after a reboot"
        time.sleep(1)
    assert ssh("all1", "systemctl list-units --failed --no-legend --plain").strip() == ""
