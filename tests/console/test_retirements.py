"""Retiring a staging store from the console: the list that forbids it, the question about unknown files, the report, the files."""

from __future__ import annotations

import hashlib

import pytest
from django.urls import reverse

from migration import tasks
from migration.models import Decommission
from stores.models import ImageStore
from stores.states import StoreState
from tests.console.html import Strict
from tests.migration.retiring import move_all, ready_to_retire, work

pytestmark = pytest.mark.db


@pytest.fixture
def filled(region):
    region.template("web", "east", "west", hypervisor_type="KVM")
    region.volume("data", "east")
    return region


def test_a_store_that_is_needed_shows_why_and_no_button(filled, sign_in):
    move_all(filled)
    store = filled.stores["east"]
    client = sign_in("storage-admin")
    assert "Retire…" in client.get(reverse("console:store", args=[store.uuid])).content.decode()
    where = reverse("console:retire", args=[store.uuid])
    page = client.get(where).content.decode()
    assert "the originals on nfs-east are the way back" in page
    assert "last staging store of zone east" in page
    assert "No scan of it waits or runs." in page, "what is so stands in the checklist, too"
    assert "Its zone can do without it." not in page
    objects = client.get(reverse("console:retire", args=[ImageStore.objects.get(name="objects").uuid])).content.decode()
    assert "It is a staging store in use." not in objects
    assert "No scan of it" not in objects, "nobody asked"
    assert "Read everything again" not in page
    refused = client.post(where, {"typed": "nfs-east", "sample_percent": "100"})
    assert (refused.status_code, Decommission.objects.count()) == (409, 0)


def test_from_the_question_to_the_report_and_the_trash(filled, sign_in):
    store = ready_to_retire(filled)
    (filled.folder("east") / "notes.txt").write_bytes(b"of somebody")
    client = sign_in("storage-admin")
    where = reverse("console:retire", args=[store.uuid])
    asked = " ".join(client.get(where).content.decode().split())
    assert Strict(asked).faults == []
    assert "nfs-east takes nothing new from now on, and leaves the cloud once everything on it was read again" in asked
    assert "Every copy on it is proven on a store of record." in asked
    back = client.post(where, {"typed": "nfs-east", "sample_percent": "100", "do": "back"})
    assert (back.headers["Location"], Decommission.objects.count()) == (f"/stores/{store.uuid}/", 0)
    for wrong in ({"typed": "nfs", "sample_percent": "100"}, {"typed": "nfs-east", "sample_percent": "all"}):
        assert client.post(where, wrong).status_code == 400
    begun = client.post(where, {"typed": "nfs-east", "sample_percent": "100"})
    row = Decommission.objects.get()
    here = reverse("console:retirement", args=[row.uuid])
    assert begun.headers["Location"] == here
    assert client.get(here + "?part=1").status_code == 200
    work(row)
    page = client.get(here + "?part=1")
    assert page.status_code == 286, "nothing happens any more until somebody answers"
    assert "notes.txt" in page.content.decode()
    assert row.unknown_digest in page.content.decode()
    assert "I answer for this file" in page.content.decode()
    assert "Look again" in page.content.decode()
    assert "Cancel…" in page.content.decode()
    assert "I answer for" not in sign_in("operator").get(here).content.decode()
    client.post(reverse("console:retirement_acknowledge", args=[row.uuid]), {"count": "2", "digest": row.unknown_digest})
    assert Decommission.objects.get().state == "Waiting"
    client.post(reverse("console:retirement_acknowledge", args=[row.uuid]), {"count": "1", "digest": row.unknown_digest})
    work(row)
    assert ImageStore.objects.get(pk=store.pk).state == StoreState.REMOVED
    page = " ".join(client.get(here).content.decode().split())
    assert "accepted by storage-admin" in page
    assert "Delete the files…" in page
    sums = client.get(reverse("console:retirement_report", args=[row.uuid, "sha256sums"]))
    assert hashlib.sha256(b"".join(sums.streaming_content)).hexdigest() == Decommission.objects.get().sums_sha256

    files = reverse("console:retirement_files", args=[row.uuid])
    assert Strict(client.get(files).content.decode()).faults == []
    assert client.post(files, {"confirm": "nfs-east", "do": "back"}).headers["Location"] == here
    assert Decommission.objects.get().state == "Retired"
    assert client.post(files, {"confirm": "nfs"}).status_code == 400
    assert client.post(files, {"confirm": "nfs-east"}).headers["Location"] == here
    tasks.delete_retired_files(row.pk)
    assert "in the trash folder of the export" in client.get(here).content.decode()
    check = client.get(reverse("console:verification", args=[row.verification.uuid])).content.decode()
    assert "Originals and their copies" in check
    assert here in check


def test_cancel_and_look_again(filled, sign_in):
    store = ready_to_retire(filled)
    (filled.folder("east") / "notes.txt").write_bytes(b"x")
    client = sign_in("storage-admin")
    client.post(reverse("console:retire", args=[store.uuid]), {"typed": "nfs-east", "sample_percent": "100"})
    row = Decommission.objects.get()
    work(row)
    client.post(reverse("console:retirement_look_again", args=[row.uuid]))
    assert Decommission.objects.get().state == "Checking"
    cancel = reverse("console:retirement_cancel", args=[row.uuid])
    assert cancel in client.get(reverse("console:retirement", args=[row.uuid])).content.decode()
    assert "another retirement reads everything again" in " ".join(client.get(cancel).content.decode().split())
    assert Decommission.objects.get().state == "Checking"
    client.post(cancel)
    assert Decommission.objects.get().state == "Cancelled"
    assert not ImageStore.objects.get(pk=store.pk).readonly
