"""The row `list-refs`: the first page of every long list, in the console and over REST, in a large region beside a small one."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache
from typing import Any

from tests.bench.converting import environment
from tests.bench.figures import Row, compared
from tests.bench.ground import Bench

SMALL, LARGE = 3_000, 300_000
TURNS, REPEATS = 3, 5
"""The quickest of so many loads in so many turns: what else the machine does, it does to both regions."""


def pages(bench: Bench, rounds: int, scale: float, say: Callable[[str], None]) -> list[Row]:
    """One row: the page whose time grows most. Raises when the number of a page's queries grows at all."""
    more = environment(bench)
    empty = bench.template("empty", lambda control: control.call("tests.bench.control:adopt"), base=bench.migrated(), **more)
    with ExitStack() as stack:
        controls = {}
        for name, count in (("small", SMALL), ("large", int(LARGE * scale))):
            database = bench.clone(empty)
            stack.callback(bench.drop, database)
            control = stack.enter_context(bench.control(bench.postgres.database_url(database), **more))
            control.call("tests.bench.rows:fill", *[int(count / 3)] * 3)
            control.call("tests.bench.listing:fill_work")
            controls[name] = control
        found: dict[str, list[tuple[float, float]]] = {}
        for number in range(rounds):
            order = ("small", "large") if number % 2 == 0 else ("large", "small")
            for page in PAGES:
                queries: dict[str, int] = {}
                times: dict[str, list[float]] = {name: [] for name in order}
                for name in order * TURNS:
                    queries[name], seconds = controls[name].call("tests.bench.listing:look", page)
                    times[name].append(seconds * 1000)
                if queries["large"] != queries["small"]:
                    raise RuntimeError(f"{page}: {queries['large']} queries in the large region, {queries['small']} in the small")
                found.setdefault(page, []).append((min(times["large"]), min(times["small"])))
    rows = {page: compared("list-refs", page, "<= 1.5", times) for page, times in found.items()}
    for page, row in rows.items():
        say(f"  {page:45} {row.ours:8.1f} ms, small {row.peer:8.1f} ms, ratio {row.ratio:.2f}")
    worst = max(rows, key=lambda page: rows[page].ratio)
    what = (
        f"first page of {len(rows)} lists at {int(LARGE * scale):,} rows, ms against {SMALL:,} rows; told of the worst: {worst}"
    )
    return [compared("list-refs", what, "<= 1.5", found[worst])]


def fill_work() -> None:
    """A converted region half-way through its drain: promises for all, transfers for all, half of them proven."""
    from django.db import connection

    from stores.models import KINDS, ImageStore, TransferBatch

    source = ImageStore.objects.get()
    target = ImageStore.objects.create(name="objects", image_provider_name="S3", protocol="s3", scope="REGION")
    batch = TransferBatch.objects.create(name="drain")
    with connection.cursor() as cursor:
        for kind, models in KINDS.items():
            table = models.ref._meta.db_table
            columns = [field.column for field in models.ref._meta.concrete_fields if not field.primary_key]
            changed = {"store_id": str(target.pk), "state": "'Promised'", "install_path": "''", "proof": "''"}
            chosen = ", ".join(changed.get(column, column) for column in columns)
            cursor.execute(f"INSERT INTO {table} ({', '.join(columns)}) SELECT {chosen} FROM {table}")
            cursor.execute(_TRANSFERS.format(kind=kind.value, refs=table, source=source.pk, target=target.pk, batch=batch.pk))
        cursor.execute("VACUUM ANALYZE")


_TRANSFERS = """
    INSERT INTO stores_transfer (uuid, kind, item_id, source_id, target_id, source_ref_id, target_ref_id, batch_id, depth,
        priority, canary, state, attempts, next_attempt_at, epoch, bytes_total, bytes_done, proof, error_cause, error, remedy,
        created, waiting_on, swept)
    SELECT gen_random_uuid(), '{kind}', {kind}_id, {source}, {target}, id, id, {batch}, 0, 10, false,
        CASE WHEN id % 2 = 0 THEN 'Proven' ELSE 'Queued' END, 1, now(), 1, size, CASE WHEN id % 2 = 0 THEN size ELSE 0 END,
        CASE WHEN id % 2 = 0 THEN 'verified' ELSE '' END, '', '', '', now(), '', true
    FROM {refs} WHERE store_id = {target}
"""

PAGES = (
    "/items/template/",
    "/items/snapshot/",
    "/items/volume/",
    "/items/snapshot/?state=Promised",
    "/items/snapshot/?store=nfs1",
    "/transfers/",
    "/transfers/?state=Queued",
    "/transfers/?state=Failed",
    "/audit/",
    "/api/v1/templates",
    "/api/v1/snapshots",
    "/api/v1/volumes",
    "/api/v1/snapshots?state=Promised",
    "/api/v1/snapshots?store={store}",
    "/api/v1/snapshots?pending=true",
    "/api/v1/transfers",
    "/api/v1/transfers?state=Queued",
    "/api/v1/transfers?state=Failed",
    "/api/v1/transfers?target={store}",
)


def look(page: str) -> tuple[int, float]:
    """(queries, seconds of the quickest of several loads) of a page, for a signed-in administrator."""
    from django.db import connection
    from django.test.utils import CaptureQueriesContext

    from stores.models import ImageStore

    client = _signed_in()
    address = page.format(store=ImageStore.objects.get(scope="REGION").uuid)
    _load(client, address)
    with CaptureQueriesContext(connection) as queries:
        _load(client, address)
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        _load(client, address)
        times.append(time.perf_counter() - started)
    return len(queries), min(times)


@cache
def _signed_in() -> Any:
    from django.contrib.auth import get_user_model
    from django.test import Client

    user, _ = get_user_model().objects.get_or_create(username="looks", is_superuser=True, is_staff=True)
    client = Client(SERVER_NAME="localhost")
    client.force_login(user)
    return client


def _load(client: Any, address: str) -> None:
    answer = client.get(address)
    if answer.status_code != 200:
        raise RuntimeError(f"{address}: {answer.status_code}")
