"""Stores over REST: tried out, added, changed, scanned and removed by the services, with nothing secret in any answer."""

from __future__ import annotations

import pytest

from cloudstorage.models import AuditEvent
from stores.models import ImageStore, Worker, WorkerReach
from stores.services import image_stores, scan
from tests.factories import content, make_store, make_volume, make_worker, make_zone

pytestmark = [pytest.mark.db, pytest.mark.django_db]

PLACE = {"provider": "Memory", "url": "memory://objects", "details": {"password": "hunter2"}}


@pytest.fixture
def store(api, memory_store):
    memory_store.password = "hunter2"
    made = api().post("stores", {**PLACE, "name": "objects"})
    assert made.status_code == 201, made.content
    assert made.headers["Location"] == f"/api/v1/stores/{made.json()['id']}"
    return made.json()


def test_providers_tell_their_options_and_which_are_secret(api):
    found = {entry["name"]: entry for entry in api("viewer").get("providers").json()}
    assert {"NFS", "S3", "Swift"} <= set(found)
    options = {option["name"]: option for option in found["S3"]["options"]}
    assert options["secretkey"]["secret"]
    assert not options["bucket"]["secret"]
    assert options["bucket"]["required"]
    assert found["NFS"]["scope"] == "ZONE"


def test_place_is_tried_out_and_nothing_is_saved(api, memory_store):
    memory_store.password = "hunter2"
    answer = api().post("stores/test", PLACE)
    assert answer.status_code == 200
    assert answer.json()["usable"]
    wrong = api().post("stores/test", {**PLACE, "details": {"password": "x"}}).json()
    assert not wrong["usable"]
    assert [step["name"] for step in wrong["steps"] if step["status"] == "blocker"] == ["reach"]
    assert not ImageStore.objects.exists()
    assert memory_store.marker is None


def test_store_is_added_with_its_probe_and_without_its_secrets(api, store):
    assert store["details"] == {"password": ""}
    assert store["secrets_set"] == ["password"]
    assert {step["name"] for step in store["steps"]} >= {"reach", "multipart"}
    assert (store["role"], store["state"], store["allowed"]) == ("Image", "Attached", ["Detach", "Remove"])
    assert api("viewer").get("stores").json()["results"][0]["name"] == "objects"
    assert AuditEvent.objects.get(action="store.add").actor.startswith("storage-admin (token cs_")


def test_zone_of_an_export_is_named_by_its_id(api, memory_store, tmp_path):
    zone = make_zone("east")
    given = {"provider": "NFS", "url": f"nfs://localhost{tmp_path}", "zone": str(zone.uuid)}
    made = api().post("stores", given).json()
    assert made["zone"] == {"id": str(zone.uuid), "name": "east"}
    missing = api().post("stores", given | {"zone": store_id(made)})
    assert (missing.status_code, missing.json()["errors"][0]["pointer"]) == (404, "#/zone")


def store_id(store) -> str:
    return store["id"]


def test_store_is_changed_by_what_is_given_and_keeps_its_secret(api, store):
    changed = api().patch(f"stores/{store['id']}", {"name": "bucket", "read_limit": 1000, "details": {"password": ""}})
    assert changed.status_code == 200, changed.content
    assert (changed.json()["name"], changed.json()["read_limit"]) == ("bucket", 1000)
    row = ImageStore.objects.get()
    assert image_stores.details_of(row, reveal=True) == {"password": "hunter2"}
    assert api().patch(f"stores/{store['id']}", {"read_limit": None}).json()["read_limit"] is None
    refused = api().patch(f"stores/{store['id']}", {"read_limit": 0})
    assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (400, "#/read_limit")


def test_store_without_a_url_still_says_where_it_is(api, store):
    row = ImageStore.objects.get()
    assert row.place == image_stores.driver_for(row).display_url
    ImageStore.objects.update(place="outdated")
    changed = api().patch(f"stores/{store['id']}", {"details": {"password": "hunter2"}})
    assert changed.json()["place"] == row.place


def test_store_is_probed_again(api, store, memory_store):
    assert api("operator").post(f"stores/{store['id']}/probe").json()["usable"]
    memory_store.password = "changed"
    assert not api("operator").post(f"stores/{store['id']}/probe").json()["usable"]
    steps = api("viewer").get(f"stores/{store['id']}").json()["steps"]
    assert [step["status"] for step in steps if step["name"] == "reach"] == ["blocker"]


def test_store_is_removed_when_nothing_is_on_it_and_stays_in_the_list_of_former_ones(api, store):
    row = ImageStore.objects.get()
    volume = make_volume([row])
    refused = api().delete(f"stores/{store['id']}")
    assert (refused.status_code, refused.json()["code"]) == (409, "conflict")
    volume.refs.all().delete()
    assert api().delete(f"stores/{store['id']}").status_code == 204
    assert api().get("stores").json()["results"] == []
    assert api().get("stores?state=Removed").json()["results"][0]["id"] == store["id"]
    assert api().delete(f"stores/{store['id']}").status_code == 409


def test_export_is_scanned_and_its_report_kept(api, memory_store, tmp_path):
    nfs = make_store("NFS", zone=make_zone("east"), folder=tmp_path / "export")
    where = tmp_path / "export/volumes/2/7"
    where.mkdir(parents=True)
    (where / "disk.raw").write_bytes(content("disk", 4096))
    asked = api("operator").post(f"stores/{nfs.uuid}/scan", {"catalogue": {}})
    assert (asked.status_code, asked.json()["state"]) == (202, "Queued"), asked.content
    address = asked.headers["Location"].removeprefix("/api/v1/")
    assert api("operator").post(f"stores/{nfs.uuid}/scan", {}).status_code == 409
    for run in scan.take_waiting(make_worker(nfs).pk, limit=5):
        scan.perform(run)
    ended = api("viewer").get(address).json()
    assert (ended["state"], ended["files"], ended["report"]["found"]) == ("Finished", 1, {"volume": 1})
    assert api("viewer").get(f"stores/{nfs.uuid}/scan-report").json() == ended["report"]
    assert api("operator").post(f"{address}/cancel").status_code == 409
    again = api("operator").post(f"stores/{nfs.uuid}/scan", {}).json()
    assert api("operator").post(f"scans/{again['id']}/cancel").json()["state"] == "Cancelled"
    assert [found["state"] for found in api("viewer").get("scans").json()["results"]] == ["Cancelled", "Finished"]
    assert [item["upstream_id"] for item in api("viewer").get("volumes").json()["results"]] == [7]
    bad = api("operator").post(f"stores/{nfs.uuid}/scan", {"catalogue": {"colour": "red"}})
    assert bad.status_code == 400


def test_counts_and_reach_are_shown(api, store):
    row = ImageStore.objects.get()
    make_volume([row], size=500)
    worker = Worker.objects.create(hostname="host", pid=1)
    WorkerReach.objects.create(worker=worker, store=row, ok=False, error="no route")
    found = api("viewer").get(f"stores/{store['id']}").json()
    assert (found["volumes"], found["item_bytes"], found["pending"]) == (1, 500, 0)
    assert found["reach"][0]["error"] == "no route"
    assert api("viewer").get("workers").json()["results"][0]["reach"][0]["name"] == "objects"


def test_lists_are_filtered(api, store):
    assert len(api().get("stores?provider=memory&role=Image").json()["results"]) == 1
    assert api().get("stores?provider=NFS").json()["results"] == []
    assert api().get("stores?role=ImageCache").json()["results"] == []
