"""Items over REST: listed with every store that they are on or promised on, brought there at once, uploaded, deleted everywhere."""

from __future__ import annotations

import hashlib

import pytest

from cloudstorage.models import AuditEvent
from stores.models import Account, Snapshot, Transfer, Volume
from stores.services import items
from stores.states import Proof, RefState, TransferState
from tests.factories import content, make_account, make_chain, make_promises, make_store, make_template, make_volume, make_zone

pytestmark = [pytest.mark.db, pytest.mark.django_db]


@pytest.fixture
def nfs(memory_store, tmp_path):
    return make_store("NFS", name="nfs", zone=make_zone("east"), folder=tmp_path / "export")


@pytest.fixture
def objects(nfs):
    return make_store(name="objects")


def ids(answer) -> list[str]:
    assert answer.status_code == 200, answer.content
    return [row["id"] for row in answer.json()["results"]]


def test_item_shows_its_copies_its_promise_and_that_it_can_be_read(api, nfs, objects):
    template = make_template([nfs], name="web")
    make_promises(objects)
    row = api("viewer").get("templates").json()["results"][0]
    assert row["readable"]
    assert {(ref["store"]["name"], ref["state"], ref["pending"]) for ref in row["stores"]} == {
        ("nfs", "Ready", False),
        ("objects", "Promised", True),
    }
    assert [zone["name"] for zone in row["zones"]] == ["east"]
    detail = api("viewer").get(f"templates/{template.uuid}").json()
    files = next(ref for ref in detail["stores"] if ref["store"]["name"] == "nfs")["files"]
    assert {file["path"] for file in files} == {f"{template.uuid}.qcow2", "template.properties"}
    assert {file["proof"] for file in files} == {"adopted"}


def test_chain_is_shown_from_both_ends(api, nfs):
    full, delta = make_chain([nfs], length=2)
    shown = api("viewer").get(f"snapshots/{full.uuid}").json()
    assert (shown["parent"], shown["depth"], shown["children"]) == (None, 0, [str(delta.uuid)])
    shown = api("viewer").get(f"snapshots/{delta.uuid}").json()
    assert (shown["parent"], shown["depth"], shown["children"]) == (str(full.uuid), 1, [])


def test_deleted_item_is_listed_until_it_is_purged_and_comes_back_by_name(api, nfs):
    volume = make_volume([nfs], name="data")
    assert api("storage-admin").delete(f"volumes/{volume.uuid}").status_code == 204
    items.finish_deletes()
    (row,) = api("viewer").get("volumes/deleted").json()["results"]
    assert (row["id"], row["name"]) == (str(volume.uuid), "data")
    assert row["deleted"] < row["until"]
    refused = api("operator").post(f"volumes/{volume.uuid}/undelete", {})
    assert refused.status_code == 403
    answer = api("storage-admin").post(f"volumes/{volume.uuid}/undelete", {})
    assert answer.status_code == 200
    assert [(ref["store"]["name"], ref["state"], ref["proof"]) for ref in answer.json()["stores"]] == [
        ("nfs", "Ready", "adopted")
    ]
    assert api("viewer").get("volumes/deleted").json()["results"] == []
    again = api("storage-admin").post(f"volumes/{volume.uuid}/undelete", {})
    assert (again.status_code, again.json()["code"]) == (409, "conflict")
    assert api("storage-admin").post(f"volumes/{nfs.uuid}/undelete", {}).status_code == 404
    done = AuditEvent.objects.filter(action="volume.undelete", outcome="done")
    assert [event.target for event in done] == [f"volume:{volume.uuid}"]


def test_lists_are_filtered(api, nfs, objects):
    first, second = make_volume([nfs], name="alpha"), make_volume([objects], name="beta")
    full, delta = make_chain([nfs], length=2)
    client = api("viewer")
    assert ids(client.get("volumes?name=ALPH")) == [str(first.uuid)]
    assert ids(client.get(f"volumes?store={objects.uuid}")) == [str(second.uuid)]
    assert ids(client.get(f"volumes?store={objects.uuid}&state=Ready")) == [str(second.uuid)]
    assert ids(client.get(f"volumes?store={objects.uuid}&state=Promised")) == []
    assert ids(client.get(f"volumes?upstream_id={first.upstream_id}")) == [str(first.uuid)]
    assert ids(client.get(f"volumes?account={Account.objects.get().uuid}")) == [str(first.uuid), str(second.uuid)]
    assert ids(client.get("snapshots?full=true")) == [str(full.uuid)]
    assert ids(client.get(f"snapshots?parent={full.uuid}")) == [str(delta.uuid)]
    make_promises(objects)
    assert ids(client.get("volumes?pending=true")) == [str(first.uuid)]
    assert ids(client.get("volumes?pending=false")) == [str(second.uuid)]
    template = make_template([nfs])
    assert ids(client.get(f"templates?zone={nfs.zone.uuid}")) == [str(template.uuid)]
    assert ids(client.get(f"templates?zone={make_zone().uuid}")) == []


def test_item_is_asked_for_at_once_with_its_chain(api, nfs, objects):
    _full, delta = make_chain([nfs], length=2)
    make_promises(objects)
    answer = api("operator").post(f"snapshots/{delta.uuid}/ensure", {})
    assert answer.status_code == 202
    transfer = api("viewer").get(answer.headers["Location"].removeprefix("/api/v1/")).json()
    assert (transfer["state"], transfer["on_demand"], transfer["item"]["id"]) == ("Blocked", True, str(delta.uuid))
    parent = api("viewer").get(f"transfers/{transfer['parent']}").json()
    assert (parent["state"], parent["target"]["name"]) == ("Queued", "objects")
    assert ids(api("viewer").get(f"transfers?item={delta.uuid}")) == [transfer["id"]]


def test_item_that_is_there_already_needs_nothing(api, objects):
    volume = make_volume([objects], proof=Proof.VERIFIED)
    assert api("operator").post(f"volumes/{volume.uuid}/ensure", {"store": str(objects.uuid)}).status_code == 204
    assert not Transfer.objects.exists()
    assert api("operator").post(f"volumes/{volume.uuid}/ensure", {"store": str(volume.uuid)}).status_code == 404


def test_failed_transfer_is_tried_again_and_another_is_not(api, nfs, objects):
    volume = make_volume([nfs])
    make_promises(objects)
    row = Transfer.objects.get(
        uuid=api("operator").post(f"volumes/{volume.uuid}/ensure", {}).headers["Location"].rpartition("/")[2]
    )
    refused = api("operator").post(f"transfers/{row.uuid}/retry")
    assert (refused.status_code, refused.json()["allowed"]) == (409, ["Claim", "Cancel"])
    Transfer.objects.filter(pk=row.pk).update(state=TransferState.FAILED, error="no space", error_cause="full")
    assert ids(api("viewer").get("transfers?error_cause=full&state=Failed")) == [str(row.uuid)]
    answer = api("operator").post(f"transfers/{row.uuid}/retry")
    assert (answer.status_code, answer.json()["state"], answer.json()["error"]) == (202, "Queued", "")


def test_failed_transfer_that_is_not_needed_any_more_is_shown_cancelled(api, nfs, objects):
    volume = make_volume([nfs])
    make_promises(objects)
    made = api("operator").post(f"volumes/{volume.uuid}/ensure", {}).headers["Location"].rpartition("/")[2]
    Transfer.objects.update(state=TransferState.FAILED, error="no space", error_cause="full")
    volume.refs.filter(store=objects).update(state=RefState.DESTROYING)
    answer = api("operator").post(f"transfers/{made}/retry")
    assert (answer.status_code, answer.json()["state"]) == (200, "Cancelled")


def test_item_is_deleted_everywhere_and_a_parent_is_kept_for_its_children(api, nfs):
    full, delta = make_chain([nfs], length=2)
    assert api().delete(f"snapshots/{full.uuid}").status_code == 204
    assert ids(api().get("snapshots")) == [str(delta.uuid)]
    assert full.refs.get().state == RefState.HIDDEN
    assert api().delete(f"snapshots/{full.uuid}").status_code == 404
    assert api().delete(f"snapshots/{delta.uuid}").status_code == 204
    assert ids(api().get("snapshots")) == []
    assert {ref.state for item in Snapshot.objects.all() for ref in item.refs.all()} == {RefState.DESTROYING}


# --- upload ----------------------------------------------------------------------------------------------------------


def upload(client, kind: str, body: bytes, query: str, **more):
    return client.send("POST", f"{kind}?{query}", data=body, content_type="application/octet-stream", **more)


def test_uploaded_image_is_an_item_that_reads_back(api, nfs):
    account = make_account()
    body = content("raw image", 70_000)
    digest = hashlib.sha256(body).hexdigest()
    query = f"name=disk&filename=disk.raw&account={account.uuid}&zone={nfs.zone.uuid}&sha256={digest}"
    answer = upload(api("operator"), "volumes", body, query)
    assert answer.status_code == 201, answer.content
    made = answer.json()
    assert (made["name"], made["stores"][0]["state"], made["stores"][0]["sha256"]) == ("disk", "Ready", digest)
    found = api("viewer").get(f"{answer.headers['Location'].removeprefix('/api/v1/')}/content?path=disk.raw")
    assert b"".join(found.streaming_content) == body


@pytest.mark.parametrize(
    ("query", "pointer", "status"),
    [
        ("filename=d.raw&account={account}", "#/name", 400),
        ("name=d&filename=../d.raw&account={account}", "#/filename", 400),
        ("name=d&filename=d.raw&account={zone}", "#/account", 400),
        ("name=d&filename=d.raw&account={account}&zone={account}", "#/zone", 404),
        ("name=d&filename=d.raw&account={account}&sha256=abc", "#/sha256", 400),
        ("name=d&filename=d.raw&account={account}&colour=red", "#/colour", 400),
        ("name=d&filename=d.raw&account={account}&parent={account}", "#/parent", 404),
    ],
)
def test_upload_is_refused_and_nothing_made_when_a_parameter_is_wrong(api, nfs, query, pointer, status):
    account = make_account()
    asked = query.format(account=account.uuid, zone=nfs.zone.uuid)
    asked += "" if "zone=" in asked else f"&zone={nfs.zone.uuid}"
    answer = upload(api("operator"), "volumes", b"x" * 512, asked)
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (status, pointer)
    assert not Volume.objects.exists()


def test_upload_of_other_bytes_than_announced_leaves_no_item(api, nfs):
    account = make_account()
    query = f"name=disk&filename=disk.raw&account={account.uuid}&zone={nfs.zone.uuid}&sha256={'0' * 64}"
    answer = upload(api("operator"), "volumes", b"x" * 512, query)
    assert answer.status_code in {400, 409, 503}, answer.content
    assert ids(api("viewer").get("volumes")) == []


def test_upload_must_be_octets_of_a_known_length(api, nfs):
    account = make_account()
    query = f"name=disk&filename=disk.raw&account={account.uuid}&zone={nfs.zone.uuid}"
    client = api("operator")
    assert client.send("POST", f"volumes?{query}", {"a": 1}).status_code == 415
    assert upload(client, "volumes", b"x", query, CONTENT_LENGTH="").status_code == 411
    assert upload(client, "volumes", b"x", query, CONTENT_LENGTH="²").status_code == 411
    assert not Volume.objects.exists()
