"""First step: whose request is this?"""

import base64
import hashlib
import hmac
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .config import KeyConfig
from .errors import ApiError


@dataclass(frozen=True, slots=True)
class Key:
    """`owner` is the tenant, who may have several keys; `priority` names a class of the configuration."""

    name: str
    sha256: str
    models: frozenset[str]
    owner: str
    priority: str
    cache_salt: str

    def may_use(self, model: str) -> bool:
        return not self.models or model in self.models


class KeyRing:
    """Keys by their hash. What it holds is of no use to a thief: keys in clear exist at clients only."""

    def __init__(self, keys: Sequence[KeyConfig]) -> None:
        hashes: dict[str, list[str]] = {}
        for key in keys:
            hashes.setdefault(key.owner or key.name, []).append(key.sha256)
        salts = {owner: cache_salt(owner, of_owner) for owner, of_owner in hashes.items()}
        self._by_digest = {key.sha256: _key(key, salts[key.owner or key.name]) for key in keys}

    def find(self, token: bytes) -> Key | None:
        # The lookup's timing depends on a hash that no caller can steer; the comparison that decides is
        # constant in time.
        digest = hashlib.sha256(token).hexdigest()
        key = self._by_digest.get(digest)
        return key if key is not None and hmac.compare_digest(digest, key.sha256) else None

    def owners(self) -> frozenset[str]:
        return frozenset(key.owner for key in self._by_digest.values())


def _key(key: KeyConfig, salt: str) -> Key:
    return Key(key.name, key.sha256, frozenset(key.models), key.owner or key.name, key.priority, salt)


def cache_salt(owner: str, hashes: Sequence[str]) -> str:
    """A tenant's own text for vLLM's `cache_salt`, of 43 characters: the same on every host, and nobody can
    guess it or find the owner from it, since it is made with what only the keys file holds. It changes, at
    the price of a cold cache, when the owner's first key (by hash) does."""
    digest = hmac.digest(min(hashes).encode(), b"cache_salt " + owner.encode(), hashlib.sha256)
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")


def authenticate(headers: Iterable[tuple[bytes, bytes]], keys: KeyRing) -> Key:
    """The key of a request, from `Authorization: Bearer`, or Anthropic's `x-api-key`. Raises ApiError 401."""
    token = b""
    for name, value in headers:
        if name == b"authorization":
            scheme, _, rest = value.partition(b" ")
            token = rest.strip() if scheme.lower() == b"bearer" else b""
            break
        if name == b"x-api-key":
            token = value.strip()
    if not token:
        raise _unauthorized("missing_api_key", "No API key: send it as 'Authorization: Bearer <key>'.")
    key = keys.find(token)
    if key is None:
        raise _unauthorized("invalid_api_key", "The API key is not valid.")
    return key


def _unauthorized(code: str, message: str) -> ApiError:
    return ApiError(401, code, message, headers=[(b"www-authenticate", b"Bearer")])
