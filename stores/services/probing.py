"""Speaks to stores that may never answer, and waits no longer than a request may take."""

from __future__ import annotations

import time
from collections.abc import Callable
from queue import Empty, Queue
from threading import Event, Thread
from typing import TypeVar, cast

from django.conf import settings

from stores.drivers.base import ProbeStep, StoreDriver
from stores.drivers.errors import Unavailable

T = TypeVar("T")


def within(seconds: float, place: str, work: Callable[[], T]) -> T:
    """Do `work`, which speaks to a store and touches no row, but wait no longer: a hung mount never answers and cannot be
    interrupted, so its thread is left behind. Raises Unavailable then."""
    done: Queue[tuple[T | None, BaseException | None]] = Queue()

    def run() -> None:
        try:
            done.put((work(), None))
        except BaseException as error:  # noqa: BLE001 - raised in the caller
            done.put((None, error))

    Thread(target=run, daemon=True, name=f"asking {place}").start()
    try:
        result, error = done.get(timeout=seconds)
    except Empty:
        raise Unavailable(f"{place} has not answered for {seconds:.0f} s: its mount or its server hangs.") from None
    if error is not None:
        raise error
    return cast("T", result)


def probe_in_time(driver: StoreDriver) -> list[ProbeStep]:
    """The steps of a probe. After CLOUDSTORAGE_PROBE_SECONDS those so far and a blocker that says so; what the probe wrote is
    removed as soon as the store answers again. Raises what the driver raises.
    """
    ended: Queue[BaseException | None] = Queue()
    steps: list[ProbeStep] = []
    late = Event()

    def run() -> None:
        try:
            for step in driver.probe():
                if late.is_set():
                    break  # leaving the probe makes it clean up
                steps.append(step)
        except BaseException as error:  # noqa: BLE001 - raised in the caller
            ended.put(error)
        else:
            ended.put(None)

    seconds, begun = settings.PROBE_SECONDS, time.monotonic()
    Thread(target=run, daemon=True, name=f"probing {driver.display_url}").start()
    try:
        error = ended.get(timeout=seconds)
    except Empty:
        late.set()
        return [*steps, _late(driver, steps, time.monotonic() - begun)]
    if error is not None:
        raise error
    return steps


def _late(driver: StoreDriver, steps: list[ProbeStep], seconds: float) -> ProbeStep:
    where = f"after the step {steps[-1].name!r}" if steps else "before the first step"
    return ProbeStep(
        name="time",
        status="blocker",
        message=f"The test of {driver.display_url} was given up after {seconds:.0f} s, {where}: the store hangs or is very slow.",
        remedy="Look at the store, the network and proxies between, then test again. "
        "If it is sound but slow, give tests more time: CLOUDSTORAGE_PROBE_SECONDS.",
        seconds=seconds,
    )
