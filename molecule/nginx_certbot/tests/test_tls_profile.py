"""What an auditor's scanner says of TLS: each web host follows Mozilla's profile."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.stack import CLIENT, PROJECT, SETTINGS

DOMAIN = f"llm.{os.environ['LAB_NAME']}.test"
ADDRESS = dict(re.findall(r"^Host (\S+)\n  HostName (\S+)", (CLIENT / "ssh_config").read_text(), re.MULTILINE))


@pytest.fixture(scope="module")
def sslyze(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scanner, in an environment of its own."""
    venv = tmp_path_factory.mktemp("sslyze") / "venv"
    uv = Path(sys.executable).parent / "uv"
    lock = PROJECT / "requirements/sslyze.txt"
    for options in (
        ["venv", "--quiet", f"--python={sys.executable}", venv],
        ["pip", "install", "--quiet", f"--python={venv}/bin/python", "--require-hashes", "--requirement", lock],
    ):
        done = subprocess.run([uv, *options], capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
    return venv / "bin/sslyze"


@pytest.mark.parametrize("host", ["web1", "web2"])
def test_mozillas_intermediate_profile(sslyze: Path, host: str) -> None:
    options = ["--mozilla_config=intermediate", f"--certinfo_ca_file={SETTINGS['SSL_CERT_FILE']}"]
    # The name is for SNI and the certificate, the address for the connection.
    server = f"{DOMAIN}:443{{{ADDRESS[host]}}}"
    done = subprocess.run([sslyze, *options, server], capture_output=True, text=True, timeout=300, check=False)
    assert f"{DOMAIN}:443: OK - Compliant" in done.stdout, done.stdout + done.stderr
    assert done.returncode == 0, done.stdout + done.stderr
