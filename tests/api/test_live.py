"""The API and the commands as processes: a web server under gunicorn, a real export, and clients that read slowly or hang up."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.servers.process import REPOSITORY, ProcessGroup, free_ports

pytestmark = [pytest.mark.live]

MiB = 1024 * 1024
SIZE = 96 * MiB + 17
PASSWORD = "a rather long password"


@dataclass
class Site:
    """A web server over one adopted export, and the command line beside it."""

    folder: Path
    environment: dict[str, str]
    group: ProcessGroup
    port: int = 0
    token: str = ""
    opened: list[Any] = field(default_factory=list)
    """Connections and answers that a test may leave half-read."""

    def run(self, *args: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "manage.py", *args]
        return subprocess.run(
            argv, cwd=REPOSITORY, env=self.environment, input=stdin, capture_output=True, text=True, timeout=120, check=False
        )

    def tell(self, *args: str, stdin: str = "") -> Any:
        ended = self.run(*args, "--json", stdin=stdin)
        assert ended.returncode == 0, ended.stderr
        return json.loads(ended.stdout)

    def connect(self) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        self.opened.append(connection)
        return connection

    def close(self) -> None:
        for opened in self.opened:
            opened.close()
        self.opened.clear()

    def send(self, method: str, path: str, *, connection: http.client.HTTPConnection | None = None, **more: Any) -> Any:
        connection = connection or self.connect()
        headers = {"Authorization": f"Bearer {self.token}", **more.pop("headers", {})}
        connection.request(method, f"/api/v1/{path}", headers=headers, **more)
        answer = connection.getresponse()
        self.opened.append(answer)
        return answer

    def json(self, path: str) -> Any:
        return json.loads(self.send("GET", path).read())

    def peak_memory(self) -> int:
        """The largest resident size that any process of the web server ever had."""
        peaks = []
        for pid in self.group._members():
            status = Path(f"/proc/{pid}/status").read_text()
            peaks += [int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")]
        return max(peaks)


def eventually(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, f"not so after 30 s: {what}"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def site(tmp_path_factory, migrated) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    environment = {
        **os.environ,
        "CLOUDSTORAGE_DATA_DIR": str(folder / "data"),
        "DATABASE_URL": migrated.sqlite(folder / "data" / "db.sqlite3"),
        "CLOUDSTORAGE_ALLOW_PLAIN_EXPORTS": "true",
        "CLOUDSTORAGE_QUEUE_MUTED": "true",
        "CLOUDSTORAGE_SECRET_KEYS_FILE": str(folder / "data" / "keys"),
    }
    found = Site(folder, environment, ProcessGroup("web", folder / "logs"))
    volume = folder / "export/volumes/2/7"
    volume.mkdir(parents=True)
    (volume / "disk.raw").write_bytes(random.Random(7).randbytes(SIZE))
    found.tell("zone_add", "east")
    found.tell("store_add", "--provider", "NFS", "--url", f"nfs://localhost{folder}/export", "--zone", "east", "--name", "nfs")
    assert found.tell("store_scan", "nfs")["adopted"] == 1
    found.tell("user_add", "ann", "--role", "operator", stdin=PASSWORD)
    found.token = found.tell("token_create", "ann", "--role", "operator")["token"]
    (found.port,) = free_ports(1)
    serve = ["-m", "gunicorn", "cloudstorage.wsgi", "--bind", f"127.0.0.1:{found.port}", "--threads", "8", "--timeout", "300"]
    found.group.start("gunicorn", [sys.executable, *serve], env=environment, cwd=REPOSITORY)
    try:
        found.group.wait_until(lambda: _answers(found), "the web server answers")
        yield found
    finally:
        found.group.kill()


def _answers(site: Site) -> bool:
    try:
        return bool(site.send("GET", "whoami").status == 200)
    except OSError:
        return False
    finally:
        site.close()


@pytest.fixture(autouse=True)
def _close(site) -> Iterator[None]:
    yield
    site.close()


@pytest.fixture
def disk(site) -> str:
    (row,) = [row for row in site.json("volumes")["results"] if row["upstream_id"] == 7]
    return f"volumes/{row['id']}"


@pytest.fixture
def digest(site) -> str:
    return hashlib.sha256((site.folder / "export/volumes/2/7/disk.raw").read_bytes()).hexdigest()


def holds(site, disk: str) -> int:
    return sum(ref["ref_cnt"] for ref in site.json(disk)["stores"])


def test_large_content_arrives_whole_in_bounded_memory(site, disk, digest):
    before = site.peak_memory()
    answer = site.send("GET", f"{disk}/content")
    assert (answer.status, answer.headers["Content-Length"]) == (200, str(SIZE))
    found = hashlib.sha256()
    while block := answer.read(MiB):
        found.update(block)
    assert found.hexdigest() == digest
    assert site.peak_memory() - before < 24 * MiB
    eventually(lambda: holds(site, disk) == 0, "the copy is released")


def test_ranges_read_side_by_side_make_up_the_whole(site, disk, digest):
    step = 13 * MiB + 1

    def part(first: int) -> bytes:
        last = min(SIZE, first + step) - 1
        answer = site.send("GET", f"{disk}/content", headers={"Range": f"bytes={first}-{last}"})
        body = answer.read()
        assert (answer.status, answer.headers["Content-Range"]) == (206, f"bytes {first}-{last}/{SIZE}")
        assert len(body) == last - first + 1
        return body

    with ThreadPoolExecutor(4) as pool:
        whole = b"".join(pool.map(part, range(0, SIZE, step)))
    assert hashlib.sha256(whole).hexdigest() == digest


def test_connection_goes_on_after_head_refusal_and_range(site, disk):
    connection = site.connect()
    head = site.send("HEAD", f"{disk}/content", connection=connection)
    assert (head.status, head.headers["Content-Length"], head.read()) == (200, str(SIZE), b"")
    beyond = site.send("GET", f"{disk}/content", connection=connection, headers={"Range": f"bytes={SIZE}-"})
    assert (beyond.status, beyond.headers["Content-Range"], beyond.read()) == (416, f"bytes */{SIZE}", b"")
    etag = head.headers["ETag"]
    same = site.send("GET", f"{disk}/content", connection=connection, headers={"If-None-Match": etag})
    assert (same.status, same.read()) == (304, b"")
    first = site.send("GET", f"{disk}/content", connection=connection, headers={"Range": "bytes=0-0", "If-Range": etag})
    assert (first.status, len(first.read())) == (206, 1)


def test_copy_is_released_when_the_client_hangs_up(site, disk):
    connection = site.connect()
    answer = site.send("GET", f"{disk}/content", connection=connection)
    answer.read(MiB)
    assert holds(site, disk) == 1
    answer.close()
    connection.close()
    eventually(lambda: holds(site, disk) == 0, "the copy is released")


def test_client_sees_that_content_ends_early_when_the_source_is_cut_off(site):
    folder = site.folder / "export/volumes/2/8"
    folder.mkdir()
    (folder / "disk.raw").write_bytes(random.Random(8).randbytes(SIZE))
    site.tell("store_scan", "nfs")
    (row,) = [row for row in site.json("volumes")["results"] if row["upstream_id"] == 8]
    answer = site.send("GET", f"volumes/{row['id']}/content")
    assert answer.read(MiB)
    os.truncate(folder / "disk.raw", 2 * MiB)
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        answer.read()
    refused = site.send("GET", f"volumes/{row['id']}/content")
    assert refused.status in {409, 503}
    assert json.loads(refused.read())["remedy"]


def account(site) -> str:
    return str(site.json("accounts")["results"][0]["id"])


def blocks(*contents: bytes) -> Iterator[memoryview]:
    """Small ones: a socket's timeout is for each whole `sendall`, so that a busy machine could not take 96 MiB in time."""
    for content in contents:
        for at in range(0, len(content), MiB):
            yield memoryview(content)[at : at + MiB]


def test_upload_is_written_in_bounded_memory_and_reads_back(site, disk):
    content = (site.folder / "export/volumes/2/7/disk.raw").read_bytes()
    digest = hashlib.sha256(content + content).hexdigest()
    zone = site.json("zones")["results"][0]["id"]
    query = f"name=copy&filename=copy.raw&account={account(site)}&zone={zone}&sha256={digest}"
    headers = {"Content-Type": "application/octet-stream", "Content-Length": str(2 * SIZE)}
    before = site.peak_memory()
    answer = site.send("POST", f"volumes?{query}", headers=headers, body=blocks(content, content))
    made = json.loads(answer.read())
    assert (answer.status, made["stores"][0]["sha256"]) == (201, digest), made
    assert site.peak_memory() - before < SIZE
    back = site.send("GET", f"volumes/{made['id']}/content?path=copy.raw")
    assert (back.headers["ETag"], hashlib.sha256(back.read()).hexdigest()) == (f'"{digest}"', digest)


def test_upload_that_breaks_off_is_never_listed(site, disk):
    zone = site.json("zones")["results"][0]["id"]
    query = f"name=broken&filename=broken.raw&account={account(site)}&zone={zone}"
    connection = site.connect()
    connection.putrequest("POST", f"/api/v1/volumes?{query}")
    for name, value in (("Authorization", f"Bearer {site.token}"), ("Content-Type", "application/octet-stream"),
                        ("Content-Length", str(SIZE))):  # fmt: skip
        connection.putheader(name, value)
    connection.endheaders()
    connection.send(b"x" * MiB)
    connection.close()

    def states() -> list[str]:
        return [ref["state"] for row in site.json("volumes?name=broken")["results"] for ref in row["stores"]]

    eventually(lambda: states() == [], "nothing is left in the list")


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["store_check", "nothing"], 3),
        (["store_add", "--provider", "NFS", "--url", "nfs://h/x"], 2),
        (["store_add"], 2),
        (["migration_plan"], 4),
        (["store_list"], 0),
        (["doctor"], 0),
    ],
)
def test_shell_sees_the_documented_exit_code(site, args, code):
    ended = site.run(*args)
    assert ended.returncode == code, ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr
    assert (ended.stdout if code == 0 else ended.stderr).strip()
