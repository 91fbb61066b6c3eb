"""The whole job over REST: preflight, convert, plan, start, watch, limit, verify; every item readable and equal meanwhile."""

from __future__ import annotations

import hashlib
from datetime import datetime, timedelta

import pytest
from django.utils import timezone

from cloudstorage import queue
from cloudstorage.models import AuditEvent
from migration import drain
from migration.models import Conversion, Drain, Preflight, Verification
from stores.models import ImageStore, Transfer, Worker, WorkerReach
from stores.states import Role, TransferState
from stores.worker import Pump

pytestmark = [pytest.mark.db, pytest.mark.django_db]


@pytest.fixture
def filled(region):
    region.template("web", "east", "west")
    full = region.snapshot("full", "west")
    region.snapshot("delta", "west", parent=full)
    region.volume("data", "east")
    return region


def run(row: Drain) -> None:
    worker = Worker.objects.create(hostname="here", pid=7)
    WorkerReach.objects.bulk_create(WorkerReach(worker=worker, store=store, ok=True) for store in ImageStore.objects.all())
    for _ in range(10):
        Pump(worker.pk, slots=4).run()
        row.refresh_from_db()
        drain.advance(row)


def contents(client) -> dict[str, str]:
    """Item -> SHA-256 of what REST gives for it."""
    found = {}
    for kind in ("templates", "snapshots", "volumes"):
        for row in client.get(kind).json()["results"]:
            answer = client.get(f"{kind}/{row['id']}/content")
            assert answer.status_code == 200, answer.content
            found[row["name"]] = hashlib.sha256(b"".join(answer.streaming_content)).hexdigest()
    return found


@pytest.mark.django_db(transaction=True)  # a worker looks at the database's clock, which stands still in a transaction
def test_region_moves_while_every_item_reads_the_same(api, filled, target):
    admin, operator, viewer = api("storage-admin"), api("operator"), api("viewer")
    before = contents(viewer)
    assert set(before) == {"web", "full", "delta", "data"}

    report = admin.post("preflights", {**target, "wait": True})
    assert report.status_code == 201, report.content
    assert report.json()["blockers"] == 0
    assert {zone["zone"] for zone in report.json()["report"]["zones"]} == {"east", "west"}
    plan = admin.post("conversions", {"preflight": report.json()["id"], "dry_run": True})
    assert plan.status_code == 200, plan.content
    assert plan.json()["promised"] == {"template": 1, "snapshot": 2, "volume": 1}
    assert not Conversion.objects.exists()

    made = admin.post("conversions", {"preflight": report.json()["id"]})
    assert made.status_code == 201, made.content
    assert made.json()["object_store"]["name"] == "objects"
    assert made.json()["allowed"] == ["Commit", "StartRollback"]
    assert {entry["former_role"] for entry in made.json()["stores"]} == {"Image"}
    assert viewer.get(made.headers["Location"].removeprefix("/api/v1/")).json()["id"] == made.json()["id"]
    assert {store["role"] for store in viewer.get("stores").json()["results"]} == {"Image", "ImageCache"}
    assert contents(viewer) == before

    planned = operator.post("drains", {"canary_items": 1})
    assert planned.status_code == 201, planned.content
    assert planned.json()["allowed_actions"] == ["Start", "Cancel"]
    assert planned.json()["progress"]["items"]["total"] == 4
    where = f"drains/{planned.json()['id']}"
    limited = operator.patch(f"{where}/limits", {"concurrency": 3, "bandwidth": 10_000_000})
    assert (limited.json()["concurrency"], limited.json()["bandwidth"]) == (3, 10_000_000)
    assert operator.patch(f"{where}/limits", {"bandwidth": None}).json()["bandwidth"] is None
    assert operator.post(f"{where}/start").json()["state"] == "Canary"
    assert operator.post(f"{where}/pause").json()["state"] == "Paused"
    assert operator.post(f"{where}/resume").json()["state"] == "Canary"
    run(Drain.objects.get())

    done = viewer.get(where).json()
    assert (done["state"], done["progress"]["percent"]) == ("Finished", 100.0)
    size = done["progress"]["bytes"]
    assert size["proven"] == size["total"] > 0 == size["copied"] == size["remaining"]
    assert viewer.get(f"{where}/history").json()[-1]["bytes_proven"] == size["total"]
    assert viewer.get(f"{where}/errors").json() == []
    assert contents(viewer) == before
    assert viewer.get("templates?pending=true").json()["results"] == []
    transfers = viewer.get(f"transfers?batch={done['batch']}&state=Proven").json()["results"]
    assert sorted(row["item"]["name"] for row in transfers) == ["data", "delta", "full", "web"]


def test_preflight_is_queued_and_found_under_its_address_unless_waited_for(api, filled, target, monkeypatch):
    rung = []
    monkeypatch.setattr(queue, "wake", lambda task, number=0: rung.append((task, number)))
    answer = api().post("preflights", target)
    assert (answer.status_code, answer.json()["finished"]) == (202, None)
    row = Preflight.objects.get()
    assert answer.headers["Location"] == f"/api/v1/preflights/{row.uuid}"
    assert answer.headers["Retry-After"]
    assert [number for _, number in rung] == [row.pk]
    assert api("viewer").get(f"preflights/{row.uuid}").json()["report"] == {}
    early = api().post("conversions", {"preflight": str(row.uuid)})
    assert (early.status_code, early.json()["errors"][0]["pointer"]) == (409, "#/preflight")
    other = api().post("conversions", {"preflight": str(row.uuid), "url": "memory://others"})
    assert (other.status_code, other.json()["errors"][0]["pointer"]) == (400, "#/url")


@pytest.mark.parametrize(
    ("changes", "status", "pointer"),
    [
        ({"provider": "Ceph"}, 400, "#/provider"),
        ({"provider": "NFS"}, 400, "#/zone"),
        ({"url": "objects"}, 400, "#/url"),
        ({"details": {"colour": "red"}}, 400, "#/details/colour"),
        ({"name": "nfs-east"}, 409, "#/name"),
        ({}, 409, "#/preflight"),
        ({"preflight": "00000000-0000-0000-0000-000000000001"}, 404, "#/preflight"),
    ],
)
def test_conversion_is_refused_naming_field_and_remedy_and_nothing_changes(api, filled, target, changes, status, pointer):
    answer = api().post("conversions", {**target, **changes})
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (status, pointer), answer.content
    assert answer.json()["remedy"]
    assert not Conversion.objects.exists()
    assert set(ImageStore.objects.values_list("role", flat=True)) == {Role.IMAGE}


def test_region_is_converted_without_a_preflight_when_that_is_accepted(api, filled, target):
    refused = api().post("conversions", target)
    assert [finding["code"] for finding in refused.json()["findings"]] == ["preflight-absent"]
    assert api().post("conversions", {**target, "override": ["preflight-absent"]}).status_code == 201
    again = api().post("conversions", {**target, "name": "second", "url": "memory://second"})
    assert again.status_code == 409
    assert "still Converted" in again.json()["detail"]


def test_drain_is_refused_when_nothing_is_converted(api, filled):
    answer = api("operator").post("drains", {})
    assert (answer.status_code, "Convert it first" in answer.json()["remedy"]) == (409, True)
    missing = api("operator").post("drains", {"conversion": "00000000-0000-0000-0000-000000000001"})
    assert (missing.status_code, missing.json()["errors"][0]["pointer"]) == (404, "#/conversion")


@pytest.mark.parametrize(
    ("limits", "pointer"),
    [({"concurrency": 0}, "#/concurrency"), ({"bandwidth": 0}, "#/bandwidth"), ({"window": "late"}, "#/window"),
     ({"read_limits": {"00000000-0000-0000-0000-000000000001": 5}}, "#/read_limits"), ({"colour": "red"}, "#/colour")],
)  # fmt: skip
def test_limit_is_refused_naming_it_and_the_others_stay(api, cloud, limits, pointer):
    answer = api("operator").patch(f"drains/{cloud.drain.uuid}/limits", {"concurrency": 2, **limits})
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (400, pointer)
    assert api("viewer").get(f"drains/{cloud.drain.uuid}").json()["concurrency"] == 8


def test_windows_have_their_zone_and_tell_when_they_open(api, cloud):
    another_day = (timezone.now() + timedelta(days=3)).strftime("%a")
    limits = {"window": f"{another_day} 00:00-24:00", "time_zone": "Asia/Kathmandu"}
    found = api("operator").patch(f"drains/{cloud.drain.uuid}/limits", limits).json()
    assert {name: found[name] for name in limits} == limits
    window = found["progress"]["window"]
    assert window["words"] == f"{another_day} 00:00-24:00 (Asia/Kathmandu)"
    assert datetime.fromisoformat(window["opens"]) > timezone.now()
    assert window["when"].startswith(f"{another_day} ")
    given_none = api("operator").patch(f"drains/{cloud.drain.uuid}/limits", {"window": "00:00-24:00", "time_zone": ""}).json()
    assert (given_none["time_zone"], given_none["progress"]["window"]["opens"]) == ("UTC", None)


def test_failures_are_grouped_and_tried_again(api, cloud):
    Transfer.objects.update(state=TransferState.FAILED, error="no space", error_cause="full", remedy="Add space.")
    Drain.objects.update(state="Paused")
    errors = api("viewer").get(f"drains/{cloud.drain.uuid}/errors").json()
    assert errors == [{"cause": "full", "count": 4, "failed": True, "example": "no space", "remedy": "Add space."}]
    assert api("operator").post(f"drains/{cloud.drain.uuid}/retry").json() == {"count": 4}
    assert not Transfer.objects.filter(state=TransferState.FAILED).exists()


def test_failures_of_a_cause_are_tried_again_with_what_failed_behind_them_and_a_second_time_does_nothing(api, cloud):
    full, delta = (Transfer.objects.get(kind="snapshot", item_id=item.pk) for item in (cloud.full, cloud.delta))
    Transfer.objects.update(state=TransferState.FAILED, error="no space", error_cause="full")
    Transfer.objects.filter(pk=full.pk).update(error_cause="access-denied")
    Transfer.objects.filter(pk=delta.pk).update(error_cause="parent-failed")
    Drain.objects.update(state="Finished")
    where = f"drains/{cloud.drain.uuid}/retry"
    assert api("viewer").post(where, {"causes": ["access-denied"]}).status_code == 403
    assert api("operator").post(where, {"cause": "access-denied"}).status_code == 400
    assert api("operator").post(where, {"causes": ["acess-denied"]}).json() == {"count": 0}
    assert Drain.objects.get().state == "Finished"
    assert api("operator").post(where, {"causes": ["access-denied"]}).json() == {"count": 2}
    assert dict(Transfer.objects.values_list("item_id", "state").filter(kind="snapshot")) == {
        full.item_id: TransferState.QUEUED,
        delta.item_id: TransferState.BLOCKED,
    }
    assert Transfer.objects.filter(state=TransferState.FAILED).count() == 2
    assert api("operator").post(where, {"causes": ["access-denied"]}).json() == {"count": 0}
    trail = AuditEvent.objects.filter(action="drain.retry", actor__startswith="operator", outcome="done").order_by("id")
    assert [(row.details["count"], row.details["causes"]) for row in trail][1:] == [
        (2, ["access-denied"]),
        (0, ["access-denied"]),
    ]


def test_drain_is_cancelled_and_another_planned(api, cloud):
    assert api("operator").post("drains", {}).status_code == 409
    assert api("operator").post(f"drains/{cloud.drain.uuid}/cancel").json()["state"] == "Cancelled"
    assert api("operator").post("drains", {}).status_code == 201
    assert len(api("viewer").get("drains").json()["results"]) == 2


def test_verification_is_queued_and_shows_what_it_found(api, cloud):
    store = cloud.conversion.object_store
    answer = api("operator").post(f"stores/{store.uuid}/verify", {"sample_percent": 50, "mode": "listing"})
    assert answer.status_code == 202
    where = answer.headers["Location"].removeprefix("/api/v1/")
    assert (answer.json()["state"], answer.json()["mode"]) == ("Queued", "listing")
    Verification.objects.filter(uuid=answer.json()["id"]).update(findings=[{"path": "a", "problem": "missing"}], findings_count=1)
    assert api("viewer").get(where).json()["findings"] == [{"path": "a", "problem": "missing"}]
    assert len(api("viewer").get("verifications").json()["results"]) == 2
    wrong = api("operator").post(f"stores/{store.uuid}/verify", {"sample_percent": 0})
    assert (wrong.status_code, wrong.json()["errors"][0]["pointer"]) == (400, "#/sample_percent")
