"""Items as lists and files, one by one and many at once, and why each is where it is."""

from __future__ import annotations

import csv
import html
import io
import json
import re

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from stores.admin.chain import family
from stores.models import KINDS, ImageStore, ItemEvent, Kind, Template, Transfer, TransferBatch
from stores.services import items
from stores.services.reasons import _of, reasons
from stores.states import LIVE_REF_STATES, Proof, TransferState

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


def test_only_what_can_be_done_is_offered_for_the_chosen(before, sign_in):
    page = text(sign_in("storage-admin").get("/items/template/"))
    assert ("Delete the chosen…" in page, "Bring the chosen" in page) == (True, False), "there is no object store yet"
    assert 'name="item"' not in text(sign_in("operator").get("/items/template/"))


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


def test_the_page_of_an_item_tells_its_history_and_only_auditors_who_did_what(cloud, sign_in):
    address = f"/items/snapshot/{cloud.chain[0].uuid}/"
    sign_in("operator").post(f"{address}ensure/")
    page = text(sign_in("viewer").get(address))
    assert "copy planned" in page
    assert "transfer.ensure" not in page
    assert "which auditors read" in page
    page = text(sign_in("auditor").get(address))
    assert "transfer.ensure" in page
    assert "operator" in page
    ItemEvent.objects.bulk_create(
        ItemEvent(
            kind="snapshot",
            item_id=cloud.chain[0].pk,
            what=f"event {number:03}",
            at=f"2026-01-01T{number // 60:02}:{number % 60:02}Z",
        )
        for number in range(60)
    )
    first = sign_in("viewer").get(address)
    (following,) = re.findall(r'href="([^"]+)" rel="next"', first.content.decode())
    assert "event 059" in text(first)
    assert "event 000" not in text(first)
    second = text(sign_in("viewer").get(address + html.unescape(following).partition("#")[0]))
    assert "event 059" not in second
    assert "First page" in second


# --- one item --------------------------------------------------------------------------------------------------------------


def why(kind: Kind, item) -> dict[str, str]:
    return {reason.store.name: reason.words for reason in reasons(kind, item)}


def test_the_page_says_of_each_store_why_the_item_is_there_or_not(cloud, sign_in):
    page = text(sign_in("viewer").get(f"/items/template/{cloud.template.uuid}/"))
    assert "A scan found it there. Nobody has hashed it yet" in page
    assert "the object store has no more than the promise yet" in page
    assert "Its copy failed: The server said no. Ask for the right to write." in page
    full, child = cloud.chain
    told = why(Kind.SNAPSHOT, child)
    assert told["nfs-west"] == "The store serves zone west, and the item is known in east."
    assert "Its copy waits for its parent in the chain." in told["objects"]
    assert "is not running" in why(Kind.SNAPSHOT, full)["objects"]
    TransferBatch.objects.update(open=True)
    assert "Its copy waits for a worker." in why(Kind.SNAPSHOT, full)["objects"]
    late = cloud.region.volume("late", "east")
    assert why(Kind.VOLUME, late)["objects"] == "Nothing has promised it there. Bring it, or plan a drain."
    KINDS[Kind.VOLUME].ref.objects.filter(item=late).delete()
    assert "nobody asked for this" in why(Kind.VOLUME, late)["nfs-east"]


@pytest.mark.parametrize("state", sorted(LIVE_REF_STATES))
@pytest.mark.parametrize("copied", [None, *TransferState])
def test_there_is_a_sentence_for_every_state(state, copied):
    store = ImageStore(pk=1, name="objects", scope="REGION", role="Image")
    proof = Proof.ATTESTED if state in {"Ready", "Hidden"} else ""
    ref = KINDS[Kind.VOLUME].ref(store=store, state=state, proof=proof)
    copy = None if copied is None else Transfer(state=copied, error="It broke.", remedy="Mend it.")
    found = _of(store, {1: ref}, copy, {"east"})
    assert found.here == (state in {"Ready", "Hidden"})
    assert found.words.endswith(".")
    assert _of(store, {}, copy, {"east"}).words.endswith(".")


def test_a_chain_is_a_tree_as_far_as_a_page_goes(cloud, sign_in):
    client = sign_in("viewer")
    parent = cloud.chain[-1]
    for number in range(14):
        parent = cloud.region.snapshot(f"link-{number}.qcow2", "east", parent=parent)
    this = parent
    for number in range(45):
        cloud.region.snapshot(f"branch-{number}.qcow2", parent=this)
    address = f"/items/snapshot/{this.uuid}/"
    with CaptureQueriesContext(connection) as seen:
        answer = client.get(address)
    page = text(answer)
    assert len(seen) <= 30
    assert len(answer.content) < 100_000
    assert "6 between" in page
    assert "full.qcow2" in page
    assert "link-5.qcow2" in page
    assert "link-4.qcow2" not in page
    assert "branch-39.qcow2" in page
    assert "branch-40.qcow2" not in page
    assert "and more that build on these" in page
    top = [link.item.name for link in family(cloud.chain[0]) if link.item]
    assert top == ["full.qcow2", "child.qcow2", "link-0.qcow2", "link-1.qcow2", "link-2.qcow2", "link-3.qcow2"]
    levels = [link.level for link in family(cloud.chain[0])]
    assert levels == [0, 1, 2, 3, 4, 5]
