"""The job through the console: stores, wizard, drain, items, people; what a service refuses is said at its field."""

from __future__ import annotations

import html
import io
import json
import re
import shlex
import uuid
from datetime import timedelta

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group
from django.core.management import call_command
from django.db import connection, transaction
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from cloudstorage.actors import Actor, ActorRole
from cloudstorage.models import ApiToken, AuditEvent
from cloudstorage.people import create_token
from migration import tasks
from migration.findings import fingerprint, known_findings, nfs_stores
from migration.models import Conversion, Draft, Drain, Preflight, Verification
from migration.preflight import run_preflight
from migration.rules import LIMITS
from migration.states import DrainState
from stores.models import ImageStore, ScanRun, Template, Transfer, WorkerReach, Zone
from stores.services import image_stores, items, scan
from stores.states import RefState, Role, ScanState, TransferState
from tests.console.conftest import CANARY
from tests.console.html import Strict
from tests.factories import make_store, make_worker, make_zone
from tests.migration.region import age_preflight

pytestmark = pytest.mark.db


def text(answer) -> str:
    return html.unescape(answer.content.decode())


def test_an_empty_cloud_is_told_its_first_steps_one_by_one(sign_in, settings, tmp_path):
    settings.ALLOW_PLAIN_EXPORTS = True
    client = sign_in("storage-admin")
    assert "Next: Add a zone" in text(client.get("/"))
    client.post("/zones/add/", {"name": "east"})
    assert "Next: Add the NFS store" in text(client.get("/"))
    zone = Zone.objects.get(name="east")
    (tmp_path / "export").mkdir()
    form = {"provider": "NFS", "name": "nfs", "url": f"nfs://localhost{tmp_path}/export", "zone": str(zone.uuid), "role": "Image"}
    added = client.post("/stores/add/", form | {"do": "save"}, follow=True)
    assert "nfs was added" in text(added)
    assert "Next: Start a worker" in text(client.get("/"))
    store = ImageStore.objects.get(name="nfs")
    worker = make_worker(store)
    assert "Next: Scan nfs" in text(client.get("/"))
    page = text(client.post(f"/stores/{store.uuid}/scan/", follow=True))
    assert "A worker takes it up within seconds" in page
    (run,) = scan.take_waiting(worker.pk, limit=1)
    scan.perform(run)
    assert "No drift then: rows and store agreed" in text(client.get(f"/scans/{run.uuid}/"))
    assert "Next: Move to an object store" in text(client.get("/"))


def test_a_scan_is_watched_cancelled_and_refused_twice(cloud, sign_in):
    client = sign_in("operator")
    WorkerReach.objects.all().delete()
    part = client.get(f"/scans/{cloud.scan.uuid}/?part=1")
    assert (part.status_code, "No running worker reaches the store" in text(part)) == (200, True)
    assert "waits for a worker" in text(client.get(f"/stores/{cloud.nfs.uuid}/"))
    assert "waits for a worker" in text(client.post(f"/stores/{cloud.nfs.uuid}/scan/", follow=True))
    ScanRun.objects.update(state=ScanState.RUNNING, files=1234, token=uuid.uuid4())
    assert "1\u202f234" in text(client.get(f"/scans/{cloud.scan.uuid}/"))
    assert "Cancel the scan" in text(client.get(f"/scans/{cloud.scan.uuid}/?part=1"))
    assert "Cancel the scan" not in text(sign_in("viewer").get(f"/scans/{cloud.scan.uuid}/?part=1"))
    assert "was cancelled" in text(client.post(f"/scans/{cloud.scan.uuid}/cancel/", follow=True))
    ended = client.get(f"/scans/{cloud.scan.uuid}/?part=1")
    assert (ended.status_code, "Cancel the scan" in text(ended)) == (286, False)
    again = client.post(f"/scans/{cloud.scan.uuid}/cancel/", follow=True)
    assert "so it cannot be cancelled" in text(again)
    assert "Scan now" in text(client.get(f"/stores/{cloud.nfs.uuid}/"))


def test_a_store_is_tested_before_it_is_saved(sign_in, settings, tmp_path):
    settings.ALLOW_PLAIN_EXPORTS = True
    client = sign_in("storage-admin")
    zone = Zone.objects.create(name="east")
    form = {"provider": "NFS", "name": "nfs", "url": f"nfs://localhost{tmp_path}", "zone": str(zone.uuid), "role": "ImageCache"}
    page = text(client.post("/stores/add/", form | {"do": "test"}, follow=True))
    assert "It reads back as it was written." in page
    assert f'value="nfs://localhost{tmp_path}"' in page
    assert not ImageStore.objects.exists()
    client.post("/stores/add/", form | {"do": "save"})
    assert ImageStore.objects.get().role == Role.IMAGE_CACHE


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"zone": ""}, "f-zone"),
        ({"zone": "00000000-0000-0000-0000-000000000000"}, "f-zone"),
        ({"url": "ftp://nowhere"}, "f-url"),
        ({"name": "taken"}, "f-name"),
    ],
)
def test_what_is_wrong_is_said_at_its_field_and_nothing_is_saved(region, sign_in, tmp_path, change, field):
    ImageStore.objects.filter(name="nfs-west").update(name="taken")
    (tmp_path / "third").mkdir()
    form = {"provider": "NFS", "name": "third", "url": f"nfs://localhost{tmp_path}/third", "role": "Image", "do": "save"}
    form |= {"zone": str(region.zones["east"].uuid)} | change
    answer = sign_in("storage-admin").post("/stores/add/", form)
    assert answer.status_code >= 400
    assert re.search(rf'id="{field}"[^>]*aria-invalid="true"', answer.content.decode())
    assert ImageStore.objects.count() == 2


def test_an_unreachable_store_shows_the_steps_and_is_not_saved(region, sign_in):
    form = {"provider": "NFS", "name": "gone", "url": "nfs://filer/none", "zone": str(region.zones["east"].uuid), "role": "Image"}
    answer = sign_in("storage-admin").post("/stores/add/", form | {"do": "save"})
    assert answer.status_code == 409
    assert "blocker" in text(answer)
    assert ImageStore.objects.count() == 2


def test_an_unknown_provider_is_refused(region, sign_in):
    assert sign_in("storage-admin").get("/stores/add/?provider=Floppy").status_code == 400


def test_a_store_is_renamed_limited_and_made_read_only(region, sign_in):
    client, store = sign_in("storage-admin"), region.stores["east"]
    client.post(f"/stores/{store.uuid}/edit/", {"name": "filer", "read_limit": "10MiB"})
    client.post(f"/stores/{store.uuid}/readonly/", {"readonly": "true"})
    store.refresh_from_db()
    assert (store.name, store.read_limit, store.readonly) == ("filer", 10 * 2**20, True)
    refused = client.post(f"/stores/{store.uuid}/edit/", {"name": "filer", "read_limit": "much"})
    assert refused.status_code == 400
    assert "no amount of bytes" in text(refused)


def test_a_store_with_items_is_not_removed_and_an_empty_one_is(cloud, sign_in, tmp_path):
    client = sign_in("storage-admin")
    assert "cannot be removed now" in text(client.get(f"/stores/{cloud.nfs.uuid}/"))
    assert client.post(f"/stores/{cloud.nfs.uuid}/remove/").status_code == 409
    place = {"url": f"nfs://localhost{tmp_path}", "details": {}, "zone": cloud.region.zones["east"]}
    empty = image_stores.add_store(actor=cloud.admin, name="spare", provider="NFS", role=Role.IMAGE_CACHE, **place)
    client.post(f"/stores/{empty.uuid}/remove/")
    empty.refresh_from_db()
    assert empty.removed is not None


def test_the_secret_of_a_store_survives_a_change_and_is_never_shown(cloud, sign_in):
    client = sign_in("storage-admin")
    store = cloud.conversion.object_store
    assert "set, never shown" in text(client.get(f"/stores/{store.uuid}/"))
    client.post(f"/stores/{store.uuid}/edit/", {"name": "bucket", "read_limit": "", "password": ""})
    tested = client.post(f"/stores/{store.uuid}/test/", follow=True)
    assert "no blocker" in text(tested)


# --- the wizard ------------------------------------------------------------------------------------------------------------


def walk_to_review(client) -> Preflight:
    form = {"provider": "Memory", "url": "memory://objects", "name": "objects", "password": CANARY}
    tested = client.post("/migration/new/", form | {"do": "test"}, follow=True)
    assert "It reads back as it was written." in text(tested)
    client.post("/migration/new/", form | {"password": "", "do": "preflight"})
    report = Preflight.objects.get()
    waiting = client.get(f"/migration/preflights/{report.uuid}/")
    assert "Looking at the exports" in text(waiting)
    assert client.get(f"/migration/preflights/{report.uuid}/?part=1").status_code == 200
    run_preflight(report.pk)
    assert client.get(f"/migration/preflights/{report.uuid}/?part=1").status_code == 286
    return report


def test_the_wizard_goes_from_the_object_store_to_a_running_drain(before, sign_in):
    client = sign_in("storage-admin")
    report = walk_to_review(client)
    assert "Nothing stands against the conversion" in text(client.get(f"/migration/preflights/{report.uuid}/"))
    review = text(client.get(f"/migration/preflights/{report.uuid}/review/"))
    assert "Image → ImageCache" in review
    assert "manage.py use_object_store --name objects --provider Memory" in review
    assert CANARY not in review
    assert not Conversion.objects.exists()

    wrong = client.post(f"/migration/preflights/{report.uuid}/review/", {"typed": "object"})
    assert wrong.status_code == 400
    assert not Conversion.objects.exists()

    client.post(f"/migration/preflights/{report.uuid}/review/", {"typed": "objects"})
    conversion = Conversion.objects.get()
    assert ImageStore.objects.filter(role=Role.IMAGE).get().name == "objects"

    plan = {"name": "", "concurrency": "4", "bandwidth": "50MiB", "window": "", "canary_items": "1", "do": "start"}
    client.post(f"/migration/conversions/{conversion.uuid}/drain/", plan)
    drain = Drain.objects.get()
    assert drain.state == DrainState.CANARY
    assert (drain.batch.concurrency, drain.batch.bandwidth) == (4, 50 * 2**20)
    live = client.get(f"/migration/drains/{drain.uuid}/live/")
    assert live.status_code == 200
    assert 'hx-trigger="every 2s"' in text(live)


RULES = {
    "zones": "east", "kinds": ["snapshot", "template"], "order": "largest", "verification": "read-back", "canary_items": "0",
    "concurrency": "3", "bandwidth": "50MiB", "window": "mon-fri 22:00-06:00;sat,sun 00:00-24:00", "time_zone": "Europe/Berlin",
    "then": "start",
}  # fmt: skip


def test_rules_are_chosen_reviewed_in_words_and_become_the_drain_that_follows_the_switch(before, sign_in):
    client = sign_in("storage-admin")
    report = walk_to_review(client)
    rules, review = f"/migration/preflights/{report.uuid}/rules/", f"/migration/preflights/{report.uuid}/review/"
    for field, wrong in [("window", "tonight"), ("time_zone", "Berlin"), ("concurrency", "0")]:
        refused = client.post(rules, RULES | {field: wrong})
        assert refused.status_code == 400
        assert re.search(rf'id="f-{field}"[^>]*aria-invalid="true"', refused.content.decode())
    assert Preflight.objects.get().rules == {}
    assert client.post(rules, RULES).headers["Location"] == f"/migration/preflights/{report.uuid}/"
    page = text(client.get(review))
    assert "snapshots in zone east" in page
    assert "Mon-Fri 22:00-06:00; Sat,Sun 00:00-24:00 by the clock of Europe/Berlin" in page
    assert "planned and started at once" in page
    assert "fetched and hashed again" in page
    assert re.search(r'value="east"\s+checked|value="east" checked', client.get(rules).content.decode())

    assert "What is not touched" in page
    assert Strict(client.get(review).content.decode()).faults == []
    assert client.post(review, {"typed": "objects", "do": "back"}).headers["Location"] == f"/migration/preflights/{report.uuid}/"
    assert "largest first" in text(client.get(f"/migration/preflights/{report.uuid}/"))
    assert not Conversion.objects.exists()
    answer = client.post(review, {"typed": "objects"})
    drain = Drain.objects.select_related("batch").get()
    assert answer.headers["Location"] == f"/migration/drains/{drain.uuid}/"
    assert (drain.state, drain.rules["zones"], drain.batch.concurrency) == (DrainState.CANARY, ["east"], 3)
    assert set(drain.batch.transfers.values_list("kind", "read_back")) == {("template", True), ("snapshot", True)}
    assert "largest first" in text(client.get(f"/migration/drains/{drain.uuid}/"))


def test_what_the_review_prints_is_accepted_as_it_stands(before, sign_in, tmp_path, monkeypatch):
    client = sign_in("storage-admin")
    report = walk_to_review(client)
    client.post(f"/migration/preflights/{report.uuid}/rules/", RULES)
    review = client.get(f"/migration/preflights/{report.uuid}/review/").content.decode()
    commands, curls = (html.unescape(found) for found in re.findall(r'<pre class="command">(.*?)</pre>', review, re.DOTALL))
    assert CANARY not in commands + curls
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").write_text(CANARY)
    with transaction.atomic():
        for line in commands.splitlines():
            _, name, *arguments = shlex.split(line)
            call_command(name, *arguments, *(["--yes"] if name == "use_object_store" else []), stdout=io.StringIO())
        printed = Drain.objects.get()
        as_command = (printed.state, printed.rules, {name: getattr(printed.batch, name) for name in LIMITS})
        transaction.set_rollback(True)
    owner = Actor("storage-admin", frozenset({ActorRole.STORAGE_ADMIN}))
    _, token = create_token(actor=owner, username=owner.name, name="printed", role="storage-admin")
    for words in filter(None, (shlex.split(call) for call in curls.replace("\\\n", "").splitlines())):
        assert words[:3] == ["curl", "-X", "POST"]
        where, body = words[-1].removeprefix("http://testserver"), words[words.index("-d") + 1]
        headers = {"authorization": f"Bearer {token}"}
        answered = Client().post(where, body, content_type="application/json", headers=headers)
        assert answered.status_code == 201, answered.content
    printed = Drain.objects.get()
    assert as_command == (printed.state, printed.rules, {name: getattr(printed.batch, name) for name in LIMITS})
    assert as_command[0] == DrainState.CANARY


def test_a_draft_survives_the_browser_at_its_step_and_is_nobody_else_s(before, sign_in):
    client = sign_in("storage-admin")
    assert "Go on with your draft" not in text(client.get("/migration/"))
    form = {"provider": "Memory", "url": "memory://objects", "name": "objects", "password": CANARY}
    client.post("/migration/new/", form | {"name": "", "do": "preflight"})
    again = sign_in("storage-admin")  # another browser: no cookie of the first
    page = text(again.get("/migration/"))
    assert "Go on with your draft" in page
    assert "/migration/new/?provider=Memory" in page
    first = text(again.get("/migration/new/?provider=Memory"))
    assert 'value="memory://objects"' in first
    assert "kept on the server" in first
    assert CANARY not in page + first + Draft.objects.get().sealed
    again.post("/migration/new/", form | {"password": "", "do": "preflight"})
    report = Preflight.objects.get()
    assert f"/migration/preflights/{report.uuid}/rules/" in text(client.get("/migration/"))
    run_preflight(report.pk)
    client.post(f"/migration/preflights/{report.uuid}/rules/", RULES)
    page = text(client.get("/migration/"))
    assert ("Go on with your draft" in page, "/rules/" in page) == (True, False)
    client.get(f"/migration/preflights/{report.uuid}/review/")
    for page in (text(sign_in("storage-admin").get(where)) for where in ("/migration/", "/")):
        assert f"/migration/preflights/{report.uuid}/review/" in page

    other, _ = get_user_model().objects.get_or_create(username="else", defaults={"is_staff": True})
    other.groups.set(Group.objects.filter(name="storage-admin"))
    someone = Client()
    someone.force_login(other)
    assert "Go on with your draft" not in text(someone.get("/migration/"))
    get_user_model().objects.get(username="storage-admin").groups.set([Group.objects.get_or_create(name="operator")[0]])
    assert "Go on with your draft" not in text(client.get("/migration/")) + text(client.get("/"))
    client = sign_in("storage-admin")
    assert "discarded" in text(client.post("/migration/new/discard/", follow=True))
    assert not Draft.objects.exists()
    assert Preflight.objects.get().sealed == ""
    assert client.get(f"/migration/preflights/{report.uuid}/review/").status_code == 404


def test_a_second_object_store_keeps_the_rules_and_an_old_draft_is_forgotten(before, sign_in):
    client = sign_in("storage-admin")
    report = walk_to_review(client)
    client.post(f"/migration/preflights/{report.uuid}/rules/", RULES)
    client.post("/migration/new/", {"provider": "Memory", "url": "memory://others", "name": "others", "do": "preflight"})
    assert Preflight.objects.get(name="others").rules["order"] == "largest"
    Draft.objects.update(updated=timezone.now() - timedelta(days=15))
    assert "Go on with your draft" not in text(client.get("/migration/"))
    tasks.advance_drains()
    assert not Draft.objects.exists()


def test_a_switch_that_was_killed_before_its_plan_leaves_the_plan_with_the_rules(before, sign_in, monkeypatch):
    client = sign_in("storage-admin")
    report = walk_to_review(client)
    client.post(f"/migration/preflights/{report.uuid}/rules/", RULES)

    def die(**_: object) -> None:
        raise SystemExit

    monkeypatch.setattr("migration.drain.plan", die)
    with pytest.raises(SystemExit):
        client.post(f"/migration/preflights/{report.uuid}/review/", {"typed": "objects"})
    conversion = Conversion.objects.get()
    assert (Drain.objects.exists(), Draft.objects.exists()) == (False, False)
    assert "The rules that were chosen in the wizard are kept" in text(client.get(f"/migration/conversions/{conversion.uuid}/"))
    plan = client.get(f"/migration/conversions/{conversion.uuid}/drain/").content.decode()
    assert re.search(r'value="largest" selected', plan)
    assert re.search(r'id="f-time_zone" value="Europe/Berlin"', plan)


def test_blockers_that_may_be_accepted_are_accepted_one_by_one(before, sign_in):
    region = before[0]
    ImageStore.objects.filter(name="nfs-west").update(scanned_at=None)
    client = sign_in("storage-admin")
    report = walk_to_review(client)
    address = f"/migration/preflights/{report.uuid}/review/"
    blocked = client.get(address)
    assert blocked.status_code == 409
    assert 'name="override" value="never-scanned"' in text(blocked)
    assert client.post(address, {"typed": "objects"}).status_code == 409
    assert not Conversion.objects.exists()
    assert "What changes" in text(client.get(f"{address}?override=never-scanned"))
    client.post(address, {"typed": "objects", "override": "never-scanned"})
    assert Conversion.objects.get().overrides == ["never-scanned"]
    assert region.stores


def test_an_old_preflight_is_not_enough(before, sign_in):
    client = sign_in("storage-admin")
    report = walk_to_review(client)
    age_preflight(report, 48 * 3600)
    assert "48 hours old" in text(client.get(f"/migration/preflights/{report.uuid}/review/"))


def test_the_object_store_needs_a_name(before, sign_in):
    form = {"provider": "Memory", "url": "memory://objects", "name": " ", "password": CANARY, "do": "preflight"}
    answer = sign_in("storage-admin").post("/migration/new/", form)
    assert answer.status_code == 400
    assert not Preflight.objects.exists()


def test_a_second_conversion_leads_to_the_open_one(cloud, sign_in):
    page = text(sign_in("storage-admin").get("/migration/new/"))
    assert "still open" in page
    assert str(cloud.conversion.uuid) in page


# --- the drain -------------------------------------------------------------------------------------------------------------


def test_a_drain_is_started_paused_limited_resumed_and_cancelled(cloud, sign_in):
    client = sign_in("operator")
    base = f"/migration/drains/{cloud.drain.uuid}"

    def state() -> str:
        return Drain.objects.get(pk=cloud.drain.pk).state

    client.post(f"{base}/start/")
    assert state() == DrainState.CANARY
    client.post(f"{base}/pause/")
    assert state() == DrainState.PAUSED
    read = {f"read-{cloud.nfs.uuid}": "20M"}
    client.post(f"{base}/limits/", {"concurrency": "2", "bandwidth": "1GiB", "window": "22:00-06:00"} | read)
    batch = Drain.objects.get(pk=cloud.drain.pk).batch
    assert (batch.concurrency, batch.bandwidth, batch.window) == (2, 2**30, "22:00-06:00")
    assert ImageStore.objects.get(pk=cloud.nfs.pk).read_limit == 20_000_000
    client.post(f"{base}/resume/")
    assert state() == DrainState.CANARY
    assert "Cancel this drain?" in text(client.get(f"{base}/cancel/"))
    client.post(f"{base}/cancel/")
    assert state() == DrainState.CANCELLED


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"window": "tonight"}, "not a time window"),
        ({"concurrency": "0"}, "1 to 256"),
        ({"bandwidth": "fast"}, "no amount of bytes"),
    ],
)
def test_a_wrong_limit_is_said_at_its_field_and_changes_nothing(cloud, sign_in, change, said):
    form = {"concurrency": "2", "bandwidth": "", "window": ""} | change
    answer = sign_in("operator").post(f"/migration/drains/{cloud.drain.uuid}/limits/", form)
    assert answer.status_code == 400
    assert said in text(answer)
    assert Drain.objects.get(pk=cloud.drain.pk).batch.concurrency == 8


def test_failures_stand_by_cause_with_their_remedy_and_are_tried_again(cloud, sign_in):
    client = sign_in("operator")
    client.post(f"/migration/drains/{cloud.drain.uuid}/start/")
    page = text(client.get(f"/migration/drains/{cloud.drain.uuid}/"))
    assert "1 × access-denied" in page
    assert "Ask for the right to write." in page
    client.post(f"/migration/drains/{cloud.drain.uuid}/pause/")
    said = text(client.post(f"/migration/drains/{cloud.drain.uuid}/retry/", follow=True))
    assert "1 failed item tried again" in said
    assert not Transfer.objects.filter(state=TransferState.FAILED).exists()


def test_a_button_that_comes_too_late_is_answered_with_what_is_possible(cloud, sign_in):
    said = text(sign_in("operator").post(f"/migration/drains/{cloud.drain.uuid}/pause/", follow=True))
    assert "The drain is Planned, so Pause is not possible." in said
    assert "Possible now: Start, Cancel." in said


def test_only_what_the_state_allows_is_offered(cloud, sign_in):
    url = f"/migration/drains/{cloud.drain.uuid}/"
    offered = set(re.findall(r'id="do-(\w+)"', text(sign_in("operator").get(url))))
    assert offered == {"start", "cancel"}
    assert not re.findall(r'id="do-(\w+)"', text(sign_in("viewer").get(url)))


def test_progress_is_drawn_as_numbers_beside_the_bar(cloud, sign_in):
    from migration import drain

    drain._sample(cloud.drain, force=True)
    Transfer.objects.filter(kind="snapshot").update(state=TransferState.PROVEN, proof="verified")
    drain._sample(cloud.drain, force=True)
    page = text(sign_in("viewer").get(f"/migration/drains/{cloud.drain.uuid}/"))
    assert "2 of 3 items proven" in page
    assert '<polygon class="proven"' in page
    assert page.count("<td><time") == 2


# --- items, verification, people -------------------------------------------------------------------------------------------


def test_an_item_is_asked_for_and_its_page_says_so(cloud, sign_in):
    client, item = sign_in("operator"), cloud.chain[-1]
    said = text(client.post(f"/items/snapshot/{item.uuid}/ensure/", follow=True))
    assert "ahead of the background" in said
    assert Transfer.objects.get(kind="snapshot", item_id=item.pk).priority == 0


def test_an_item_is_deleted_only_after_the_question(cloud, sign_in):
    client, url = sign_in("storage-admin"), f"/items/template/{cloud.template.uuid}/delete/"
    asked = text(client.get(url))
    assert "nfs-east" in asked
    assert Template.objects.get(pk=cloud.template.pk).removed is None
    client.post(url)
    assert set(cloud.template.refs.values_list("state", flat=True)) <= {RefState.DESTROYING, RefState.DESTROYED}


def test_a_deleted_item_comes_back_from_the_trash_by_its_button(cloud, sign_in):
    client, item = sign_in("storage-admin"), f"/items/template/{cloud.template.uuid}/"
    assert "No template waits" in text(client.get("/items/template/deleted/"))
    client.post(f"{item}delete/")
    items.finish_deletes()
    listed = text(client.get("/items/template/deleted/"))
    assert "debian" in listed
    assert f'action="{item}undelete/"' in listed
    assert "undelete" not in text(sign_in("viewer").get("/items/template/deleted/"))
    done = text(sign_in("storage-admin").post(f"{item}undelete/", follow=True))
    assert "debian is back on nfs-east, nfs-west." in done
    cloud.template.refresh_from_db()
    assert cloud.template.removed is None


def test_the_item_page_links_to_content_that_can_be_read(cloud, sign_in):
    client = sign_in("viewer")
    page = client.get(f"/items/template/{cloud.template.uuid}/").content.decode()
    link = html.unescape(re.search(r'href="(/api/v1/templates/[^"]+/content[^"]*)"', page).group(1))
    answer = client.get(link)
    assert b"".join(answer.streaming_content) == b"content of debian"


def test_the_chain_of_a_snapshot_is_shown_both_ways(cloud, sign_in):
    client = sign_in("viewer")
    full, child = cloud.chain
    assert f"/items/snapshot/{child.uuid}/" in text(client.get(f"/items/snapshot/{full.uuid}/"))
    assert f"/items/snapshot/{full.uuid}/" in text(client.get(f"/items/snapshot/{child.uuid}/"))


def test_a_verification_is_started_and_watched(cloud, sign_in):
    client = sign_in("operator")
    before = Verification.objects.count()
    form = {"store": str(cloud.conversion.object_store.uuid), "mode": "content", "sample_percent": "50"}
    client.post("/migration/verifications/new/", form)
    row = Verification.objects.first()
    assert (Verification.objects.count(), row.sample_percent) == (before + 1, 50)
    assert client.get(f"/migration/verifications/{row.uuid}/?part=1").status_code == 200
    assert client.post("/migration/verifications/new/", form | {"sample_percent": "900"}).status_code == 400
    Verification.objects.update(state="Finished")
    assert client.get(f"/migration/verifications/{row.uuid}/?part=1").status_code == 286


def test_a_user_gets_other_roles_and_is_kept_out_but_nobody_changes_themselves(cloud, sign_in):
    other = sign_in("operator")
    client = sign_in("storage-admin")
    people = {user.username: f"/people/{user.pk}/" for user in get_user_model().objects.all()}
    assert f'href="{people["operator"]}"' in text(client.get("/auth/user/"))
    page = text(client.get(people["operator"]))
    assert re.search(r'value="operator" checked', page)
    assert client.post(people["operator"], {"roles": ["king"], "active": "true"}).status_code == 400
    assert client.post(people["operator"], {"active": "true"}).status_code == 400
    client.post(people["operator"], {"roles": ["viewer"], "active": "true"})
    assert other.get("/").status_code == 200
    assert other.get(reverse("console:verify")).status_code == 403
    assert "operator was changed." in text(client.post(people["operator"], {"roles": ["viewer"]}, follow=True))
    assert other.get("/").status_code == 302
    refused = client.post(people["storage-admin"], {"roles": ["viewer"], "active": "true"})
    assert (refused.status_code, "Let another storage-admin do it." in text(refused)) == (409, True)
    assert client.get("/people/999/").status_code == 404


def test_a_token_is_shown_once_and_works(cloud, sign_in):
    client = sign_in("operator")
    made = text(client.post("/tokens/add/", {"name": "backup", "role": "viewer", "days": "30"}))
    secret = re.search(r"cs_[\w-]{30,}", made).group(0)
    assert secret not in text(client.get("/tokens/"))
    client.logout()
    assert client.get("/api/v1/stores", headers={"Authorization": f"Bearer {secret}"}).status_code == 200
    revoke = f"/tokens/{secret[:12]}/revoke/"
    client = sign_in("operator")
    assert f'href="{revoke}"' in text(client.get("/tokens/"))
    assert "Whatever uses this token of operator (backup) is refused from then on." in text(client.get(revoke))
    assert ApiToken.objects.get(prefix=secret[:12]).revoked is None
    client.post(revoke)
    assert ApiToken.objects.get(prefix=secret[:12]).revoked is not None


def test_nobody_makes_a_token_with_more_than_their_role(cloud, sign_in):
    answer = sign_in("viewer").post("/tokens/add/", {"name": "more", "role": "storage-admin", "days": "30"})
    assert answer.status_code == 400
    assert not ApiToken.objects.filter(name="more").exists()


def test_a_user_is_added_with_a_strong_password_only(cloud, sign_in):
    client = sign_in("storage-admin")
    weak = client.post("/people/add/", {"name": "eve", "role": "viewer", "password": "short"})
    assert weak.status_code == 400
    client.post("/people/add/", {"name": "eve", "role": "viewer", "password": "correct horse battery"})
    client.logout()
    form = {"username": "eve", "password": "correct horse battery", "next": "/"}
    assert client.post("/login/", form)["Location"] == "/"
    assert client.get("/").status_code == 200


def test_the_audit_trail_is_filtered_and_given_as_a_table(cloud, sign_in):
    AuditEvent.objects.create(actor="=cmd()", action="test.formula", target="none")
    client = sign_in("auditor")
    page = text(client.get("/audit/?action=conversion"))
    assert "conversion.convert" in page
    assert "test.formula" not in page
    sheet = b"".join(client.get("/audit/?format=csv&action=test").streaming_content).decode()
    assert "'=cmd()" in sheet


def test_the_audit_trail_says_what_changed_and_when(cloud, sign_in):
    sign_in("operator").post(f"/migration/drains/{cloud.drain.uuid}/start/")
    client = sign_in("auditor")
    today, tomorrow = (f"{timezone.localdate() + timedelta(days=days)}" for days in (0, 1))
    found = f"/audit/?action=drain.start&since={today}&until={tomorrow}"
    assert "state: Planned → Canary" in text(client.get(found))
    assert "Nothing matches." in text(client.get(f"/audit/?action=drain.start&since={tomorrow}"))
    assert "Nothing matches." in text(client.get("/audit/?action=drain.start&until=2020-01-01"))
    (row,) = json.loads(b"".join(client.get(f"{found}&format=json").streaming_content))
    assert row["changes"] == {"state": {"before": "Planned", "after": "Canary"}}
    sheet = b"".join(client.get(f"{found}&format=csv").streaming_content).decode()
    assert "state: Planned → Canary" in sheet


def test_what_does_not_exist_is_a_page_that_says_so(cloud, sign_in):
    client, none = sign_in("storage-admin"), uuid.uuid4()
    for url in ("stores", "items/template", "migration/drains", "migration/conversions", "migration/preflights"):
        answer = client.get(f"/{url}/{none}/")
        assert answer.status_code == 404
        assert "Not found" in text(answer)


def test_the_review_costs_the_same_queries_whatever_there_is_to_switch(before, sign_in, tmp_path):
    client = sign_in("storage-admin")
    review = f"/migration/preflights/{walk_to_review(client).uuid}/review/"

    def queries() -> list[str]:
        with CaptureQueriesContext(connection) as seen:
            assert client.get(review).status_code == 200
        return [query["sql"] for query in seen.captured_queries]

    queries()
    few = queries()
    for number in range(4):
        export = make_store("NFS", zone=make_zone(f"more-{number}"), folder=tmp_path / str(number))
        ImageStore.objects.filter(pk=export.pk).update(scanned_at=timezone.now())
    Preflight.objects.update(fingerprint=fingerprint(stores := nfs_stores(), known_findings(stores)))
    assert (len(queries()), len(few) <= 30) == (len(few), True), "\n".join(few)
