#!/usr/bin/env python3
"""Print what a host runs of one tier, as one JSON object: `release`, a name for people, and `state`, which differs if anything differs.

    running.py vllm|proxy|nginx

Runs as root with the host's own Python (3.9 or newer) and its standard library. Changes nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from pathlib import Path

# What a tier serves with. Patterns below /.
FILES = {
    "vllm": ["run/vllm-*/fingerprint"],
    "proxy": ["run/proxy-*/fingerprint", "etc/proxy/*.yml", "etc/proxy/store_password"],
    "nginx": [
        "etc/nginx/nginx.conf",
        "etc/nginx/ec2-inference/*.conf",
        "etc/letsencrypt/live/ec2-inference/fullchain.pem",
    ],
}


def release_of(tier: str, root: Path) -> str:
    """The name of what a tier runs; "" if it runs nothing yet."""
    if tier == "nginx":
        main = root / "etc/nginx/nginx.conf"
        deployed = (root / "etc/nginx/ec2-inference/upstream.conf").exists() and main.exists()
        return f"configuration {hashlib.sha256(main.read_bytes()).hexdigest()[:8]}" if deployed else ""
    try:
        return Path(os.readlink(root / "opt" / tier / "current")).name
    except OSError:
        return ""


def state_of(tier: str, root: Path) -> str:
    digest = hashlib.sha256(release_of(tier, root).encode())
    for pattern in FILES[tier]:
        for path in sorted(root.glob(pattern)):
            # A worker that is drained for a while is no change.
            content = re.sub(rb" down;", b";", path.read_bytes())
            digest.update(b"\0".join([str(path).encode(), content]))
    return digest.hexdigest()


def main(tier: str, root: Path = Path("/")) -> None:
    print(json.dumps({"release": release_of(tier, root), "state": state_of(tier, root)}))


if __name__ == "__main__":
    main(sys.argv[1])
