"""What an engine announces of its host: that it will end, as a spot instance does.

The engine's host learns of it from AWS, and the engine adds a header to its answers to polls. A host does not
know the proxies, so it cannot tell them.
"""

import re
from typing import NamedTuple

HEADER = b"x-engine-draining"
_MOST_BYTES = 200
_UNPRINTABLE = re.compile(r"[^ -~]")
_ENDS_IN = re.compile(r"; ends in (\d{1,7}) s$")
# An engine whose host ends this soon gets no more requests, even if no other engine serves their model.
_MARGIN_S = 30


class Notice(NamedTuple):
    """Why the engine's host will end, and when by the fleet's clock; None if that is not known."""

    reason: str
    ends_at: float | None

    def leaves_time(self, now: float) -> bool:
        """Whether a new request may still end in time."""
        return self.ends_at is None or now < self.ends_at - _MARGIN_S


def read(header: bytes | None, now: float) -> Notice | None:
    """The notice in an engine's header; None without the header.

    A value that makes no sense is a notice, too: whoever sent it wants no requests.
    """
    if header is None:
        return None
    text = _UNPRINTABLE.sub("?", header[:_MOST_BYTES].decode("latin-1")).strip()
    found = _ENDS_IN.search(text)
    if found is None:
        return Notice(text or "no reason given", None)
    return Notice(text[: found.start()] or "no reason given", now + int(found[1]))
