"""What people would take instead, run as they would run it, tuned."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from tests.bench.ground import Bench, Dataset, Run
from tests.servers.process import system_program

RCLONE_OPTIONS = ("--transfers", "8", "--checkers", "8")
RCLONE_S3 = ("--s3-upload-concurrency", "8", "--s3-chunk-size", "16M")
PEER_FOLDER = "peer"

_CONFIG = """
[s3]
type = s3
provider = Other
access_key_id = {access_key}
secret_access_key = {secret_key}
endpoint = {s3_url}
region = {region}

[swift]
type = swift
user = {username}
key = {key}
auth = {auth_url}
auth_version = 1
"""


def rclone_s3(bench: Bench, dataset: Dataset, bucket: str) -> Run:
    return _rclone(bench, dataset, f"s3:{bucket}/{PEER_FOLDER}", *RCLONE_S3)


def rclone_swift(bench: Bench, dataset: Dataset, bucket: str) -> Run:
    return _rclone(bench, dataset, f"swift:{bucket}/{PEER_FOLDER}")


def _rclone(bench: Bench, dataset: Dataset, place: str, *options: str) -> Run:
    server = bench.swift
    config = bench.folder / "rclone.conf"
    known = ("access_key", "secret_key", "s3_url", "region", "username", "key", "auth_url")
    config.write_text(_CONFIG.format(**{name: getattr(server, name) for name in known}))
    program = system_program("rclone", "rclone")
    source = str(dataset.export / "volumes")
    command = [program, "copy", source, place, *RCLONE_OPTIONS, *options, "--config", str(config), "--stats", "0", "-q"]
    return _timed(command, bench.folder / "rclone.log", {}, bench.folder)


def swift_upload(bench: Bench, dataset: Dataset, bucket: str) -> Run:
    server = bench.swift
    options = ["--use-slo", "--segment-size", str(16 << 20), "--object-threads", "8", "--segment-threads", "8"]
    program = str(Path(sys.executable).with_name("swift"))
    command = [program, "-q", "upload", *options, "--object-name", PEER_FOLDER, bucket, "volumes"]
    sign_in = {"ST_AUTH": server.auth_url, "ST_USER": server.username, "ST_KEY": server.key}
    return _timed(command, bench.folder / "swift.log", sign_in, dataset.export)


def _timed(command: list[str], log: Path, more: dict[str, str], folder: Path) -> Run:
    environment = (
        {name: value for name, value in os.environ.items() if name != "AWS_CA_BUNDLE"} | {"BENCH_FOLDER": str(log.parent)} | more
    )
    with log.open("wb") as file:
        started = time.monotonic()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment, cwd=folder)
        try:
            _, status, used = os.wait4(process.pid, 0)
        except BaseException:  # Ctrl-C too: a peer left running would slow the next row
            process.kill()
            raise
        elapsed = time.monotonic() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{command[0]} failed ({process.returncode}):\n{log.read_text(errors='replace')[-3000:]}")
    return Run(elapsed, used.ru_utime + used.ru_stime)
