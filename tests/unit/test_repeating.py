"""The worker's upkeep goes on whatever a run of it does, and never twice at once."""

from __future__ import annotations

import threading

import pytest

from stores.management.commands.worker import _Repeating

pytestmark = [pytest.mark.unit]


def beat(repeating: _Repeating) -> None:
    repeating._next = 0.0
    repeating.start_if_due()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # the thread's death is the test
@pytest.mark.parametrize(("failure", "ends"), [(RuntimeError("no"), False), (KeyboardInterrupt(), True)])
def test_runs_again_after_a_run_that_failed_and_after_one_that_ended_its_thread(failure, ends):
    runs = threading.Semaphore(0)

    def fail() -> None:
        runs.release()
        raise failure

    repeating = _Repeating("tick", 60, fail)
    for _ in range(3):
        while not runs.acquire(timeout=0.05):
            beat(repeating)
    if ends:  # here, not in the next test
        repeating._thread.join(10)


def test_hanging_run_is_not_joined_by_a_second():
    begun, go_on = threading.Semaphore(0), threading.Event()

    def hang() -> None:
        begun.release()
        go_on.wait(30)

    repeating = _Repeating("tick", 60, hang)
    beat(repeating)
    assert begun.acquire(timeout=10)
    beat(repeating)
    assert not begun.acquire(timeout=0.1)
    go_on.set()
    while not begun.acquire(timeout=0.05):
        beat(repeating)
