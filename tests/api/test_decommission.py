"""Retiring a staging store over REST, from the refusal to the signed report and the trash."""

from __future__ import annotations

import hashlib
import json

import pytest

from migration import tasks
from migration.models import Decommission
from stores.models import ImageStore
from tests.migration.retiring import move_all, ready_to_retire, work

pytestmark = [pytest.mark.db, pytest.mark.django_db]


@pytest.fixture
def filled(region):
    region.template("web", "east", "west", hypervisor_type="KVM")
    region.volume("data", "east")
    return region


def test_refusal_tells_the_whole_list_with_counts(api, filled):
    move_all(filled)
    where = f"stores/{filled.stores['east'].uuid}/decommission"
    planned = api().post(where, {"dry_run": True})
    assert planned.status_code == 200, planned.content
    codes = {found["code"]: found["count"] for found in planned.json()["blockers"]}
    assert codes == {"uncommitted": 1, "last-staging-store": 1}
    refused = api().post(where)
    assert (refused.status_code, refused.json()["code"]) == (409, "blocked")
    assert {found["code"] for found in refused.json()["findings"]} == set(codes)
    assert not Decommission.objects.exists()
    assert api().post(where, {"sample_percent": 101}).status_code == 400


def test_from_the_request_to_the_report_and_the_trash(api, filled):
    store = ready_to_retire(filled)
    (filled.folder("east") / "notes.txt").write_bytes(b"x")
    begun = api().post(f"stores/{store.uuid}/decommission", {})
    assert begun.status_code == 202, begun.content
    assert begun.json()["state"] == "Checking"
    where = begun.headers["Location"].removeprefix("/api/v1/")
    row = Decommission.objects.get()
    work(row)
    seen = api("viewer").get(where).json()
    assert (seen["state"], seen["unknown"], seen["allowed"]) == ("Waiting", ["notes.txt"], ["Acknowledge", "LookAgain", "Cancel"])
    assert api("viewer").get(f"{where}/report").status_code == 404
    wrong = api().post(f"{where}/acknowledge", {"count": 1, "digest": "0" * 64})
    assert (wrong.status_code, wrong.json()["errors"][0]["pointer"]) == (409, "#/digest")
    assert api().post(f"{where}/acknowledge", {"count": 1, "digest": seen["unknown_digest"]}).json()["state"] == "Checking"
    work(row)
    done = api("viewer").get(where).json()
    assert (done["state"], done["totals"]["files"], done["allowed"]) == ("Retired", 2, ["DeleteFiles"])
    assert ImageStore.objects.get(pk=store.pk).state == "Removed"

    sums = api("viewer").get(f"{where}/report?form=sha256sums")
    assert hashlib.sha256(b"".join(sums.streaming_content)).hexdigest() == done["sums_sha256"]
    assert "SHA256SUMS" in sums.headers["Content-Disposition"]
    whole = json.loads(b"".join(api("viewer").get(f"{where}/report").streaming_content))
    assert whole["end"]["sha256sums_sha256"] == done["sums_sha256"]
    table = b"".join(api("viewer").get(f"{where}/report?form=csv").streaming_content)
    assert len(table.splitlines()) == 4
    assert api("viewer").get(f"{where}/report?form=pdf").status_code == 400

    assert api().post(f"{where}/delete-files", {"confirm": "yes"}).status_code == 400
    assert api().post(f"{where}/delete-files", {"confirm": "nfs-east"}).status_code == 202
    tasks.delete_retired_files(row.pk)
    assert (api("viewer").get(where).json()["state"], api("viewer").get(where).json()["files_deleted"]) == ("InTrash", 2)
    assert api().post(f"{where}/cancel").json()["allowed"] == ["Purge"]
    assert [entry["state"] for entry in api("viewer").get("decommissions").json()["results"]] == ["InTrash"]


def test_cancel_and_look_again(api, filled):
    store = ready_to_retire(filled)
    (filled.folder("east") / "notes.txt").write_bytes(b"x")
    where = api().post(f"stores/{store.uuid}/decommission").headers["Location"].removeprefix("/api/v1/")
    work(Decommission.objects.get())
    assert api().post(f"{where}/look-again").json()["state"] == "Checking"
    work(Decommission.objects.get())
    assert api().post(f"{where}/cancel").json()["state"] == "Cancelled"
    assert api("operator").post(f"{where}/cancel").status_code == 403
