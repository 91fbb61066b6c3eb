"""kill -9 at every checkpoint of every stage: what a worker does afterwards brings each item where it belongs, with nothing left over."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.crash.ground import BUCKET, LARGE, Ground, fingerprint
from tests.crash.stage import LATE, UPLOADED
from tests.demo.build import hash_file
from tests.servers.process import REPOSITORY

pytestmark = [pytest.mark.live, pytest.mark.crash]

STAGES = {
    # stage: (start state, what runs, what a worker does afterwards, whether the exports are changed)
    "store_add": ("empty", "store_add", "after_store_add", True),
    "scan": ("added", "scan", "after_scan", False),
    "convert": ("scanned", "convert", "after_convert", False),
    "drain": ("draining", "run_drain", "after_drain", False),
    "fail": ("draining", "pump", "after_fail", True),
    "cancel": ("cancelled", "clean_up", "after_clean_up", False),
    "commit": ("drained", "commit", "after_commit", False),
    "rollback": ("born", "roll_back", "after_roll_back", True),
    "abandon": ("born", "abandon", "after_abandon", True),
    "journal": ("drained", "journal", "after_journal", False),
    "check": ("drained", "check", "after_check", False),
    "retire": ("committed", "retire", "after_retire", True),
    "delete": ("drained", "delete", "after_delete", True),
    "undelete": ("drained", "undelete", "after_undelete", True),
    "upload": ("drained", "upload", "after_upload", False),
}
IN_THE_MIDDLE = {"copy.part": 2, "prove.before": 3, "prove.before-commit": 2, "prove.committed": 3}
"""Checkpoints at which it dies once more, at this hit."""
UNDELETE = ("undelete.", "nfs.before-undelete", "nfs.undeleted")
OWN = {
    "rollback": ("rollback.", "nfs.", "prove."),
    "abandon": ("rollback.",),
    "retire": ("retire.", "verify."),
    "undelete": UNDELETE,
}
"""Stages that die only at what begins so: other stages die at the rest of what they reach."""
ELSEWHERE = {
    *("rebuild.read", "rebuild.committed", "journal.merged"),
    *("backup.written", "restore.ring-placed", "restore.before-commit", "restore.loaded", "restore.before-open"),
}
"""Checkpoints that only tests of other folders kill at."""


@pytest.fixture(scope="module")
def ground(converted) -> Ground:
    """Every state that a stage begins with, each made by the stage before; all stages have run to their end once."""
    converted.restore("converted")
    converted.must("begin_drain")
    converted.save("draining")
    converted.reached["drain"] = converted.trace("run_drain")
    converted.save("drained")
    converted.must("commit")
    converted.save("committed")
    converted.restore("drained")
    converted.must("upload")
    converted.save("born")
    converted.restore("draining")
    for death in ("copy.part:2", "prove.before"):  # leaves an upload half done, then objects that nobody proved
        assert converted.run("run_drain", die_at=death).status == -9
    debris = converted.must("cancel")
    assert all(debris.values()), debris
    converted.save("cancelled")
    for stage, (state, runs, _, changes) in STAGES.items():
        if stage not in converted.reached:
            converted.restore(state)
            exports = converted.copy_exports(new=False) if changes else None
            converted.reached[stage] = converted.trace(runs, exports=exports)
    return converted


@pytest.fixture(scope="module")
def reached(ground) -> dict[str, dict[str, int]]:
    """Stage -> checkpoint -> how often it is reached when nobody kills."""
    return ground.reached


def named_in_code() -> set[str]:
    sources = [path for app in ("cloudstorage", "stores", "migration") for path in (REPOSITORY / app).rglob("*.py")]
    return {name for path in sources for name in re.findall(r'reach\("([a-z.-]+)"\)', path.read_text())} - {"name"}


def deaths_of(stage: str, reached: dict[str, dict[str, int]]) -> list[str]:
    deaths = [name for name in reached[stage] if name.startswith(OWN.get(stage, ""))]
    if stage not in OWN:
        deaths += [f"{name}:{hit}" for name, hit in IN_THE_MIDDLE.items() if reached[stage].get(name, 0) >= hit]
    return deaths


def test_a_stage_dies_at_every_checkpoint(reached):
    names = {death for stage in STAGES for death in deaths_of(stage, reached) if ":" not in death}
    assert named_in_code() - names - ELSEWHERE == set()
    assert names - named_in_code() == set()


@pytest.mark.parametrize("stage", STAGES)
def test_all_is_whole_and_nothing_left_over_after_a_death_anywhere(stage, ground, reached):
    for death in deaths_of(stage, reached):
        started = time.monotonic()
        die(ground, stage, death)
        print(f"{stage} {death}: {time.monotonic() - started:.1f} s")


def test_report_of_a_retired_store_is_true_without_the_product(ground, tmp_path):
    exports = ground.copy_exports(new=False)
    ground.restore("committed")
    ground.must("retire", exports=exports)
    report = tmp_path / "report.json"
    report.write_text(ground.must("report", exports=exports))
    where = {
        "S3_ENDPOINT": ground.swift.s3_url,
        "S3_BUCKET": BUCKET,
        "S3_PREFIX": ground.prefix,
        "S3_ACCESS_KEY": ground.swift.access_key,
        "S3_SECRET_KEY": ground.swift.secret_key,
    }

    def check() -> tuple[int, dict[str, Any]]:
        script = [sys.executable, "-I", str(REPOSITORY / "tests" / "demo" / "verify_report.py"), str(report)]
        ended = subprocess.run(script, env=os.environ | where, cwd=tmp_path, capture_output=True, text=True, check=False)
        return ended.returncode, json.loads(ended.stdout)

    assert check() == (0, {"retired": "nfs-zone2", "files": 7, "wrong": []})
    key = json.loads(report.read_text())["items"][3]["key"]
    body = ground.s3.get_object(Bucket=BUCKET, Key=ground.prefix + key)["Body"].read()
    ground.s3.put_object(Bucket=BUCKET, Key=ground.prefix + key, Body=bytes([body[0] ^ 1]) + body[1:])
    assert check() == (1, {"retired": "nfs-zone2", "files": 7, "wrong": [f"{key}: content differs"]})
    ground.s3.delete_object(Bucket=BUCKET, Key=ground.prefix + key)
    assert check()[1]["wrong"] == [f"{key}: NoSuchKey"]


def die(ground: Ground, stage: str, death: str) -> None:
    state, runs, afterwards, changes = STAGES[stage]
    before = {zone: fingerprint(path) for zone, path in ground.region.zones.items()}
    exports = ground.copy_exports(new=state == "empty") if changes else None
    ground.restore(state)
    ended = ground.run(runs, exports=exports, die_at=death)
    assert ended.status == -9, f"{stage} did not die at {death}:\n{ended.log}"
    told = ground.must(afterwards, exports=None if stage == "fail" else exports)
    where = f"after a death at {death} in {stage}: {told}"
    assert told["counts"] == [], where
    assert told["listing"] == [], where
    assert told["stores"] == 2, where
    assert ground.pending_uploads() == [], where
    assert ground.temporary_files() == ground.temporary_files(exports) == [], where
    assert {zone: fingerprint(path) for zone, path in ground.region.zones.items()} == before, where
    CHECKS[stage](ground, told, where, exports)


def check_alone(ground: Ground, told, where: str, exports) -> None:
    assert told["object stores"] == told["conversions"] == 0, where


def check_scanned(ground: Ground, told, where: str, exports) -> None:
    check_alone(ground, told, where, exports)
    assert told["items"] == item_count(ground), where


def check_converted(ground: Ground, told, where: str, exports) -> None:
    assert told["object stores"] == told["conversions"] == 1, where
    assert told["refs"] == {"Promised": item_count(ground)}, where
    assert ground.stored() == {}, where


def check_drained(ground: Ground, told, where: str, exports) -> None:
    assert told["refs"] == {"Ready": item_count(ground)}, where
    assert ground.stored() == ground.hashes, where


def check_cancelled(ground: Ground, told, where: str, exports) -> None:
    ready = told["refs"].get("Ready", 0)
    assert told["refs"] == {"Promised": item_count(ground) - ready} | ({"Ready": ready} if ready else {}), where
    stored = ground.stored()
    assert stored.items() <= ground.hashes.items(), where
    assert LARGE not in stored, where


def check_committed(ground: Ground, told, where: str, exports) -> None:
    assert (told["state"], told["audited"]) == ("Committed", 1), where
    check_drained(ground, told, where, exports)


def check_rolled_back(ground: Ground, told, where: str, exports) -> None:
    """Every item is on its export as it was, those that were born on the object store too; that store is detached."""
    assert (told["state"], told["audited"]) == ("RolledBack", 1), where
    assert told["roles"] == [["REGION", "Image", "Detached"], ["ZONE", "Image", "Attached"]], where
    assert told["refs"] == {"Ready": item_count(ground) + 2}, where
    assert told["items"] == item_count(ground) + 2, where
    for zone, export in exports.items():
        expected = {file.path: file.sha256 for item in ground.region.items if item.zone == zone for file in item.files}
        assert {path: hash_file(export / path) for path in expected} == expected, where
        new = fingerprint(export).keys() - fingerprint(ground.region.zones[zone]).keys()
        born = sorted(hashlib.sha256(body).hexdigest() for body in (UPLOADED, LATE))
        assert sorted(hash_file(export / path) for path in new) == (born if zone == "zone1" else []), where


def check_abandoned(ground: Ground, told, where: str, exports) -> None:
    assert told["state"] == "Converted", where
    assert told["roles"] == [["REGION", "Image", "Attached"], ["ZONE", "ImageCache", "Attached"]], where
    assert told["refs"] == {"Ready": item_count(ground) + 1}, where
    assert ground.stored().items() >= ground.hashes.items(), where


def check_journal(ground: Ground, told, where: str, exports) -> None:
    check_drained(ground, told, where, exports)
    keys = [key for key in ground.keys() if "/.cs-journal/" in key]  # noqa: SIM118 - no dictionary
    lines = [line for key in keys for line in ground.s3.get_object(Bucket="crash", Key=key)["Body"].read().splitlines()]
    written = {match.group(1) for line in lines if (match := re.search(rb'"uuid":"([0-9a-f-]+)"', line))}
    assert len(written) == item_count(ground), where


def check_retired(ground: Ground, told, where: str, exports) -> None:
    """The report has every file of the export with its hash, read again; they wait in the trash, and all else is as it was."""
    assert exports is not None
    items = [item for item in ground.region.items if item.zone == "zone2"]
    files = {file.path: file.sha256 for item in items for file in item.files}
    retired = told["retired"]
    assert retired["lines"] == files, where
    assert (retired["totals"]["files"], retired["totals"]["items"], retired["unread"]) == (len(files), len(items), 0), where
    assert retired["deleted"] == [len(files), 0], where
    batches = (exports["zone2"] / ".cs-trash").iterdir()
    in_trash = {str(path.relative_to(batch)) for batch in batches for path in batch.rglob("*") if path.is_file()}
    assert in_trash == set(files), where
    assert not any((exports["zone2"] / path).exists() for path in files), where
    check_drained(ground, told, where, exports)


def check_verified(ground: Ground, told, where: str, exports) -> None:
    assert told["findings"] == 0, where
    check_drained(ground, told, where, exports)


def check_deleted(ground: Ground, told, where: str, exports) -> None:
    """The template is everywhere or nowhere; where its bytes went on an export, they wait in the trash."""
    gone = {path for path in ground.hashes if path.startswith("template/tmpl/2/201/")}
    left = {path for path in gone for export in exports.values() if (export / path).exists()}
    stored = ground.stored()
    if left:
        assert left == gone, where
        assert stored == ground.hashes, where
        assert told["items"] == item_count(ground), where
    else:
        assert stored == {path: digest for path, digest in ground.hashes.items() if path not in gone}, where
        assert told["items"] == item_count(ground) - 1, where
        for export in exports.values():
            in_trash = {path.name for path in (export / ".cs-trash").rglob("*") if path.is_file()}
            assert in_trash == {Path(path).name for path in gone}, where


def check_undeleted(ground: Ground, told, where: str, exports) -> None:
    assert told["back on"] == ["nfs-zone1", "nfs-zone2", "objects"], where
    for zone, export in exports.items():
        files = {file.path for item in ground.region.items for file in item.files if item.zone == zone}
        assert {path for path in files if not (export / path).exists()} == set(), where
        assert [path for path in (export / ".cs-trash").rglob("*") if path.is_file()] == [], where
    assert told["refs"].pop("Destroyed") == 1, where  # the object that went with the deletion
    check_drained(ground, told, where, exports)


def check_uploaded(ground: Ground, told, where: str, exports) -> None:
    stored = ground.stored()
    new = stored.keys() - ground.hashes.keys()
    assert {path: digest for path, digest in stored.items() if path not in new} == ground.hashes, where
    assert told["items"] == item_count(ground) + len(new), where
    assert [stored[path] for path in new] in ([], [hashlib.sha256(UPLOADED).hexdigest()]), where


def item_count(ground: Ground) -> int:
    """Items of the region, those in both zones once."""
    return len({(item.kind, item.account_id, item.upstream_id) for item in ground.region.items})


CHECKS = {
    "store_add": check_alone,
    "scan": check_scanned,
    "convert": check_converted,
    "drain": check_drained,
    "fail": check_drained,
    "cancel": check_cancelled,
    "commit": check_committed,
    "rollback": check_rolled_back,
    "abandon": check_abandoned,
    "journal": check_journal,
    "check": check_verified,
    "retire": check_retired,
    "undelete": check_undeleted,
    "delete": check_deleted,
    "upload": check_uploaded,
}
