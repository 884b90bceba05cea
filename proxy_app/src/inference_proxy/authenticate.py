"""First step: whose request is this?"""

import base64
import hashlib
import hmac
import time
from collections.abc import Sequence
from dataclasses import dataclass

from starlette.types import Scope

from .client_address import client_address, within
from .config import IpNetwork, KeyConfig, KeyLimits
from .errors import ApiError
from .http_request import Fields

_UNLIMITED = KeyLimits()


@dataclass(frozen=True, slots=True, eq=False)
class Key:
    """`owner` is the tenant, who may have several keys; `priority` names a class of the configuration;
    `expires` is a time as time.time() has it, None: never."""

    name: str
    sha256: str
    models: frozenset[str]
    owner: str
    priority: str
    cache_salt: str
    limits: KeyLimits = _UNLIMITED
    expires: float | None = None
    cidrs: tuple[IpNetwork, ...] = ()

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
        """The key of a token, or None: the same work for both, and nothing is remembered of either."""
        # The lookup's timing depends on a hash that no caller can steer; the comparison that decides is
        # constant in time.
        digest = hashlib.sha256(token).hexdigest()
        key = self._by_digest.get(digest, _NOBODY)
        return key if hmac.compare_digest(digest, key.sha256) else None

    def owners(self) -> frozenset[str]:
        return frozenset(key.owner for key in self._by_digest.values())


# Compared like any other, and no hash has such digits.
_NOBODY = Key("", "-" * 64, frozenset(), "", "", "")


def _key(key: KeyConfig, salt: str) -> Key:
    return Key(
        name=key.name,
        sha256=key.sha256,
        models=frozenset(key.models),
        owner=key.owner or key.name,
        priority=key.priority,
        cache_salt=salt,
        limits=key.limits,
        expires=None if key.expires is None else key.expires.timestamp(),
        cidrs=key.cidrs,
    )


def cache_salt(owner: str, hashes: Sequence[str]) -> str:
    """A tenant's own text for vLLM's `cache_salt`, of 43 characters: the same on every host, and nobody can
    guess it or find the owner from it, since it is made with what only the keys file holds. It changes, at
    the price of a cold cache, when the owner's first key (by hash) does."""
    digest = hmac.digest(min(hashes).encode(), b"cache_salt " + owner.encode(), hashlib.sha256)
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")


def authenticate(fields: Fields, scope: Scope, keys: KeyRing, trusted_proxies: Sequence[IpNetwork]) -> Key:
    """The key of a request with these header fields, from `Authorization: Bearer`, or Anthropic's
    `x-api-key`. Raises ApiError: 401 for one that is missing, unknown or expired; 403 for a client outside of
    the key's networks."""
    token = _token(fields)
    if not token:
        raise _unauthorized("missing_api_key", "No API key: send it as 'Authorization: Bearer <key>'.")
    key = keys.find(token)
    if key is None:
        raise _unauthorized("invalid_api_key", "The API key is not valid.")
    if key.expires is not None and time.time() >= key.expires:
        raise _unauthorized("expired_api_key", "The API key has expired: ask for a new one.")
    if key.cidrs:
        address = client_address(scope, trusted_proxies)
        if address is None or not within(address, key.cidrs):
            raise ApiError(
                403,
                "network_not_allowed",
                f"The API key may not be used from {address or 'an unknown address'}.",
            )
    return key


def _token(fields: Fields) -> bytes:
    authorization = fields.get(b"authorization")
    if authorization is None:
        return fields.get(b"x-api-key", b"").strip()
    scheme, _, token = authorization.partition(b" ")
    return token.strip() if scheme.lower() == b"bearer" else b""


def _unauthorized(code: str, message: str) -> ApiError:
    return ApiError(401, code, message, headers=[(b"www-authenticate", b"Bearer")])
