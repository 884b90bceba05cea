"""First step: find the key that a request belongs to."""

import base64
import hashlib
import hmac
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from starlette.types import Scope

from inference_proxy.api.errors import ApiError
from inference_proxy.config import IpNetwork, KeyConfig, KeyLimits
from inference_proxy.http.message import HeaderFields
from inference_proxy.keys.client_address import client_address, within

_UNLIMITED = KeyLimits()
# Headers that may carry a key, in their usual spelling: OpenAI's clients', Anthropic's, and Azure's.
_HEADERS = {b"authorization": "Authorization", b"x-api-key": "x-api-key", b"api-key": "api-key"}
# Each token costs a hash. One key may come in all three headers, together with a gateway's own.
_MOST_TOKENS = 8

Headers = Sequence[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True, eq=False)
class Key:
    """An API key.

    `owner` is the tenant, which may have several keys; `priority` names a class of the configuration;
    `expires` is in time.time()'s seconds, or None.
    """

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
    """Keys by their hash. Holds hashes only; plaintext keys exist only on clients."""

    def __init__(self, keys: Sequence[KeyConfig]) -> None:
        hashes: dict[str, list[str]] = {}
        for key in keys:
            hashes.setdefault(key.owner or key.name, []).append(key.sha256)
        salts = {owner: cache_salt(owner, of_owner) for owner, of_owner in hashes.items()}
        self._by_digest = {key.sha256: _key(key, salts[key.owner or key.name]) for key in keys}

    def find(self, token: bytes) -> Key | None:
        """The key for a token, or None. The work is the same in both cases, and nothing is cached."""
        # The lookup's timing depends on a hash that callers cannot control; the comparison that decides takes
        # constant time.
        digest = hashlib.sha256(token).hexdigest()
        key = self._by_digest.get(digest, _NO_KEY)
        return key if hmac.compare_digest(digest, key.sha256) else None

    def knows(self, key: Key) -> bool:
        """Whether a key that was found earlier still exists."""
        return key.sha256 in self._by_digest

    def owners(self) -> frozenset[str]:
        return frozenset(key.owner for key in self._by_digest.values())


# Compared like any other key; no hash has such digits.
_NO_KEY = Key("", "-" * 64, frozenset(), "", "", "")


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
    """A tenant's own value for vLLM's `cache_salt`, of 43 characters and the same on every host.

    It can neither be guessed nor reveal the owner, because it is derived from what only the keys file holds.
    It changes, at the cost of a cold cache, when the owner's first key (by hash) does.
    """
    digest = hmac.digest(min(hashes).encode(), b"cache_salt " + owner.encode(), hashlib.sha256)
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")


def authenticate(
    fields: HeaderFields, scope: Scope, keys: KeyRing, trusted_proxies: Sequence[IpNetwork]
) -> Key:
    """A request's key: the valid one in any of the headers in _HEADERS.

    Raises ApiError: 401 if there is none, 400 if there are two different ones, 403 for a client outside the
    key's networks.
    """
    headers = scope["headers"]
    authorization = fields.get(b"authorization")
    if (
        authorization is not None
        and b"x-api-key" not in fields
        and b"api-key" not in fields
        and len(fields) == len(headers)
    ):
        # The usual case: one header, which occurs once.
        key = keys.find(_bearer(authorization))
        if key is None or _is_expired(key):
            raise _unauthorized(headers, keys)
    else:
        key = _only_key(headers, keys)
    if key.cidrs:
        address = client_address(scope, trusted_proxies)
        if address is None or not within(address, key.cidrs):
            raise ApiError(
                403,
                "network_not_allowed",
                f"The API key may not be used from {address or 'an unknown address'}.",
            )
    return key


def _only_key(headers: Headers, keys: KeyRing) -> Key:
    """The only valid key in all headers that may carry one.

    SDKs, gateways and browsers add credentials of their own, such as a dummy bearer: they are ignored.
    """
    tokens = _tokens(headers)
    if len(tokens) > _MOST_TOKENS:
        raise ApiError(400, "several_api_keys", f"More than {_MOST_TOKENS} API keys were sent: send one.")
    found = [key for token in tokens if (key := keys.find(token)) is not None and not _is_expired(key)]
    if not found:
        raise _unauthorized(headers, keys)
    if len(found) > 1:
        # The limits and the bill of either one could be wrong.
        names = ", ".join(dict.fromkeys(tokens[token] for token in tokens if keys.find(token) in found))
        raise ApiError(400, "several_api_keys", f"Different valid API keys were sent ({names}): send one.")
    return found[0]


def _tokens(headers: Headers) -> dict[bytes, str]:
    """Possible keys without duplicates, and the header of each."""
    tokens: dict[bytes, str] = {}
    for name, value in headers:
        if name in _HEADERS and (token := _bearer(value) if name == b"authorization" else value.strip()):
            tokens.setdefault(token, _HEADERS[name])
    return tokens


def _bearer(authorization: bytes) -> bytes:
    parts = authorization.split(None, 1)
    return parts[1].rstrip() if len(parts) == 2 and parts[0].lower() == b"bearer" else b""


def _is_expired(key: Key) -> bool:
    return key.expires is not None and time.time() >= key.expires


def _unauthorized(headers: Headers, keys: KeyRing) -> ApiError:
    """A 401 that says which headers were checked, and what was wrong with them."""
    tokens = _tokens(headers)
    if any(keys.find(token) is not None for token in tokens):
        code, message = "expired_api_key", "The API key has expired: ask for a new one."
    elif tokens:
        code = "invalid_api_key"
        message = f"The API key is not valid. It was looked for in {_listed(tokens.values())}."
    else:
        code = "missing_api_key"
        message = "No API key: send it as 'Authorization: Bearer <key>', or in x-api-key or api-key."
        if useless := [_HEADERS[name] for name, _ in headers if name in _HEADERS]:
            message += f" {_listed(useless)} came without a key, or (Authorization) not as 'Bearer'."
    return ApiError(401, code, message, headers=[(b"www-authenticate", b"Bearer")])


def _listed(names: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(names))
