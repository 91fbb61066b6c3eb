"""A drain to a real S3 server that refuses, fills up, throttles and lies: what is promised is kept in the end, and nothing is lost."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from cloudstorage.actors import Actor
from migration import drain
from migration.conversion import convert
from migration.models import Drain
from stores.models import ImageStore, Kind, Transfer, Volume, VolumeStoreRef, Worker, WorkerReach
from stores.services import image_stores
from stores.services.inventory import open_content
from stores.states import RefState, TransferState
from stores.worker import Pump
from tests.drivers.s3_cases import Place, details_of, error
from tests.drivers.s3_cases import moto_place as moto  # noqa: F401 - a fixture, under the name that tests ask for
from tests.migration.test_drain import BYPASS
from tests.servers.http_messages import HttpRequest
from tests.servers.proxy import Rule

pytestmark = [pytest.mark.db, pytest.mark.live]

ITEMS = 3
NEW = "rotated"


@dataclass
class Running:
    """Three volumes of zone east, converted to a bucket behind a proxy; their drain has begun."""

    place: Place
    drain: Drain
    worker: Worker
    admin: Actor

    @property
    def store(self) -> ImageStore:
        return ImageStore.objects.get(scope="REGION")

    def pump(self) -> None:
        """As often as a worker's clock would; pauses before the next attempt are over at once."""
        Transfer.objects.filter(state=TransferState.QUEUED).update(next_attempt_at="2026-01-01T00:00:00Z")
        Pump(self.worker.pk, slots=2).run()

    def fault(self, matches: Callable[[HttpRequest], bool], *what: Any, times: int | None = None) -> Rule:
        return self.place.proxy.add_rule(matches, error(*what), times=times)

    def states(self) -> list[str]:
        return sorted(Transfer.objects.values_list("state", flat=True))

    def causes(self) -> set[str]:
        return set(Transfer.objects.exclude(error_cause="").values_list("error_cause", flat=True))

    def assert_readable(self) -> None:
        """Every item is given out as it was, wherever it is now."""
        for item in Volume.objects.all():
            with open_content(actor=self.admin, kind=Kind.VOLUME, item=item) as content:
                assert b"".join(content.chunks()) == f"content of {item.name}".encode()

    def assert_whole(self) -> None:
        """Every item is Ready on the server, whose own bytes are those of the original."""
        refs = VolumeStoreRef.objects.filter(store=self.store)
        assert [ref.state for ref in refs] == [RefState.READY] * ITEMS
        for ref in refs:
            (file,) = ref.files.all()
            stored = self.place.admin.get_object(Bucket=self.place.bucket, Key=file.path)["Body"].read()
            assert stored == f"content of {ref.item.name}".encode()
            assert file.sha256 == hashlib.sha256(stored).hexdigest()


@pytest.fixture
def running(region, moto, admin, operator, settings) -> Running:  # noqa: F811 - the fixture of that name
    settings.OUTBOUND_ALLOW_LOOPBACK = True
    for number in range(ITEMS):
        region.volume(f"disk-{number}", "east")
    details = details_of(moto.server, moto.bucket, endpoint=moto.proxy.url.removeprefix("http://")) | {"maxerrorretry": "0"}
    given = {"name": "objects", "provider": "S3", "url": "", "details": details}
    conversion = convert(actor=admin, override=BYPASS, **given)
    worker = Worker.objects.create(hostname="here", pid=7)
    WorkerReach.objects.bulk_create(WorkerReach(worker=worker, store=store, ok=True) for store in ImageStore.objects.all())
    row = drain.plan(actor=operator, conversion=conversion, canary_items=0)
    drain.start(actor=operator, drain=row)
    drain.advance(row)
    return Running(moto, row, worker, admin)


def writes_item(request: HttpRequest) -> bool:
    return request.method == "PUT" and "/volumes/" in request.target


def test_drain_goes_on_with_new_credentials_when_the_old_were_revoked_in_its_middle(running, operator):
    first, *others = Transfer.objects.order_by("pk").values_list("pk", flat=True)
    Transfer.objects.filter(pk__in=others).update(next_attempt_at="2100-01-01T00:00:00Z")
    Pump(running.worker.pk, slots=1).run()
    assert Transfer.objects.get(state=TransferState.PROVEN).pk == first

    def revoked(sent: HttpRequest) -> bool:
        return f"Credential={NEW}/" not in sent.headers.get("authorization", "")

    running.fault(revoked, 403, "InvalidAccessKeyId")
    running.pump()
    assert running.states() == [TransferState.FAILED] * len(others) + [TransferState.PROVEN]
    assert running.causes() == {"access-denied"}
    image_stores.update_store(actor=running.admin, store=running.store, details={"accesskey": NEW, "secretkey": NEW})
    drain.retry_failed(actor=operator, drain=running.drain)
    running.pump()
    running.assert_whole()


@pytest.mark.parametrize(("status", "code"), [(507, "InsufficientStorage"), (403, "QuotaExceeded")])
def test_what_finds_no_room_waits_for_a_person_and_stays_readable(running, operator, status, code):
    rule = running.fault(writes_item, status, code)
    running.pump()
    assert rule.hits >= 1
    assert TransferState.PROVEN not in running.states()
    assert running.causes() == {"full"}
    running.assert_readable()
    running.place.proxy.clear_rules()
    if TransferState.FAILED in running.states():
        drain.retry_failed(actor=operator, drain=running.drain)
    running.pump()
    running.assert_whole()


def test_throttling_uses_up_no_attempt(running):
    throttled = error(503, "SlowDown")
    throttled.headers["Retry-After"] = "1"
    rule = running.place.proxy.add_rule(writes_item, throttled)
    for _ in range(10):
        running.pump()
        if rule.hits > 2 * ITEMS:
            break
    assert TransferState.FAILED not in running.states()
    running.assert_readable()
    running.place.proxy.clear_rules()
    running.pump()
    running.assert_whole()
