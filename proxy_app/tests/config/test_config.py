"""The command line and the files it checks, and reading usage from the end of a body."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from inference_proxy import cli, config
from inference_proxy.accounting import exchange

GOOD: dict[str, Any] = {
    "engines": [{"id": "engine1:qwen", "url": "http://10.0.0.5:8000", "models": ["qwen3-8b"]}],
    "keys_file": "/etc/proxy/keys.yml",
    "drained_dir": "/etc/proxy/drained",
}
HASH = "0" * 64


def check(
    command: str, path: Path, content: Any, capsys: pytest.CaptureFixture[str]
) -> tuple[int, list[str]]:
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    status = cli.main([command, str(path)])
    return status, capsys.readouterr().err.splitlines()


def test_a_good_configuration_needs_no_keys_yet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check("check-config", tmp_path / "config.yml", GOOD, capsys) == (0, [])


def test_defaults_are_those_that_are_documented(tmp_path: Path) -> None:
    path = tmp_path / "config.yml"
    path.write_text(yaml.safe_dump(GOOD))
    loaded = config.load_config(path)
    assert loaded.body_limit_bytes == 16 << 20
    assert loaded.shutdown_s == 900


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"extra": 1}, "extra"),
        ({"keys_file": "keys.yml"}, "keys_file"),
        ({"body_limit_bytes": 0}, "body_limit_bytes"),
        ({"timeouts": {"total_s": {"audio": -1}}}, "timeouts.total_s.audio"),
        ({"timeouts": {"total": 1}}, "timeouts.total"),
        ({"timeouts": {"total_s": {"audio": 1e300}}}, "timeouts.total_s.audio"),
        ({"timeouts": {"size_factors": {"huge": 1e300}}}, "timeouts.size_factors"),
        ({"queue": {"max_in_flight": 10**400}}, "queue.max_in_flight"),
        ({"models": [{"name": "m", "max_tokens_limit": 2**63}]}, "models.0.max_tokens_limit"),
        ({"engines": [{"id": "a/b", "url": "http://x:1", "models": ["m"]}]}, "engines.0.id"),
        ({"engines": [{"id": "a", "url": "x:1", "models": ["m"]}]}, "engines.0.url"),
        ({"engines": [{"id": "a", "url": "http://x:1/v1", "models": ["m"]}]}, "engines.0.url"),
        ({"engines": [{"id": "a", "url": "http://u:p@x:1", "models": ["m"]}]}, "engines.0.url"),
        ({"engines": [{"id": "a", "url": "http://x:port", "models": ["m"]}]}, "engines.0.url"),
        ({"engines": [{"id": "a", "url": "http://x:0", "models": ["m"]}]}, "engines.0.url"),
        ({"engines": [{"id": "a", "url": "http://x:1", "models": []}]}, "engines.0.models"),
        ({"limits": {"store": {"url": "redis://x:port/0", "workers": 1}}}, "limits.store.url"),
        ({"limits": {"store": {"url": "redis://x:65536", "workers": 1}}}, "limits.store.url"),
        ({"usage": {"directory": "/u", "retention_days": 1_000_000}}, "usage.retention_days"),
        ({"engines": [{"id": i, "url": "http://x:1", "models": ["m"]} for i in "ab"]}, "engine url"),
        ({"engines": [{"id": "a", "url": f"http://x:{i}", "models": ["m"]} for i in "12"]}, "engine id"),
    ],
)
def test_each_problem_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], where: str
) -> None:
    path = tmp_path / "config.yml"
    status, (line,) = check("check-config", path, GOOD | change, capsys)
    assert status == 2
    assert line.startswith(f"{path}: ")
    assert where in line


def test_all_problems_are_told_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = GOOD | {"extra": 1, "body_limit_bytes": "x", "shutdown_s": 0}
    assert len(check("check-config", tmp_path / "c.yml", bad, capsys)[1]) == 3


def test_a_file_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check-config", str(tmp_path / "none.yml")]) == 2
    assert "cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        ([], None),
        ([{"name": "a", "sha256": HASH, "models": ["m"]}], None),
        ([{"name": "a", "key": "in-clear"}], "keys.0.key"),
        ([{"name": "a", "sha256": HASH[1:]}], "keys.0.sha256"),
        ([{"name": "a", "sha256": HASH}, {"name": "a", "sha256": HASH}], "key name"),
        ([{"name": "a", "sha256": HASH}, {"name": "b", "sha256": HASH}], "the same key"),
        ("", "keys"),
        ("- {name: a, sha256: my-secret", "line 2"),
    ],
)
def test_keys_are_checked_without_being_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], keys: Any, complaint: str | None
) -> None:
    status, lines = check("check-keys", tmp_path / "keys.yml", keys, capsys)
    assert status == (0 if complaint is None else 2)
    assert complaint is None or complaint in "\n".join(lines)
    assert "in-clear" not in "\n".join(lines)
    assert "my-secret" not in "\n".join(lines)


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        (b"", (None, None)),
        (b'{"usage":null}', (None, None)),
        (b'{"usage":{"prompt_tokens":3,"total_tokens":3}}', (3, None)),
        (b'data: {"usage":{"prompt_tokens":1,"completion_tokens":1}}\n\n'
         b'data: {"usage":{"prompt_tokens":1,"completion_tokens":9}}\n\ndata: [DONE]\n\n', (1, 9)),
        (b'{"usage":{"prompt_tokens": 4, "completion_tokens": 5},"x":"\\"usage\\":{\\"prompt_tokens\\":7"}',
         (4, 5)),
    ],
)  # fmt: skip
def test_usage_is_found_at_the_end(end: bytes, expected: tuple[int | None, int | None]) -> None:
    assert exchange.usage(end) == expected


def test_a_form_has_no_defaults(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    custom = {"path": "/v1/hear", "upstream_path": "/v1/audio/translations", "defaults": {"model": "big"}}
    content = GOOD | {"custom_endpoints": [custom]}
    status, (line,) = check("check-config", tmp_path / "config.yml", content, capsys)
    assert status == 2
    assert "custom_endpoints.0" in line
    assert "takes a form" in line
