"""What may be tried a second time, and how often: a worker's budget, so that retries never become a storm."""

from inference_proxy.config import Retries


class RetryBudget:
    """Each request earns a share of a retry, and a retry costs a whole one. So an outage adds that share to
    the engines' load and no more, after the `burst` that quiet times have saved up."""

    def __init__(self, retries: Retries) -> None:
        self.saved = float(retries.burst)

    def earn(self, retries: Retries) -> None:
        self.saved = min(float(retries.burst), self.saved + retries.share)

    def spend(self) -> bool:
        """False: there is none left, and the first failure stands."""
        if self.saved < 1:
            return False
        self.saved -= 1
        return True
