"""What must not happen did: said loudly, and kept from requests that have nothing to do with it."""

import logging
from types import TracebackType

log = logging.getLogger(__name__)


class Faults:
    """Errors in what requests share: lines, limits, accounts. One for each worker. As `with faults:` around a
    step that no request may fail by: an exception there ends the step and nothing else.

    The worker goes on as well as it can, but its counts may be wrong from then on: `reason` makes it unready
    until it is restarted. It ends itself once it has no request (server.py).
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self.seen = 0

    def note(self, what: str) -> None:
        """To be called in an `except` block, whose exception is logged with it."""
        self.seen += 1
        if self.reason is None:
            self.reason = what
        log.critical(
            "%s: report the error below as a bug; this worker is unready until its restart",
            what,
            exc_info=True,
        )

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if not isinstance(error, Exception):
            return False
        self.note(f"the worker's books are damaged: {type(error).__name__}")
        return True
