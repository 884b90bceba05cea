"""First step: whose request is this?"""

import hashlib
import hmac
from collections.abc import Iterable
from dataclasses import dataclass

from .config import KeyConfig
from .errors import ApiError


@dataclass(frozen=True, slots=True)
class Key:
    name: str
    sha256: str
    models: frozenset[str]

    def may_use(self, model: str) -> bool:
        return not self.models or model in self.models


class KeyRing:
    """Keys by their hash. What it holds is of no use to a thief: keys in clear exist at clients only."""

    def __init__(self, keys: Iterable[KeyConfig]) -> None:
        self._by_digest = {key.sha256: Key(key.name, key.sha256, frozenset(key.models)) for key in keys}

    def find(self, token: bytes) -> Key | None:
        # The lookup's timing depends on a hash that no caller can steer; the comparison that decides is
        # constant in time.
        digest = hashlib.sha256(token).hexdigest()
        key = self._by_digest.get(digest)
        return key if key is not None and hmac.compare_digest(digest, key.sha256) else None


def authenticate(headers: Iterable[tuple[bytes, bytes]], keys: KeyRing) -> Key:
    """The key of a request, from `Authorization: Bearer`. Raises ApiError 401."""
    value = next((value for name, value in headers if name == b"authorization"), b"")
    scheme, _, token = value.partition(b" ")
    token = token.strip()
    if scheme.lower() != b"bearer" or not token:
        raise _unauthorized("missing_api_key", "No API key: send it as 'Authorization: Bearer <key>'.")
    key = keys.find(token)
    if key is None:
        raise _unauthorized("invalid_api_key", "The API key is not valid.")
    return key


def _unauthorized(code: str, message: str) -> ApiError:
    return ApiError(401, code, message, headers=[(b"www-authenticate", b"Bearer")])
