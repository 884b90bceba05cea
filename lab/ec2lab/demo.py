"""`make demo`: run site.yml against the lab, as an operator would, then stream one chat completion through all three tiers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from ec2lab.model import PROJECT, Lab
from ec2lab.report import LabError, Step

NAME = "demo"
TOPOLOGY = PROJECT / "lab" / "demo.yml"
CLIENT_ENV = PROJECT / ".lab" / "client.env"
MODEL = "smollm2-135m-instruct"
QUESTION = "What is the capital of France? One sentence."
ERROR_LINES = 40


def run_site(lab: Lab) -> None:
    """Run site.yml with the dynamic inventory; one line per play, everything in a log."""
    log = lab.client / "site.log"
    argv = [
        str(Path(sys.executable).parent / "ansible-playbook"),
        "-i",
        "inventory/aws_ec2.yml",
        "-i",
        str(lab.client / "inventory"),
        "site.yml",
    ]
    environment = {**os.environ, **lab.environment(), "ANSIBLE_NOCOLOR": "1", "ANSIBLE_FORCE_COLOR": "0"}
    with (
        log.open("w") as output,
        subprocess.Popen(
            argv, cwd=PROJECT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process,
    ):
        assert process.stdout is not None
        recap = _follow(_copied(process.stdout, output))
    if process.returncode != 0:
        tail = "\n".join(_failure(log.read_text().splitlines()))
        raise LabError(f"site.yml ended with status {process.returncode}; all of it is in {log}:\n{tail}")
    changed = sum(int(count) for count in re.findall(r"changed=(\d+)", recap))
    print(f"          site.yml changed {changed} things on {recap.count('ok=')} hosts", file=sys.stderr)


def show(lab: Lab) -> None:
    """Stream one answer over HTTPS, with the certificate verified, and print the commands that do the same."""
    CLIENT_ENV.unlink(missing_ok=True)
    CLIENT_ENV.symlink_to(lab.client / "client.env")
    settings = dict(line.split("=", 1) for line in CLIENT_ENV.read_text().splitlines())
    os.environ.update(settings)
    from openai import OpenAI  # imported after SSL_CERT_FILE is set: its HTTP client reads the variable once

    print(f"\n  {QUESTION}\n  ", end="", flush=True)
    started = time.monotonic()
    stream = OpenAI().chat.completions.create(
        model=MODEL, stream=True, max_tokens=48, temperature=0, messages=[{"role": "user", "content": QUESTION}]
    )
    for chunk in stream:
        if chunk.choices and chunk.choices[0].delta.content:
            print(chunk.choices[0].delta.content.replace("\n", "\n  "), end="", flush=True)
    print("\n", flush=True)
    print(f"{time.monotonic() - started:6.1f} s  a chat completion over HTTPS, streamed", file=sys.stderr, flush=True)
    print(
        f"The stack serves {settings['OPENAI_BASE_URL']} (SmolLM2, a real model of 135 million parameters, on this machine's CPU).\n"
        "Ask it yourself:\n\n"
        "  set -a; . .lab/client.env; set +a\n"
        "  curl -N --cacert $SSL_CERT_FILE -H \"Authorization: Bearer $OPENAI_API_KEY\" -H 'Content-Type: application/json' \\\n"
        f'    -d \'{{"model":"{MODEL}","stream":true,"max_tokens":48,"messages":[{{"role":"user","content":"Who are you?"}}]}}\' \\\n'
        "    $OPENAI_BASE_URL/chat/completions\n\n"
        "Look around: lab/lab ssh demo web1 (api1, engine1). Remove it all: make demo-down"
    )


def _copied(lines: Iterator[str], output: object) -> Iterator[str]:
    for line in lines:
        output.write(line)  # type: ignore[attr-defined]
        output.flush()  # type: ignore[attr-defined]
        yield line


def _follow(lines: Iterator[str]) -> str:
    """Show each play as a step, with the task that runs; return the recap."""
    play, recap = None, ""
    try:
        for line in lines:
            if match := re.match(r"PLAY (?:\[(.*)\]|RECAP)", line):
                if play:
                    play.end()
                play = Step(match[1]) if match[1] else None
                recap = "" if match[1] else "recap\n"
            elif recap:
                recap += line
            elif play and (match := re.match(r"TASK \[(?:\S+ : )?(.*)\]", line)):
                play.detail = match[1]
    finally:
        if play:
            play.end("FAILED")
    return recap


def _failure(lines: list[str]) -> list[str]:
    """The part of the output that says what failed."""
    for number, line in enumerate(lines):
        if line.startswith(("fatal:", "[ERROR]", "ERROR")):
            return lines[number : number + ERROR_LINES]
    return lines[-ERROR_LINES:]
