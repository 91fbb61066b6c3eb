"""The way back onto an export that is really full: refused before it begins, or stopped on the way with nothing lost."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloudstorage.errors import Blocked
from migration import rollback
from migration.conversion import convert
from migration.models import Conversion, Rollback
from migration.states import ConversionState
from stores.models import ImageStore, Kind, Worker, WorkerReach
from tests.migration.region import Region, changed, dump
from tests.migration.test_rollback import bring_home, contents, pump, upload

pytestmark = pytest.mark.db

SIZE = 64 * 1024 * 1024
"""Room for the probe of an added store; the tests fill it up to what they mean."""


@pytest.fixture
def small(tmp_path) -> Iterator[Path]:
    """A small file system of its own."""
    place = tmp_path / "exports"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(place)]
    subprocess.run(mount, check=True, capture_output=True, timeout=10)
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True, timeout=10)


@pytest.fixture
def converted(db, admin, settings, small, memory_store, target) -> tuple[Region, Conversion, Worker]:
    settings.NFS_MOUNTS = {}
    region = Region(admin, small)
    region.add_zone("east")
    region.volume("data", "east")
    done = convert(actor=admin, override=["preflight-absent"], **target)
    worker = Worker.objects.create(hostname="here", pid=7)
    WorkerReach.objects.bulk_create(WorkerReach(worker=worker, store=store, ok=True) for store in ImageStore.objects.all())
    return region, done, worker


def fill(place: Path, *, leave: int) -> Path:
    """A file that takes all the room but so much."""
    free = os.statvfs(place).f_bavail * os.statvfs(place).f_frsize
    file = place / "filler"
    with file.open("wb") as handle:
        os.posix_fallocate(handle.fileno(), 0, free - leave)
    return file


def test_it_is_refused_before_it_begins_when_the_export_has_no_room(converted, small, admin, viewer):
    region, conversion, _ = converted
    fill(small, leave=64 * 1024)
    for number in range(8):  # 15 kB each
        upload(admin, Kind.VOLUME, f"new-{number}", region.zones["east"])
    plan = rollback.plan_rollback(actor=viewer, conversion=conversion)
    assert [(row["enough"], row["free"] < row["bytes"]) for row in plan.exports] == [(False, True)]
    before = dump()
    with pytest.raises(Blocked, match=r"iB free, and .*iB would have to come home") as refused:
        rollback.start(actor=admin, conversion=conversion)
    assert [found.code for found in refused.value.findings] == ["target-full"]
    assert changed(before, dump()) == set()


def test_it_stops_when_the_export_fills_up_on_the_way_and_ends_when_there_is_room_again(converted, small, admin, viewer):
    region, conversion, worker = converted
    for number in range(2):  # 4 MB each
        upload(admin, Kind.VOLUME, f"new-{number}", region.zones["east"], times=300_000)
    before = contents(viewer)
    row = rollback.start(actor=admin, conversion=conversion)
    filler = fill(small, leave=0)
    pump(worker)
    rollback.advance(row)
    told = rollback.progress(row)
    assert (told.state, told.items["proven"], told.items["failed"]) == (ConversionState.ROLLING_BACK, 0, 2)
    assert {error["cause"] for error in told.errors} == {"full"}
    assert contents(viewer) == before
    filler.unlink()
    rollback.retry(actor=admin, conversion=conversion)
    bring_home(row, worker)
    conversion.refresh_from_db()
    assert conversion.state == ConversionState.ROLLED_BACK
    assert Rollback.objects.get().note == "The region is on NFS again."
    assert contents(viewer) == before
    assert not list((small / "east" / ".cs-tmp").glob("*"))
