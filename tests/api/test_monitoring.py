"""Health, readiness and figures: what they answer to whom, and that the alert rules shipped name nothing that is not there."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from django.db import connection
from django.db.models.functions import Now
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from cloudstorage import health
from cloudstorage.models import Installation
from migration.drain import progress
from migration.measures import Measure, measures
from migration.models import Verification
from stores.models import ImageStore, Transfer, WorkerReach
from stores.states import TransferState
from tests.factories import make_store, make_worker

pytestmark = [pytest.mark.db, pytest.mark.django_db]

RULES = Path(__file__).parents[2] / "docs" / "deploy" / "alerts.yml"
LINE = re.compile(r'^(?P<name>[a-z_]+)(\{(?P<labels>([a-z]+="([^"\\]|\\.)*",?)+)\})? (?P<value>[0-9.e+-]+)$')


@pytest.fixture
def not_looked_yet():
    health._migrated.clear()
    yield
    health._migrated.clear()


def told(client: Client, headers: dict[str, str]) -> dict[str, float]:
    """Every figure by name and labels."""
    answer = client.get("/metrics", headers=headers)
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    found = {}
    for line in answer.content.decode().splitlines():
        if not line.startswith("#"):
            assert LINE.match(line), line
            name, value = line.rsplit(" ", 1)
            found[name] = float(value)
    return found


def test_health_and_readiness_are_told_to_everybody(client, not_looked_yet):
    assert client.get("/healthz").json() == {"status": "ok"}
    ready = client.get("/readyz")
    assert (ready.status_code, ready.json()) == (200, {"status": "ok", "checks": {"database": "ok", "schema": "ok"}})
    assert client.post("/readyz").status_code == 405


def test_a_process_is_not_ready_while_a_migration_is_missing(client, not_looked_yet):
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM django_migrations WHERE app = 'stores'")
    answer = client.get("/readyz")
    assert (answer.status_code, answer.json()["checks"]["schema"]) == (503, "migrations are not applied; run: manage.py migrate")


def test_a_process_is_not_ready_without_its_database_and_says_no_more(client, not_looked_yet, monkeypatch):
    from django.db import OperationalError

    def gone() -> None:
        raise OperationalError("password for user cloud refused by 10.1.2.3")

    monkeypatch.setattr(connection, "ensure_connection", gone)
    answer = client.get("/readyz")
    assert (answer.status_code, answer.json()["checks"]) == (503, {"database": "does not answer", "schema": "unknown"})
    assert "10.1.2.3" not in answer.content.decode()
    assert client.get("/healthz").status_code == 200


def test_a_restored_database_is_ready_and_says_that_it_takes_no_changes(client, not_looked_yet, monkeypatch):
    monkeypatch.setattr(Installation, "why_read_only", lambda: "It was restored.")
    answer = client.get("/readyz")
    assert (answer.status_code, "refused until" in answer.json()["checks"]["writes"]) == (200, True)


@pytest.fixture
def viewer(api) -> dict[str, str]:
    return {"Authorization": f"Bearer {api('viewer').token}"}


def test_figures_are_told_to_those_with_a_role_only(client, viewer):
    refused = client.get("/metrics")
    assert (refused.status_code, refused.headers["Content-Type"]) == (401, "application/problem+json")
    assert refused.json()["code"] == "not-authenticated"
    assert told(client, viewer)["cloudstorage_read_only"] == 0


def test_ages_are_by_the_clock_that_wrote_the_moments(cloud, client, viewer, monkeypatch):
    Transfer.objects.filter(pk=cloud.transfer.pk).update(state=TransferState.RUNNING, progress_at=Now())
    before = told(client, viewer)
    late = timezone.now() + timedelta(minutes=10)
    monkeypatch.setattr("django.utils.timezone.now", lambda: late)
    after = told(client, viewer)
    for name in ("cloudstorage_worker_heartbeat_age_seconds", "cloudstorage_transfer_stalled_seconds"):
        assert after[name] < before[name] + 60
    assert not [row["stuck"] for row in progress(cloud.drain).running if row["stuck"]]


def test_the_figures_are_those_of_the_rows(cloud, client, viewer):
    objects, east = cloud.conversion.object_store, ImageStore.objects.get(name="nfs-east")
    failed = Transfer.objects.filter(kind="template")
    failed.update(state=TransferState.FAILED, error_cause="access-denied", error="no", remedy="ask")
    ImageStore.objects.filter(pk=east.pk).update(total_size=2000, used_bytes=1900)
    Verification.objects.filter(pk=cloud.verification.pk).update(state="Finished", findings_count=3, finished_at=objects.created)
    WorkerReach.objects.filter(store=east).update(ok=False)
    make_worker(east)
    WorkerReach.objects.filter(store__name="nfs-west").update(ok=False)
    found = told(client, viewer)
    drain, items = cloud.drain.uuid, Transfer.objects.count()
    assert found['cloudstorage_transfers_failed{cause="access-denied"}'] == failed.count() == 1
    assert found[f'cloudstorage_drain_items{{drain="{drain}",state="Failed"}}'] == 1
    assert found[f'cloudstorage_drain{{drain="{drain}",state="Planned"}}'] == 1
    assert sum(count for name, count in found.items() if name.startswith("cloudstorage_drain_items")) == items
    assert found[f'cloudstorage_drain_bytes{{drain="{drain}",part="remaining"}}'] > 0
    assert found['cloudstorage_copies{kind="volume",state="Promised"}'] == 1
    assert found[f'cloudstorage_store_findings{{store="{objects.name}"}}'] == 3
    assert found['cloudstorage_store_used_bytes{store="nfs-east"}'] == 1900
    assert found['cloudstorage_store_reached{store="nfs-east"}'] == 1
    assert found['cloudstorage_store_reached{store="nfs-west"}'] == 0
    assert found["cloudstorage_worker_heartbeat_age_seconds"] < 120


def test_the_figures_cost_the_same_queries_whatever_there_is(cloud, client, viewer):
    told(client, viewer)
    with CaptureQueriesContext(connection) as few:
        told(client, viewer)
    for number in range(12):
        cloud.region.template(f"more-{number}", "east")
        make_store("Memory", name=f"store-{number}")
    with CaptureQueriesContext(connection) as many:
        told(client, viewer)
    assert len(many) <= len(few) <= 30


def test_a_label_may_hold_anything():
    odd = Measure("cloudstorage_odd", "Odd.", ["store"], {('a"b\\c\nd',): 1})
    assert list(odd.lines())[-1] == 'cloudstorage_odd{store="a\\"b\\\\c\\nd"} 1'


def alerts() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_every_alert_is_promql_that_prometheus_takes(rule):
    assert promql_parser.parse(rule["expr"])
    assert promql_parser.parse_duration(rule.get("for", "1m"))


def test_every_alert_asks_for_figures_that_are_told(db):
    known = {measure.name: set(measure.labels) for measure in measures()}
    for rule in (rules := alerts()):
        assert {"alert", "expr", "labels", "annotations"} <= rule.keys()
        asked = re.findall(r"(cloudstorage_[a-z_]+)(?:\{([^}]*)\})?", rule["expr"])
        assert asked or rule["expr"].startswith("up{"), rule
        labels = set().union(*(known[name] for name, _ in asked)) if asked else set()
        for name, given in asked:
            assert name in known, rule
            assert set(re.findall(r"(\w+)=", given)) <= known[name], rule
        assert set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"]))) <= labels, rule
        assert set(re.findall(r"(?:by|on) ?\((\w+)\)", rule["expr"])) <= labels, rule
    assert len({rule["alert"] for rule in rules}) == len(rules)
