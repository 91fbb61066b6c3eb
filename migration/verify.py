"""Proves again what is proven: queues the readings of a store, runs each under a lease, and re-reads what the store holds."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import F, Q
from django.db.models.functions import Now
from django.utils import timezone

from cloudstorage.actors import SYSTEM, Actor, ActorRole
from cloudstorage.audit import audited, record
from cloudstorage.checkpoints import reach
from cloudstorage.errors import Conflict, Invalid, ServiceError
from cloudstorage.queue import wake
from migration.damage import Wrong, difference
from migration.evidence import read_for_retirement
from migration.listing import compare_listing
from migration.models import Decommission, Verification
from migration.rereading import WITH_BYTES, Watch, is_going, lease_end, next_refs, ours, proven_hashes, sampled, save
from migration.states import LIVE_VERIFICATION_STATES, DecommissionState, VerificationState
from stores.copier import CopyEngine, Stopped
from stores.drivers.base import ObjectInfo, StoreDriver
from stores.drivers.errors import NotFound, StoreError, Unavailable
from stores.models import KINDS, ImageStore, Kind
from stores.services import proofs
from stores.services.image_stores import driver_for
from stores.services.inventory import relative_name
from stores.states import READABLE, Proof, RefState, StoreState

log = logging.getLogger(__name__)

RUN = "migration.tasks.run_verification"
_REFUSED_SECONDS = 300


def verify(*, actor: Actor, store: ImageStore, sample_percent: float = 100, mode: str = Verification.CONTENT) -> Verification:
    """Queue a check of a store, unless the same waits or runs; returns the one or the other. Raises Invalid for a percentage
    outside (0, 100], Conflict for a store that was removed."""
    if not 0 < sample_percent <= 100:
        raise Invalid("The sample is a percentage above 0, up to 100.", remedy="100 reads all.", field="sample_percent")
    with audited(actor, ActorRole.OPERATOR, "store.verify", f"store:{store.uuid}"):
        if store.state == StoreState.REMOVED:
            raise Conflict(f"The store {store.name} was removed, so nothing is known to be there.", remedy="Add it again first.")
        ImageStore.objects.select_for_update(no_key=True).only("pk").get(pk=store.pk)
        same = Verification.objects.filter(store=store, mode=mode, sample_percent=sample_percent)
        if live := same.filter(state__in=LIVE_VERIFICATION_STATES).first():
            return live
        row = Verification.objects.create(store=store, actor=actor.name, sample_percent=sample_percent, mode=mode)
        record(actor, "store.verify", f"store:{store.uuid}", mode=mode, sample_percent=sample_percent)
        wake(RUN, row.pk)
        return row


def resume_abandoned() -> None:
    """Wake the queue for verifications that nobody runs: not begun, or their worker is gone."""
    free = Q(lease_until=None) | Q(lease_until__lt=Now())
    waiting = Verification.objects.filter(free, state__in=LIVE_VERIFICATION_STATES)
    for row in waiting.filter(created__lt=Now() - timedelta(seconds=10)):
        wake(RUN, row.pk)


def schedule_drift_checks() -> None:
    """Once a day, whatever the number of workers: every store's listing, and the content of so many items as the budget of a day
    allows; and all content of an object store of which a rebuild has adopted something that was never read.

    A store's first day begins with a scan that has just listed it, or empty; its check then would only slow the first drain.
    """
    since = timezone.now() - timedelta(hours=23)
    recent = Verification.objects.filter(created__gt=since)
    stores: Any = ImageStore.objects.attached().with_usage()
    for store in stores.exclude(pk__in=recent.filter(mode=Verification.LISTING).values("store")):
        if store.created <= since and (store.scope == "REGION" or store.scanned_at is not None):
            _begin_daily(store, Verification.LISTING, 100, since)
    for store in stores.exclude(pk__in=recent.filter(mode=Verification.CONTENT).values("store")):
        budget = settings.REHASH_BYTES_PER_DAY if store.created <= since else 0
        percent = 100.0 if _unread(store) else 100.0 * budget / max(1, store.bytes)
        if store.bytes and percent:
            _begin_daily(store, Verification.CONTENT, min(100.0, percent), since)


def _begin_daily(store: ImageStore, mode: str, sample_percent: float, since: datetime) -> None:
    """Where the clocks of two workers coincide, the one that has the store's row first begins it."""
    with transaction.atomic():
        ImageStore.objects.select_for_update(no_key=True).only("pk").get(pk=store.pk)
        known = Q(created__gt=since) | Q(state__in=LIVE_VERIFICATION_STATES)
        if not Verification.objects.filter(known, store=store, mode=mode).exists():
            verify(actor=SYSTEM, store=store, mode=mode, sample_percent=sample_percent)


def _unread(store: ImageStore) -> bool:
    """Whether something on an object store was adopted since its whole content was read last."""
    if store.scope != "REGION":
        return False
    whole = Verification.objects.filter(mode=Verification.CONTENT, sample_percent=100, state=VerificationState.FINISHED)
    read = whole.filter(store=store).order_by("-created").values_list("created", flat=True).first()
    fresh = Q(updated__gt=read) if read is not None else Q()
    adopted = Q(store=store, state__in=READABLE, proof=Proof.ADOPTED)
    return any(models.ref.objects.filter(adopted, fresh).exists() for models in KINDS.values())


def run(row: Verification) -> None:
    """Run a verification from where it stands until it is finished; a second runner of the same row does nothing.

    A store that does not answer, or refuses us, leaves it Running with a note, to be resumed later: silence is never a finding.
    """
    free = Q(lease_until=None) | Q(lease_until__lt=Now())
    waiting = Q(state__in=LIVE_VERIFICATION_STATES)
    if not Verification.objects.filter(free, waiting, pk=row.pk).update(
        state=VerificationState.RUNNING, lease_until=lease_end(), epoch=F("epoch") + 1
    ):
        return
    row.refresh_from_db()
    if row.store.state == StoreState.REMOVED:
        ended = {"state": VerificationState.CANCELLED, "note": "The store was removed before it was read."}
        ours(row).update(**ended, finished_at=Now(), lease_until=None)
        return
    try:
        driver = driver_for(row.store)
        driver.check()
        _go_on(row)
        if row.mode == Verification.LISTING:
            compare_listing(row, driver)
        elif row.mode == Verification.RETIRE:
            read_for_retirement(row, driver)
        else:
            _read_contents(row, driver)
    except (StoreError, ServiceError) as error:
        _wait(row, error)
        return
    except Stopped as stop:
        log.info("verification %s ended here: %s", row.uuid, stop)
        return
    reach("verify.read")
    ours(row).update(state=VerificationState.FINISHED, finished_at=Now(), lease_until=None, note="")


def _wait(row: Verification, error: StoreError | ServiceError) -> None:
    """Say what is in the way, and try again later: an outage ends by itself, a refusal when somebody mends its cause."""
    log.warning("verification %s waits: %s", row.uuid, error)
    note = f"It waits: {error} {error.remedy}".replace("\0", "").encode(errors="backslashreplace").decode()
    pause = settings.HEARTBEAT_SECONDS * 2 if isinstance(error, Unavailable) else _REFUSED_SECONDS
    with transaction.atomic():
        if ours(row).update(lease_until=Now() + timedelta(seconds=pause), note=note):
            Decommission.objects.filter(verification=row, state=DecommissionState.CHECKING).update(note=note)


def _go_on(row: Verification) -> None:
    """What was in the way is gone."""
    if row.note:
        ours(row).update(note="")
        Decommission.objects.filter(verification=row, state=DecommissionState.CHECKING).update(note="")


def _read_contents(row: Verification, driver: StoreDriver) -> None:
    engine = CopyEngine(lanes=1)
    watch = Watch(row, row.store)
    try:
        for kind, models in KINDS.items():
            refs = models.ref.objects.filter(store=row.store)
            while page := next_refs(row, kind, refs, WITH_BYTES):
                proven = proven_hashes(kind, page)
                for ref in page:
                    row.cursor[kind] = ref.pk
                    if sampled(ref.item.uuid.bytes, row):
                        _read_item(row, engine, driver, watch, kind, ref, proven.get(ref.item_id, {}))
                save(row, [])
    finally:
        engine.close()


def _read_item(
    row: Verification, engine: CopyEngine, driver: StoreDriver, watch: Watch, kind: Kind, ref: Any, proven: Mapping[str, str]
) -> None:
    """Hash its files, twice what differs; what that shows is written in the transaction that moves the reading on."""
    files = sorted(ref.files.all(), key=lambda file: str(file.path))
    seen: dict[str, str] = {}
    wrong = Wrong(kind, ref)
    before = _as_they_are(driver, files) if ref.state == RefState.FAILED else None
    for file in files:
        file.sha256 = file.sha256 or proven.get(relative_name(ref.install_path, file.path), "")
        wrong.known[file.path] = file.sha256
        found = _check(row, engine, driver, watch, ref, file, seen)
        if found is not None:
            wrong.look_again(engine, driver, watch, file, found)
    row.items_checked += 1
    if not files or (wrong.findings and is_going(ref)):
        save(row, [])
        return
    with transaction.atomic():
        wrong.act()
        save(row, wrong.findings)
    if wrong.findings:
        return
    if before is not None and all(wrong.known.values()) and before == _as_they_are(driver, files):
        proofs.mend(kind, ref, before, seen)
    elif row.store.scope == "REGION" and ref.proof == Proof.ADOPTED and ref.state in READABLE:
        proofs.confirm(kind, ref, seen)


def _as_they_are(driver: StoreDriver, files: Sequence[Any]) -> dict[str, ObjectInfo] | None:
    """By path; None where one is missing. What they occupy is left out: a file system may settle that when nobody writes."""
    try:
        return {file.path: replace(driver.stat(file.path), allocated=None) for file in files}
    except NotFound:
        return None


def _check(
    row: Verification, engine: CopyEngine, driver: StoreDriver, watch: Watch, ref: Any, file: Any, seen: dict[str, str]
) -> dict[str, str] | None:
    found, size = difference(engine, driver, watch, file.path, file.sha256, file.size, seen)
    row.bytes_checked += size
    if found is None and row.store.scope == "ZONE" and file.version and ref.state in READABLE:
        try:
            version = driver.stat(file.path).version
        except NotFound:
            version = ""
        found = None if version == file.version else {"problem": "changed", "expected": file.version, "found": version}
    return found
