"""Browsers without a browser: a signed-in client per role, and a cloud that has one of everything."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group
from django.test import Client

from cloudstorage.models import ApiToken
from migration import conversion, drain, verify
from migration.models import Decommission, Preflight, Verification
from migration.preflight import preflight
from migration.states import DecommissionState
from stores.models import ImageStore, Snapshot, Template, Transfer
from stores.services.scan import request_scan
from stores.states import TransferState
from tests.fakes import memory
from tests.migration.conftest import memory_store, region, target

__all__ = ["memory_store", "region", "target"]

CANARY = "canary-secret-5f1d"
"""The object store's secret; no page may ever show it."""
ROLES = ("viewer", "operator", "storage-admin", "auditor")


@pytest.fixture(autouse=True)
def _clean_servers() -> Iterator[None]:
    yield
    memory.SERVERS.clear()


@pytest.fixture
def sign_in(db) -> Any:
    """A client signed in with the roles; its user is called after the first."""

    def signed_in(*roles: str) -> Client:
        name = roles[0] if roles else "nobody"
        user, _ = get_user_model().objects.get_or_create(username=name, defaults={"is_staff": True})
        user.groups.set([Group.objects.get_or_create(name=role)[0] for role in roles])
        client = Client()
        client.force_login(user)
        return client

    return signed_in


@dataclass
class Cloud:
    """One of everything, after a conversion with a drain that is planned."""

    region: Any
    template: Template
    chain: list[Snapshot]
    report: Preflight
    conversion: Any
    drain: Any
    verification: Any
    scan: Any
    retirement: Any
    token: ApiToken
    admin: Any

    @property
    def nfs(self) -> ImageStore:
        return self.region.stores["east"]

    def arguments(self, name: str) -> list[Any]:
        """What the URL of that name takes."""
        kind, store = "template", self.nfs.uuid
        found: dict[str, list[Any]] = {
            **{of: [kind] for of in ("item_list", "item_deleted", "items_ensure", "items_delete")},
            **{of: [kind, self.template.uuid] for of in ("item", "item_ensure", "item_delete", "item_undelete")},
            **{of: [store] for of in ("store", "store_test", "store_scan", "store_readonly", "store_remove", "store_edit")},
            **{of: [self.report.uuid] for of in ("preflight", "rules", "review")},
            **{of: [self.conversion.uuid] for of in ("conversion", "drain_plan", "commit")},
            **{of: [self.conversion.uuid] for of in ("rollback", "rollback_abandon", "rollback_retry")},
            "verification": [self.verification.uuid],
            **{of: [self.scan.uuid] for of in ("scan", "scan_cancel")},
            "retire": [store],
            "staging": [store],
            "rest_operation": ["conversions_create"],
            "retirement_report": [self.retirement.uuid, "json"],
            "token_revoke": [self.token.prefix],
            "user_edit": [self.token.user_id],
            "filter_delete": [1],
            "app_list": ["auth"],
        }
        if name.startswith("retirement") and name not in {"retirement_list", "retirement_report"}:
            return [self.retirement.uuid]
        if name.startswith("drain") and name != "drain_plan":
            return [self.drain.uuid]
        return found.get(name, [])


@pytest.fixture
def before(region, memory_store) -> Any:
    """The region before a conversion: a template in both zones and a chain of snapshots."""
    memory_store.password = CANARY
    template = region.template("debian", "east", "west")
    full = region.snapshot("full.qcow2", "east")
    child = region.snapshot("child.qcow2", "east", parent=full)
    return region, template, [full, child]


@pytest.fixture
def cloud(before, admin, target, sign_in) -> Cloud:
    region, template, chain = before
    place = target | {"details": {"password": CANARY}}
    report = preflight(actor=admin, **place)
    done = conversion.convert(actor=admin, **place, preflight=report, override=[])
    planned = drain.plan(actor=admin, conversion=done)
    Transfer.objects.filter(kind="template").update(
        state=TransferState.FAILED, error_cause="access-denied", error="The server said no.", remedy="Ask for the right to write."
    )
    sign_in("viewer")
    user = get_user_model().objects.get(username="viewer")
    token = ApiToken.objects.create(user=user, name="tests", prefix="cs_abcdefghi", digest="0" * 64, role="viewer")
    checked = verify.verify(actor=admin, store=done.object_store)
    asked = request_scan(actor=admin, store=region.stores["east"])
    read = Verification.objects.create(store=region.stores["west"], actor="ada", mode=Verification.RETIRE, state="Finished")
    totals = {"items": 0, "files": 0, "bytes": 0, "not_read_again": 0}
    retired = Decommission.objects.create(
        store=read.store, verification=read, actor="ada", state=DecommissionState.RETIRED, former_readonly=False, totals=totals
    )
    return Cloud(region, template, chain, report, done, planned, checked, asked, retired, token, admin)
