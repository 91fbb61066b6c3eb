"""Committing and rolling back through the console: what ends is said first, and only a typed name and the right button do it."""

from __future__ import annotations

import html
import re
import shlex
from urllib.parse import urlsplit

import pytest
from django.core.management import load_command_class
from django.urls import resolve, reverse

from migration import rollback
from migration.api import decommissions, undo
from migration.models import Conversion, Drain, Rollback, Verification
from migration.states import DrainState, VerificationState
from stores.drivers.nfs import NFSDriver
from stores.models import ImageStore, Transfer, Worker, WorkerReach
from stores.states import StoreState, TransferState
from stores.worker import Pump
from tests.api.test_undo import bear

pytestmark = pytest.mark.db


def text(answer) -> str:
    return html.unescape(answer.content.decode())


def state() -> str:
    return Conversion.objects.get().state


def first_button(page: str) -> str:
    """What Enter in the form's field does: the first submit button of the last form that has a typed name."""
    form = page[page.index('name="typed"') :]
    return re.search(r'<button[^>]*name="do" value="(\w+)"', form).group(1)


def test_a_commit_takes_the_name_and_the_button_and_says_what_ends(cloud, sign_in):
    client, url = sign_in("storage-admin"), f"/migration/conversions/{cloud.conversion.uuid}/commit/"
    assert url in text(client.get(f"/migration/conversions/{cloud.conversion.uuid}/"))
    assert url in text(client.get(f"/migration/drains/{cloud.drain.uuid}/"))
    page = text(client.get(url))
    for words in ("What ends here", "no longer be rolled back", "still on NFS", "No drain is paused.", "nfs-east"):
        assert words in page
    assert first_button(page) == "back"
    assert client.post(url, {"typed": "objects", "do": "back"}).headers["Location"].endswith(f"{cloud.conversion.uuid}/")
    assert client.post(url, {"typed": "objects"}).status_code == 303
    assert state() == "Converted"
    wrong = client.post(url, {"typed": "object", "do": "commit"})
    assert (wrong.status_code, state()) == (400, "Converted")
    assert "Type exactly: objects" in text(wrong)
    assert "There is no way back" in text(client.post(url, {"typed": "objects", "do": "commit"}, follow=True))
    assert state() == "Committed"
    late = client.get(f"/migration/conversions/{cloud.conversion.uuid}/rollback/")
    assert late.status_code == 409
    assert "was committed" in text(late)
    assert "no way back to NFS" in text(late)
    assert 'name="typed"' not in text(late)


def test_the_same_without_the_console_is_what_the_button_does(cloud, sign_in):
    """Each page's request is one of REST, and its command takes what it is given."""
    client, east = sign_in("storage-admin"), ImageStore.objects.filter(scope="ZONE").order_by("pk").first()
    pages = {
        f"/migration/conversions/{cloud.conversion.uuid}/commit/": undo.ConversionCommit,
        f"/migration/conversions/{cloud.conversion.uuid}/rollback/": undo.ConversionRollback,
        reverse("console:retire", args=[east.uuid]): decommissions.StoreDecommission,
    }
    for url, view in pages.items():
        command, request = re.findall(r'<pre class="command">(.*?)</pre>', text(client.get(url)))
        _, name, *words = shlex.split(command)
        load_command_class("migration", name).create_parser("manage.py", name).parse_args(words)
        sent = shlex.split(request)
        assert sent[:3] == ["curl", "-X", "POST"]
        assert resolve(urlsplit(sent[-1]).path).func.cls is view


@pytest.mark.parametrize(("role", "seen"), [("operator", True), ("viewer", False)])
def test_what_stands_against_a_commit_leads_to_where_it_is_mended(cloud, sign_in, role, seen):
    Verification.objects.update(state=VerificationState.CANCELLED)
    page = text(sign_in(role).get(f"/migration/conversions/{cloud.conversion.uuid}/commit/"))
    checklist = page[page.index("Checklist") : page.index("Originals that are released")]
    assert f'href="/migration/drains/{cloud.drain.uuid}/">Look at the drain' in checklist
    assert (">Read objects back</a>" in checklist) is seen


def test_what_to_do_about_items_that_are_only_on_nfs_fits_their_drain(cloud, sign_in):
    client, url = sign_in("viewer"), f"/migration/conversions/{cloud.conversion.uuid}/commit/"
    assert "Let the drain finish first." in text(client.get(url))
    Drain.objects.update(state=DrainState.FINISHED)
    assert "Mend and retry what failed, or plan another drain, first." in text(client.get(url))
    Drain.objects.all().delete()
    assert "Plan a drain first, and let it finish." in text(client.get(url))


def test_only_an_administrator_is_offered_and_may_press_it(cloud, sign_in):
    client = sign_in("operator")
    for name in ("commit", "rollback"):
        url = f"/migration/conversions/{cloud.conversion.uuid}/{name}/"
        assert 'name="typed"' not in text(client.get(url))
        assert client.post(url, {"typed": "objects", "do": name}).status_code == 403
    assert state() == "Converted"


def test_a_rollback_shows_its_plan_then_its_way_then_its_end(cloud, sign_in):
    bear(cloud, "born")
    client, url = sign_in("storage-admin"), f"/migration/conversions/{cloud.conversion.uuid}/rollback/"
    page = text(client.get(url))
    for words in ("The region stops using objects", "2.9 KiB", "1 copy", "nfs-east", "enough", "Born since", "drain"):
        assert words in page
    assert first_button(page) == "back"
    assert client.post(url, {"typed": "objects", "do": "back"}).status_code == 303
    assert client.post(url, {"typed": "nfs-east", "do": "rollback"}).status_code == 400
    assert state() == "Converted"
    begun = text(client.post(url, {"typed": "objects", "do": "rollback"}, follow=True))
    assert "Copies are on their way home." in begun
    assert 'hx-get="' + url in begun
    assert "Follow the roll-back" in text(client.get("/"))
    assert "The way home" in text(client.get(f"/migration/conversions/{cloud.conversion.uuid}/"))
    assert client.get(f"{url}?part=1").status_code == 200
    worker = Worker.objects.create(hostname="here", pid=7)
    WorkerReach.objects.bulk_create(WorkerReach(worker=worker, store=store, ok=True) for store in ImageStore.objects.all())
    Pump(worker.pk, slots=4).run()
    rollback.advance(Rollback.objects.get())
    assert state() == "RolledBack"
    assert client.get(f"{url}?part=1").status_code == 286
    page = text(client.get(url))
    assert "The region is on NFS again." in page
    assert "Abandon…" not in page
    assert ImageStore.objects.get(name="objects").state == StoreState.DETACHED
    assert "Next: Move to an object store" in text(client.get("/"))


def test_a_full_export_leaves_no_button_to_press(cloud, sign_in, monkeypatch):
    bear(cloud, "born")
    monkeypatch.setattr(NFSDriver, "free_bytes", lambda self: 10)
    client, url = sign_in("storage-admin"), f"/migration/conversions/{cloud.conversion.uuid}/rollback/"
    page = text(client.get(url))
    assert "not enough" in page
    assert "Add space to the export" in page
    assert "They have room for what comes home" not in page
    assert "The exports of before are there and answer." in page
    assert 'name="typed"' not in page
    refused = client.post(url, {"typed": "objects", "do": "rollback"})
    assert (refused.status_code, state()) == (409, "Converted")


def test_failed_copies_are_retried_and_the_way_back_is_abandoned_after_a_question(cloud, sign_in):
    bear(cloud, "born")
    client, url = sign_in("storage-admin"), f"/migration/conversions/{cloud.conversion.uuid}/rollback/"
    client.post(url, {"typed": "objects", "do": "rollback"})
    failed = {"state": TransferState.FAILED, "error_cause": "full", "error": "No space is left.", "remedy": "Add space."}
    Transfer.objects.filter(batch=Rollback.objects.get().batch).update(**failed)
    page = text(client.get(url))
    assert "No space is left." in page
    assert "Retry what failed" in page
    assert "1 failed copies home are tried again" in text(client.post(f"{url}retry/", follow=True))
    assert "stays on objects" in text(client.get(f"{url}abandon/"))
    assert "Abandoned" in text(client.post(f"{url}abandon/", follow=True))
    assert state() == "Converted"
    assert client.post(f"{url}abandon/").status_code == 409


def test_a_blocker_that_may_be_accepted_is_accepted_at_its_own_tick(cloud, sign_in, monkeypatch):
    from migration import homeward
    from migration.findings import Finding

    found = Finding("damaged-originals", "blocker", "3 originals are missing.", "Restore them.", overridable=True)
    monkeypatch.setattr(homeward, "damaged", lambda homes: [found])
    client, url = sign_in("storage-admin"), f"/migration/conversions/{cloud.conversion.uuid}/rollback/"
    assert 'value="damaged-originals"' in text(client.get(url))
    refused = client.post(url, {"typed": "objects", "do": "rollback"})
    assert (refused.status_code, state()) == (409, "Converted")
    assert "3 originals are missing." in text(refused)
    client.post(url, {"typed": "objects", "do": "rollback", "override": "damaged-originals"})
    assert state() == "RolledBack"
