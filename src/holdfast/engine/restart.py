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
    at_once + t*per_second.  It counts from when it was last full, so that no sum of roundings moves a time."""

    def __init__(self, budget: StartBudget) -> None:
        self.budget = budget  # another one counts as if it had always been there
        self._full_at: Seconds = 0.0
        self._used = 0  # since then

    def next_at(self) -> Seconds:
        """From when on a restart is left: a time that is past, or the one to wait for."""
        return self._full_at + (self._used + 1 - self.budget.at_once) / self.budget.per_second

    def take(self, now: Seconds) -> bool:
        """Use one restart, if one is left."""
        if now >= self._full_at + self._used / self.budget.per_second:
            self._full_at, self._used = now, 0
        if self.next_at() > now:
            return False
        self._used += 1
        return True
