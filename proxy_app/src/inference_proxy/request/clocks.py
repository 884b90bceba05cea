"""How long a request may take: four clocks, scaled by the size of the request."""

import msgspec

from inference_proxy.config import AUDIO, GENERATION, POOLING, UTILITY, EndpointClass, Timeouts
from inference_proxy.request.job import Job


class Clocks(msgspec.Struct, frozen=True):
    """The four clocks of a request, in seconds.

    `first_byte_s` and `total_s` start when the engine is chosen, so neither includes the time in the queue,
    which has its own limit.
    """

    connect_s: float
    first_byte_s: float
    between_chunks_s: float
    total_s: float

    @classmethod
    def of(cls, job: Job, timeouts: Timeouts, size: str, waiting: int) -> "Clocks":
        """`size` is the model's; `waiting` is how many requests wait in the engine's own queue.

        first byte = (first_byte_s + prompt tokens / 1000 * per_1k_prompt_tokens_s) * size
                     + waiting * per_waiting_request_s
        total      = first byte + tokens to generate * per_token_s * size, at most total_s of its class

        An answer that is not a stream arrives only when it is complete, so its first byte may take the total.
        A request without a token cap may take its class's full total_s.
        """
        endpoint, slow = job.asked.endpoint, timeouts.size_factors[size]
        prompt_s = job.asked.prompt_tokens / 1000 * timeouts.per_1k_prompt_tokens_s
        first_byte_s = (timeouts.first_byte_s + prompt_s) * slow + waiting * timeouts.per_waiting_request_s
        total_s = limit_s(endpoint.kind, timeouts)
        generates = endpoint.kind is GENERATION or endpoint.kind is AUDIO
        tokens = job.max_tokens if generates else 0
        if tokens is not None:
            total_s = min(total_s, first_byte_s + tokens * timeouts.per_token_s * slow)
        return cls(
            connect_s=timeouts.connect_s,
            first_byte_s=min(first_byte_s, total_s) if job.asked.stream else total_s,
            between_chunks_s=timeouts.between_chunks_s * slow if generates else total_s,
            total_s=total_s,
        )


def limit_s(kind: EndpointClass, timeouts: Timeouts) -> float:
    """The most seconds that a request of this class may take from its arrival."""
    limits = timeouts.total_s
    if kind is POOLING:
        return limits.pooling
    if kind is AUDIO:
        return limits.audio
    return limits.utility if kind is UTILITY else limits.generation
