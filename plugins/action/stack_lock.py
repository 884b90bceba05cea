"""Take, give back or show one host's copy of the stack's lock, for this run of ansible-playbook."""

from __future__ import annotations

import getpass
import json
import os
import shlex
import time
from calendar import timegm
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible import context
from ansible.plugins.action import ActionBase

PROGRAM = Path(__file__).resolve().parents[2] / "playbooks" / "files" / "lock_file.py"
TIME = "%Y-%m-%dT%H:%M:%SZ"
Lock = Mapping[str, Any]


def holder(variables: Mapping[str, Any], command_line: Mapping[str, Any], pid: int) -> dict[str, Any]:
    """The lock of the run of ansible-playbook that has this process: the same whenever the run asks."""
    machine, started = _machine(), _start_of(pid)
    job = variables.get("awx_job_id") or variables.get("tower_job_id")
    playbook = " ".join(map(str, command_line.get("args") or ()))
    limit = command_line.get("subset")
    return {
        "id": f"{os.uname().nodename}:{machine or ''}:{pid}:{started or ''}",
        "who": f"AWX job {job}" if job else f"{os.environ.get('SUDO_USER') or getpass.getuser()}@{os.uname().nodename}",
        "runs": f"{playbook} --limit {limit}" if limit else playbook,
        "since": time.strftime(TIME, time.gmtime()),
        # Empty where a process cannot be told from an earlier one with its number; nobody can then prove that the run has ended.
        "machine": machine or "",
        "pid": pid,
        "started": started or "",
    }


def _machine() -> str:
    """What tells this machine, since its start, and this container from all others; "" if unknown, as on macOS."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _start_of(pid: int) -> str:
    """When a process began, in the kernel's ticks; "" if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def fate(lock: Lock) -> str:
    """Whether the run that holds a lock is `alive` or `dead`, or `unknown`: other machines' processes cannot be seen."""
    if not lock.get("machine") or not lock.get("started") or lock["machine"] != _machine():
        return "unknown"
    return "alive" if _start_of(int(lock["pid"])) == lock["started"] else "dead"


def why_replaced(lock: Lock, told: str) -> str:
    """Why this run may take the place of another one; "" if it may not."""
    state = fate(lock)
    if state == "dead":
        return "its process on this machine has ended"
    return "stack_break_lock says so" if told and told == lock.get("who") and state != "alive" else ""


def described(lock: Lock) -> str:
    """Who holds a lock, since when and for what, in a few words."""
    try:
        minutes = max(0, int(time.time() - timegm(time.strptime(lock["since"], TIME)))) // 60
    except (KeyError, TypeError, ValueError):
        return f"a run that cannot be told (the lock's file has {str(lock.get('text', dict(lock)))[:80]!r})"
    age = f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
    return f"{lock.get('who')} runs {lock.get('runs')}, since {lock['since']} ({age})"


def refusal(lock: Lock, told: str, host: str) -> str:
    """What a person has to know of a lock that another run holds."""
    lines = [
        f"Another run changes this stack, so this one changed nothing: {described(lock)}, says the lock on {host}."
    ]
    who = str(lock.get("who", "unknown"))
    if told and told != who:
        lines.append(f"stack_break_lock is {told}, who does not hold it.")
    if fate(lock) == "alive":
        lines.append(f"It still runs: wait until it has ended, or end its process {lock['pid']} on this machine first.")
    else:
        value = f"stack_break_lock={who}" if " " not in who else f"'stack_break_lock=\"{who}\"'"
        lines.append(
            "Wait until it has ended; playbooks/status.yml shows what it does. Whether it still runs cannot be seen from here. If it does not (it "
            f"was killed or lost its connections), run this again with -e {value}: it goes on where that run stopped."
        )
    return "\n".join(lines)


class ActionModule(ActionBase):  # type: ignore[misc]  # ansible-core ships no types
    """Runs playbooks/files/lock_file.py on the host."""

    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the `lock` that is there, `refusal` if it is another run's, and `replaced`, what this run took the place of.

        `state` is `held`, `free` (only of this run's own lock) or `shown`; `replace` names whose lock may be broken.
        """
        super().run(tmp, task_vars)
        variables, state = task_vars or {}, self._task.args["state"]
        told = str(self._task.args.get("replace") or "")
        # Tasks run in children of ansible-playbook's process.
        ours = holder(variables, context.CLIARGS, os.getppid())
        command = {"held": ["take", json.dumps(ours)], "free": ["release", ours["id"]], "shown": ["show"]}[state]
        answer = self._on_host(command)
        if answer.get("failed"):
            return answer
        found = answer.get("lock")
        if state == "held" and found and found["id"] != ours["id"] and (why := why_replaced(found, told)):
            answer = self._on_host([*command, "--instead-of", found["id"]])
            if answer.get("failed"):
                return answer
            if answer.get("replaced"):
                answer["broken"] = f"{described(answer['replaced'])}: this run takes its place, because {why}"
            found = answer.get("lock")
        theirs = found if found and found["id"] != ours["id"] and state != "free" else None
        place = str(self._task.delegate_to or variables.get("inventory_hostname"))
        return {
            "changed": False,
            **answer,
            "refusal": refusal(theirs, told, place) if theirs else "",
        }

    def _on_host(self, arguments: list[str]) -> dict[str, Any]:
        """What the program prints, or the failed result of running it."""
        # Not as a module: with what it brings along, a module takes the host several times as long as this program.
        done = self._low_level_execute_command(shlex.join(["python3", "-c", PROGRAM.read_text(), *arguments]))
        # A shell's profile may print lines before.
        lines = [line for line in done["stdout_lines"] if line.startswith("{")]
        if done["rc"] == 0 and lines:
            answer: dict[str, Any] = json.loads(lines[-1])
            return answer
        words = " ".join((done["stderr"] or done["stdout"]).split()[-40:]) or "no answer"
        return {"failed": True, "rc": done["rc"], "msg": f"the stack's lock could not be read or written: {words}"}
