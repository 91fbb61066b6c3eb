"""Three workers in network namespaces of their own share a drain on PostgreSQL; one of them loses its power half-way.

Every key is completed exactly once: whoever takes a transfer over recognises what the dead worker had written and not yet proven.
"""

from __future__ import annotations

import os
import signal
import uuid
from collections import Counter
from pathlib import Path
from urllib.parse import unquote, urlsplit

import psycopg
import pytest

from tests.crash.ground import BUCKET, Ground
from tests.crash.machine import Machine, kill, wait_for
from tests.crash.network import ADDRESS, Namespaces
from tests.crash.stage import MiB
from tests.demo.build import BuiltFile, BuiltItem, BuiltRegion, hash_file
from tests.servers.proxy import LoggingHttpProxy, TcpProxy

pytestmark = [pytest.mark.live, pytest.mark.crash]

SMALL, LARGE = 56, 4
"""Items of one part, and of two."""


def build(root: Path) -> BuiltRegion:
    items = []
    for number in range(1, SMALL + LARGE + 1):
        zone = f"zone{1 + number % 2}"
        path = root / zone / "volumes" / "2" / str(number) / f"{uuid.uuid4()}.raw"
        path.parent.mkdir(parents=True)
        path.write_bytes(os.urandom(17 * MiB if number % 15 == 0 else 200_000 + number))
        file = BuiltFile(str(path.relative_to(root / zone)), path.stat().st_size, hash_file(path))
        items.append(BuiltItem(zone, "volume", "raw", 2, str(number), (file,), path.name))
    return BuiltRegion(root, tuple(items), (), ())


def completions(proxy: LoggingHttpProxy, prefix: str) -> Counter[str]:
    """Key -> how often a write of the whole object was answered with success."""
    found: Counter[str] = Counter()
    for record in proxy.records:
        url = urlsplit(record.target)
        key = unquote(url.path).removeprefix(f"/{BUCKET}/{prefix}")
        whole = (record.method == "PUT" and not url.query) or (record.method == "POST" and "uploadId=" in url.query)
        if whole and record.status == 200 and key.startswith("volumes/"):
            found[key] += 1
    return found


def test_every_key_is_completed_once_when_one_of_three_workers_dies(server_directory, swift_server, postgres_server, migrated):
    database = migrated.postgres(postgres_server, f"three_{uuid.uuid4().hex[:8]}")
    with (
        Namespaces(3) as network,
        TcpProxy(database, host=ADDRESS) as to_database,
        LoggingHttpProxy(swift_server.s3_url, host=ADDRESS) as proxy,
        Ground(server_directory / "three", swift_server, build=build, database=to_database.url, endpoint=proxy.url) as ground,
        psycopg.connect(database, autocommit=True) as connection,
    ):
        for stage in ("migrate", "store_add", "scan", "preflight", "convert"):
            ground.must(stage)
        environment = ground.environment() | {
            "CLOUDSTORAGE_QUEUE_MUTED": "false",
            "CLOUDSTORAGE_LEASE_SECONDS": "10",
            "CLOUDSTORAGE_HEARTBEAT_SECONDS": "1",
            "CLOUDSTORAGE_WORKER_SLOTS": "4",
        }

        def count(query: str) -> int:
            row = connection.execute(query).fetchone()
            assert row is not None
            return int(row[0])

        reached = (
            "SELECT count(DISTINCT worker_id) FROM stores_workerreach r JOIN stores_worker w ON w.id = worker_id"
            " WHERE ok AND stopped IS NULL"
        )
        said_so_before = count(reached)
        machines = [
            Machine.worker(environment, ground.folder / f"{name}.log", prefix=network.inside(name)) for name in network.names
        ]
        try:
            wait_for(lambda: count(reached) == said_so_before + 3, "three workers", *machines, seconds=120)
            # Fewer than one worker could take alone.
            limits = {"CRASH_BANDWIDTH": str(4 * MiB), "CRASH_CANARY": "0", "CRASH_CONCURRENCY": "6"}
            ground.must("begin_drain", variables=limits)
            proven = "SELECT count(*) FROM stores_transfer WHERE state = 'Proven'"
            busy = "SELECT DISTINCT w.pid FROM stores_transfer t JOIN stores_worker w ON w.id = t.worker_id WHERE t.state = 'Running'"
            at_work: list[Machine] = []

            def several_at_work() -> bool:
                pids = {pid for (pid,) in connection.execute(busy)}
                at_work[:] = [machine for machine in machines if machine.pid in pids]
                return count(proven) >= 15 and len(at_work) >= 2

            def one_caught_at_work() -> bool:
                if not several_at_work():
                    return False
                victim = at_work[0]
                caught = victim.processes()
                for pid in caught:
                    kill(pid, signal.SIGSTOP)
                if (victim.pid,) in connection.execute(busy).fetchall():
                    return True
                for pid in caught:
                    kill(pid, signal.SIGCONT)
                return False

            wait_for(one_caught_at_work, "several to be at work", *machines)
            victim = at_work[0]
            victim.kill_all()
            assert count(proven) < SMALL + LARGE
            # What matters now is who takes over what, not how long nobody may, nor how fast.
            lapse = (
                "UPDATE stores_transfer t SET lease_until = now() FROM stores_worker w WHERE w.id = t.worker_id AND w.pid = %s"
            )
            connection.execute(lapse, [victim.pid])
            connection.execute("UPDATE stores_transferbatch SET bandwidth = NULL")
            left = [machine for machine in machines if machine is not victim]
            wait_for(lambda: count("SELECT count(*) FROM migration_drain WHERE state = 'Finished'"), "the drain", *left)
        finally:
            for machine in machines:
                machine.kill_all()
        assert not any("it is restarted" in machine.log.read_text() for machine in machines), (
            "a cluster without room was restarted"
        )
        assert count(proven) == SMALL + LARGE
        written = completions(proxy, ground.prefix)
        assert written.keys() == ground.hashes.keys()
        retried = {
            key
            for (key,) in connection.execute(
                "SELECT f.path FROM volume_store_file f JOIN volume_store_ref r ON r.id = f.ref_id"
                " JOIN stores_transfer t ON t.target_ref_id = r.id AND t.kind = 'volume' WHERE t.attempts > 1"
            )
        }
        print(f"{len(retried)} transfers of the dead worker were taken over")
        assert retried, "nothing was under way on the worker that died"
        assert set(written.values()) == {1}, {key: times for key, times in written.items() if times != 1}
        # Whoever dies between an upload's begin and its record leaves one that no row knows: the reaper of the worker's clock, which
        # runs in here, aborts it.
        told = ground.must("settle")
        assert told["counts"] == told["listing"] == [], told
        assert ground.pending_uploads() == []
        assert ground.stored() == ground.hashes
