#!/usr/bin/env python3
"""Remove releases that nothing needs any more, then environments and caches that no release uses.

    prune.py [--dry-run] --keep 2 --caches /var/lib/vllm/cache /opt/vllm

Kept: what ``current`` and ``previous`` point to, and the newest ``--keep`` of the rest. An environment goes when no
release that is left links to it, or when its installation was interrupted; a cache, which is named by an engine's fingerprint, when
no release that is left has such an engine. Prints what it removes, a line each.
Standard library only (Python 3.9 or newer).
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import List, Set


def directories(parent: Path) -> List[Path]:
    """Subdirectories that are not hidden, the newest first."""
    found = (
        [path for path in parent.iterdir() if path.is_dir() and not path.name.startswith(".")]
        if parent.is_dir()
        else []
    )
    return sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)


def linked(home: Path) -> Set[Path]:
    """Releases that must stay, whatever their age."""
    return {(home / name).resolve() for name in ("current", "previous") if (home / name).is_symlink()}


def superfluous(home: Path, caches: Path, keep: int) -> List[Path]:
    """Directories that may go, releases first."""
    needed = linked(home)
    releases = directories(home / "releases")
    others = [release for release in releases if release.resolve() not in needed]
    gone = others[keep:]
    left = [release for release in releases if release not in gone]
    used = {(release / "venv").resolve() for release in left}
    engines = {file.read_text().strip() for release in left for file in release.glob("engines/*.fingerprint")}
    return (
        gone
        + [venv for venv in directories(home / "venvs") if venv.resolve() not in used]
        + [cache for cache in directories(caches) if cache.name not in engines]
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Remove releases, environments and caches that nothing needs any more."
    )
    parser.add_argument("--keep", type=int, required=True)
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--caches", type=Path, required=True, help="directory of the engines' caches")
    parser.add_argument("home", type=Path)
    options = parser.parse_args()
    for path in superfluous(options.home, options.caches, options.keep):
        print(path)
        if not options.dry_run:
            shutil.rmtree(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
