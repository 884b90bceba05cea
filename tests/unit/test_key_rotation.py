"""What a rotation of the proxies' keys changes, and what it refuses because clients would be refused."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
import yaml
from key_rotation import key_rotation

OLD, NEW, OTHER, ADMIN = ("0123456789abcdef" * 2 + end for end in ("old", "new", "other", "admin"))


def sha(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def host(*keys: dict[str, Any], admin: str = "") -> dict[str, str]:
    """The files of a host, as the role writes them."""
    of_admin = {"admin": {"key_sha256": sha(admin)} if admin else {}}
    return {"keys": yaml.safe_dump(list(keys)), "config": yaml.safe_dump(of_admin)}


def known(name: str, key: str, **fields: str) -> dict[str, str]:
    return {"name": name, "sha256": sha(key), **fields}


def key(name: str, value: str, **fields: str) -> dict[str, str]:
    return {"name": name, "key": value, **fields}


ALICE = known("alice", OLD)


def test_a_key_is_replaced_in_two_runs_between_which_both_are_valid() -> None:
    both = [key("alice", OLD), key("alice-2", NEW, owner="alice")]
    first = key_rotation(host(ALICE), {"keys": both, "admin": ""})
    assert first == {"lines": ["alice-2: new key of alice, beside alice"], "problems": [], "new": ["alice-2"]}
    after = host(ALICE, known("alice-2", NEW, owner="alice"))
    assert key_rotation(after, {"keys": both, "admin": ""}) == {"lines": [], "problems": [], "new": []}
    second = key_rotation(after, {"keys": both[1:], "admin": ""})
    assert second == {"lines": ["alice: ends; alice has alice-2 from an earlier run"], "problems": [], "new": []}


def test_a_key_may_end_by_its_date() -> None:
    gone = host(known("alice", OLD, expires="2026-01-01T00:00:00Z"))
    assert key_rotation(gone, {"keys": [], "admin": ""})["problems"] == []
    later = host(known("alice", OLD, expires="2999-01-01T00:00:00Z"))
    assert len(key_rotation(later, {"keys": [], "admin": ""})["problems"]) == 1


@pytest.mark.parametrize(
    "keys",
    [
        [key("alice", NEW)],
        # Its clients cannot have the new one yet.
        [key("alice-2", NEW, owner="alice")],
        [],
    ],
    ids=["another key of the same name", "both at once", "none"],
)
def test_a_key_that_would_end_without_another_is_refused_unless_it_is_named(keys: list[dict[str, str]]) -> None:
    wanted = {"keys": keys, "admin": ""}
    (problem,) = key_rotation(host(ALICE), wanted)["problems"]
    assert problem.startswith("key 'alice' would end at once, and its clients get 401")
    assert key_rotation(host(ALICE), wanted, ["alice"])["problems"] == []


def test_names_that_end_nothing_are_refused() -> None:
    wanted = {"keys": [key("alice", OLD)], "admin": ""}
    same, unknown = key_rotation(host(ALICE), wanted, ["alice", "alcie"])["problems"]
    assert (
        same == "rotate_now names 'alice', which does not end: it is the same as before, or has another key beside it"
    )
    assert unknown == "rotate_now names 'alcie', which is no key: there are admin, alice"


def test_the_admin_key_is_replaced_and_neither_turned_on_nor_off() -> None:
    wanted = {"keys": [{"name": "alice", "sha256": sha(OLD)}], "admin": NEW}
    assert key_rotation(host(ALICE, admin=ADMIN), wanted) == {
        "lines": ["admin key: replaced; whoever still sends the old one to the admin API gets 401"],
        "problems": [],
        "new": [],
    }
    for there, admin in ((host(ALICE), ADMIN), (host(ALICE, admin=ADMIN), "")):
        (problem,) = key_rotation(there, wanted | {"admin": admin})["problems"]
        assert "run playbooks/proxy.yml" in problem


def test_no_key_or_hash_is_in_what_is_said() -> None:
    wanted = {"keys": [key("alice", NEW), key("bob", OTHER)], "admin": NEW}
    said = str(key_rotation(host(ALICE, admin=ADMIN), wanted, ["carol"]))
    for secret in (OLD, NEW, OTHER, ADMIN):
        assert secret not in said
        assert sha(secret) not in said
