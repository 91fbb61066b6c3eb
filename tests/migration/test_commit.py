"""Committing a conversion: what it ends is told first, nothing is deleted, and afterwards there is no way back."""

from __future__ import annotations

import pytest

from cloudstorage.errors import Blocked, Conflict, Denied
from cloudstorage.models import AuditEvent
from migration import drain, rollback, verify
from migration.commit import commit, plan_commit
from migration.conversion import convert, open_conversion, pinned_by
from migration.models import Conversion, Verification
from migration.states import ConversionState
from stores.models import KINDS, ImageStore, Kind
from stores.services import holds
from stores.services.image_stores import driver_for
from stores.worker import Pump
from tests import factories
from tests.migration.region import changed, dump, refs

pytestmark = pytest.mark.db


@pytest.fixture
def converted(region, target, admin) -> Conversion:
    region.template("web", "east", "west")
    region.volume("data", "east")
    return convert(actor=admin, override=["preflight-absent"], **target)


def test_the_plan_says_what_ends_and_changes_nothing(converted, viewer, region):
    before = dump()
    plan = plan_commit(actor=viewer, conversion=converted)
    assert changed(before, dump()) == set()
    assert "no longer be rolled back" in plan.ends
    assert [(row["name"], row["zone"], row["items"]) for row in plan.stores] == [("nfs-east", "east", 2), ("nfs-west", "west", 1)]
    assert plan.promised == {"template": 1, "snapshot": 0, "volume": 1}
    assert {found.code for found in plan.findings} == {"not-proven", "not-verified"}


def test_a_commit_releases_the_pins_and_keeps_what_promises_hold(converted, admin, region):
    assert [pinned_by(store) for store in region.stores.values()] == [converted, converted]
    held = {kind: refs(kind) for kind in KINDS}
    done = commit(actor=admin, conversion=converted)
    assert (done.state, done.ended_at is not None) == (ConversionState.COMMITTED, True)
    assert [pinned_by(store) for store in region.stores.values()] == [None, None]
    assert open_conversion() is None
    assert {kind: refs(kind) for kind in KINDS} == held
    assert ("web", "Ready", 1) in refs(Kind.TEMPLATE)
    assert holds.recount() == []
    event = AuditEvent.objects.get(action="conversion.commit", outcome="done")
    assert (event.actor, len(event.details["released"])) == ("admin", 2)


def test_what_is_reused_is_looked_for_before_the_way_back_ends(converted, admin, target):
    drained = drain.start(actor=admin, drain=drain.plan(actor=admin, conversion=converted, canary_items=0))
    drain.advance(drained)
    Pump(factories.make_worker(*ImageStore.objects.all()).pk, slots=4).run()
    rollback.start(actor=admin, conversion=converted)
    again = convert(actor=admin, override=["preflight-absent", "preflight-stale"], **target)
    assert sum(again.counts["reused"].values()) == 2
    with pytest.raises(Blocked, match="nobody has looked") as refused:
        commit(actor=admin, conversion=again)
    assert "override: reused-not-checked" in refused.value.remedy
    lost = KINDS[Kind.VOLUME].file.objects.get(ref__store=again.object_store)
    driver_for(again.object_store).delete(lost.path)
    verify.run(Verification.objects.get(mode=Verification.LISTING))
    with pytest.raises(Blocked, match="not what is known"):
        commit(actor=admin, conversion=again, override=["reused-not-checked"])
    assert "reused-differs" in {found.code for found in plan_commit(actor=admin, conversion=again).findings}
    done = commit(actor=admin, conversion=again, override=["reused-differs"])
    assert done.state == ConversionState.COMMITTED
    assert AuditEvent.objects.get(action="conversion.commit", outcome="done").details["overrides"] == ["reused-differs"]


def test_a_second_commit_is_refused_with_the_reason(converted, admin):
    commit(actor=admin, conversion=converted)
    with pytest.raises(Conflict, match="was committed") as refused:
        commit(actor=admin, conversion=converted)
    assert "no way back" in refused.value.remedy
    with pytest.raises(Conflict, match="was committed"):
        plan_commit(actor=admin, conversion=converted)


def test_only_an_administrator_commits(converted, operator):
    before = dump()
    with pytest.raises(Denied):
        commit(actor=operator, conversion=converted)
    assert changed(before, dump()) == set()
    assert AuditEvent.objects.get(action="conversion.commit").outcome == "refused"
