"""What must not happen did: said loudly, and kept from requests that have nothing to do with it."""

import logging
import sys

log = logging.getLogger(__name__)


class Faults:
    """Errors in what requests share: lines, limits, accounts. One for each worker.

    The worker goes on as well as it can, but its counts may be wrong from then on: `reason` makes it unready
    until it is restarted. It ends itself once it has no request (worker.py).
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

    def note_damage(self) -> None:
        """note() for a step of the worker's books, which no request may fail by."""
        self.note(f"the worker's books are damaged: {type(sys.exception()).__name__}")
