"""What tells a process to end may come at any moment, and more than once."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from cloudstorage.stopping import Stopping

pytestmark = pytest.mark.unit


@pytest.fixture
def stopping() -> Iterator[Stopping]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield Stopping()
    for number, handler in before.items():
        signal.signal(number, handler)


def test_who_was_told_stays_told(stopping: Stopping) -> None:
    assert not stopping.wait(0.01)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
        signal.raise_signal(number)
    assert [stopping.wait(0.01) for _ in range(5)] == [True] * 5
