"""The promise of the whole product, on a real object store: while everything moves, everything reads as it did before."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.demo.build import build_region
from tests.drivers.s3_cases import details_of, new_bucket
from tests.servers.process import REPOSITORY

pytestmark = [pytest.mark.live, pytest.mark.db]


def test_every_item_reads_as_before_its_adoption_at_every_moment_of_the_drain(tmp_path, swift_server, migrated):
    region = build_region(tmp_path / "region", scale="tiny")
    environment = {
        "DATABASE_URL": migrated.sqlite(tmp_path / "region.sqlite3"),
        "CLOUDSTORAGE_DATA_DIR": str(tmp_path),
        "CLOUDSTORAGE_ALLOW_PLAIN_EXPORTS": "true",
        "CLOUDSTORAGE_OUTBOUND_ALLOW_LOOPBACK": "true",
        "CLOUDSTORAGE_QUEUE_MUTED": "true",
        "CLOUDSTORAGE_LOG_LEVEL": "WARNING",
    }
    details = details_of(swift_server, new_bucket(swift_server))
    done = subprocess.run(
        [sys.executable, "-m", "tests.migration.moving", str(region.root), json.dumps(details)],
        check=False,
        env=os.environ | environment,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["wrong"] == []
    assert (told["state"], told["note"]) == ("Finished", "Every item is proven.")
    assert told["files"] >= 20
    assert told["reads"] > 3 * told["files"]
    assert told["mixed_rounds"] >= 1, "nothing was read while a part had moved and a part had not"
    assert told["before"] == ["nfs-zone1", "nfs-zone2"]
    assert told["after"] == ["objects"]
