"""Undo, retire, and the worst day, on real servers: half-way and home again, an export retired, then the database is lost and
rebuilt from the object store alone, row by row, or restored from an older backup.

What each step refuses and survives is tested beside it: tests/migration (commit, roll-back, retirement, drift), tests/test_backup.py,
and tests/crash for deaths at every checkpoint.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from tests.crash.ground import KEPT
from tests.demo.build import BuiltRegion, build_region
from tests.drivers.s3_cases import details_of, new_bucket
from tests.servers.process import REPOSITORY

pytestmark = [pytest.mark.live, pytest.mark.db]

Run = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def region(tmp_path_factory) -> BuiltRegion:
    """Of every kind and shape one, a chain, and a template in both zones."""
    built = build_region(tmp_path_factory.mktemp("region"), scale="tiny")
    for item in built.items:
        if (item.zone, item.upstream_id.partition("/")[0]) not in KEPT:
            for file in item.files:
                (built.zones[item.zone] / file.path).unlink()
    return built


@pytest.fixture
def run(tmp_path) -> Run:
    """A step of `tests.lives` in a process of its own; each life has a data folder, and so a key ring, of its own."""

    def start(database: str, life: str, step: str, die_at: str = "", **told: Any) -> dict[str, Any]:
        folder = tmp_path / life
        folder.mkdir(exist_ok=True)
        environment = {
            "DATABASE_URL": database,
            "CLOUDSTORAGE_DATA_DIR": str(folder),
            "CLOUDSTORAGE_ALLOW_PLAIN_EXPORTS": "true",
            "CLOUDSTORAGE_OUTBOUND_ALLOW_LOOPBACK": "true",
            "CLOUDSTORAGE_DIRECT_HYPERVISORS": "KVM,XenServer,VMware,Hyperv,Ovm",
            "CLOUDSTORAGE_QUEUE_MUTED": "true",
            "CLOUDSTORAGE_LOG_LEVEL": "WARNING",
            "CLOUDSTORAGE_CRASH_AT": die_at,
        } | ({"CLOUDSTORAGE_LEASE_SECONDS": "1"} if step == "second" else {})
        done = subprocess.run(
            [sys.executable, "-m", "tests.lives", step, json.dumps(told)],
            check=False,
            env=os.environ | environment,
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == (-9 if die_at else 0), done.stderr[-5000:]
        return {} if die_at else json.loads(done.stdout.splitlines()[-1])

    return start


@pytest.mark.parametrize(("provider", "database"), [("S3", "sqlite"), ("Swift", "postgres")])
def test_all_rows_come_back_from_the_store_alone_when_the_database_is_lost(
    request, region, run, swift_server, migrated, tmp_path, provider, database
):
    if provider == "S3":
        target = {"provider": "S3", "url": "", "details": details_of(swift_server, new_bucket(swift_server))}
    else:
        details = {"username": swift_server.username, "key": swift_server.key, "container": f"images-{uuid.uuid4()}"}
        target = {"provider": "Swift", "url": swift_server.auth_url, "details": details}
    if database == "postgres":
        server = request.getfixturevalue("postgres_server")
        urls = [migrated.postgres(server, f"life_{number}_{uuid.uuid4().hex[:8]}") for number in ("one", "two")]
    else:
        urls = [migrated.sqlite(tmp_path / number / "region.sqlite3") for number in ("one", "two")]
    copy = tmp_path / "exports"
    subprocess.run(["cp", "-a", "--reflink=auto", str(region.root), str(copy)], check=True)

    first = run(urls[0], "one", "first", folder=str(copy), zones=sorted(region.zones), target=target, numbers={"template": 201})
    home = first["home"]
    proven, promised = home["share"]
    assert 0 < proven < promised
    assert home["state"] == ["RolledBack", "Detached"]
    assert (home["home"], home["born"], home["readable_throughout"]) == ({"volume": 1}, [True], True)
    retired = first["retired"]
    assert (retired["state"], retired["wrong"], retired["left"]) == ("Retired", [], []), retired["note"]
    files = retired["files"]
    assert files > 5
    assert retired["checked"] == [[files, []], [files, []], [files, ["content differs"]]]

    if provider == "S3":
        run(urls[0], "one", "compact", die_at="journal.merged")
        assert run(urls[0], "one", "compact")["merged"] > 0
        for death in ("rebuild.read", "rebuild.committed"):
            run(urls[1], "two", "second", die_at=death, target=target, cloud=first["cloud"])
    second = run(urls[1], "two", "second", target=target, cloud=first["cloud"])

    if provider == "Swift":  # else it was killed after it had added the store
        assert "belongs to another cloud" in second["refused"]["foreign"][1]
        assert "--take-over" in second["refused"]["foreign"][1]
        assert second["refused"]["another"][0] == "take_over"

    late = first["late"]
    rebuilt = {key: row for key, row in second["rows"].items() if late not in key}
    assert {key: row for key, row in rebuilt.items() if first["rows"].get(key) != row} == {}
    assert rebuilt.keys() == first["rows"].keys()
    assert len(rebuilt) > 20
    assert first["gone"] not in second["proofs"]
    assert second["proofs"].pop(first["hidden"]) == ["Hidden", "adopted", "adopted"]
    assert second["proofs"].pop(late) == ["Ready", "adopted", "adopted"]
    assert set(map(tuple, second["proofs"].values())) == {("Ready", "adopted", "adopted")}

    assert second["unchanged"]
    for report in (second["report"], second["again"]):
        for finding in ("missing", "orphaned", "changed", "corrupt", "conflicts", "unknown", "in_flight"):
            assert report[finding]["count"] == 0, (finding, report[finding])
    assert second["again"]["adopted"] == 0

    assert second["verified"] == ["Finished", []]
    assert second["after"].pop(first["hidden"]) == ["Hidden", "read-back", "read-back"]
    assert second["after"].pop(late) == ["Ready", "adopted", "adopted"], "nobody had told the hash of these bytes"
    assert set(map(tuple, second["after"].values())) == {("Ready", "read-back", "read-back")}


@pytest.mark.parametrize(("source", "target"), [("sqlite", "postgres"), ("postgres", "sqlite")])
def test_an_older_backup_comes_back_in_line_with_its_stores(
    run, tmp_path, moto_server, postgres_server, migrated, source, target
):
    """Restored on the other database each time: so both are written and read, and the format hides neither."""
    name = f"backup_{uuid.uuid4().hex[:8]}"
    if source == "postgres":
        full, empty = migrated.postgres(postgres_server, name), f"sqlite:///{tmp_path / 'new.sqlite3'}"
    else:
        full, empty = migrated.sqlite(tmp_path / "old.sqlite3"), postgres_server.create_database(name)

    store = {"provider": "S3", "url": "", "details": details_of(moto_server, new_bucket(moto_server))}
    file = str(tmp_path / "cloud.backup")
    old = run(full, "old", "before", folder=str(tmp_path), target=store, file=file)
    if target == "sqlite":
        in_restore = ("restore.ring-placed", "restore.before-commit", "restore.loaded")
        for death in (*in_restore, "delete.written-off", "restore.before-open"):
            run(empty, "new", "after", die_at=death, file=file, late=old["late"])
    new = run(empty, "new", "after", file=file, late=old["late"])

    assert old["written_meanwhile"] > 5
    zones, accounts = new["pairs"]
    assert zones == accounts, "the backup is not of one moment"
    assert new["secret"]
    assert len(new["refused"]) == 1
    assert "Nothing can be changed now" in new["refused"][0]
    assert (new["pumped"], new["kept"], new["late_changed_nothing"]) == (0, [], True)

    opened, stores = new["reconciled"]
    assert opened, stores
    assert new["volumes"] == old["volumes"]
    assert old["gone"] not in new["volumes"]
    assert new["states"][old["born"]] == ["Ready", "adopted"]
    assert {tuple(state) for name, state in new["states"].items() if name != old["born"]} == {
        ("Ready", "attested"),
        ("Promised", ""),
    }
    assert new["counts_wrong"] == 0
    assert new["drain"] == ["Finished", "Every item is proven."]
    assert new["first_new_id"] > 10**12
