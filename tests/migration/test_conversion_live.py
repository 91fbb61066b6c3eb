"""A conversion in the middle of other processes' work: nothing fails, nothing is missed, and exactly one conversion wins."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid

import pytest

from tests.drivers.s3_cases import details_of, new_bucket
from tests.servers.process import REPOSITORY

pytestmark = [pytest.mark.live, pytest.mark.db]


@pytest.fixture
def target(moto_server) -> dict:
    return {"name": "objects", "provider": "S3", "url": "", "details": details_of(moto_server, new_bucket(moto_server))}


@pytest.fixture
def program(tmp_path):
    """Runs `tests.migration.under_load` on a database; what it told."""

    def start(database: str, *arguments: str, **environment: str) -> dict:
        variables = {
            "DATABASE_URL": database,
            "CLOUDSTORAGE_DATA_DIR": str(tmp_path),
            "CLOUDSTORAGE_ALLOW_PLAIN_EXPORTS": "true",
            "CLOUDSTORAGE_OUTBOUND_ALLOW_LOOPBACK": "true",
            "CLOUDSTORAGE_QUEUE_MUTED": "true",
            "CLOUDSTORAGE_LOG_LEVEL": "WARNING",
        }
        done = subprocess.run(
            [sys.executable, "-m", "tests.migration.under_load", *arguments],
            check=False,
            env=os.environ | variables | environment,
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-5000:]
        return json.loads(done.stdout)

    return start


@pytest.fixture
def postgres(postgres_server, migrated) -> str:
    return migrated.postgres(postgres_server, f"convert_{uuid.uuid4().hex[:8]}")


@pytest.fixture
def sqlite(tmp_path, migrated) -> str:
    return migrated.sqlite(tmp_path / "region.sqlite3")


@pytest.fixture(params=["sqlite", "postgres"])
def run(request, program, target):
    """Converts so many items under load, on each database."""
    database = request.getfixturevalue(request.param)
    return lambda items, **environment: program(database, "convert", str(items), json.dumps(target), **environment)


def test_no_request_fails_and_no_item_is_missed_when_others_work_during_the_conversion(run, record_property, capsys):
    told = run(20_000)
    assert told["failures"] == []
    assert told["wrong"] == []
    assert told["counts"]["promised"]["snapshot"] == 20_000
    assert told["operations"] >= 120
    stall = max(told["longest"].values())
    record_property("longest_stall_seconds", stall)
    with capsys.disabled():
        print(f"\n  converted in {told['seconds']:.2f} s; longest stall {stall:.2f} s of {told['longest']}")
    assert stall < 60


def test_exactly_one_wins_when_two_convert_at_once(run):
    told = run(100, RIVALS="2")
    assert told["rivals"].count("converted") == 1
    assert set(told["rivals"]) - {"converted"} <= {"busy", "conflict"}
    assert told["failures"] == []
    assert told["wrong"] == []


def test_conversion_gives_way_to_who_holds_refs_and_makes_nobody_fail(program, postgres, target):
    told = program(postgres, "crossed", json.dumps(target))
    assert "did not let the conversion have its rows" in told["busy"]
    assert told["untouched"]
    assert told["holder"] == "done"
    assert told["converted"]
    assert told["wrong"] == []
