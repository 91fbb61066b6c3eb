"""A roll-back in the middle of other processes' work: nothing they do is lost, and only new items are refused, for a moment."""

from __future__ import annotations

import json

import pytest

from tests.migration.test_conversion_live import postgres, program, sqlite, target

__all__ = ["postgres", "program", "sqlite", "target"]

pytestmark = [pytest.mark.live, pytest.mark.db]


@pytest.fixture(params=["sqlite", "postgres"])
def database(request) -> str:
    return request.getfixturevalue(request.param)


def test_nothing_is_lost_when_others_work_while_the_region_goes_home(database, program, target):
    told = program(database, "rollback", json.dumps(target))
    assert told["state"] == "RolledBack", told["note"]
    assert [failure for failure in told["failures"] if "takes new items" not in failure] == []
    assert told["lost"] == told["counts"] == []
    assert told["unfinished"] == 0
    assert told["stores"] == [["REGION", "Image", "Detached"], ["ZONE", "Image", "Attached"]]
    assert told["operations"] >= 120
