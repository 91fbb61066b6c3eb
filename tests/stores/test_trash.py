"""What is deleted from an export waits in its trash folder, and goes for good only after the grace time."""

from __future__ import annotations

import os

import pytest

from stores import tasks
from stores.services.image_stores import driver_for
from tests.factories import make_store, make_zone

pytestmark = pytest.mark.db


def test_deleted_file_is_purged_only_after_the_grace_time(db, settings, tmp_path):
    settings.ALLOW_PLAIN_EXPORTS = True
    store = make_store("NFS", zone=make_zone(), folder=tmp_path / "export")
    driver = driver_for(store)
    driver.put("volumes/1/2/disk", b"content", metadata={}, token="t")
    assert driver.delete("volumes/1/2/disk")
    trash = tmp_path / "export" / ".cs-trash"
    tasks.purge_trash()
    assert list(trash.rglob("disk"))
    settings.TRASH_GRACE_SECONDS = 0
    for entry in trash.iterdir():
        seconds, _, rest = entry.name.partition("-")
        os.rename(entry, entry.with_name(f"{int(seconds) - 10}-{rest}"))
    tasks.purge_trash()
    assert not list(trash.rglob("disk"))
