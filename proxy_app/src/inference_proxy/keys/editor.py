"""Edits a keys file: `inference-proxy keys`. Workers reload it like after any other change."""

import contextlib
import fcntl
import hashlib
import os
import secrets
import tempfile
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from inference_proxy.config import ConfigError, KeyConfig, load_keys

_LEAST_CHARACTERS = 32

Entry = dict[str, Any]


def hash_of(key: str) -> str:
    """The hash of a key for the keys file. Raises ConfigError for a key that can be guessed."""
    if len(key) < _LEAST_CHARACTERS:
        raise ConfigError(
            [f"the key has {len(key)} characters and can be guessed: use at least {_LEAST_CHARACTERS}"]
        )
    return hashlib.sha256(key.encode()).hexdigest()


def add(path: Path, entry: Entry) -> str:
    """Create a key for `entry`, which has a key's fields except its hash, and return the key.

    The key is in plaintext here and nowhere else. Raises ConfigError and leaves the file unchanged.
    """
    key = "sk-" + secrets.token_urlsafe(32)
    _change(path, lambda entries: [*entries, entry | {"sha256": hash_of(key)}])
    return key


def revoke(path: Path, name: str) -> None:
    """Remove the key from the file. Raises ConfigError, also if there is no key with that name."""

    def without(entries: list[Entry]) -> list[Entry]:
        kept = [entry for entry in entries if entry["name"] != name]
        if len(kept) == len(entries):
            raise ConfigError([f"{path}: has no key named {name!r}; `keys list` shows those that it has"])
        return kept

    _change(path, without)


def table(keys: Sequence[KeyConfig], now: datetime) -> Iterator[str]:
    """One line per key, for people: everything except its hash."""
    yield f"{'NAME':<24} {'OWNER':<16} {'PRIORITY':<12} {'EXPIRES':<21} MODELS, NETWORKS, LIMITS"
    for key in keys:
        expires = "never"
        if key.expires is not None:
            expires = "expired" if key.expires <= now else f"{key.expires:%Y-%m-%dT%H:%M:%SZ}"
        more = [
            ",".join(key.models) or "all models",
            *(str(network) for network in key.cidrs),
            *(f"{field}={value}" for field, value in _limits(key.limits.model_dump(exclude_none=True))),
        ]
        owner = key.owner or key.name
        yield f"{key.name:<24} {owner:<16} {key.priority:<12} {expires:<21} {' '.join(more)}"


def _limits(values: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    models = values.pop("models", {})
    yield from values.items()
    for model, of_model in models.items():
        yield from ((f"{model}:{field}", value) for field, value in of_model.items())


def _change(path: Path, change: Callable[[list[Entry]], list[Entry]]) -> None:
    """Replace the file by renaming, so that readers see the old or the new one. Owner and mode are kept.

    The new content is first loaded as the proxy would load it, and refused (ConfigError) for the same
    reasons.
    """
    with _locked(path.parent):
        load_keys(path)
        text = path.read_text()
        comments = [line for line in text.splitlines(keepends=True) if line.startswith("#")]
        entries = change(yaml.safe_load(text) or [])
        body = yaml.safe_dump(entries, sort_keys=False, allow_unicode=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        new = Path(name)
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write("".join(comments) + body)
                file.flush()
                os.fsync(file.fileno())
            _check(new, path)
            before = path.stat()
            os.chown(new, before.st_uid, before.st_gid)
            new.chmod(before.st_mode & 0o7777)
            new.replace(path)
        finally:
            new.unlink(missing_ok=True)


def _check(new: Path, path: Path) -> None:
    try:
        load_keys(new)
    except ConfigError as error:
        raise ConfigError([problem.replace(str(new), str(path)) for problem in error.problems]) from error


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Lock out other changes. The lock is on the directory, because the file itself is replaced."""
    try:
        descriptor = os.open(directory, os.O_RDONLY)
    except OSError as error:
        raise ConfigError([f"{directory}: cannot be read: {error.strerror}"]) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
