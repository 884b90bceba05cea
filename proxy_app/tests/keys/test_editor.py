"""`inference-proxy keys`: what it prints, what it writes, and what it refuses."""

import io
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness import sha256
from inference_proxy import cli
from inference_proxy.config import load_keys

OLD = {"name": "old", "sha256": sha256("old"), "models": ["m"]}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "keys.yml"
    path.write_text("# a comment\n" + yaml.safe_dump([OLD]))
    path.chmod(0o640)
    return path


def test_a_new_key_is_printed_once_and_its_hash_kept(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--owner", "team", "--model", "a", "--model", "b", "--priority", "batch"]
    options += ["--expires", "2027-01-31T00:00:00Z", "--cidr", "10.0.0.0/8"]
    assert cli.main(["keys", "new", str(path), "alice", *options]) == 0
    key = capsys.readouterr().out.strip()
    assert len(key) >= 32
    old, new = load_keys(path)
    assert old.name == "old"
    assert new.sha256 == sha256(key)
    assert (new.name, new.owner, new.models, new.priority) == ("alice", "team", ("a", "b"), "batch")
    assert new.expires is not None
    assert new.expires.isoformat() == "2027-01-31T00:00:00+00:00"
    assert [str(network) for network in new.cidrs] == ["10.0.0.0/8"]
    assert key not in path.read_text()


def test_a_new_key_has_no_limits_of_its_own(path: Path) -> None:
    assert cli.main(["keys", "new", str(path), "alice"]) == 0
    assert list(yaml.safe_load(path.read_text())[1]) == ["name", "sha256"]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["old"], "key name"),
        (["a", "--expires", "2027-01-31"], "expires"),
        (["a", "--expires", "2027-01-31T00:00:00"], "timezone"),
        (["a", "--expires", "2027-01-31T00:00:00+02:00"], "write it in UTC"),
        (["a", "--cidr", "10.0.0.1/8"], "10.0.0.0/8, or one address"),
    ],
)
def test_what_the_proxy_would_refuse_is_not_written(
    path: Path, capsys: pytest.CaptureFixture[str], options: list[str], complaint: str
) -> None:
    before = path.read_bytes()
    assert cli.main(["keys", "new", str(path), *options]) == 2
    output = capsys.readouterr()
    assert complaint in output.err
    assert str(path) in output.err
    assert output.out == ""
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_a_file_is_replaced_with_its_mode_and_comments_kept(path: Path) -> None:
    inode = path.stat().st_ino
    assert cli.main(["keys", "revoke", str(path), "old"]) == 0
    assert path.read_text() == "# a comment\n[]\n"
    assert path.stat().st_mode & 0o777 == 0o640
    assert path.stat().st_ino != inode
    assert os.listdir(path.parent) == [path.name]


def test_a_key_that_is_not_there_cannot_be_revoked(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["keys", "revoke", str(path), "odl"]) == 2
    assert "no key named 'odl'" in capsys.readouterr().err


@pytest.mark.parametrize("action", ["new", "list", "revoke"])
def test_a_file_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str], action: str) -> None:
    name = [] if action == "list" else ["a"]
    for path in (tmp_path / "none.yml", tmp_path / "nowhere" / "none.yml"):
        assert cli.main(["keys", action, str(path), *name]) == 2
        assert "cannot be read: No such file" in capsys.readouterr().err


def test_changes_at_the_same_time_do_not_undo_each_other(path: Path) -> None:
    threads = [
        threading.Thread(target=cli.main, args=(["keys", "new", str(path), f"k{number}"],))
        for number in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {key.name for key in load_keys(path)} == {"old", *(f"k{number}" for number in range(8))}


def hash_of(text: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    return cli.main(["keys", "hash"])


def test_a_key_to_hash_comes_from_standard_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert hash_of("k" * 32 + "\n", monkeypatch) == 0
    assert capsys.readouterr().out == sha256("k" * 32) + "\n"


def test_a_key_that_can_be_guessed_is_not_hashed_nor_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert hash_of("letmein", monkeypatch) == 2
    output = capsys.readouterr()
    assert "7 characters" in output.err
    assert "letmein" not in output.err + output.out


def test_the_list_tells_everything_but_hashes(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more: dict[str, Any] = {
        "name": "new",
        "sha256": sha256("new"),
        "owner": "team",
        "expires": "2020-01-01T00:00:00Z",
        "cidrs": ["10.0.0.0/8"],
        "limits": {"requests_per_minute": 6, "models": {"m": {"tokens_per_day": 7}}},
    }
    path.write_text(yaml.safe_dump([OLD, more]))
    assert cli.main(["keys", "list", str(path)]) == 0
    output = capsys.readouterr().out
    head, first, second = output.splitlines()
    assert head.split()[:4] == ["NAME", "OWNER", "PRIORITY", "EXPIRES"]
    assert first.split() == ["old", "old", "default", "never", "m"]
    assert second.split()[:4] == ["new", "team", "default", "expired"]
    assert second.endswith("all models 10.0.0.0/8 requests_per_minute=6 m:tokens_per_day=7")
    assert sha256("new") not in output
