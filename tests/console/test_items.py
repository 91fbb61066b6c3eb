"""Items as lists and files, one by one and many at once, and why each is where it is."""

from __future__ import annotations

import csv
import html
import io
import json

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from stores.models import KINDS, Kind, Template, Transfer
from stores.services import items
from stores.states import TransferState

pytestmark = pytest.mark.db


def text(answer) -> str:
    return " ".join(html.unescape(answer.content.decode()).split())


def sent(answer) -> str:
    return b"".join(answer.streaming_content).decode()


# --- as files --------------------------------------------------------------------------------------------------------------


def test_the_filtered_list_is_exported_with_every_copy(cloud, sign_in):
    nowhere = Template.objects.create(name="=evil()", account=cloud.template.account, unique_name="evil", format="ISO")
    client = sign_in("viewer")
    answer = client.get("/items/template/?format=csv")
    assert answer.headers["Content-Disposition"] == 'attachment; filename="templates.csv"'
    rows = list(csv.DictReader(io.StringIO(sent(answer))))
    copies = {(row["name"], row["store"], row["state"]) for row in rows}
    assert copies == {("debian", store, "Ready") for store in ("nfs-east", "nfs-west")} | {
        ("debian", "objects", "Promised"),
        ("'=evil()", "", ""),
    }
    found = json.loads(sent(client.get("/items/template/?format=json&store=nfs-east&q=deb")))
    assert {row["id"] for row in found} == {str(cloud.template.uuid)} != {str(nowhere.uuid)}
    assert {row["proof"] for row in found} == {"adopted", ""}
    assert json.loads(sent(client.get("/items/template/?format=json&q=nothing-like-it"))) == []
    assert "format=csv" in text(client.get("/items/template/?store=nfs-east"))


def test_an_export_costs_the_same_queries_whatever_its_length(cloud, sign_in):
    client = sign_in("storage-admin", "auditor")
    urls = ["/items/template/?format=csv", "/audit/?format=json", "/transfers/?format=csv"]

    def costs() -> list[int]:
        found = []
        for url in urls:
            with CaptureQueriesContext(connection) as seen:
                assert sent(client.get(url))
            found.append(len(seen))
        return found

    few = costs()
    Template.objects.bulk_create(
        Template(name=f"many-{number}", account=cloud.template.account, upstream_id=5000 + number) for number in range(2500)
    )
    assert costs() == few
    assert max(few) < 10
    assert sent(client.get("/items/template/?format=csv")).count("\n") > 2500


# --- many at once ----------------------------------------------------------------------------------------------------------


def test_chosen_items_are_deleted_when_it_is_said_twice_and_each_has_its_result(cloud, sign_in):
    spare = cloud.region.template("spare", "east")
    client = sign_in("storage-admin")
    held = cloud.template
    both = {"item": [str(held.uuid), str(spare.uuid), "nonsense"]}
    asked = text(client.post("/items/template/chosen/delete/", both))
    assert "Delete 2 templates?" in asked
    assert Template.objects.filter(removed=None).count() == 2
    items.delete_item(actor=cloud.admin, kind=Kind.TEMPLATE, item=held)
    shown = text(client.post("/items/template/chosen/delete/", both | {"sure": "yes"}))
    assert "It is deleted; a worker removes its bytes." in shown
    assert "The template debian is deleted already. Nothing to do." in shown
    states = KINDS[Kind.TEMPLATE].ref.objects.filter(item=spare).values_list("state", flat=True)
    assert set(states) == {"Destroying"}


def test_chosen_items_are_brought_and_a_refusal_keeps_no_other_from_it(cloud, sign_in):
    client = sign_in("operator")
    full, gone = cloud.chain[0], cloud.region.snapshot("gone.qcow2", "east", state="Failed")
    shown = text(client.post("/items/snapshot/chosen/ensure/", {"item": [str(gone.uuid), str(full.uuid)]}))
    assert shown.count("It is on its way, ahead of the background.") == shown.count("refused") == 1
    assert Transfer.objects.filter(kind="snapshot", item_id=full.pk, priority=0).exists()
    assert client.post("/items/snapshot/chosen/delete/", {"item": [str(full.uuid)]}).status_code == 403
    nothing = client.post("/items/snapshot/chosen/ensure/", {}, follow=True)
    assert "No snapshot was chosen." in text(nothing)


def test_failed_transfers_are_tried_again_and_each_has_its_result(cloud, sign_in):
    client = sign_in("operator")
    failed = Transfer.objects.get(kind="template")
    queued = Transfer.objects.filter(kind="snapshot", parent=None).get()
    assert f'value="{failed.pk}"' in client.get("/transfers/").content.decode()
    assert f'value="{failed.pk}"' not in sign_in("viewer").get("/transfers/").content.decode()
    chosen = {"transfer": [str(failed.pk), str(queued.pk), "x"]}
    shown = text(sign_in("operator").post("/transfers/retry/", chosen))
    assert "which is not running: resume it" in shown
    assert "It was Queued; only a failed one is tried again." in shown
    failed.refresh_from_db()
    assert (failed.state, failed.error) == (TransferState.QUEUED, "")
    cloud.drain.batch.__class__.objects.update(open=True)
    Transfer.objects.filter(pk=failed.pk).update(state=TransferState.FAILED)
    assert "It is in the queue again." in text(client.post("/transfers/retry/", chosen))
