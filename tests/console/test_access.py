"""Each role sees its pages and may press its buttons, and no address is forgotten in the tables that say so."""

from __future__ import annotations

import pytest
from django.urls import resolve

from cloudstorage.models import AuditEvent
from tests.console.access import ELSEWHERE, HIDDEN, LOOK, OF_THE_ADMIN, SEND, address, every_address
from tests.console.conftest import ROLES
from tests.console.html import Offers

pytestmark = pytest.mark.db

STATUS = {"drain_live": 286, "rules": 404, "review": 404, "app_list": 303}
"""What a page answers that is not 200: the live part stops polling, and after a conversion there is nothing to review."""
REFUSED = {403, 404, 405}


def refusal(name: str) -> int:
    """What they are answered who may not."""
    return 404 if name in HIDDEN else 403


def done() -> int:
    """How often anything was changed."""
    return AuditEvent.objects.filter(outcome="done").count()


def test_the_tables_name_every_address():
    assert set(every_address()) == LOOK.keys() | SEND.keys() | OF_THE_ADMIN.keys() | ELSEWHERE


@pytest.mark.parametrize("role", ROLES)
def test_each_role_sees_its_pages_and_no_others(cloud, sign_in, role):
    client = sign_in(role)
    pages = LOOK | OF_THE_ADMIN
    statuses = {name: client.get(address(cloud, name)).status_code for name in pages}
    assert statuses == {name: STATUS.get(name, 200) if role in roles else refusal(name) for name, roles in pages.items()}


@pytest.mark.parametrize("role", ROLES)
def test_no_role_is_offered_what_it_would_be_refused(cloud, sign_in, role):
    client = sign_in(role)
    found = []
    for name in (name for name, roles in LOOK.items() if role in roles):
        where = address(cloud, name)
        offers = Offers(b"".join(client.get(where)).decode(), where)
        links = {resolve(path).url_name for path in offers.links if not path.startswith(("/api/", "/static/"))}
        forms = {resolve(path).url_name for path in offers.forms} & SEND.keys()  # a list of the admin is a form without a button
        found += [(name, link) for link in links if role not in LOOK[link]]
        found += [(name, form) for form in forms if role not in SEND[form]]
    assert found == []


@pytest.mark.parametrize("role", ROLES)
def test_each_role_may_send_its_forms_and_press_its_buttons_and_no_others(cloud, sign_in, role):
    client = sign_in(role)
    before = done()
    refused = {name: client.post(address(cloud, name)).status_code for name, roles in SEND.items() if role not in roles}
    assert refused == {name: refusal(name) for name in refused}
    assert done() == before
    noted = AuditEvent.objects.filter(actor=role, outcome="refused")
    assert noted.count() == len(refused), set(refused) - set(noted.values_list("action", flat=True))
    bodies = {"verify": {"store": cloud.nfs.uuid}}
    allowed = {name: client.post(address(cloud, name), bodies.get(name)).status_code for name in SEND if name not in refused}
    unexpected = {name: status for name, status in allowed.items() if status in REFUSED or status >= 500}
    assert unexpected == ({"rules": 404, "review": 404} if "review" in allowed else {})


def test_what_is_only_looked_at_changes_nothing_when_it_is_sent_to(cloud, sign_in):
    client = sign_in("storage-admin", "auditor")
    before = done()
    for name in (LOOK | OF_THE_ADMIN).keys() - SEND.keys():
        assert client.post(address(cloud, name)).status_code < 500, name
    assert done() == before


def test_buttons_take_no_get(cloud, sign_in):
    client = sign_in("storage-admin")
    assert {client.get(address(cloud, name)).status_code for name in SEND.keys() - LOOK.keys()} == {405}


def test_whoever_is_not_signed_in_is_asked_to(cloud, client):
    for name in LOOK | OF_THE_ADMIN:
        answer = client.get(address(cloud, name))
        assert (answer.status_code, answer.headers.get("Location", "")[:13]) == (302, "/login/?next="), name
    before = done()
    for name in SEND:
        assert client.post(address(cloud, name)).status_code == 302, name
    assert done() == before


def test_whoever_has_no_role_sees_and_changes_nothing(cloud, sign_in):
    client = sign_in()
    for name in LOOK | OF_THE_ADMIN:
        assert client.get(address(cloud, name)).status_code in {302, 403}, name
    before = done()
    for name in SEND.keys() - {"password_change"}:
        assert client.post(address(cloud, name)).status_code == 403, name
    assert done() == before


def test_everybody_may_sign_in_and_out_and_nothing_else_is_there(cloud, sign_in, client):
    assert client.get("/login/").status_code == 200
    assert client.get("/r/1/1/").status_code == 302
    signed_in = sign_in("viewer")
    assert signed_in.get("/r/1/1/").status_code == 404
    assert signed_in.get("/nothing/like/it/").status_code == 404
    asked = signed_in.get("/logout/")
    assert (asked.status_code, "Sign out?" in asked.content.decode()) == (200, True)
    assert signed_in.get("/").status_code == 200
    assert signed_in.post("/logout/").status_code in {200, 302}
    assert signed_in.get("/").status_code == 302
