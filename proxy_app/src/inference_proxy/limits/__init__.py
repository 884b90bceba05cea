"""A caller's limits: a key's requests, tokens and budgets, over all models and per model.

`claims` computes what a request takes from which counter, `store` is the interface of a store of counters,
`local_store` and `shared_store` implement it, and `hold` takes a request through its limits.
"""

from inference_proxy.limits.claims import used_tokens
from inference_proxy.limits.hold import Hold, Limits

__all__ = ["Hold", "Limits", "used_tokens"]
