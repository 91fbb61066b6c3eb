"""Runs the state machine of `tests.invariants.machine` with a fixed seed, long enough that every kind of step is taken."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.invariants.machine import Region

pytestmark = [pytest.mark.db, pytest.mark.longest]

BOUNDED = settings(
    max_examples=30,
    stateful_step_count=15,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)


def test_nothing_that_must_hold_is_broken_whatever_the_order_of_events(db, settings, capsys):
    settings.STORE_DRIVERS = settings.STORE_DRIVERS | {
        "NFS": "tests.invariants.drivers.FaultyNfs",
        "Memory": "tests.invariants.drivers.FaultyTarget",
    }
    settings.ALLOW_PLAIN_EXPORTS = True
    settings.NFS_MOUNTS = {}
    Region.steps.clear()
    run_state_machine_as_test(Region, settings=BOUNDED)
    with capsys.disabled():
        print(f"\n  {dict(sorted(Region.steps.items()))}")
    never = {"claimed", "pumped", "copy ok", "fenced end", "damaged"} - set(+Region.steps)
    assert not never, "the runs never came to these; give them more examples"
