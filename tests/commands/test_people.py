"""Users and tokens from the command line: passwords never on it, tokens printed once."""

from __future__ import annotations

import io

import pytest
from django.contrib.auth import get_user_model

from cloudstorage.models import ApiToken, AuditEvent
from tests.api.conftest import Api

pytestmark = [pytest.mark.db, pytest.mark.django_db]

PASSWORD = "a rather long password"


@pytest.fixture
def ann(run, monkeypatch):
    monkeypatch.setenv("ANNS_PASSWORD", PASSWORD)
    ended = run("user_add", "ann", "--role", "operator", "--password-env", "ANNS_PASSWORD")
    assert ended.code == 0, ended.err
    assert PASSWORD not in ended.out
    return get_user_model().objects.get()


def test_user_has_the_role_and_the_password(ann, run, monkeypatch):
    assert ann.check_password(PASSWORD)
    assert [group.name for group in ann.groups.all()] == ["operator"]
    assert AuditEvent.objects.get(action="user.add").actor.startswith("cli:")
    monkeypatch.setattr("sys.stdin", io.StringIO(PASSWORD + "2\n"))
    assert run("user_add", "bob", "--role", "viewer", "--json").json() == {"name": "bob", "role": "viewer"}
    assert get_user_model().objects.get(username="bob").check_password(PASSWORD + "2")


@pytest.mark.parametrize(
    ("name", "role", "password", "code"),
    [("ann", "viewer", PASSWORD, 4), ("bob", "king", PASSWORD, 2), ("bob", "viewer", "short", 2), ("bob", "viewer", "password1234", 2),
     (" ", "viewer", PASSWORD, 2), ("cli:root", "viewer", PASSWORD, 2), ("ann (token cs_x)", "viewer", PASSWORD, 2),
     ("system", "viewer", PASSWORD, 2), ("b" * 151, "viewer", PASSWORD, 2)],
)  # fmt: skip
def test_user_is_refused(ann, run, monkeypatch, name, role, password, code):
    monkeypatch.setattr("sys.stdin", io.StringIO(password + "\n"))
    assert run("user_add", name, "--role", role).code == code
    assert get_user_model().objects.count() == 1


def test_variable_that_is_not_set_is_a_usage_error(run):
    ended = run("user_add", "bob", "--role", "viewer", "--password-env", "NOT_SET_ANYWHERE")
    assert (ended.code, "[password]" in ended.err) == (2, True)


def test_user_is_kept_out_with_every_token_and_let_in_again_with_another_role(ann, run):
    program = Api(run("token_create", "ann", "--role", "operator").out.strip())
    assert run("user_change", "ann", "--disable").code == 0
    assert program.get("whoami").status_code == 401
    told = run("user_change", "ann", "--enable", "--role", "viewer", "--role", "auditor", "--json").json()
    assert told == {"name": "ann", "roles": ["viewer", "auditor"], "active": True}
    assert program.get("whoami").json()["roles"] == ["viewer"], "no more than the token's role, and no more than the user's"
    disabled, enabled = AuditEvent.objects.filter(action="user.change").order_by("pk")
    assert disabled.details["changes"] == {"active": {"before": True, "after": False}}
    assert enabled.details["changes"]["roles"] == {"before": ["operator"], "after": ["auditor", "viewer"]}


@pytest.mark.parametrize(
    ("args", "code"), [(["bob", "--disable"], 3), (["ann", "--role", "king"], 2), (["ann", "--enable", "--disable"], 2)]
)
def test_change_of_a_user_is_refused(ann, run, args, code):
    assert run("user_change", *args).code == code
    assert not AuditEvent.objects.filter(action="user.change", outcome="done").exists()


def test_token_is_printed_once_and_works(ann, run):
    secret = run("token_create", "ann", "--role", "viewer", "--name", "backup").out.strip()
    assert Api(secret).get("whoami").json()["roles"] == ["viewer"]
    token = ApiToken.objects.get()
    assert token.digest == ApiToken.digest_of(secret)
    assert secret not in str(token.__dict__)
    assert run("token_create", "ann", "--role", "viewer", "--days", "0", "--json").json()["expires"] is None


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["nobody", "--role", "viewer"], 3),
        (["ann", "--role", "storage-admin"], 2),
        (["ann", "--role", "viewer", "--days", "999"], 2),
    ],
)
def test_token_is_refused(ann, run, args, code):
    assert run("token_create", *args).code == code
    assert not ApiToken.objects.exists()
