"""Where the stages run: exports, a bucket prefix and a database that can be put back to an earlier state between two deaths."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import boto3
from botocore.config import Config

from tests.crash.stage import ZONES, MiB
from tests.demo.build import BuiltFile, BuiltItem, BuiltRegion, build_region, hash_file
from tests.servers.process import REPOSITORY
from tests.servers.swift import SwiftServer

BUCKET = "crash"
PART = 16 * MiB
"""What the driver takes for a small object."""
LARGE = "volumes/2/399/8b6a2f5e-6f0c-4f0e-9d0b-0f4f5f9f2a10.raw"
"""Three parts, so that a multipart upload happens."""
KEPT = {("zone1", "201"), ("zone2", "201"), ("zone1", "205"), ("zone1", "302"), ("zone1", "31"), ("zone2", "51")}
"""Zone and id of a template in both zones, an OVA, a volume, a snapshot that is a folder, and a chain of five."""
OUR_NAMES = (".cloudstorage", ".cs-")
"""Of markers, journals and working folders, on exports and in the bucket."""
UNIQUE_NAME = re.compile(r"^(template/tmpl/\d+/\d+)/[^/]+/")


def s3_client(swift: SwiftServer) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=swift.s3_url,
        aws_access_key_id=swift.access_key,
        aws_secret_access_key=swift.secret_key,
        region_name="us-east-1",
        config=Config(s3={"addressing_style": "path"}, response_checksum_validation="when_required"),
    )


def build_exports(root: Path) -> BuiltRegion:
    """Some of the tiny region, of every kind and shape one, and one file of 40 MiB."""
    region = build_region(root, scale="tiny")
    items = [item for item in region.items if (item.zone, item.upstream_id.partition("/")[0]) in KEPT]
    kept = {region.zones[item.zone] / file.path for item in items for file in item.files}
    for item in region.items:
        for path in (region.zones[item.zone] / file.path for file in item.files):
            if path not in kept:
                path.unlink()
    path = region.zones["zone1"] / LARGE
    path.parent.mkdir(parents=True)
    path.write_bytes(os.urandom(40 * MiB))
    large = BuiltItem("zone1", "volume", "raw", 2, "399", (BuiltFile(LARGE, 40 * MiB, hash_file(path)),), path.name)
    return replace(region, items=(*items, large))


def hashes_of(region: BuiltRegion) -> dict[str, str]:
    """Path on an export -> SHA-256 of every file of every item; both zones agree where both have it."""
    return {file.path: file.sha256 for item in region.items for file in item.files}


def fingerprint(export: Path) -> dict[str, tuple[int, int, int]]:
    """Inode, size and mtime of every file that is not our own."""
    return {
        str(path.relative_to(export)): ((status := path.stat()).st_ino, status.st_size, status.st_mtime_ns)
        for path in export.rglob("*")
        if path.is_file() and not path.relative_to(export).parts[0].startswith(OUR_NAMES)
    }


@dataclass
class State:
    """What a stage begins with."""

    database: Path
    objects: dict[str, tuple[bytes, dict[str, str], str]]
    """Key -> body, metadata, etag."""


@dataclass(frozen=True)
class Ended:
    """How a run ended: 0, 1 for an exception, -9 for a death."""

    status: int
    told: Any
    log: str


class Ground:
    """One folder, one bucket prefix, and one process that forks a child for each stage."""

    def __init__(
        self,
        folder: Path,
        swift: SwiftServer,
        *,
        build: Callable[[Path], BuiltRegion] | None = None,
        database: str = "",
        endpoint: str = "",
    ) -> None:
        """`database`: a URL, where it is not to be SQLite (then no state can be saved). `endpoint`: another way to Swift's S3."""
        self.folder = folder
        self.data = folder / "data"
        self.data.mkdir(parents=True)
        self.database = database or f"sqlite:///{self.data / 'db.sqlite3'}"
        self.endpoint = endpoint or swift.s3_url
        self.region = (build or build_exports)(folder / "exports")
        self.hashes = hashes_of(self.region)
        self.swift = swift
        self.s3 = s3_client(swift)
        if BUCKET not in {bucket["Name"] for bucket in self.s3.list_buckets()["Buckets"]}:
            self.s3.create_bucket(Bucket=BUCKET)
        self.prefix = uuid.uuid4().hex[:8] + "/"
        self.kills = 0
        self.reached: dict[str, dict[str, int]] = {}
        """Stage -> checkpoint -> how often it is reached when nobody kills."""
        self._saved: dict[str, State] = {}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.crash.stage"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=REPOSITORY,
            env=os.environ | self.environment(),
            text=True,
        )

    def environment(self) -> dict[str, str]:
        details = {
            "accesskey": self.swift.access_key,
            "secretkey": self.swift.secret_key,
            "bucket": BUCKET,
            "prefix": self.prefix.rstrip("/"),
            "endpoint": self.endpoint.removeprefix("http://"),
            "usehttps": "false",
        }
        return {
            "DJANGO_SETTINGS_MODULE": "cloudstorage.settings",
            "DATABASE_URL": self.database,
            "CLOUDSTORAGE_DATA_DIR": str(self.data),
            "CLOUDSTORAGE_ALLOW_PLAIN_EXPORTS": "true",
            "CLOUDSTORAGE_OUTBOUND_ALLOW_LOOPBACK": "true",
            "CLOUDSTORAGE_QUEUE_MUTED": "true",
            "CLOUDSTORAGE_LOG_LEVEL": "WARNING",
            "CLOUDSTORAGE_LEASE_SECONDS": "2",
            "CLOUDSTORAGE_HEARTBEAT_SECONDS": "0.4",
            "CLOUDSTORAGE_NFS_MOUNTS": mounts(self.region.zones),
            "CRASH_TARGET": json.dumps(details),
        }

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(20)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- running -----------------------------------------------------------------------------------------------------------

    def run(
        self,
        stage: str,
        *,
        exports: dict[str, Path] | None = None,
        die_at: str = "",
        trace: str = "",
        variables: dict[str, str] | None = None,
    ) -> Ended:
        """Run a stage to its end or to its death."""
        environment = {
            "CLOUDSTORAGE_NFS_MOUNTS": mounts(exports or self.region.zones),
            "CLOUDSTORAGE_CRASH_AT": die_at,
            "CLOUDSTORAGE_CRASH_TRACE": trace,
            **(variables or {}),
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"stage": stage, "environment": environment}) + "\n")
        self._process.stdin.flush()
        ended = Ended(**json.loads(self._process.stdout.readline()))
        self.kills += ended.status == -9
        return ended

    def must(self, stage: str, **options: Any) -> Any:
        """Run a stage that has to succeed; what it told."""
        ended = self.run(stage, **options)
        assert ended.status == 0, f"{stage} ended with {ended.status}:\n{ended.log}"
        return ended.told

    def trace(self, stage: str, **options: Any) -> dict[str, int]:
        """Run a stage that has to succeed; how often each checkpoint was reached."""
        file = self.folder / "trace"
        file.write_text("")
        self.must(stage, trace=str(file), **options)
        return dict(Counter(file.read_text().split()))

    def copy_exports(self, *, new: bool) -> dict[str, Path]:
        """The exports once more, for a stage that changes them; `new`: as they were before they were added."""
        copies = {}
        for zone in ZONES:
            copies[zone] = self.folder / "copies" / zone
            shutil.rmtree(copies[zone], ignore_errors=True)
            copies[zone].parent.mkdir(exist_ok=True)
            subprocess.run(["cp", "-a", "--reflink=auto", str(self.region.zones[zone]), str(copies[zone])], check=True)
            if new:
                for own in (path for path in copies[zone].iterdir() if path.name.startswith(OUR_NAMES)):
                    shutil.rmtree(own) if own.is_dir() else own.unlink()
        return copies

    # --- states ------------------------------------------------------------------------------------------------------------

    def save(self, name: str) -> None:
        """Remember database and bucket as they are now."""
        folder = self.folder / "states" / name
        folder.mkdir(parents=True)
        for path in self.data.glob("db.sqlite3*"):
            shutil.copy(path, folder / path.name)
        objects = {}
        for key in self.keys():
            answer = self.s3.get_object(Bucket=BUCKET, Key=key)
            objects[key] = (answer["Body"].read(), answer["Metadata"], answer["ETag"])
        self._saved[name] = State(folder, objects)

    def restore(self, name: str) -> None:
        """Bring database and bucket back to a remembered state."""
        state = self._saved[name]
        for path in self.data.glob("db.sqlite3*"):
            path.unlink()
        for path in state.database.iterdir():
            shutil.copy(path, self.data / path.name)
        for found in self.pending_uploads():
            self.s3.abort_multipart_upload(Bucket=BUCKET, Key=found[0], UploadId=found[1])
        there = self.keys()
        if extra := there.keys() - state.objects.keys():
            self.s3.delete_objects(Bucket=BUCKET, Delete={"Objects": [{"Key": key} for key in extra], "Quiet": True})
            left = self.keys().keys() & extra
            assert not left, left
        for key, (body, metadata, etag) in state.objects.items():
            if there.get(key) != etag:
                self._put(key, body, metadata, etag)

    def _put(self, key: str, body: bytes, metadata: dict[str, str], etag: str) -> None:
        """An object as it was, its ETag too: of one in parts, the parts decide it."""
        if "-" not in etag:
            self.s3.put_object(Bucket=BUCKET, Key=key, Body=body, Metadata=metadata)
            return
        upload = self.s3.create_multipart_upload(Bucket=BUCKET, Key=key, Metadata=metadata)["UploadId"]
        where = {"Bucket": BUCKET, "Key": key, "UploadId": upload}
        blocks = [body[start : start + PART] for start in range(0, len(body), PART)]
        parts = [
            {"PartNumber": number, "ETag": self.s3.upload_part(**where, PartNumber=number, Body=block)["ETag"]}
            for number, block in enumerate(blocks, 1)
        ]
        done = self.s3.complete_multipart_upload(**where, MultipartUpload={"Parts": parts})
        assert done["ETag"] == etag, (done["ETag"], etag)

    # --- looking, without the product ----------------------------------------------------------------------------------------

    def keys(self) -> dict[str, str]:
        """Key -> ETag of everything below the prefix."""
        pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=self.prefix)
        return {entry["Key"]: entry["ETag"] for page in pages for entry in page.get("Contents", [])}

    def pending_uploads(self) -> list[tuple[str, str]]:
        pages = self.s3.get_paginator("list_multipart_uploads").paginate(Bucket=BUCKET, Prefix=self.prefix)
        return [(entry["Key"], entry["UploadId"]) for page in pages for entry in page.get("Uploads", [])]

    def stored(self) -> dict[str, str]:
        """Path as on an export -> SHA-256 of each item's object as the server gives it now."""
        found = {}
        for key in self.keys():
            path = key.removeprefix(self.prefix)
            if path.startswith((".cloudstorage", ".cs-journal/")):
                continue
            digest = hashlib.sha256()
            for block in self.s3.get_object(Bucket=BUCKET, Key=key)["Body"].iter_chunks(MiB):
                digest.update(block)
            path = UNIQUE_NAME.sub(r"\1/", path)
            assert path not in found, f"{path} lies twice in the bucket"
            found[path] = digest.hexdigest()
        return found

    def temporary_files(self, exports: dict[str, Path] | None = None) -> list[str]:
        """What lies in our folders on the exports for unfinished writes and probes."""
        folders = [export / name for export in (exports or self.region.zones).values() for name in (".cs-tmp", ".cs-probe")]
        return [str(path) for folder in folders for path in folder.rglob("*") if path.is_file()]


def mounts(exports: dict[str, Path]) -> str:
    return ",".join(f"{zone}.example:/export={path}" for zone, path in exports.items())
