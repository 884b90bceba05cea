"""Prepares a run: two cores, the native programs, and the candidates' environments."""

import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from .candidates import HERE, ROOT, Candidate, Missing

BUILD = ROOT / ".build" / "bench"


def two_cores() -> tuple[int, int]:
    """One core for the candidate, one for engine and load generator. Raises Missing."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise Missing("two cores are needed: one for the candidate, one for what loads it")
    return cores[0], cores[1]


def compile_native(gcc: str, name: str) -> Path:
    """Build a program from `native`."""
    BUILD.mkdir(parents=True, exist_ok=True)
    program = BUILD / name
    source = HERE / "native" / f"{name}.c"
    subprocess.run([gcc, "-O2", "-Wall", "-Wextra", "-Werror", "-o", program, source], check=True)
    return program


def checkout(revision: str) -> Path:
    """A tree with the proxy at a revision of this repository. Raises Missing."""
    shown = subprocess.run(
        ["git", "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if shown.returncode:
        raise Missing(f"there is no revision {revision!r} in this repository")
    tree = BUILD / "trees" / shown.stdout.strip()
    if not tree.exists():
        tree.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=tree.parent) as directory:
            archive = Path(directory) / "tree.tar"
            subprocess.run(["git", "archive", "-o", archive, tree.name, "proxy_app"], cwd=ROOT, check=True)
            unpacked = Path(directory) / "tree"
            with tarfile.open(archive) as tar:
                tar.extractall(unpacked, filter="data")
            unpacked.rename(tree)
    return tree


def install(candidate: Candidate) -> Path:
    """A virtual environment from the candidate's locks, created once. Raises Missing."""
    venv = BUILD / "venvs" / candidate.name
    if candidate.locks:
        venv.parent.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "PYTHON": _python()}
        done = subprocess.run([ROOT / "tools/bootstrap", venv, *candidate.locks], env=environment)
        if done.returncode:
            locks = ", ".join(str(lock.relative_to(ROOT)) for lock in candidate.locks)
            raise Missing(f"{candidate.name} could not be installed from {locks}")
    return venv


def _python() -> str:
    """The distribution's Python, which role proxy uses on hosts as well.

    It is profile-optimized, which a locally compiled one usually is not. The running Python, if the other is
    too old or lacks venv.
    """
    usable = "import sys, ensurepip; raise SystemExit(sys.version_info < (3, 11))"
    distributions = "/usr/bin/python3"
    try:
        subprocess.run([distributions, "-c", usable], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return sys.executable
    return distributions
