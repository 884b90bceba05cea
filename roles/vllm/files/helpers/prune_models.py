#!/usr/bin/env python3
"""Remove downloaded models that neither a running engine nor the current or the previous release uses.

    prune_models.py [--dry-run] [--keep MODEL]... --home /opt/vllm --run /run MODELS_DIR

Only what fetch_model.py made is removed: directories named ``<model>@<content>``, and what an interrupted download of one
left. Everything else in the directory is the operator's. A model is in use if a file ``engines/*.yml`` of a release
names its directory; the releases are ``current``, ``previous``, and those with which an engine was started that still
runs. What ``--keep`` names stays, too. Prints each directory that it removes, with its size, on a line of its own.
Standard library only (Python 3.9 or newer).
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

# A commit of a hub, or the digest of a listing of S3.
FETCHED = re.compile(r".+@([0-9a-f]{40}|[0-9a-f]{12})")


def releases_in_use(home: Path, run: Path) -> set[Path]:
    """Releases whose models must stay."""
    linked = {(home / name).resolve() for name in ("current", "previous") if (home / name).is_symlink()}
    running = {path.read_text() for path in run.glob("vllm-*/fingerprint")}
    started_with = {
        path.parent.parent.resolve()
        for path in home.glob("releases/*/engines/*.fingerprint")
        if path.read_text() in running
    }
    return linked | started_with


def unused(models_dir: Path, releases: set[Path], keep: list[Path]) -> list[Path]:
    """Directories of models that need not be kept, and whose path is in no option of these releases' engines."""
    files = [path for release in releases for path in release.glob("engines/*.yml")]
    options = "\n".join([*(path.read_text() for path in files), *map(str, keep)])
    return [
        path
        for path in sorted(models_dir.iterdir() if models_dir.is_dir() else [])
        if path.is_dir()
        and FETCHED.fullmatch(path.name.removesuffix(".part"))
        and not _named(models_dir / path.name.removesuffix(".part"), options)
    ]


def _named(model: Path, options: str) -> bool:
    """Whether the options contain exactly this path, and not just one that begins or ends with it."""
    return re.search(rf"(?<![^\s'\"=]){re.escape(str(model))}(?![\w.@-])", options) is not None


@contextlib.contextmanager
def idle(model: Path) -> Iterator[bool]:
    """Hold the lock of the model's downloads, so that none begins. Yields False if one is running."""
    lock = model.with_name(f".{model.name.removesuffix('.part')}.lock")
    if not lock.exists():
        yield True
        return
    with lock.open() as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            may_go = True
        except BlockingIOError:
            may_go = False
        yield may_go


def size_gb(directory: Path) -> float:
    return sum(path.lstat().st_size for path in directory.rglob("*")) / 1e9


def main(arguments: list[str] | None = None) -> int:
    """Remove unused models, or with --dry-run only print them."""
    parser = argparse.ArgumentParser(description="Remove models that no release in use names.")
    parser.add_argument("--home", type=Path, required=True, help="directory of the releases")
    parser.add_argument("--run", type=Path, required=True, help="where engines record what they were started with")
    parser.add_argument("--keep", type=Path, action="append", default=[], help="a model that stays in any case")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("models_dir", type=Path)
    options = parser.parse_args(arguments)
    for path in unused(options.models_dir, releases_in_use(options.home, options.run), options.keep):
        with contextlib.nullcontext(True) if options.dry_run else idle(path) as may_go:
            if may_go:
                print(f"{path} ({size_gb(path):.1f} GB)")
                if not options.dry_run:
                    shutil.rmtree(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
