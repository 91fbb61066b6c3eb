"""The worker's clock goes on, whatever one drain does."""

from __future__ import annotations

import pytest

from cloudstorage.errors import Conflict
from migration import drain, tasks
from migration.conversion import convert

pytestmark = pytest.mark.db


@pytest.mark.parametrize("failure", [Conflict("paused meanwhile"), RuntimeError("a store lied")])
def test_upkeep_goes_on_when_one_drain_cannot_be_advanced(region, target, admin, operator, monkeypatch, failure):
    region.volume("data", "east")
    conversion = convert(actor=admin, override=["preflight-absent"], **target)
    drain.start(actor=operator, drain=drain.plan(actor=operator, conversion=conversion))

    def refuse(row):
        raise failure

    resumed = []
    monkeypatch.setattr(drain, "advance", refuse)
    monkeypatch.setattr(tasks.verify, "resume_abandoned", lambda: resumed.append(True))
    tasks.advance_drains()
    assert resumed == [True]
