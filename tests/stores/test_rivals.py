"""Two at once and sudden death: nobody waits for ever, nothing is done twice, and what is left half done is ended or undone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid

import pytest

from tests.servers.process import REPOSITORY

pytestmark = [pytest.mark.live, pytest.mark.db]

LIVES = {
    "store.add.claimed": 0,
    "store.add.saved": 0,
    "item.begun": 0,
    "upload.announced": 0,
    "upload.begun": 0,
    "item.before-commit": 0,
    "item.finished": 1,
    "delete.before-commit": 1,
    "delete.requested": 0,
    "delete.file": 0,
    "delete.bytes-gone": 0,
    "delete.written-off": 0,
}
"""Checkpoint -> items that are readable after a death there; everything else is to be gone without a trace."""


def play(folder, database: str, *scenario: str) -> subprocess.CompletedProcess[str]:
    variables = {
        "DATABASE_URL": database,
        "CLOUDSTORAGE_DATA_DIR": str(folder),
        "CLOUDSTORAGE_ALLOW_PLAIN_EXPORTS": "true",
        "CLOUDSTORAGE_QUEUE_MUTED": "true",
        "CLOUDSTORAGE_LOG_LEVEL": "WARNING",
    }
    command = [sys.executable, "-m", "tests.stores.rivals", *scenario]
    everything = os.environ | variables
    return subprocess.run(command, check=False, env=everything, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)


def told(done: subprocess.CompletedProcess[str]):
    assert done.returncode == 0, done.stderr[-5000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("engine", ["sqlite", "postgres"])
def test_nothing_is_lost_or_done_twice_when_many_act_at_once(request, engine, migrated, tmp_path):
    if engine == "postgres":
        database = migrated.postgres(request.getfixturevalue("postgres_server"), f"rivals_{uuid.uuid4().hex[:8]}")
    else:
        database = migrated.sqlite(tmp_path / "db.sqlite3")
    done = play(tmp_path, database, "rivals")
    assert told(done) == {
        "stores of one place": [1, 1],
        "stores of one name": [1, 1],
        "registered": [{"done": 4}, 16],
        "holds": [{"done": 5}, 4, 0],
        "deleted twice": {"done": 4, "Missing": 4},
        "finished": [{"done": 3}, 0, 0],
        "files left": [],
        "planned and asked for": [["done", "done"], [[0, 0], [1, 0]]],
        "proven and cancelled": [["done", "done"], ["Cancelled", "Proven"]],
        "proven and disproven": [["done", "done"], ["Promised", "Ready", "Ready"]],
        "built on and deleted": [["done", "done"], [None]],
    }, done.stderr[-5000:]


@pytest.mark.crash
@pytest.mark.parametrize("checkpoint", LIVES)
def test_item_is_whole_or_gone_when_the_process_dies(checkpoint, migrated, tmp_path):
    database = migrated.sqlite(tmp_path / "db.sqlite3")
    done = play(tmp_path, database, "die_and_recover", checkpoint)
    after = told(done)
    assert after.pop("died") == -9, f"the checkpoint was never reached: {done.stderr[-3000:]}"
    assert after == {"readable": LIVES[checkpoint], "files": LIVES[checkpoint], "wrong counts": 0}
