#!/usr/bin/env python3
"""Make a release the current one, and the one before it the previous one.

    switch.py [--dry-run] /opt/x /opt/x/releases/2

Only a proven release is kept to return to: if the current one never became healthy, the previous one stays what it is. Each link is replaced in one
step, so that a start at any moment finds a release. Prints JSON: ``before``, the release that was current or null, and ``links``, what changed links
point to now. With --dry-run none is changed. Standard library only (Python 3.9 or newer).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Dict, Optional


def target(link: Path) -> Optional[str]:
    return os.readlink(link) if link.is_symlink() else None


def point(link: Path, release: str) -> None:
    new = link.with_name(f".{link.name}.new")
    # An interrupted run may have left one.
    if new.is_symlink():
        new.unlink()
    new.symlink_to(release)
    new.replace(link)


def main() -> int:
    parser = argparse.ArgumentParser(description="Make a release the current one.")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("home", type=Path)
    parser.add_argument("release")
    options = parser.parse_args()
    current = options.home / "current"
    before = target(current)
    wanted: Dict[str, str] = {}
    if before is not None and before != options.release and (current / ".proven").exists():
        wanted["previous"] = before
    wanted["current"] = options.release
    links = {name: release for name, release in wanted.items() if target(options.home / name) != release}
    if not options.dry_run:
        for name, release in links.items():
            point(options.home / name, release)
    print(json.dumps({"before": before, "links": links}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
