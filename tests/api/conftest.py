"""Clients of the REST API by role, and a cloud that has one of everything."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group
from django.test import Client

from cloudstorage.models import ApiToken
from migration import conversion, drain, verify
from migration.models import Preflight
from migration.preflight import preflight
from stores.models import Transfer
from tests.fakes import memory
from tests.migration.conftest import memory_store, region, target

__all__ = ["memory_store", "region", "target"]

ROLES = ("viewer", "operator", "storage-admin", "auditor")
PASSWORD = "a rather long password"


def make_user(name: str, *roles: str) -> Any:
    user = get_user_model().objects.create_user(name, password=PASSWORD)
    user.groups.set([Group.objects.get_or_create(name=role)[0] for role in roles])
    return user


def make_token(user: Any, role: str, **changes: Any) -> str:
    secret = ApiToken.new_secret()
    given = {"name": "tests", "prefix": secret[:12], "digest": ApiToken.digest_of(secret), "role": role} | changes
    ApiToken.objects.create(user=user, **given)
    return secret


@dataclass
class Api:
    """A client with a bearer token."""

    token: str
    client: Client = field(default_factory=lambda: Client(raise_request_exception=False))

    def send(self, method: str, path: str, body: Any = None, *, headers: Mapping[str, str] | None = None, **more: Any) -> Any:
        data = {} if body is None else {"data": json.dumps(body), "content_type": "application/json"}
        sent = {"Authorization": f"Bearer {self.token}", **(headers or {})} if self.token else dict(headers or {})
        return self.client.generic(method, f"/api/v1/{path}", headers=sent, **{**data, **more})

    def get(self, path: str, **more: Any) -> Any:
        return self.send("GET", path, **more)

    def post(self, path: str, body: Any = None, **more: Any) -> Any:
        return self.send("POST", path, body, **more)

    def patch(self, path: str, body: Any = None, **more: Any) -> Any:
        return self.send("PATCH", path, body, **more)

    def delete(self, path: str, **more: Any) -> Any:
        return self.send("DELETE", path, **more)


@pytest.fixture(autouse=True)
def _clean_servers() -> Iterator[None]:
    yield
    memory.SERVERS.clear()


@pytest.fixture(autouse=True)
def _quick_passwords(settings) -> None:
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]


@pytest.fixture
def api(db) -> Callable[[str], Api]:
    """`api("operator")`: a client whose user and token have that role; `api("")`: one without a token."""
    made: dict[str, Api] = {"": Api("")}

    def client(role: str = "storage-admin") -> Api:
        if role not in made:
            made[role] = Api(make_token(make_user(role, role), role))
        return made[role]

    return client


@dataclass
class Cloud:
    """A converted region with a planned drain, a preflight and a verification."""

    region: Any
    template: Any
    full: Any
    delta: Any
    volume: Any
    preflight: Preflight
    conversion: Any
    drain: Any
    verification: Any

    @property
    def transfer(self) -> Transfer:
        return Transfer.objects.order_by("pk").first()


@pytest.fixture
def cloud(region, target, admin) -> Cloud:
    template = region.template("web", "east", "west")
    full = region.snapshot("full", "west")
    delta = region.snapshot("delta", "west", parent=full)
    volume = region.volume("data", "east")
    report = preflight(actor=admin, **target)
    converted = conversion.convert(actor=admin, **target)
    planned = drain.plan(actor=admin, conversion=converted)
    checked = verify.verify(actor=admin, store=converted.object_store)
    return Cloud(region, template, full, delta, volume, report, converted, planned, checked)
