#!/usr/bin/env python3
"""Print what a user may not read of models, as JSON: by directory, one sentence for each closed path, with the command that opens it.

    closed_paths.py USER DIRECTORY...

Run by root, it looks as that user; a user that does not exist yet may read what `nobody` may. Looks at the files directly in each
directory, through links, as in a hub's cache. Standard library only (Python 3.9 or newer).
"""

from __future__ import annotations

import json
import os
import pwd
import shlex
import sys
from pathlib import Path
from typing import Dict, Iterator, List, Set

# Links that lead to each other.
MOST_LINKS = 40


def become(user: str) -> None:
    """Give this process the rights of the user, for good."""
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        entry = pwd.getpwnam("nobody")
    os.initgroups(entry.pw_name, entry.pw_gid)
    os.setgid(entry.pw_gid)
    os.setuid(entry.pw_uid)


def target(path: Path) -> Path:
    """What the path leads to, through its own links and those of the directories above it, as far as they can be read."""
    return Path(os.path.realpath(path))


def ways(path: Path) -> Iterator[Path]:
    """The path, and where its links lead one after the other."""
    for _ in range(MOST_LINKS):
        yield path
        try:
            path = path.parent / os.readlink(path)
        except OSError:
            return


def unsearchable(path: Path) -> Iterator[Path]:
    """The first directory above the path, or above one that its links lead to, that lets nobody through."""
    for way in ways(path):
        for parent in reversed(target(way.parent).joinpath("x").parents):
            if not os.access(parent, os.X_OK):
                yield parent
                return


def closed(user: str, directory: Path) -> Iterator[str]:
    """What hides the files of one directory."""
    for parent in unsearchable(directory):
        yield f"user {user} may not search {parent}: run {_chmod('a+x', parent)}"
        return
    if not os.access(directory, os.R_OK | os.X_OK):
        yield f"user {user} may not read {target(directory)}: run {_chmod('a+rx', target(directory))}"
        return
    behind: Set[Path] = set()
    unreadable: Dict[Path, List[str]] = {}
    for file in sorted(directory.iterdir()):
        hidden = list(unsearchable(file))
        behind.update(hidden)
        # A link to nothing is no matter of rights.
        if not hidden and file.exists() and not file.is_dir() and not os.access(file, os.R_OK):
            unreadable.setdefault(target(file).parent, []).append(target(file).name)
    for parent in sorted(behind):
        yield f"user {user} may not search {parent}: run {_chmod('a+x', parent)}"
    for place, (name, *more) in sorted(unreadable.items()):
        others = f" and {len(more)} more there" if more else ""
        command = f"{_chmod('a+r', place)}/*" if more else _chmod("a+r", place / name)
        yield f"user {user} may not read {place / name}{others}: run {command}"


def _chmod(mode: str, path: Path) -> str:
    return f"chmod {mode} {shlex.quote(str(path))}"


def main(arguments: List[str]) -> int:
    user, *directories = arguments
    if os.geteuid() == 0:
        become(user)
    print(json.dumps({directory: list(closed(user, Path(directory))) for directory in directories}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
