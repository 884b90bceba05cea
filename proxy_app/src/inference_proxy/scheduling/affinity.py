"""Affinity keys: which engine most likely has a request's beginning in its cache, without a table.

The key is a number; each engine's score for it follows from the key and the engine's id alone (weighted
rendezvous hashing: Schindelhauer and Schomaker 2005). So all workers on all hosts agree without
communication, and adding or removing an engine moves only the keys that it gains or had.
"""

from zlib import crc32

from inference_proxy.config import GENERATION, Config
from inference_proxy.request.validate import Asked


def key_of(asked: Asked, config: Config) -> int | None:
    """The key of the session, or else of the prompt's beginning; None if any engine is as good as another."""
    if asked.session is not None:
        return crc32(asked.session.encode(), crc32(asked.key.owner.encode()))
    routing = config.routing
    if asked.endpoint.kind is not GENERATION or not routing.prefix_blocks:
        return None
    if len(asked.body) < routing.prefix_block_bytes:
        return None
    text = _beginning(asked, routing.prefix_blocks * routing.prefix_block_bytes)
    blocks = len(text) // routing.prefix_block_bytes
    if not blocks:
        return None
    # Hash the largest power of two of whole blocks. So a growing conversation keeps its key until it has
    # doubled, and conversations with the same system prompt get different keys once their own text is longer
    # than it.
    leading = (1 << blocks.bit_length() - 1) * routing.prefix_block_bytes
    # Tenants who share no cache in the engine need not share an engine.
    salt = asked.key.cache_salt if config.isolate_prefix_cache else ""
    return crc32(text[:leading], crc32(salt.encode()))


def _beginning(asked: Asked, size: int) -> bytes:
    """The prompt's beginning in a chat template's order: tools, system prompt, then the rest."""
    text = b""
    for name in reversed(asked.endpoint.prompt):
        if len(text) < size and (raw := asked.fields.get(name)) is not None:
            text += memoryview(raw)[: size - len(text)]
    return text
