"""The loads that every candidate gets."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """A load that lasts `seconds`, after a `ramp_s` during which its connections start one by one."""

    name: str
    what: str
    connections: int
    stream: bool
    seconds: float
    ramp_s: float = 1.0
    tokens: int = 16
    interval_us: int = 0  # between two chunks of a stream; 0: as fast as they are read
    body_bytes: int = 1000

    def quick(self) -> "Case":
        """The same load, just long enough to see that it works."""
        return Case(**{**self.__dict__, "seconds": 2.0, "ramp_s": min(self.ramp_s, 2.0)})


def _paced(streams: int) -> Case:
    # The ramp is as long as a stream, so that starts are spread evenly over the whole load.
    what = f"{streams} streams, 50 chunks/s each"
    return Case(f"paced{streams}", what, streams, True, seconds=8, ramp_s=2, tokens=100, interval_us=20_000)


CASES = {
    case.name: case
    for case in (
        Case("fast", "8 streams, as fast as they go", 8, True, seconds=5, tokens=1000),
        _paced(64),
        _paced(256),
        _paced(512),
        Case("json", "16 connections, small JSON answers", 16, False, seconds=5),
        Case("body100k", "8 connections, prompts of 100 KB", 8, False, seconds=5, body_bytes=100_000),
        Case(
            "idle1000",
            "1,000 streams, a chunk in 5 s each",
            1000,
            True,
            seconds=5,
            ramp_s=4,
            tokens=1000,
            interval_us=5_000_000,
        ),
    )
}
