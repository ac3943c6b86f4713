"""A plugin of pytest: the rung is chosen while there is one thread, and what it opens for good is no leak of a test."""

from __future__ import annotations


def pytest_configure() -> None:
    from holdfast.process import notify

    notify.choice()
