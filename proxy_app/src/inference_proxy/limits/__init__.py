"""Limits of the caller: requests, tokens and budgets of a key, over all models and for each.

`claims` says what a request takes from which counter, `store` what a store of counters can do, `local` and
`shared` are the two that there are, `hold` is a request's way through them.
"""

from inference_proxy.limits.claims import used_tokens
from inference_proxy.limits.hold import Hold, Limits

__all__ = ["Hold", "Limits", "used_tokens"]
