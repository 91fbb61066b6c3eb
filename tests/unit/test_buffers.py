"""The memory of copies: bounded, used again, and not handed out with what an earlier copy left in it where nobody wrote."""

from __future__ import annotations

import mmap

import pytest

from stores.buffers import Buffers
from stores.copier import Control, Stopped

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


def test_what_one_owner_does_not_give_back_for_long_is_not_missing_to_others() -> None:
    pool = Buffers(4 * PAGE, 4 * PAGE, patience=0.0)
    stopped = Control()
    stopped.stop("it would wait")
    hung = pool.take(4 * PAGE, Control(), "hangs")
    with pytest.raises(Stopped):
        pool.take(1, stopped, "hangs")
    other = pool.take(4 * PAGE, stopped, "other")
    hung.free()
    other.free()
    assert pool.in_use == 0
    pool.take(4 * PAGE, stopped, "hangs")
