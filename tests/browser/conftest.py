"""A real installation for a real browser: web server, worker, two zones' exports and an object store, all on loopback."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.demo.build import Scale, build_region
from tests.servers.migrated import MigratedDatabases
from tests.servers.process import REPOSITORY, ProcessGroup, free_ports

CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PASSWORD = "a rather long password"
EXPORTS = {"zone1": "filer1:/export/secondary", "zone2": "filer2:/export/secondary"}

PREPARE = """
import django; django.setup()
import os
from django.core.management import call_command
call_command("migrate", verbosity=0)
from cloudstorage.actors import cli_actor
from cloudstorage.people import add_user
add_user(actor=cli_actor(), name="ada", role="storage-admin", password=os.environ["PASSWORD"])
add_user(actor=cli_actor(), name="audra", role="auditor", password=os.environ["PASSWORD"])
"""


@dataclass
class Installation:
    """Where it is, and what its object store is called."""

    url: str
    swift: Any
    bucket: str
    exports: dict[str, Path]


@pytest.fixture
def installation(tmp_path: Path, swift_server: Any, migrated: MigratedDatabases) -> Iterator[Installation]:
    """An empty cloud with exports that nobody told it of; stopped with the test."""
    migrated.sqlite(tmp_path / "data" / "cloud.sqlite3")
    with installed(tmp_path, swift_server) as found:
        yield found


@contextmanager
def installed(tmp_path: Path, swift_server: Any, scale: Scale = "tiny") -> Iterator[Installation]:
    """Database, users, bucket, web server and worker."""
    exports = build_region(tmp_path / "exports", scale=scale).zones
    (port,) = free_ports(1)
    environment = {
        "CLOUDSTORAGE_DATA_DIR": str(tmp_path / "data"),
        "CLOUDSTORAGE_SECRET_KEYS_FILE": str(tmp_path / "data" / "secret-keys"),
        "DATABASE_URL": f"sqlite:///{tmp_path / 'data' / 'cloud.sqlite3'}",
        "DJANGO_SETTINGS_MODULE": "cloudstorage.settings",
        "CLOUDSTORAGE_REDIS_URL": "",
        "CLOUDSTORAGE_ALLOW_PLAIN_EXPORTS": "true",
        "CLOUDSTORAGE_OUTBOUND_ALLOW_LOOPBACK": "true",
        "CLOUDSTORAGE_DIRECT_HYPERVISORS": "KVM,XenServer,VMware",
        "CLOUDSTORAGE_NFS_MOUNTS": ",".join(f"{EXPORTS[zone]}={path}" for zone, path in exports.items()),
        "PASSWORD": PASSWORD,
    }
    manage = [sys.executable, "manage.py"]
    prepare = [sys.executable, "-c", PREPARE]
    subprocess.run(prepare, cwd=REPOSITORY, env={**os.environ, **environment}, check=True, capture_output=True)
    bucket = re.sub(r"[^a-z0-9]+", "-", f"console-{tmp_path.name}".lower()).strip("-")
    _make_bucket(swift_server, bucket)
    servers = ProcessGroup("installation", tmp_path / "logs")
    try:
        web = ["-m", "gunicorn", "cloudstorage.wsgi", "--bind", f"127.0.0.1:{port}", "--threads", "4", "--no-control-socket"]
        servers.start("web", [sys.executable, *web], env=environment, cwd=REPOSITORY)
        servers.start("worker", [*manage, "worker"], env=environment, cwd=REPOSITORY)
        url = f"http://127.0.0.1:{port}"
        servers.wait_until(lambda: _answers(f"{url}/login/"), "the console")
        yield Installation(url, swift_server, bucket, exports)
    finally:
        servers.kill()  # nothing of it is looked at again


def _make_bucket(swift: Any, bucket: str) -> None:
    import boto3
    from botocore.config import Config

    keys = {"aws_access_key_id": swift.access_key, "aws_secret_access_key": swift.secret_key, "region_name": "us-east-1"}
    boto3.client("s3", endpoint_url=swift.s3_url, config=Config(s3={"addressing_style": "path"}), **keys).create_bucket(
        Bucket=bucket
    )


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except (urllib.error.URLError, OSError):
        return False


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(params=[True, False], ids=["script", "no-script"])
def page(request: Any, chromium: Browser) -> Iterator[Page]:
    """A tab with JavaScript, and one without; what the browser complains of fails the test."""
    context = chromium.new_context(java_script_enabled=request.param, viewport={"width": 1280, "height": 900})
    context.set_default_timeout(20_000)
    tab = context.new_page()
    complaints: list[str] = []
    tab.on("console", lambda message: complaints.append(message.text) if message.type in {"error", "warning"} else None)
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    yield tab
    context.close()
    assert complaints == []
