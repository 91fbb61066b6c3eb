"""A store's secret leaves by no address, no command, no log line and no row in clear."""

from __future__ import annotations

import io
from contextlib import suppress

import pytest
from django.core.management import call_command
from django.db import connection

from cloudstorage.models import AuditEvent
from migration.models import Decommission, Preflight
from stores.models import ScanRun
from tests.api.conftest import Api, make_token, make_user
from tests.api.test_access import MATRIX

pytestmark = [pytest.mark.db, pytest.mark.django_db]

CANARY = "canary-Zq7"
THERE_IS_NONE = {"conversions/<uuid:id>/rollback", "decommissions/<uuid:id>/report"}
"""What this cloud has not: a roll-back, and the report of a retirement that has ended."""


@pytest.fixture
def target(memory_store):
    memory_store.password = CANARY
    return {"name": "objects", "provider": "Memory", "url": "memory://objects", "details": {"password": CANARY}}


@pytest.fixture
def auditor(cloud, target, admin) -> Api:
    return Api(make_token(make_user("all", "storage-admin", "auditor"), "auditor"))


def addresses(cloud) -> dict[str, list[str]]:
    of = {
        "stores": cloud.conversion.object_store, "templates": cloud.template, "snapshots": cloud.delta, "volumes": cloud.volume,
        "transfers": cloud.transfer, "preflights": cloud.preflight, "conversions": cloud.conversion, "drains": cloud.drain,
        "verifications": cloud.verification, "scans": ScanRun.objects.create(store=cloud.conversion.object_store),
        "decommissions": Decommission.objects.create(
            store=cloud.conversion.object_store, verification=cloud.verification, former_readonly=False
        ),
    }  # fmt: skip
    return {
        where: [where.replace("<uuid:id>", str(of[where.partition("/")[0]].uuid)) if "<uuid:id>" in where else where]
        for method, where in MATRIX
        if method == "GET"
    }


def test_no_address_gives_the_secret_away(cloud, auditor, target, caplog):
    for where, paths in addresses(cloud).items():
        for path in paths:
            answer = auditor.get(path)
            body = b"".join(answer.streaming_content) if answer.streaming else answer.content
            assert answer.status_code == (404 if where in THERE_IS_NONE else 200), (where, body)
            assert CANARY.encode() not in body, where
            assert CANARY not in str(answer.headers), where
    admin = Api(make_token(make_user("root", "storage-admin"), "storage-admin"))
    store = cloud.conversion.object_store
    for method, path, given in (
        ("POST", "stores/test", {"provider": "Memory", "url": "memory://x", "details": {"password": CANARY}}),
        ("POST", "stores", {**target}),
        ("POST", "stores", {**target, "details": {"passwrd": CANARY}}),
        ("PATCH", f"stores/{store.uuid}", {"details": {"password": CANARY + "x"}}),
        ("PATCH", f"stores/{store.uuid}", {"details": {"password": CANARY}}),
        ("POST", f"stores/{store.uuid}/probe", {}),
        ("POST", "preflights", {**target, "name": "another", "url": "memory://another"}),
        ("POST", "conversions", {**target, "name": "another", "url": "memory://another"}),
        ("POST", "stores", {**target, "provider": "Swift", "details": {"key": CANARY}}),
    ):
        answer = admin.send(method, path, given)
        assert answer.status_code != 500, answer.content
        assert CANARY.encode() not in answer.content, (method, path)
    assert CANARY not in caplog.text


@pytest.mark.parametrize(
    ("provider", "url"),
    [("S3", f"https://user:{CANARY}@s3.example.org/bucket"), ("Swift", f"https://user:{CANARY}@swift.example.org/v3"),
     ("NFS", f"nfs://user:{CANARY}@files.example.org/export")],
)  # fmt: skip
def test_a_password_in_a_refused_url_is_not_kept_in_the_audit_trail(db, memory_store, provider, url):
    admin = Api(make_token(make_user("root", "storage-admin"), "storage-admin"))
    for path in ("stores", "stores/test", "preflights"):
        assert admin.send("POST", path, {"provider": provider, "url": url, "details": {}}).status_code == 400
    kept = [(event.target, event.details) for event in AuditEvent.objects.filter(outcome="refused")]
    assert len(kept) == 3
    assert CANARY not in str(kept)


def test_no_row_holds_the_secret_in_clear(cloud, auditor):
    with connection.cursor() as cursor:
        for table in connection.introspection.table_names():
            cursor.execute(f"SELECT * FROM {connection.ops.quote_name(table)}")
            assert CANARY not in str(cursor.fetchall()), table
    assert Preflight.objects.exists()


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize(
    "command",
    [["store_list"], ["store_check", "objects"], ["doctor"], ["migration_status"], ["migration_verify", "--wait"],
     ["store_scan", "objects"]],
)  # fmt: skip
def test_no_command_prints_the_secret(cloud, command, as_json, caplog):
    out, err = io.StringIO(), io.StringIO()
    with suppress(SystemExit):
        call_command(*command, *(["--json"] if as_json else []), stdout=out, stderr=err)
    assert out.getvalue(), err.getvalue()
    assert CANARY not in out.getvalue() + err.getvalue() + caplog.text
