"""On the embedded database a long loop goes on when others write meanwhile: no SELECT is left open while it writes itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.servers.migrated import MigratedDatabases

pytestmark = pytest.mark.db

PROGRAM = """
import sqlite3
from pathlib import Path
import django; django.setup()
from django.conf import settings
from django.utils import timezone
from cloudstorage.actors import SYSTEM
from migration import homeward
from migration.models import Conversion, ConversionStore
from stores.models import KINDS, Kind, Volume, Zone
from stores.services.image_stores import driver_for
from stores.services.scan import scan_store
from stores.states import Proof, RefState
from tests.factories import MEMORY, make_account, make_store

settings.STORE_DRIVERS = settings.STORE_DRIVERS | MEMORY
rival = sqlite3.connect(settings.DATABASES["default"]["NAME"], isolation_level=None)

def others_write():
    rival.execute("UPDATE cloudstorage_installation SET name = name || '.'")

store, account, zone = make_store("Memory"), make_account(), Zone.objects.create(name="z")
models = KINDS[Kind.VOLUME]
items = [Volume(name=f"v{n}", account=account, upstream_id=n, zone=zone) for n in range(1, 2101)]
Volume.objects.bulk_create(items)
proven = {"state": RefState.READY, "proof": Proof.VERIFIED, "proven_at": timezone.now(), "size": 1}
refs = [models.ref(store=store, item=item, install_path=f"volumes/2/{item.upstream_id}", **proven) for item in items]
models.ref.objects.bulk_create(refs)
file = {"size": 1, "version": "v", "sha256": "0" * 64, "proof": Proof.VERIFIED}
models.file.objects.bulk_create(models.file(ref=ref, path=f"{ref.install_path}/disk", **file) for ref in refs)

export = make_store("NFS", zone=zone, role="ImageCache", folder=Path(settings.DATA_DIR) / "export")
conversion = Conversion.objects.create(object_store=store, actor="admin")
ConversionStore.objects.create(conversion=conversion, store=export, former_role="Image", former_readonly=False)
homeward.CHUNK = 200
home = 0
for _, _, wanted, _ in homeward.returning(homeward.homes_of(conversion)):
    others_write()
    Zone.objects.filter(pk=zone.pk).update(name="z")
    home += len(wanted)

driver = driver_for(store)
exists = driver.exists
def slow(key):
    if key.endswith("0/disk"):
        others_write()
    return exists(key)
driver.exists = slow
print(home, scan_store(actor=SYSTEM, store=store).missing.count)
"""


def test_loops_over_many_refs_write_although_others_have_written(tmp_path: Path, migrated: MigratedDatabases) -> None:
    settings = {
        "DJANGO_SETTINGS_MODULE": "cloudstorage.settings",
        "DATABASE_URL": migrated.sqlite(tmp_path / "db.sqlite3"),
        "CLOUDSTORAGE_DATA_DIR": str(tmp_path),
        "CLOUDSTORAGE_QUEUE_MUTED": "true",
        "CLOUDSTORAGE_ALLOW_PLAIN_EXPORTS": "true",
    }
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=os.environ | settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["2100", "2100"]
