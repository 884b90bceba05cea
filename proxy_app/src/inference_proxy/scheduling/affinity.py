"""Which engine has most likely seen the beginning of this before? Without a table, so without memory.

A request's key is a number; each engine's claim to it follows from the key and the engine's id alone
(rendezvous hashing, weighted: Schindelhauer and Schomaker 2005). So all workers on all hosts agree without
talking, and an engine that comes or goes moves only the keys that it wins or held.
"""

from zlib import crc32

from inference_proxy.config import GENERATION, Config
from inference_proxy.request.validate import Asked


def key_of(asked: Asked, config: Config) -> int | None:
    """Of the session, or else of the prompt's beginning; None: any engine is as good as another."""
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
    # The largest power of two of whole blocks: a conversation that grows keeps its key until it has doubled,
    # and those that share a system prompt part where they have more of their own than of that.
    leading = (1 << blocks.bit_length() - 1) * routing.prefix_block_bytes
    # Tenants who share no cache in the engine need not meet there.
    salt = asked.key.cache_salt if config.isolate_prefix_cache else ""
    return crc32(text[:leading], crc32(salt.encode()))


def _beginning(asked: Asked, size: int) -> bytes:
    """Of the prompt as a chat template begins it: with the tools, then the system's word, then the rest."""
    text = b""
    for name in reversed(asked.endpoint.prompt):
        if len(text) < size and (raw := asked.fields.get(name)) is not None:
            text += memoryview(raw)[: size - len(text)]
    return text
