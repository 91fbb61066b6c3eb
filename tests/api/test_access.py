"""Every address of the API answers each role as its view says, and none is forgotten here."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from django.test import Client
from django.urls import get_resolver
from django.urls.resolvers import URLPattern, URLResolver

from cloudstorage.models import AuditEvent
from tests.api.conftest import ROLES, Api

pytestmark = [pytest.mark.db, pytest.mark.django_db]

NOBODY = str(uuid.UUID(int=1))
READ = set(ROLES)
OPERATE = {"operator", "storage-admin"}
ADMIN = {"storage-admin"}
AUDIT = {"auditor"}

MATRIX: dict[tuple[str, str], set[str]] = {
    ("GET", "schema/"): READ,
    ("GET", "whoami"): READ,
    ("GET", "tokens"): READ,
    ("POST", "tokens"): READ,
    ("DELETE", "tokens/<str:id>"): READ,
    ("GET", "audit"): AUDIT,
    ("GET", "zones"): READ,
    ("POST", "zones"): ADMIN,
    ("GET", "accounts"): READ,
    ("GET", "providers"): READ,
    ("GET", "workers"): READ,
    ("GET", "stores"): READ,
    ("POST", "stores"): ADMIN,
    ("POST", "stores/test"): ADMIN,
    ("GET", "stores/<uuid:id>"): READ,
    ("PATCH", "stores/<uuid:id>"): ADMIN,
    ("DELETE", "stores/<uuid:id>"): ADMIN,
    ("POST", "stores/<uuid:id>/probe"): OPERATE,
    ("POST", "stores/<uuid:id>/scan"): OPERATE,
    ("GET", "stores/<uuid:id>/scan-report"): READ,
    ("POST", "stores/<uuid:id>/verify"): OPERATE,
    ("GET", "scans"): READ,
    ("GET", "scans/<uuid:id>"): READ,
    ("POST", "scans/<uuid:id>/cancel"): OPERATE,
    ("GET", "transfers"): READ,
    ("GET", "transfers/<uuid:id>"): READ,
    ("POST", "transfers/<uuid:id>/retry"): OPERATE,
    **{
        (method, f"{kind}s{rest}"): roles
        for kind in ("template", "snapshot", "volume")
        for method, rest, roles in (
            ("GET", "", READ),
            ("POST", "", OPERATE),
            ("GET", "/<uuid:id>", READ),
            ("DELETE", "/<uuid:id>", ADMIN),
            ("POST", "/<uuid:id>/ensure", OPERATE),
            ("GET", "/<uuid:id>/history", READ),
            ("GET", "/deleted", READ),
            ("POST", "/<uuid:id>/undelete", ADMIN),
            ("GET", "/<uuid:id>/content", READ),
        )
    },
    ("GET", "preflights"): READ,
    ("POST", "preflights"): ADMIN,
    ("GET", "preflights/<uuid:id>"): READ,
    ("GET", "conversions"): READ,
    ("POST", "conversions"): ADMIN,
    ("GET", "conversions/<uuid:id>"): READ,
    ("GET", "conversions/<uuid:id>/commit"): READ,
    ("POST", "conversions/<uuid:id>/commit"): ADMIN,
    ("GET", "conversions/<uuid:id>/rollback"): READ,
    ("POST", "conversions/<uuid:id>/rollback"): ADMIN,
    ("GET", "conversions/<uuid:id>/rollback/plan"): READ,
    ("POST", "conversions/<uuid:id>/rollback/retry"): ADMIN,
    ("POST", "conversions/<uuid:id>/rollback/abandon"): ADMIN,
    ("GET", "drains"): READ,
    ("POST", "drains"): OPERATE,
    ("GET", "drains/<uuid:id>"): READ,
    **{("POST", f"drains/<uuid:id>/{action}"): OPERATE for action in ("start", "pause", "resume", "cancel", "retry")},
    ("PATCH", "drains/<uuid:id>/limits"): OPERATE,
    ("GET", "drains/<uuid:id>/history"): READ,
    ("GET", "drains/<uuid:id>/errors"): READ,
    ("GET", "verifications"): READ,
    ("GET", "verifications/<uuid:id>"): READ,
    ("POST", "stores/<uuid:id>/decommission"): ADMIN,
    ("GET", "decommissions"): READ,
    ("GET", "decommissions/<uuid:id>"): READ,
    ("GET", "decommissions/<uuid:id>/report"): READ,
    **{
        ("POST", f"decommissions/<uuid:id>/{action}"): ADMIN for action in ("acknowledge", "look-again", "cancel", "delete-files")
    },
}
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")


def routes(resolver: Any = None, prefix: str = "") -> dict[str, Any]:
    """Every address below /api/v1/ with its callback."""
    found: dict[str, Any] = {}
    for entry in (resolver or get_resolver()).url_patterns:
        where = prefix + str(entry.pattern)
        if isinstance(entry, URLResolver):
            found |= routes(entry, where)
        elif isinstance(entry, URLPattern) and where.startswith("api/v1/") and "^" not in where:
            found[where.removeprefix("api/v1/")] = entry.callback
    return found


def test_matrix_names_every_method_of_every_address():
    offered = {
        (method, where) for where, callback in routes().items() for method in METHODS if hasattr(callback.cls, method.lower())
    }
    assert offered == set(MATRIX)


@pytest.mark.parametrize(("method", "where"), sorted(MATRIX))
def test_address_is_refused_when_the_role_is_missing_and_never_else(api, method, where):
    path = where.replace("<uuid:id>", NOBODY).replace("<str:id>", "cs_unknown")
    answer = api("").send(method, path, {} if method != "GET" else None)
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    for role in ROLES:
        answer = api(role).send(method, path, {} if method != "GET" else None)
        if role in MATRIX[method, where]:
            assert answer.status_code not in {401, 500}, (role, answer.content)
            # A token that asks for another one is refused for being a token, whatever its role.
            assert answer.status_code != 403 or where == "tokens", (role, answer.content)
        else:
            assert answer.status_code == 403, (role, answer.content)
            assert answer.json()["code"] == "denied"
            assert answer.json()["remedy"]
            noted = AuditEvent.objects.filter(actor__startswith=f"{role} ", action=f"rest.{method.lower()}", outcome="refused")
            assert noted.count() == (method != "GET")


def test_address_that_leads_nowhere_is_a_problem(api):
    for path in ("nothing", "stores/", "stores/abc", ""):
        answer = api("viewer").get(path)
        assert answer.status_code == 404
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert answer.json()["code"] == "not-found"


def test_method_that_a_view_lacks_is_a_problem_that_names_the_others(api):
    answer = api("storage-admin").send("PUT", "zones", {"name": "x"})
    assert answer.status_code == 405
    assert "POST" in answer.headers["Allow"]
    assert answer.json()["remedy"]


@pytest.mark.parametrize("method", ["POST", "PATCH", "DELETE"])
def test_address_that_leads_nowhere_is_a_problem_to_who_wants_to_change_something_too(api, method):
    program = Api(api("storage-admin").token, Client(enforce_csrf_checks=True))
    answer = program.send(method, "zones/", {"name": "x"})
    assert (answer.status_code, answer.headers["Content-Type"]) == (404, "application/problem+json")


@pytest.mark.parametrize("role", ["viewer", "storage-admin"])
def test_what_may_be_asked_of_an_address_is_told_to_who_may_read_it(api, role):
    answer = api(role).send("OPTIONS", "zones")
    assert (answer.status_code, answer.headers["Allow"]) == (204, "GET, POST, HEAD, OPTIONS")
    assert not AuditEvent.objects.filter(outcome="refused").exists()
