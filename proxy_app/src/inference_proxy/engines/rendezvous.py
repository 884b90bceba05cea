"""Rendezvous hashing: which engine owns a key, without a table."""

import hashlib
import math

_64_BITS = (1 << 64) - 1


def seed_of(engine_id: str) -> int:
    return int.from_bytes(hashlib.blake2b(engine_id.encode(), digest_size=8).digest())


def score(key: int, seed: int, weight: float) -> float:
    """An engine's score for a key.

    The key belongs to the engine with the highest, so each gets keys in proportion to its weight.
    """
    mixed = (key * 0x9E3779B97F4A7C15 + seed) & _64_BITS
    mixed = ((mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9) & _64_BITS
    mixed = ((mixed ^ mixed >> 27) * 0x94D049BB133111EB) & _64_BITS
    return -weight / math.log(((mixed ^ mixed >> 31) + 1) / (_64_BITS + 2))
