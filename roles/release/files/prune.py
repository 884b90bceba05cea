#!/usr/bin/env python3
"""Remove releases that are no longer needed, and the environments and caches that only they used.

    prune.py [--dry-run] --keep 2 --needed /opt/x/releases/2 --environment-link venv [--caches /var/lib/x/cache] /opt/x

Kept: the releases that ``current`` and ``previous`` point to, the one named by ``--needed``, and the newest ``--keep`` of the
others. An environment is removed if no release that stays links to it, which is also true of one whose installation was
interrupted; a cache if no engine's environment (``engines/*.env``) in a release that stays names its directory. Prints each
directory that it removes on a line of its own.
Standard library only (Python 3.9 or newer).
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import List, Optional, Set


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


def superfluous(home: Path, keep: int, needed: Path, environment_link: str, caches: Optional[Path]) -> List[Path]:
    """Directories to remove, releases first."""
    stay = linked(home) | {needed.resolve()}
    releases = directories(home / "releases")
    gone = [release for release in releases if release.resolve() not in stay][keep:]
    left = [release for release in releases if release not in gone]
    used = {(release / environment_link).resolve() for release in left}
    environments = "".join(file.read_text() for release in left for file in release.glob("engines/*.env"))
    return (
        gone
        + [venv for venv in directories(home / "venvs") if venv.resolve() not in used]
        + [cache for cache in (directories(caches) if caches else []) if f'"{cache}"' not in environments]
    )


def main() -> int:
    """Remove what is superfluous, or with --dry-run only name it."""
    parser = argparse.ArgumentParser(description="Remove releases, environments and caches that are no longer needed.")
    parser.add_argument("--keep", type=int, required=True)
    parser.add_argument("--needed", type=Path, required=True, help="a release that stays in any case")
    parser.add_argument("--environment-link", required=True, help="name of the link in a release to its environment")
    parser.add_argument("--caches", type=Path, help="directory of the engines' caches")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("home", type=Path)
    options = parser.parse_args()
    for path in superfluous(options.home, options.keep, options.needed, options.environment_link, options.caches):
        print(path)
        if not options.dry_run:
            shutil.rmtree(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
