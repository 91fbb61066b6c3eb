"""Every page keeps to the policy, shows no secret, stays small and costs few queries."""

from __future__ import annotations

import re

import pytest
from django.db import OperationalError, connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from cloudstorage.templatetags.console import breakable
from migration import drain
from migration.models import Drain, Verification
from migration.states import DrainState
from stores.models import Snapshot, Zone
from stores.states import Role
from tests.console.access import LOOK, address
from tests.console.conftest import CANARY
from tests.console.html import Strict
from tests.factories import make_store, make_zone

pytestmark = pytest.mark.db

POLICY = "base-uri 'none'; default-src 'self'; form-action 'self'; frame-ancestors 'none'; object-src 'none'"


def test_every_page_keeps_to_the_policy_and_shows_no_secret(cloud, sign_in):
    client = sign_in("storage-admin", "auditor")
    add = ["/stores/add/?provider=NFS", "/stores/add/?provider=S3", "/stores/add/?provider=Swift", "/login/"]
    for url in [*(address(cloud, name) for name in LOOK if name != "retirement_report"), *add]:
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


def test_lists_cost_the_same_queries_whatever_their_length(cloud, sign_in):
    urls = ["/", "/stores/", "/staging/", "/items/template/", "/items/snapshot/?state=Ready&zone=east", "/transfers/", "/workers/",
            "/audit/", "/tokens/", "/migration/", "/migration/verifications/", "/migration/retirements/", "/auth/user/",
            "/stores/zone/"]  # fmt: skip
    client = sign_in("storage-admin", "auditor")
    for url in urls:
        client.get(url)
    few = {url: queries(client, url) for url in urls}
    for number in range(27):
        make_zone(f"more-{number}")
        cloud.region.template(f"more-{number}", "east")
        sign_in(f"viewer-{number}", "viewer")
        Verification.objects.create(store=cloud.conversion.object_store, actor="ada", mode=Verification.CONTENT)
    cloud.region.snapshot("more.qcow2", "east", "west")
    drain.cancel(actor=cloud.admin, drain=cloud.drain)
    drain.plan(actor=cloud.admin, conversion=cloud.conversion)
    more = {url: queries(client, url) for url in urls}
    assert {url: (few[url], more[url]) for url in urls if more[url] > few[url]} == {}
    assert max(few.values()) <= 30, few


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


def test_a_conversion_with_many_drains_is_one_page_that_tells_which_left_failures(cloud, sign_in):
    client, url = sign_in("storage-admin"), reverse("console:conversion", args=[cloud.conversion.uuid])
    Drain.objects.update(state=DrainState.FINISHED)
    for _ in range(3):
        made = drain.plan(actor=cloud.admin, conversion=cloud.conversion)
        Drain.objects.filter(pk=made.pk).update(state=DrainState.FINISHED)
    few = queries(client, url)
    for _ in range(3):
        made = drain.plan(actor=cloud.admin, conversion=cloud.conversion)
        Drain.objects.filter(pk=made.pk).update(state=DrainState.FINISHED)
    assert (queries(client, url), few <= 30) == (few, True)
    for where in (url, "/migration/"):
        page = client.get(where).content.decode()
        assert page.count("Finished, not complete") == 1, "the first drain's template failed"


def test_the_plan_of_the_way_back_costs_the_same_whatever_exports_there_are_and_was_made_since(cloud, sign_in, tmp_path):
    region, client, url = cloud.region, sign_in("storage-admin"), reverse("console:rollback", args=[cloud.conversion.uuid])

    def bear(name: str, parent: Snapshot | None = None) -> Snapshot:
        made = region.template(name, "east"), region.volume(name, "east"), region.snapshot(f"{name}.qcow2", "east", parent=parent)
        for item in made:
            item.refs.update(store=cloud.conversion.object_store, proof="attested")
        return made[-1]

    link = bear("born")
    client.get(url)
    few = queries(client, url)
    assert few < 30
    for number in range(8):
        link = bear(f"born-{number}", parent=link)
        export = make_store("NFS", zone=make_zone(f"more-{number}"), folder=tmp_path / str(number), role=Role.IMAGE_CACHE)
        cloud.conversion.stores.create(store=export, former_role=Role.IMAGE, former_readonly=False)
    assert queries(client, url) == few
    page = client.get(url).content.decode()
    assert export.name in page
    assert "27 copies" in page


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


def test_a_place_in_a_list_that_is_no_number_is_the_list_from_its_beginning(cloud, sign_in):
    client = sign_in("viewer")
    for strange in ("²", "x", "9" * 30):
        assert client.get("/tokens/", {"after": strange}).status_code == 200


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


def test_a_database_that_does_not_answer_is_told_as_such_and_not_as_an_error_of_ours(cloud, sign_in):
    client = sign_in("viewer")
    client.raise_request_exception = False

    def silent(*_: object) -> None:
        raise OperationalError("could not connect to 10.1.2.3")

    with connection.execute_wrapper(silent):
        answer = client.get("/stores/")
    page = answer.content.decode()
    assert (answer.status_code, "10.1.2.3" in page) == (503, False)
    assert "The database does not answer" in page
    assert "What to do" in page
    assert answer["X-Request-Id"] in page
    assert Strict(page).faults == []


def test_a_buttons_address_is_no_page_and_says_so(cloud, sign_in):
    answer = sign_in("operator").get(address(cloud, "drain_start"))
    page = answer.content.decode()
    assert (answer.status_code, answer["Allow"]) == (405, "POST")
    assert "Go back to the page with the button" in page
    assert answer["X-Request-Id"] in page


def test_who_guesses_passwords_is_told_how_long_to_wait(client, settings, db):
    settings.AXES_FAILURE_LIMIT = 2
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
    for _ in range(2):
        answer = client.post("/login/", {"username": "ada", "password": "wrong"}, REMOTE_ADDR="192.0.2.7")
    page = answer.content.decode()
    assert (answer.status_code, answer["Retry-After"]) == (429, "900")
    assert "for 15 min" in page
    assert answer["X-Request-Id"] in page
    assert Strict(page).faults == []


def test_settings_are_shown_with_their_source_and_meaning_and_without_secrets(sign_in, settings):
    page = " ".join(sign_in("storage-admin").get("/settings/").content.decode().split())
    documented = set(re.findall(r"^\| `([A-Z_]+)`", (settings.BASE_DIR / "docs" / "settings.md").read_text(), re.MULTILINE))
    assert {setting.name for setting in settings.SETTINGS_READ} == documented
    assert all(f"<code>{breakable(name)}</code>" in page for name in documented)
    assert "of time windows and of times in the console" in page
    assert '107374182400 <span class="quiet">= 100.0 GiB</span>' in page
    assert "`" not in page
    assert settings.SECRET_KEY not in page
    assert settings.QUEUE_SECRET_KEY not in page
