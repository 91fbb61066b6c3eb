"""Credentials that are revoked and rotated in the middle of a drain: the store is left alone, no item is blamed, and work goes on."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from cloudstorage.errors import Invalid
from migration import drain, verify
from migration.models import Verification
from migration.states import DrainState
from stores.models import Transfer
from stores.services import image_stores
from stores.states import TransferState
from tests.drivers.s3_cases import details_of, new_bucket
from tests.migration.under_way import UnderWay, begin
from tests.servers.fixtures import until_killed
from tests.servers.swift import SwiftServer

pytestmark = [pytest.mark.db, pytest.mark.live]

ITEMS = 4
LOCKED_OUT = "locked-out"


@dataclass
class Account:
    """Where the items go, as whom, and what changes the secret on the server and returns the new one."""

    target: dict[str, Any]
    secret: str
    rotate: Callable[[], str]


@pytest.fixture(scope="module")
def rotating(server_directory) -> Iterator[SwiftServer]:
    """A Swift whose key changes."""
    with until_killed(SwiftServer(server_directory / "rotating")) as server:
        yield server


def change_key(server: SwiftServer) -> str:
    """Nobody gets in with the former key, nor with a token that it was good for."""
    server.kill()
    server.key = server.secret_key = uuid.uuid4().hex
    server.start()
    return server.key


def by_s3api(request) -> Account:
    server = request.getfixturevalue("rotating")
    target = {"provider": "S3", "url": "", "details": details_of(server, new_bucket(server))}
    return Account(target, "secretkey", lambda: change_key(server))


def by_auth_v1(request) -> Account:
    server = request.getfixturevalue("rotating")
    details = {"username": server.username, "key": server.key, "container": f"c-{uuid.uuid4().hex[:8]}"}
    return Account({"provider": "Swift", "url": server.auth_url, "details": details}, "key", lambda: change_key(server))


def by_keystone(request) -> Account:
    both = request.getfixturevalue("keystone_swift")
    keystone, former = both.keystone, both.keystone.password
    details = {
        "username": keystone.username,
        "key": former,
        "container": f"c-{uuid.uuid4().hex[:8]}",
        "project": keystone.project,
        "userdomain": keystone.user_domain,
        "projectdomain": keystone.project_domain,
        "region": keystone.region,
    }

    def rotate() -> str:
        keystone.change_password(keystone.username, new := uuid.uuid4().hex)
        both.swift.kill()  # for it remembers for minutes what Keystone said of a token
        both.swift.start()
        return new

    request.addfinalizer(lambda: keystone.change_password(keystone.username, former))
    return Account({"provider": "Swift", "url": keystone.auth_url, "details": details}, "key", rotate)


@pytest.fixture(params=[by_s3api, by_auth_v1, by_keystone], ids=lambda param: param.__name__)
def account(request) -> Account:
    return request.param(request)


@pytest.fixture
def moving(region, account, admin, operator, settings) -> UnderWay:
    settings.OUTBOUND_ALLOW_LOOPBACK = True
    for number in range(ITEMS):
        region.volume(f"disk-{number}", "east")
    return begin(region, admin, operator, name="objects", **account.target)


def test_drain_waits_for_the_new_secret_and_goes_on_by_itself(moving, account, admin):
    others = Transfer.objects.order_by("pk").values_list("pk", flat=True)[1:]
    Transfer.objects.filter(pk__in=list(others)).update(next_attempt_at="2100-01-01T00:00:00Z")
    assert moving.pump_as_planned() == 1
    secret = account.rotate()
    moving.pump()
    assert moving.states() == [TransferState.PROVEN] + [TransferState.QUEUED] * (ITEMS - 1)
    assert moving.causes() == {LOCKED_OUT}
    assert not Transfer.objects.filter(faults__gt=0).exists()
    told = drain.progress(moving.drain)
    assert told.state == DrainState.RUNNING
    assert told.bottleneck.words.startswith("no worker reaches objects: ")
    assert all("store_update" in error["remedy"] and not error["failed"] for error in told.errors)
    attempts = sum(Transfer.objects.values_list("attempts", flat=True))
    assert not moving.look()
    moving.pump()
    assert sum(Transfer.objects.values_list("attempts", flat=True)) == attempts, "the store was not left alone"
    with pytest.raises(Invalid):
        image_stores.update_store(actor=admin, store=moving.store, details={account.secret: "wrong"})
    image_stores.update_store(actor=admin, store=moving.store, details={account.secret: secret})
    assert moving.look()
    assert moving.run_to_end().note == "Every item is proven."
    moving.assert_whole()


@pytest.mark.parametrize("account", [by_s3api], indirect=True)
def test_verification_finds_nothing_missing_when_the_key_is_revoked_in_its_middle(moving, account, admin, monkeypatch):
    moving.run_to_end()
    check, secrets = verify._check, []

    def revoked(*arguments: Any) -> Any:
        if not secrets:
            secrets.append(account.rotate())
        return check(*arguments)

    monkeypatch.setattr(verify, "_check", revoked)
    row = verify.verify(actor=admin, store=moving.store)
    verify.run(row)
    row.refresh_from_db()
    assert row.findings == []
    image_stores.update_store(actor=admin, store=moving.store, details={account.secret: secrets[0]})
    Verification.objects.update(lease_until=None)
    verify.run(row)
    row.refresh_from_db()
    assert (row.state, row.items_checked, row.findings) == ("Finished", ITEMS, [])
