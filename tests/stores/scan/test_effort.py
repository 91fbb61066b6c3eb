"""A scan costs the same memory and queries per batch, however large the store, and survives being killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from stores.models import KINDS, Account, Snapshot
from stores.services.scan import run, scan_store
from stores.states import Kind
from tests.stores.scan.helpers import add_export, raw_snapshots

pytestmark = [pytest.mark.db, pytest.mark.django_db(transaction=True)]


def test_query_count_is_the_same_when_a_batch_has_more_items(operator, admin, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "BATCH_FILES", 10_000)
    Account.objects.create(pk=2, account_name="there already")
    counts = []
    for number, size in enumerate((10, 50)):  # more than some 55 rows take a second INSERT on SQLite
        root = tmp_path / str(size)
        raw_snapshots(root / "e", size)
        store = add_export(admin, f"z{number}", root / "e")
        for again in (False, True):
            with CaptureQueriesContext(connection) as queries:
                report = scan_store(actor=operator, store=store)
            assert report.unchanged == (size if again else 0)
            counts.append(len(queries))
        KINDS[Kind.SNAPSHOT].ref.objects.all().delete()
        Snapshot.objects.all().delete()
    assert counts[0] == counts[2]
    assert counts[1] == counts[3]


def test_memory_stays_the_same_when_the_store_has_ten_times_the_files(tmp_path, migrated):
    peaks = []
    for count in (600, 6_000):
        raw_snapshots(tmp_path / str(count) / "export", count)
        migrated.sqlite(tmp_path / str(count) / "db.sqlite3")
        done = child(tmp_path / str(count), PEAK)
        assert done.returncode == 0, done.stderr
        adopted, peak = (int(number) for number in done.stdout.split())
        assert adopted == count
        peaks.append(peak)
    assert peaks[1] - peaks[0] < 8 * 1024, peaks


@pytest.mark.crash
@pytest.mark.parametrize("seam", ["scan.read:2", "scan.committed:2"])
def test_next_scan_finishes_the_work_when_the_process_was_killed(tmp_path, migrated, seam):
    raw_snapshots(tmp_path / "export", 1500)
    migrated.sqlite(tmp_path / "db.sqlite3")
    killed = child(tmp_path, PEAK, CLOUDSTORAGE_CRASH_AT=seam)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    refused = child(tmp_path, PEAK)
    assert "Another scan of" in refused.stderr
    done = child(tmp_path, f"ScanRun.objects.update(lease_until=Now() - timedelta(seconds=1))\n{PEAK}")
    assert done.returncode == 0, done.stderr
    assert 0 < int(done.stdout.split()[0]) < 1500
    again = child(tmp_path, "report = scan_store(actor=SYSTEM, store=store)\nprint(report.adopted, report.unchanged)")
    assert again.stdout.split() == ["0", "1500"], again.stderr


PEAK = """
report = scan_store(actor=SYSTEM, store=store)
print(report.adopted, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)  # KiB
"""


def child(root: Path, code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code beside the store `root/export` and the database `root/db.sqlite3`, in a process of its own."""
    start = f"""
import django, resource; django.setup()
from datetime import timedelta
from django.db.models.functions import Now
from cloudstorage.actors import SYSTEM
from stores.models import ImageStore, ScanRun, Zone
from stores.services.image_stores import add_store
from stores.services.scan import scan_store
store = ImageStore.objects.first()
if store is None:
    zone = Zone.objects.create(name="z")
    store = add_store(actor=SYSTEM, provider="NFS", url="nfs://localhost{root}/export", details={{}}, zone=zone)
"""
    settings = {
        "DATABASE_URL": f"sqlite:///{root}/db.sqlite3",
        "CLOUDSTORAGE_DATA_DIR": str(root),
        "CLOUDSTORAGE_ALLOW_PLAIN_EXPORTS": "true",
        "CLOUDSTORAGE_QUEUE_MUTED": "true",
    }
    environment = os.environ | settings | environment
    return subprocess.run([sys.executable, "-c", start + code], env=environment, capture_output=True, text=True, check=False)
