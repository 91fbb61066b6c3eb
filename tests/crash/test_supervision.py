"""Real processes on one machine: whichever is killed, the drain goes on and every byte arrives."""

from __future__ import annotations

import hashlib
import signal
import sqlite3
import urllib.error
import urllib.request
import uuid
from contextlib import closing

import pytest

from tests.crash.ground import LARGE, Ground
from tests.crash.machine import Machine, kill, state_of, wait_for
from tests.servers.process import free_ports

pytestmark = [pytest.mark.live, pytest.mark.crash]

SLOW = 2 << 20
"""Bytes per second: the large file is under way for 20 seconds."""
IMPATIENT = """
import django; django.setup()
from django.core.management import call_command
from stores.management.commands import worker
worker._SILENCE_SECONDS = 12.0
call_command("worker")
"""
"""A worker that waits for a silent queue cluster no longer than it takes to start one on a busy machine."""


@pytest.fixture
def ground(converted) -> Ground:
    converted.restore("converted")
    return converted


@pytest.fixture
def environment(ground) -> dict[str, str]:
    return ground.environment() | {
        "CLOUDSTORAGE_QUEUE_MUTED": "false",
        "CLOUDSTORAGE_LEASE_SECONDS": "6",
        "CLOUDSTORAGE_HEARTBEAT_SECONDS": "1",
        "CLOUDSTORAGE_LOG_LEVEL": "INFO",
    }


def ask(ground: Ground, query: str):
    """The database, without the product."""
    with closing(sqlite3.connect(f"file:{ground.data / 'db.sqlite3'}?mode=ro", uri=True, timeout=60)) as connection:
        return connection.execute(query).fetchall()


def finished(ground: Ground) -> bool:
    return ask(ground, "SELECT state FROM migration_drain") == [("Finished",)]


def start_drain(ground: Ground) -> None:
    ground.must("begin_drain", variables={"CRASH_BANDWIDTH": str(SLOW), "CRASH_CANARY": "0"})


def hurry(ground: Ground) -> None:
    """Lift the limit."""
    with closing(sqlite3.connect(ground.data / "db.sqlite3", timeout=60)) as connection:
        connection.execute("UPDATE stores_transferbatch SET bandwidth = NULL")
        connection.commit()


def start_worker(ground: Ground, environment, *program: str) -> Machine:
    machine = Machine(program or ["manage.py", "worker"], environment, ground.folder / f"worker-{uuid.uuid4().hex[:6]}.log")
    wait_for(machine.queue_workers, "the queue cluster", machine)
    return machine


def copying(ground: Ground, machine: Machine) -> int:
    """The process that copies the large file, once parts of it have arrived."""
    path = ground.region.zones["zone1"] / LARGE
    wait_for(lambda: machine.copying(path) and ask(ground, "SELECT * FROM stores_transferupload"), "a copy under way", machine)
    found = machine.copying(path)
    assert found is not None
    return found


def assert_complete(ground: Ground) -> None:
    told = ground.must("settle")
    assert told["refs"] == {"Ready": len({(item.kind, item.account_id, item.upstream_id) for item in ground.region.items})}, told
    assert told["counts"] == told["listing"] == [], told
    assert ground.stored() == ground.hashes


def test_drain_completes_when_all_idle_queue_workers_are_killed_before_it(ground, environment):
    with start_worker(ground, environment, "-c", IMPATIENT) as machine:
        idle = machine.queue_workers()
        wait_for(lambda: ask(ground, "SELECT 1 FROM stores_workerreach WHERE ok"), "the stores to be reached", machine)
        for pid in idle:
            kill(pid)
        start_drain(ground)
        hurry(ground)
        wait_for(lambda: finished(ground), "the drain", machine, seconds=150)
    assert_complete(ground)


def test_drain_completes_when_a_queue_worker_is_killed_in_the_middle_of_a_copy(ground, environment):
    with start_worker(ground, environment) as machine:
        start_drain(ground)
        kill(copying(ground, machine))
        hurry(ground)
        wait_for(lambda: finished(ground), "the drain", machine, seconds=150)
    assert_complete(ground)


def test_killed_supervisor_takes_its_cluster_along_and_the_next_worker_goes_on(ground, environment):
    with start_worker(ground, environment) as machine:
        start_drain(ground)
        copying(ground, machine)
        kill(machine.pid)
        hurry(ground)  # for they end with what they are at
        took = wait_for(lambda: not machine.processes(), "its processes to end", machine)
        print(f"the killed supervisor's processes were gone after {took:.1f} s")
    with start_worker(ground, environment) as machine:
        wait_for(lambda: finished(ground), "the drain", machine)
    assert_complete(ground)


def test_cluster_that_is_told_to_end_over_and_over_ends_and_is_replaced(ground, environment):
    """As by a host that shuts down, and by the threads of a killed supervisor, whose deaths were each told."""
    with start_worker(ground, environment) as machine:
        for _ in range(3):
            (cluster,) = machine.children(machine.pid)
            for _ in range(30):
                kill(cluster, signal.SIGTERM)
                state_of(cluster)  # it takes as long as a handler takes to begin
            wait_for(lambda gone=cluster: gone not in machine.processes(), "the cluster to end", machine, seconds=30)
            wait_for(machine.queue_workers, "another cluster", machine)


def test_worker_gives_its_transfers_back_when_it_is_told_to_end(ground, environment):
    with start_worker(ground, environment) as machine:
        start_drain(ground)
        copying(ground, machine)
        kill(machine.pid, signal.SIGTERM)
        assert machine.process.wait(30) == 0, machine.tail()
        assert not machine.processes()
        assert ask(ground, "SELECT count(*) FROM stores_transfer WHERE state = 'Running'") == [(0,)]
        assert ask(ground, "SELECT max(attempts) FROM stores_transfer WHERE state = 'Queued'") == [(0,)]
    hurry(ground)
    with start_worker(ground, environment) as machine:
        wait_for(lambda: finished(ground), "the drain", machine)
    assert_complete(ground)


def test_reads_equal_the_original_when_the_web_server_is_killed_during_the_drain(ground, environment):
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    served = ["-m", "gunicorn", "cloudstorage.wsgi", "--bind", f"127.0.0.1:{port}", "--threads", "4", "--workers", "1"]
    token = ground.must("reader_token")
    (item,) = ask(ground, "SELECT uuid FROM volumes WHERE upstream_id = 399")
    large = f"{url}/api/v1/volumes/{uuid.UUID(item[0])}/content"
    answered = lambda: reaches(url)  # noqa: E731
    with start_worker(ground, environment) as machine:
        start_drain(ground)
        with Machine(served, environment, ground.folder / "web-1.log") as web:
            wait_for(answered, "the web server", web)
            copying(ground, machine)
            half_read = urllib.request.urlopen(authorized(large, token))
            assert len(half_read.read(1 << 20)) == 1 << 20
            (child,) = web.children(web.pid)
            kill(child)
            wait_for(lambda: state_of(child) in "ZX", "the death", web)
            wait_for(answered, "the web server's new process", web)
            assert digest(large, token) == ground.hashes[LARGE]
            half_read.close()
        hurry(ground)
        with Machine(served, environment, ground.folder / "web-2.log") as web:
            wait_for(answered, "the new web server", web)
            assert digest(large, token) == ground.hashes[LARGE]
            wait_for(lambda: finished(ground), "the drain", machine)
            assert digest(large, token) == ground.hashes[LARGE]
    ground.must("a_day_passes")  # the hold of the reader that was killed ends by itself
    assert_complete(ground)


def authorized(url: str, token: str) -> urllib.request.Request:
    return urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})


def digest(url: str, token: str) -> str:
    with urllib.request.urlopen(authorized(url, token)) as answer:
        return hashlib.file_digest(answer, "sha256").hexdigest()


def reaches(url: str) -> bool:
    try:
        urllib.request.urlopen(f"{url}/api/v1/volumes", timeout=2).close()
    except urllib.error.HTTPError as error:
        error.close()
        return error.code < 500
    except OSError:
        return False
    return True
