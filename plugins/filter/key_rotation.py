"""What a rotation of the proxies' keys changes on a host, and whose clients would be refused at once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import yaml

DOCUMENTATION = r"""
name: key_rotation
short_description: Compare a proxy host's keys with the wanted ones
description:
  - For playbooks/rotate_keys.yml. A key may end if it has expired, or if its owner has another one that the host knew before.
positional: _input, wanted, now
options:
  _input:
    description: The host's keys.yml and config.yml, as text.
    type: dict
    required: true
  wanted:
    description: The wanted keys (C(proxy_keys)) and the wanted C(admin) key, or an empty one.
    type: dict
    required: true
  now:
    description: Names of the keys that may end at once.
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
- ansible.builtin.debug:
    msg: "{{ {'keys': keys_yml, 'config': config_yml} | ec2_inference.stack.key_rotation({'keys': proxy_keys, 'admin': ''}, ['alice']) }}"
"""

RETURN = r"""
_value:
  description: C(lines), what is changed; C(problems), why it must not be; C(new), the names of keys that the host does not know yet.
  type: dict
"""

ADMIN = "admin"


def key_rotation(there: Mapping[str, str], wanted: Mapping[str, Any], now: Iterable[str] = ()) -> dict[str, list[str]]:
    """The changes by name, the problems, and the names of new keys. No key or hash is in any of them."""
    before = {key["sha256"]: key for key in yaml.safe_load(there["keys"]) or []}
    after = {_digest(key): key for key in wanted["keys"]}
    said = set(now)
    lines, problems, ended = [], [], set()
    for digest, key in after.items():
        if digest not in before:
            others = [old["name"] for other, old in before.items() if _owner(old) == _owner(key) and other in after]
            lines.append(
                f"{key['name']}: new key of {_owner(key)}" + (f", beside {', '.join(sorted(others))}" if others else "")
            )
    for digest, key in before.items():
        name = key["name"]
        if digest in after:
            continue
        others = [new["name"] for other, new in after.items() if other in before and _owner(new) == _owner(key)]
        if _is_over(key):
            lines.append(f"{name}: has expired, and is removed")
        elif others:
            lines.append(f"{name}: ends; {_owner(key)} has {', '.join(sorted(others))} from an earlier run")
        else:
            ended.add(name)
            lines.append(f"{name}: ends at once")
            if name not in said:
                problems.append(
                    f"key {name!r} would end at once, and its clients get 401: first give {_owner(key)} another key beside it "
                    f"(an entry with owner: {_owner(key)}), run this, hand the new key out, then take the old one out and run this again; "
                    f"or let it end now, with -e rotate_now={name}"
                )
    admin_before = ((yaml.safe_load(there["config"]) or {}).get("admin") or {}).get("key_sha256", "")
    admin_after = _sha256(str(wanted["admin"])) if wanted["admin"] else ""
    if admin_before != admin_after:
        if admin_before and admin_after:
            ended.add(ADMIN)
            lines.append("admin key: replaced; whoever still sends the old one to the admin API gets 401")
        else:
            problems.append("proxy_admin_key turns the admin API on or off: run playbooks/proxy.yml for that")
    unknown = said - ended
    names = {key["name"] for key in (*before.values(), *after.values())} | {ADMIN}
    for name in sorted(unknown & names):
        problems.append(
            f"rotate_now names {name!r}, which does not end: it is the same as before, or has another key beside it"
        )
    for name in sorted(unknown - names):
        problems.append(f"rotate_now names {name!r}, which is no key: there are {', '.join(sorted(names))}")
    return {
        "lines": lines,
        "problems": problems,
        "new": [key["name"] for digest, key in after.items() if digest not in before],
    }


def _digest(key: Mapping[str, Any]) -> str:
    return str(key["sha256"]) if key.get("key") is None else _sha256(str(key["key"]))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _owner(key: Mapping[str, Any]) -> str:
    return str(key.get("owner") or key["name"])


def _is_over(key: Mapping[str, Any]) -> bool:
    if not key.get("expires"):
        return False
    moment = datetime.fromisoformat(str(key["expires"]).replace("Z", "+00:00"))
    return moment.replace(tzinfo=moment.tzinfo or UTC) <= datetime.now(UTC)


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Any]:
        return {"key_rotation": key_rotation}
