"""What stands around the job: the REST reference, staging copies and their keepers, versions, empty lists, pages instead of errors."""

from __future__ import annotations

import re

import pytest
from django.conf import settings
from django.utils import timezone

from cloudstorage.console.rest_docs import operations
from migration.models import Conversion
from migration.states import ConversionState
from stores.models import KINDS, Kind, Worker, Zone
from stores.services import holds, staging
from stores.states import RefState
from tests.console.html import Strict
from tests.factories import make_worker

pytestmark = pytest.mark.db


def words(answer) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", answer.content.decode()).split())


# --- the REST reference ------------------------------------------------------------------------------------------------------


def test_every_operation_has_a_page_with_its_role_fields_and_a_command(sign_in):
    client = sign_in("viewer")
    listed = client.get("/rest/").content.decode()
    assert "`" not in listed
    for name, operation in operations().items():
        assert f'href="/rest/{name}/"' in listed
        page = client.get(f"/rest/{name}/")
        assert page.status_code == 200, name
        assert len(page.content) < 100_000, name
        assert Strict(page.content.decode()).faults == [], name
        assert f"Takes the role {operation['role']}" in words(page), name


def test_an_operations_page_tells_what_is_sent_and_answered(sign_in):
    page = words(sign_in("viewer").get("/rest/drains_limits/"))
    assert "PATCH /api/v1/drains/{id}/limits" in page
    assert "Takes the role operator" in page
    assert "concurrency" in page
    assert (
        "-X PATCH -H &#x27;Content-Type: application/json&#x27; -d @body.json http://testserver/api/v1/drains/{id}/limits" in page
    )
    assert "Every refusal" in page
    assert "urn:cloudstorage:problem" in page


def test_an_operation_that_is_none_is_not_found(sign_in):
    assert sign_in("viewer").get("/rest/nonsense/").status_code == 404


# --- staging -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def proven(cloud):
    """The template is proven on the object store."""
    refs = KINDS[Kind.TEMPLATE].ref.objects.filter(item=cloud.template)
    refs.filter(state=RefState.PROMISED).update(state=RefState.READY, proof="verified", install_path="there", sha256="0" * 64)
    return refs.get(store=cloud.nfs)


def keepers(cloud) -> dict[str, int]:
    """How many copies each keeps."""
    found = staging.kept(cloud.nfs)
    return {keeper.value: sum(share.items for share in shares.values()) for keeper, shares in found.items() if shares}


def test_every_copy_on_a_staging_store_is_in_one_line_that_says_what_keeps_it(cloud, proven):
    refs = type(proven).objects.filter(pk=proven.pk)
    assert keepers(cloud) == {"promise": 2, "unread": 1}
    refs.update(sha256="1" * 64)
    assert keepers(cloud) == {"promise": 2, "differs": 1}
    refs.update(sha256="0" * 64)
    assert keepers(cloud) == {"promise": 2, "nothing": 1}
    holds.take_hold(Kind.TEMPLATE, proven.pk, "read", "a test")
    assert keepers(cloud) == {"promise": 2, "hold": 1}
    holds.release_hold(Kind.TEMPLATE, proven.pk, "read", "a test")
    type(proven).objects.filter(item=cloud.template).exclude(store__role="ImageCache").update(proof="adopted")
    assert keepers(cloud) == {"promise": 2, "only": 1}


def test_the_page_of_what_keeps_copies_names_holders_and_what_could_go_after_the_commit(cloud, proven, sign_in):
    client, url = sign_in("viewer"), f"/stores/{cloud.nfs.uuid}/staging/"
    assert url in client.get(f"/stores/{cloud.nfs.uuid}/").content.decode()
    type(proven).objects.filter(pk=proven.pk).update(sha256="0" * 64)
    page = words(client.get(url))
    assert "Nothing. The originals here are pinned until the conversion to objects is committed or rolled back; 1 of them" in page
    assert "Nobody holds a copy now." in page
    Conversion.objects.update(state=ConversionState.COMMITTED)
    assert "1 copy, " in words(client.get(url))
    holds.take_hold(Kind.TEMPLATE, proven.pk, "read", "transfer 7")
    page = words(client.get(url))
    assert "debian template read transfer 7" in page
    assert "Every copy here is kept by something." in page


def test_a_removal_says_all_that_stands_against_it_and_what_to_do(cloud, sign_in):
    page = words(sign_in("viewer").get(f"/stores/{cloud.nfs.uuid}/"))
    assert "still has 1 template refs. → Move or delete what is on it first." in page
    assert "still has 2 snapshot refs." in page


# --- the overview ------------------------------------------------------------------------------------------------------------


def test_the_overview_shows_what_is_under_way_and_the_versions(cloud, sign_in):
    client = sign_in("viewer")
    make_worker()
    Worker.objects.update(version=settings.VERSION)
    page = words(client.get("/"))
    assert "Scan nfs-east Queued" in page
    assert f"cloudstorage {settings.VERSION} Workers {settings.VERSION} Database" in page
    assert "of another version" not in page
    Worker.objects.update(version="0.0.9")
    assert "Workers 0.0.9 Workers of another version are at work: restart them." in words(client.get("/"))


# --- lists of the admin ------------------------------------------------------------------------------------------------------


def test_a_worker_that_runs_is_listed_before_a_hundred_that_have_stopped(sign_in):
    stopped = timezone.now()
    Worker.objects.bulk_create(Worker(hostname=f"former-{number}", pid=1, stopped=stopped) for number in range(100))
    Worker.objects.create(hostname="present", pid=1)
    page = sign_in("viewer").get("/workers/").content.decode()
    assert page.index("present:1") < page.index("former-")


def test_an_empty_list_of_the_admin_teaches_and_its_button_is_for_who_may(sign_in):
    assert "a zone is the first thing to add" in words(sign_in("viewer").get("/stores/zone/"))
    assert "Accounts appear when" in words(sign_in("viewer").get("/stores/account/"))
    assert 'href="/zones/add/"' not in sign_in("viewer").get("/stores/zone/").content.decode()
    assert 'href="/zones/add/"' in sign_in("storage-admin").get("/stores/zone/").content.decode()
    Zone.objects.create(name="east")
    assert "a zone is the first thing to add" not in words(sign_in("viewer").get("/stores/zone/"))


@pytest.mark.parametrize(
    "url",
    [
        "/auth/user/?is_active__exact=perhaps",
        "/auth/user/?groups__id__exact=x",
        "/auth/user/?nothing=1",
        "/auth/user/?password__startswith=pbkdf2",
        "/auth/user/?groups__user__password__startswith=pbkdf2",
    ],
)
def test_a_filter_that_a_list_of_the_admin_does_not_understand_gets_a_page_of_ours(sign_in, url):
    answer = sign_in("storage-admin").get(url, follow=True)
    page = answer.content.decode()
    assert answer.status_code == 400
    assert "What to do" in page
    assert answer["X-Request-Id"] in page
    assert Strict(page).faults == []


def test_a_host_that_is_not_ours_gets_a_page_of_ours(client, db):
    answer = client.get("/login/", headers={"host": "evil.example"})
    page = answer.content.decode()
    assert answer.status_code == 400
    assert "What to do" in page
    assert answer["X-Request-Id"] in page


def test_signing_out_is_asked_for_and_ends_in_a_page_of_ours(sign_in, client):
    signed_in = sign_in("viewer")
    asked = signed_in.get("/logout/").content.decode()
    assert "Sign out?" in asked
    assert Strict(asked).faults == []
    done = signed_in.post("/logout/")
    assert "You are signed out." in words(done)
    assert Strict(done.content.decode()).faults == []
    assert signed_in.get("/").status_code == 302
