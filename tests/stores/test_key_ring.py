"""The ring of keys is on the disk, name and all, before anything is encrypted with it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cloudstorage import secrets
from cloudstorage.files import publish

pytestmark = pytest.mark.db


@pytest.fixture
def synced(monkeypatch) -> list[Path]:
    """What was synced, in this order."""
    found: list[Path] = []
    fsync = os.fsync

    def note(handle: int) -> None:
        found.append(Path(os.readlink(f"/proc/self/fd/{handle}")))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", note)
    return found


def test_new_ring_is_durable_with_its_name(db, settings, tmp_path, synced):
    settings.SECRET_KEYS_FILE = str(tmp_path / "ring" / "keys")
    secrets._ring.cache_clear()
    try:
        assert secrets.decrypt(secrets.encrypt("plain")) == "plain"
    finally:
        secrets._ring.cache_clear()
    assert synced[-1] == tmp_path / "ring"
    assert os.listdir(tmp_path / "ring") == ["keys"]


def test_name_that_another_process_gave_is_durable_too(tmp_path, synced):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "name").write_text("another's")
    with pytest.raises(FileExistsError):
        publish(tmp_path / "mine", tmp_path / "name")
    assert synced == [tmp_path]
    assert (tmp_path / "name").read_text() == "another's"
