"""Section `timeouts`: four clocks."""

from pydantic import Field, PositiveFloat

from .types import Strict


class Timeouts(Strict):
    """Seconds. Four clocks: connecting, to the first byte, between two chunks, and the whole request."""

    connect_s: PositiveFloat = Field(default=5, description="Seconds to connect to an engine.")
    first_byte_s: PositiveFloat = Field(default=600, description="Seconds to the first byte of an answer.")
    between_chunks_s: PositiveFloat = Field(
        default=120, description="Seconds between two chunks of an answer."
    )
    total_s: PositiveFloat = Field(default=3600, description="Seconds that a request may take in all.")
