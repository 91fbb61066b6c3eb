"""The memory of copies: bounded, used again, and not handed out with what an earlier copy left in it where nobody wrote."""

from __future__ import annotations

import mmap
import threading

import pytest

from stores.buffers import Buffers
from stores.copier import Control, Stopped, Throttle

pytestmark = pytest.mark.unit

PAGE = mmap.PAGESIZE


def in_memory(block: memoryview) -> int:
    """Bytes of a buffer that take memory of their own."""
    return sum(PAGE for start in range(0, len(block), PAGE) if any(block[start : start + PAGE]))


def test_what_was_freed_is_used_again_and_no_more_of_it_kept_than_is_asked_for() -> None:
    pool = Buffers(16 * PAGE, 8 * PAGE)
    first = pool.take(8 * PAGE, Control())
    first.view[:] = b"x" * (8 * PAGE)
    first.free()
    second = pool.take(PAGE + 1, Control())
    assert in_memory(second.view) == 2 * PAGE, "the same memory"
    second.free()
    third = pool.take(8 * PAGE, Control())
    assert in_memory(third.view) == 2 * PAGE, "the rest was given back"


def test_what_is_kept_gives_way_to_what_is_used() -> None:
    pool = Buffers(4 * PAGE, 8 * PAGE)
    old = [pool.take(2 * PAGE, Control()) for _ in range(2)]
    for buffer in old:
        buffer.view[:] = b"x" * (2 * PAGE)
    for buffer in old:
        buffer.free()
    pool.take(3 * PAGE, Control())
    assert in_memory(pool.take(PAGE, Control()).view) == 0, "both were let go"


def test_buffer_larger_than_the_limit_waits_until_it_is_alone_or_stopped() -> None:
    pool = Buffers(PAGE, 4 * PAGE)
    small = pool.take(1, Control())
    control = Control()
    control.stop("paused")
    with pytest.raises(Stopped):
        pool.take(4 * PAGE, control)
    small.free()
    assert len(pool.take(4 * PAGE, control).view) == 4 * PAGE


@pytest.fixture
def stopped() -> Control:
    """Who need not wait: where there is nothing for it at once, it raises."""
    control = Control()
    control.stop("it would wait")
    return control


def silent() -> Control:
    """A copy that has stood still for longer than the patience of every pool here."""
    control = Control()
    control.progress_at -= 60
    return control


def test_what_an_owner_holds_whose_copies_all_hang_counts_for_itself_alone(stopped: Control) -> None:
    pool = Buffers(4 * PAGE, 4 * PAGE, patience=30)
    hung = pool.take(3 * PAGE, silent(), "hangs")
    pool.take(4 * PAGE, stopped, "other").free()
    with pytest.raises(Stopped):
        pool.take(2 * PAGE, stopped, "hangs")
    pool.take(PAGE, stopped, "hangs").free()
    hung.free()
    assert pool.in_use == 0
    pool.take(4 * PAGE, stopped, "hangs")


def test_owner_of_whom_one_copy_goes_on_gets_its_share_of_the_memory_and_no_other_gets_it_as_well(stopped: Control) -> None:
    pool = Buffers(4 * PAGE, 4 * PAGE, patience=30)
    pool.take(PAGE, silent(), "slow")
    going_on = pool.take(2 * PAGE, Control(), "slow")
    pool.take(PAGE, stopped, "slow")
    with pytest.raises(Stopped):
        pool.take(1, stopped, "other")
    going_on.free()
    pool.take(PAGE, stopped, "other")


class Heard(Control):
    """Tells when it gives a sign of life."""

    def __init__(self, throttle: Throttle) -> None:
        super().__init__([throttle])
        self.heard = threading.Event()

    def alive(self) -> None:
        super().alive()
        self.heard.set()


def test_copy_that_waits_for_a_limit_of_ours_does_not_hang() -> None:
    throttle = Throttle(1.0)
    control = Heard(throttle)
    control.progress_at -= 60
    waiting = threading.Thread(target=control.pace, args=(1000,))
    waiting.start()
    assert control.heard.wait(30)
    assert waiting.is_alive()
    assert control.silent < 30
    throttle.set_rate(None)
    waiting.join()
