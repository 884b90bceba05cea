"""Internal errors in what requests share: logged as critical, and kept away from unrelated requests."""

import logging
import sys

log = logging.getLogger(__name__)


class Faults:
    """A worker's errors in what requests share: queues, limits, accounts.

    The worker goes on as well as it can, but its counts may be wrong from then on: `reason` makes it unready
    until it is restarted. It ends itself once it has no requests (worker.py).
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self.seen = 0

    def note(self, what: str) -> None:
        """Call this in an `except` block: the exception is logged with the message."""
        self.seen += 1
        if self.reason is None:
            self.reason = what
        log.critical(
            "%s: report the error below as a bug; this worker is unready until its restart",
            what,
            exc_info=True,
        )

    def note_wrong_counts(self) -> None:
        """note() for a step of the worker's accounting, whose failure must not fail a request."""
        self.note(f"the worker's counts may be wrong: {type(sys.exception()).__name__}")
