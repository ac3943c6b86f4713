"""Whether and when a service is started again: policies, back-off, and the budget that all restarts share.  Pure."""

from __future__ import annotations

import random

from ..config.model import Backoff, Service, StartBudget
from .events import Exit, Seconds


def restarts(spec: Service, ended: Exit) -> bool:
    """Whether the policy starts it again after this end, which nobody asked for.  A oneshot that succeeded is done."""
    success = ended.succeeded(spec.success_exit_codes)
    if spec.type == "oneshot" and success:
        return False
    match spec.restart:
        case "always" | "unless-stopped":
            return True
        case "on-failure":
            return not success
        case "on-abnormal":
            return ended.abnormal
    return False


def delay(backoff: Backoff, streak: int, rng: random.Random) -> Seconds:
    """The wait before the restart after `streak` others in a row: first, then, then*factor, ... up to max, each longer
    or shorter by up to `jitter` of it."""
    if streak == 0:
        wait = min(backoff.first, backoff.max)
    else:
        try:
            wait = min(backoff.then * backoff.factor ** (streak - 1), backoff.max)
        except OverflowError:
            wait = backoff.max if backoff.then else 0.0
    return wait * (1 + rng.uniform(-backoff.jitter, backoff.jitter)) if wait else 0.0


class Bucket:
    """The start budget: `at_once` restarts, refilled with `per_second`, so any window of t seconds sees at most
    at_once + t*per_second."""

    def __init__(self, budget: StartBudget, now: Seconds) -> None:
        self._budget = budget
        self._left = float(budget.at_once)
        self._at = now

    def _fill(self, now: Seconds) -> None:
        if now > self._at:
            self._left = min(self._budget.at_once, self._left + (now - self._at) * self._budget.per_second)
            self._at = now

    def has(self, now: Seconds) -> bool:
        """Whether a restart is left.  By the time it is due, not by the rest: so the time that `next_at` gave is late
        enough, however the sums are rounded."""
        self._fill(now)
        return self._left >= 1 or self.next_at() <= now

    def take(self, now: Seconds) -> bool:
        """Use one restart, if one is left."""
        if not self.has(now):
            return False
        self._left = max(0.0, self._left - 1)
        return True

    def next_at(self) -> Seconds:
        """When a restart is left again."""
        return self._at + max(0.0, 1 - self._left) / self._budget.per_second
