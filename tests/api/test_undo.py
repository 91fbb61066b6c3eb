"""Ending a conversion over REST: the plan, the commit, the way back; each refusal says why."""

from __future__ import annotations

import io

import pytest

from migration import rollback
from migration.models import Rollback
from stores.models import ImageStore, Kind, Worker, WorkerReach
from stores.services.uploads import register_upload
from stores.states import Role, StoreState
from stores.worker import Pump
from tests.api.test_migration import contents

pytestmark = [pytest.mark.db, pytest.mark.django_db]


def bear(cloud, name: str) -> None:
    """An item that is on the object store only."""
    body = io.BytesIO(b"new" * 1000)
    zone = cloud.region.zones["east"]
    register_upload(
        actor=cloud.region.admin, kind=Kind.VOLUME, zone=zone, account_id=2, name=name, filename=f"{name}.raw", stream=body,
        size=3000,
    )  # fmt: skip


def test_commit_is_planned_then_done_and_only_once(api, cloud):
    where = f"conversions/{cloud.conversion.uuid}/commit"
    plan = api("viewer").get(where).json()
    assert "no longer be rolled back" in plan["ends"]
    assert plan["promised"] == {"template": 1, "snapshot": 2, "volume": 1}
    assert {row["name"]: row["items"] for row in plan["stores"]} == {"nfs-east": 2, "nfs-west": 3}
    assert {found["code"] for found in plan["findings"]} == {"not-proven", "not-verified"}
    assert api("operator").post(where).status_code == 403
    done = api().post(where)
    assert (done.status_code, done.json()["state"], done.json()["allowed"]) == (200, "Committed", [])
    again = api().post(where)
    assert (again.status_code, again.json()["code"]) == (409, "conflict")
    late = api().post(f"conversions/{cloud.conversion.uuid}/rollback", {})
    assert late.status_code == 409
    assert "was committed" in late.json()["detail"]
    assert "no way back" in late.json()["remedy"]
    assert api().get(f"conversions/{cloud.conversion.uuid}/rollback/plan").status_code == 409


def test_rollback_with_nothing_to_copy_has_ended_when_it_is_answered(api, cloud):
    before = contents(api("viewer"))
    where = f"conversions/{cloud.conversion.uuid}/rollback"
    assert api("viewer").get(where).status_code == 404
    plan = api("viewer").get(f"{where}/plan").json()
    assert {kind: entry["items"] for kind, entry in plan["home"].items()} == {"template": 0, "snapshot": 0, "volume": 0}
    assert plan["time"]["high_seconds"] == 0
    assert [found["code"] for found in plan["findings"]] == ["drain-live"]
    assert api("operator").post(where, {}).status_code == 403
    assert api().post(where, {"overide": []}).status_code == 400
    done = api().post(where, {})
    assert (done.status_code, done.json()["state"]) == (200, "RolledBack"), done.content
    assert api("viewer").get(where).json()["note"] == "The region is on NFS again."
    states = {row["name"]: (row["role"], row["state"]) for row in api("viewer").get("stores").json()["results"]}
    assert states["nfs-east"] == (Role.IMAGE, StoreState.ATTACHED)
    assert states["objects"] == (Role.IMAGE, StoreState.DETACHED)
    assert contents(api("viewer")) == before
    assert api().post(f"{where}/abandon").status_code == 409


@pytest.mark.django_db(transaction=True)  # a worker looks at the database's clock, which stands still in a transaction
def test_rollback_brings_home_what_was_born_and_can_be_abandoned_and_retried(api, cloud):
    bear(cloud, "born")
    before = contents(api("viewer"))
    where = f"conversions/{cloud.conversion.uuid}/rollback"
    plan = api("viewer").get(f"{where}/plan").json()
    assert plan["home"]["volume"] == {"items": 1, "bytes": 3000}
    assert [row["items"] for row in plan["exports"]] == [1, 0]
    begun = api().post(where, {})
    assert (begun.status_code, begun.json()["items"]["total"], begun.headers["Location"]) == (202, 1, f"/api/v1/{where}")
    assert api().post(where, {}).status_code == 409
    assert api().post(f"{where}/retry").json() == {"count": 0}
    assert api().post(f"{where}/abandon").json()["state"] == "Converted"
    assert api("viewer").get(where).json()["state"] == "Abandoned"
    assert api().post(where, {}).status_code == 202
    worker = Worker.objects.create(hostname="here", pid=7)
    WorkerReach.objects.bulk_create(WorkerReach(worker=worker, store=store, ok=True) for store in ImageStore.objects.all())
    Pump(worker.pk, slots=4).run()
    rollback.advance(Rollback.objects.first())
    assert api("viewer").get(where).json()["state"] == "RolledBack"
    assert contents(api("viewer")) == before


def test_rollback_onto_a_full_export_is_refused_with_the_finding(api, cloud, monkeypatch):
    bear(cloud, "born")
    monkeypatch.setattr("stores.drivers.nfs.NFSDriver.free_bytes", lambda self: 10)
    refused = api().post(f"conversions/{cloud.conversion.uuid}/rollback", {})
    assert (refused.status_code, refused.json()["code"]) == (409, "blocked")
    assert [found["code"] for found in refused.json()["findings"]] == ["target-full"]
