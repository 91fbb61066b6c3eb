"""Every page by every role: who sees it, that it keeps to the policy, shows no secret and stays small."""

from __future__ import annotations

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from cloudstorage.console import pages
from stores.models import Zone
from tests.console.conftest import CANARY, ROLES
from tests.console.html import Strict

pytestmark = pytest.mark.db

POLICY = "base-uri 'none'; default-src 'self'; form-action 'self'; frame-ancestors 'none'; object-src 'none'"
EVERYONE = {"viewer", "operator", "storage-admin", "auditor"}
OPERATORS = {"operator", "storage-admin"}
ADMINS = {"storage-admin"}

READ = {
    "index": EVERYONE, "store_list": EVERYONE, "staging_list": EVERYONE, "store": EVERYONE, "item_list": EVERYONE, "item": EVERYONE,
    "transfer_list": EVERYONE, "worker_list": EVERYONE, "migration_list": EVERYONE, "conversion": EVERYONE, "drain": EVERYONE,
    "drain_live": EVERYONE, "preflight_list": EVERYONE, "preflight": EVERYONE, "verification_list": EVERYONE,
    "verification": EVERYONE, "scan_list": EVERYONE, "scan": EVERYONE, "token_list": EVERYONE, "token_add": EVERYONE, "password_change": EVERYONE,
    "stores_zone_changelist": EVERYONE, "stores_account_changelist": EVERYONE,
    "audit_list": {"auditor"}, "auth_user_changelist": ADMINS,
    "store_add": ADMINS, "store_edit": ADMINS, "store_remove": ADMINS, "zone_add": ADMINS, "user_add": ADMINS, "wizard": ADMINS,
    "retirement_list": EVERYONE, "retirement": EVERYONE, "retirement_report": EVERYONE, "retire": ADMINS, "retirement_files": ADMINS,
    "item_delete": ADMINS, "drain_plan": OPERATORS, "drain_cancel": OPERATORS, "drain_limits": OPERATORS, "verify": OPERATORS,
    "commit": EVERYONE, "rollback": EVERYONE, "rollback_abandon": ADMINS,
}  # fmt: skip
"""Who sees which page. `review` has tests of its own: after a conversion there is nothing to review."""

ACTIONS = {
    "store_test": OPERATORS, "scan_cancel": OPERATORS, "store_scan": OPERATORS, "store_readonly": ADMINS, "item_ensure": OPERATORS, "drain_start": OPERATORS,
    "drain_pause": OPERATORS, "drain_resume": OPERATORS, "drain_retry": OPERATORS, "token_revoke": EVERYONE,
    "rollback_retry": ADMINS,
    "retirement_acknowledge": ADMINS, "retirement_look_again": ADMINS, "retirement_cancel": ADMINS,
}  # fmt: skip


def address(cloud, name: str) -> str:
    return reverse(f"console:{name}", args=cloud.arguments(name))


def test_every_page_is_in_the_table_of_who_may_see_it():
    assert {page.name for page in pages.registered()} - {"review"} == (set(READ) | set(ACTIONS)) - {
        "index", "password_change", "stores_zone_changelist", "stores_account_changelist", "auth_user_changelist",
    }  # fmt: skip


@pytest.mark.parametrize("role", ROLES)
def test_each_role_sees_its_pages_and_no_others(cloud, sign_in, role):
    client = sign_in(role)
    statuses = {name: client.get(address(cloud, name)).status_code for name in READ}
    expected = {name: (286 if name == "drain_live" else 200) if role in roles else 403 for name, roles in READ.items()}
    assert statuses == expected


@pytest.mark.parametrize("role", ROLES)
def test_each_role_may_press_its_buttons_and_no_others(cloud, sign_in, role):
    client = sign_in(role)
    statuses = {name: client.post(address(cloud, name)).status_code for name in ACTIONS}
    assert statuses == {name: 303 if role in roles else 403 for name, roles in ACTIONS.items()}


def test_buttons_take_no_get(cloud, sign_in):
    client = sign_in("storage-admin")
    assert {client.get(address(cloud, name)).status_code for name in ACTIONS} == {405}


def test_whoever_is_not_signed_in_is_asked_to(cloud, client):
    for name in READ:
        answer = client.get(address(cloud, name))
        assert (answer.status_code, answer.headers.get("Location", "")[:13]) == (302, "/login/?next="), name


def test_whoever_has_no_role_sees_nothing(cloud, sign_in):
    client = sign_in()
    for name in READ:
        assert client.get(address(cloud, name)).status_code in {302, 403}, name


def test_every_page_keeps_to_the_policy_and_shows_no_secret(cloud, sign_in):
    client = sign_in("storage-admin", "auditor")
    add = ["/stores/add/?provider=NFS", "/stores/add/?provider=S3", "/stores/add/?provider=Swift", "/login/"]
    for url in [*(address(cloud, name) for name in READ if name != "retirement_report"), *add]:
        answer = client.get(url)
        page = answer.content.decode()
        assert "; ".join(sorted(answer["Content-Security-Policy"].split("; "))) == POLICY, url
        assert Strict(page).faults == [], url
        assert CANARY not in page, url
        assert len(answer.content) < 100_000, url


def test_a_form_filled_with_a_secret_never_gives_it_back(before, sign_in):
    client = sign_in("storage-admin")
    sent = {"provider": "Memory", "url": "memory://objects", "name": "objects", "password": CANARY, "do": "test"}
    for url in ("/migration/new/", "/stores/add/"):
        answer = client.post(url, sent, follow=True)
        page = answer.content.decode()
        assert CANARY not in page
        assert "kept on the server" in page or answer.status_code == 400
    assert CANARY not in str(dict(client.session.items()))


def queries(client, url: str) -> int:
    with CaptureQueriesContext(
        connection,
    ) as seen:
        assert client.get(url).status_code == 200
    return len(seen)


@pytest.mark.parametrize(
    "url",
    ["/", "/stores/", "/staging/", "/items/template/", "/items/snapshot/?state=Ready&zone=east", "/transfers/", "/workers/", "/audit/",
     "/tokens/", "/migration/", "/migration/verifications/", "/migration/retirements/", "/auth/user/", "/stores/zone/"],
)  # fmt: skip
def test_a_list_costs_the_same_queries_whatever_its_length(cloud, sign_in, url):
    from migration import drain, verify
    from tests.factories import make_zone

    client = sign_in("storage-admin", "auditor")
    client.get(url)
    few = queries(client, url)
    for number in range(27):
        make_zone(f"more-{number}")
        cloud.region.template(f"more-{number}", "east")
        sign_in(f"viewer-{number}", "viewer")
        verify.verify(actor=cloud.admin, store=cloud.conversion.object_store)
    cloud.region.snapshot("more.qcow2", "east", "west")
    drain.cancel(actor=cloud.admin, drain=cloud.drain)
    drain.plan(actor=cloud.admin, conversion=cloud.conversion)
    assert queries(client, url) <= few
    assert few <= 30


def test_a_chain_and_the_single_pages_stay_within_thirty_queries(cloud, sign_in):
    client = sign_in("storage-admin", "auditor")
    parent = cloud.chain[-1]
    for depth in range(30):
        parent = cloud.region.snapshot(f"link-{depth}.qcow2", "east", parent=parent)
    urls = [reverse("console:item", args=["snapshot", parent.uuid])]
    urls += [
        address(cloud, name)
        for name in (
            "store",
            "item",
            "conversion",
            "commit",
            "rollback",
            "drain",
            "preflight",
            "verification",
            "retirement",
            "retire",
        )
    ]
    costs = {url: queries(client, url) for url in urls}
    assert max(costs.values()) <= 30, costs


def test_long_lists_go_on_by_key_and_come_back(cloud, sign_in):
    for number in range(60):
        cloud.region.template(f"many-{number:02}", "east")
    client = sign_in("viewer")
    first = client.get("/items/template/?q=many").content.decode()
    assert "many-49" in first
    assert "many-50" not in first
    after = client.get(first.split('rel="next"')[0].rsplit('href="', 1)[1].split('"')[0].replace("&amp;", "&"), follow=True)
    assert after.status_code == 200
    with CaptureQueriesContext(connection) as seen:
        client.get("/items/template/?q=many")
    assert not any("OFFSET" in query["sql"] or "COUNT(" in query["sql"] for query in seen)


def test_filters_leave_what_matches(cloud, sign_in):
    cloud.region.template("windows", "west")
    client = sign_in("viewer")
    page = client.get("/items/template/?zone=west&q=wind").content.decode()
    assert "windows" in page
    assert "debian" not in page
    assert "Nothing matches" in client.get("/items/template/?q=nothing-like-it").content.decode()


def test_a_promise_says_where_the_bytes_are_now(cloud, sign_in):
    page = sign_in("viewer").get("/items/template/").content.decode()
    assert "on NFS nfs-east, nfs-west, pending" in page


def test_error_pages_say_what_to_do_and_give_the_request_id(cloud, sign_in):
    client = sign_in("viewer")
    for url, status in (("/nonsense/", 404), ("/zones/add/", 403), ("/items/mystery/", 404)):
        answer = client.get(url)
        page = answer.content.decode()
        assert answer.status_code == status
        assert "What to do" in page
        assert answer["X-Request-Id"] in page
        assert Strict(page).faults == []


def test_a_form_without_its_token_is_refused_in_words(cloud, sign_in):
    from django.test import Client

    strict = Client(enforce_csrf_checks=True)
    strict.cookies = sign_in("storage-admin").cookies
    answer = strict.post("/zones/add/", {"name": "north"})
    assert answer.status_code == 403
    assert "reload the page" in answer.content.decode()
    assert not Zone.objects.filter(name="north").exists()


def test_an_error_of_ours_is_a_page_with_a_request_id(cloud, sign_in, monkeypatch):
    from stores.admin import work

    def broken() -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(work, "workers", broken)
    client = sign_in("viewer")
    client.raise_request_exception = False
    answer = client.get("/workers/")
    assert answer.status_code == 500
    assert answer["X-Request-Id"] in answer.content.decode()
