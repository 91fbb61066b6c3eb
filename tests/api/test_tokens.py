"""Tokens are kept as hashes, end when they should, and can do no more than their user and their role."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.test import Client
from django.utils import timezone

from cloudstorage.models import ApiToken, AuditEvent
from stores.models import Zone
from tests.api.conftest import PASSWORD, Api, make_token, make_user

pytestmark = [pytest.mark.db, pytest.mark.django_db]


def whoami(secret: str):
    return Api(secret).get("whoami")


def test_token_names_its_user_when_it_is_good():
    answer = whoami(make_token(make_user("ann", "operator"), "operator"))
    assert answer.status_code == 200
    assert answer.json()["roles"] == ["viewer", "operator"]
    assert answer.json()["name"].startswith("ann (token cs_")


@pytest.mark.parametrize(
    ("of_user", "of_token", "roles"),
    [
        (["storage-admin"], "viewer", ["viewer"]),
        (["viewer"], "storage-admin", ["viewer"]),
        (["storage-admin"], "auditor", ["viewer"]),
        (["storage-admin", "auditor"], "auditor", ["viewer", "auditor"]),
        ([], "operator", []),
    ],
)
def test_token_may_do_what_both_its_user_and_its_role_may(of_user, of_token, roles):
    answer = whoami(make_token(make_user("ann", *of_user), of_token))
    assert answer.status_code == (200 if roles else 403)
    if roles:
        assert answer.json()["roles"] == roles


@pytest.mark.parametrize("end", ["expired", "revoked", "inactive", "unknown", "malformed"])
def test_token_is_refused_when_it_has_ended(end):
    user = make_user("ann", "viewer")
    past = timezone.now() - timedelta(seconds=1)
    secret = make_token(user, "viewer", **({"revoked": past} if end == "revoked" else {}))
    if end == "expired":
        ApiToken.objects.update(expires=past)
    if end == "inactive":
        user.is_active = False
        user.save()
    answer = whoami({"unknown": "cs_" + "x" * 43, "malformed": "\u00e4 \u00f6"}.get(end, secret))
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    assert answer.json()["code"] == "authentication-failed"


def test_last_use_is_written_once_a_minute_however_busy_the_token_is(django_assert_num_queries):
    secret = make_token(make_user("ann", "viewer"), "viewer")
    whoami(secret)
    first = ApiToken.objects.get().last_used
    assert first is not None
    whoami(secret)
    assert ApiToken.objects.get().last_used == first
    ApiToken.objects.update(last_used=first - timedelta(seconds=61))
    whoami(secret)
    assert ApiToken.objects.get().last_used >= first


def test_token_is_shown_once_and_kept_as_a_hash_when_a_signed_in_user_makes_it():
    make_user("ann", "operator")
    browser = Client(enforce_csrf_checks=True)
    assert browser.login(username="ann", password=PASSWORD, request=_request())
    body = {"name": "backup script", "role": "viewer", "days": 3}
    refused = browser.post("/api/v1/tokens", body, content_type="application/json")
    assert (refused.status_code, refused.json()["code"]) == (403, "csrf-failed")
    browser.cookies["csrftoken"] = "a" * 32
    made = browser.post("/api/v1/tokens", body, content_type="application/json", headers={"X-CSRFToken": "a" * 32})
    assert made.status_code == 201, made.content
    secret = made.json()["token"]
    token = ApiToken.objects.get()
    assert secret not in str(token.__dict__)
    assert token.digest == ApiToken.digest_of(secret)
    assert timedelta(days=2) < token.expires - timezone.now() < timedelta(days=3)
    listed = browser.get("/api/v1/tokens")
    assert secret not in listed.content.decode()
    assert [entry["id"] for entry in listed.json()["results"]] == [secret[:12]]
    assert whoami(secret).json()["roles"] == ["viewer"]
    assert AuditEvent.objects.filter(action="token.create", outcome="done").exists()
    assert secret not in str(list(AuditEvent.objects.values()))


def _request():
    from django.http import HttpRequest

    return HttpRequest()


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"name": "x", "role": "storage-admin"}, "#/role"),
        ({"name": "x", "role": "king"}, "#/role"),
        ({"name": "x", "role": "viewer", "days": 0}, "#/days"),
        ({"name": "x", "role": "viewer", "days": 4000}, "#/days"),
        ({"role": "viewer"}, "#/name"),
        ({"name": "x", "role": "viewer", "colour": "red"}, "#/colour"),
    ],
)
def test_token_is_not_made_and_the_field_is_named_when_a_parameter_is_wrong(body, pointer):
    make_user("ann", "operator")
    browser = Client()
    browser.login(username="ann", password=PASSWORD, request=_request())
    answer = browser.post("/api/v1/tokens", body, content_type="application/json")
    assert answer.status_code == 400
    assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]
    assert not ApiToken.objects.exists()


def test_token_makes_no_token(api):
    answer = api("storage-admin").post("tokens", {"name": "x", "role": "viewer"})
    assert answer.status_code == 403
    assert "makes no tokens" in answer.json()["detail"]


def test_token_is_taken_back_by_its_owner_or_a_storage_admin_only(api):
    ann = make_user("ann", "viewer")
    secret = make_token(ann, "viewer")
    assert api("operator").delete(f"tokens/{secret[:12]}").status_code == 404
    assert whoami(secret).status_code == 200
    assert Api(secret).delete(f"tokens/{secret[:12]}").status_code == 204
    assert whoami(secret).status_code == 401
    other = make_token(ann, "viewer")
    assert api("storage-admin").delete(f"tokens/{other[:12]}").status_code == 204
    assert whoami(other).status_code == 401


def test_session_may_read_and_needs_the_csrf_token_to_change():
    make_user("ann", "storage-admin")
    browser = Client(enforce_csrf_checks=True)
    assert browser.get("/api/v1/zones").status_code == 401
    browser.login(username="ann", password=PASSWORD, request=_request())
    assert browser.get("/api/v1/zones").status_code == 200
    assert browser.post("/api/v1/zones", {"name": "z"}, content_type="application/json").status_code == 403
    assert not Zone.objects.exists()
