"""A worker's budget for retries, so that they never become a storm."""

from inference_proxy.config import Retries


class RetryBudget:
    """Each request earns a share of a retry, and a retry costs a whole one.

    So in an outage, retries add no more than that share to the engines' load, after the `burst` that was
    saved up before.
    """

    def __init__(self, retries: Retries) -> None:
        self.saved = float(retries.burst)

    def earn(self, retries: Retries) -> None:
        self.saved = min(float(retries.burst), self.saved + retries.share)

    def spend(self) -> bool:
        """Returns False if nothing is left: then there is no retry, and the first failure stands."""
        if self.saved < 1:
            return False
        self.saved -= 1
        return True
