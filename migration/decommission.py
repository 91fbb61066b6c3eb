"""Retires a staging store: refuses while anything there is needed, has everything read again, signs, and removes the store."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import Exists, F, OuterRef, Q, QuerySet, Sum
from django.db.models.functions import Now
from django.utils import timezone

from cloudstorage.actors import Actor, ActorRole
from cloudstorage.audit import Changes, audited, record
from cloudstorage.checkpoints import reach
from cloudstorage.errors import Blocked, Conflict, Invalid, ServiceError
from cloudstorage.models import Installation
from cloudstorage.queue import wake
from migration import report
from migration.conversion import OPEN_STATES
from migration.evidence import not_looked_at
from migration.models import Conversion, Decommission, RetiredFile, Verification
from migration.rereading import proven_copies
from migration.states import (
    DECOMMISSION_TRANSITIONS,
    LIVE_VERIFICATION_STATES,
    DecommissionEvent,
    DecommissionState,
    VerificationState,
)
from migration.verify import RUN
from stores.drivers.base import StoreDriver
from stores.drivers.errors import NotFound, StoreError
from stores.models import KINDS, Hold, ImageStore, Kind, ScanRun, Snapshot, TemplateZoneRef, Transfer, Volume
from stores.services.image_stores import driver_for, remove_store
from stores.states import (
    LIVE_REF_STATES,
    LIVE_SCAN_STATES,
    LIVE_TRANSFER_STATES,
    READABLE,
    REF_TRANSITIONS,
    RefEvent,
    RefState,
    Role,
    StoreState,
    allowed_events,
    next_state,
)

log = logging.getLogger(__name__)

ACTION = "store.decommission"
DELETE = "migration.tasks.delete_retired_files"
LIVE = (DecommissionState.CHECKING, DecommissionState.WAITING)
EXAMPLES = 20
_DIGEST_LETTERS = 12
"""How much of a digest a person must give to say which files are meant."""
_RETRY_SECONDS = 30
_PAGE = 100


@dataclass(frozen=True, slots=True)
class Blocker:
    """What forbids a retirement: how many in full, the first of them by name."""

    code: str
    message: str
    remedy: str
    count: int = 1
    examples: tuple[str, ...] = ()
    severity: str = "blocker"


# --- what forbids it -------------------------------------------------------------------------------------------------------


def blockers(store: ImageStore) -> list[Blocker]:
    """Everything that forbids retiring the store now, in a fixed number of queries."""
    if store.state != StoreState.ATTACHED:
        return [Blocker("not-attached", f"{store.name} is {store.state}.", "Only a store that is in use can be retired.")]
    if store.role != Role.IMAGE_CACHE:
        message = f"{store.name} is a store of record: what is on it is cached from nowhere."
        return [Blocker("not-staging", message, "Convert the region, drain the store and commit; then it is a staging store.")]
    return [*_of_conversion(store), *_of_refs(store), *_of_transfers(store), *_of_scan(store), *_of_zone(store)]


def _of_conversion(store: ImageStore) -> Iterator[Blocker]:
    for row in Conversion.objects.filter(stores__store=store, state__in=OPEN_STATES).select_related("object_store"):
        message = f"The conversion to {row.object_store.name} is {row.state}: the originals on {store.name} are the way back."
        yield Blocker("uncommitted", message, "Commit the conversion first (migration_commit); that ends the way back.")


def _of_refs(store: ImageStore) -> Iterator[Blocker]:
    for kind, models in KINDS.items():
        refs = models.ref.objects.filter(store=store)
        there = refs.filter(state__in=READABLE)
        unproven = there.filter(~Exists(proven_copies(kind).filter(item_id=OuterRef("item_id"))))
        holders = Hold.objects.filter(Q(expires=None) | Q(expires__gte=Now()), kind=kind, ref_id=OuterRef("pk"))
        held = there.filter(Q(ref_cnt__gt=0) | Exists(holders))
        damaged = refs.filter(state=RefState.FAILED)
        unfinished = refs.filter(state__in=LIVE_REF_STATES - {*READABLE, RefState.FAILED})
        what = (
            ("unproven", unproven, "are not proven on a store of record", "Drain the store; retry what failed."),
            ("held", held, "are held by a reader, a job or a promise", "Wait until they are read, or the drain has moved them."),
            (
                "damaged",
                damaged,
                "are not what was proven, or missing",
                "Put the files back and verify, or bring the items anew.",
            ),
            ("unfinished", unfinished, "are being written or deleted", "Wait until that has ended, or delete the items."),
        )
        for code, found, are, remedy in what:
            names = [f"{name} ({uuid})" for name, uuid in _named(found)]
            if names:
                count = len(names) if len(names) < EXAMPLES else found.count()
                yield Blocker(f"{code}-{kind}s", f"{count} {kind}s on {store.name} {are}.", remedy, count, tuple(names))


def _named(refs: QuerySet[Any]) -> list[tuple[str, str]]:
    return list(refs.order_by("pk").values_list("item__name", "item__uuid")[:EXAMPLES])


def _of_transfers(store: ImageStore) -> Iterator[Blocker]:
    moving = Transfer.objects.filter(Q(source=store) | Q(target=store))
    if live := moving.filter(Q(state__in=LIVE_TRANSFER_STATES) | Q(target=store, swept=False)).count():
        yield Blocker("transfers", f"{live} copies from or to {store.name} wait or run.", "Wait for them or cancel them.", live)


def _of_scan(store: ImageStore) -> Iterator[Blocker]:
    if ScanRun.objects.filter(store=store, state__in=LIVE_SCAN_STATES).exists():
        yield Blocker("scan", f"A scan of {store.name} waits or runs.", "Wait until it has ended, or cancel it.")


def _of_zone(store: ImageStore) -> Iterator[Blocker]:
    if (zone := store.zone) is not None and (needing := last_of_their_zones([store]).get(store.pk)):
        message = f"{store.name} is the last staging store of zone {zone.name}, where {', '.join(needing)} reads from one."
        remedy = (
            "Add another staging store to the zone (store_add --role ImageCache). Where hosts read the object store themselves,"
            " name their hypervisor in CLOUDSTORAGE_DIRECT_HYPERVISORS."
        )
        yield Blocker("last-staging-store", message, remedy, len(needing), needing)


def last_of_their_zones(stores: Collection[ImageStore]) -> dict[int, tuple[str, ...]]:
    """By the ids of those of these staging stores that are the only one of their zone: the hypervisors that read from one there,
    where there are any. A fixed number of queries."""
    retiring = Decommission.objects.filter(store=OuterRef("pk"), state__in=LIVE)
    staging = ImageStore.objects.attached().filter(~Exists(retiring), role=Role.IMAGE_CACHE, readonly=False)
    there: defaultdict[int, set[int]] = defaultdict(set)
    for zone_id, pk in staging.filter(zone__in={store.zone_id for store in stores}).values_list("zone_id", "pk"):
        there[zone_id].add(pk)
    last = {store.pk: store.zone_id for store in stores if store.zone_id and not there[store.zone_id] - {store.pk}}
    needing = _hypervisors_in_need(set(last.values())) if last else {}
    return {pk: needing[zone_id] for pk, zone_id in last.items() if zone_id in needing}


def _hypervisors_in_need(zones: Collection[int]) -> dict[int, tuple[str, ...]]:
    """By zone, the hypervisors that take images from a staging store only, seen from the zone's own items: CloudStack has no
    other way for any of them (#7337), so all do but those that the settings except."""
    shown = TemplateZoneRef.objects.filter(zone__in=zones, removed=None, added_by=None, template__removed=None)
    own: list[QuerySet[Any, Any]] = [shown.values_list("zone_id", "template__hypervisor_type")]
    own += [
        rows.filter(zone__in=zones, removed=None).values_list("zone_id", "hypervisor_type")
        for rows in (Snapshot.objects, Volume.objects)
    ]
    found: defaultdict[int, set[str]] = defaultdict(set)
    for items in own:
        for zone_id, name in items.order_by().distinct():
            found[zone_id].add(name)
    known = {zone_id: names - {"", "None", *settings.DIRECT_HYPERVISORS} for zone_id, names in found.items()}
    return {zone_id: tuple(sorted(names)) for zone_id, names in known.items() if names}


# --- asking for it ---------------------------------------------------------------------------------------------------------


def plan(*, actor: Actor, store: ImageStore) -> list[Blocker]:
    """What a retirement would be refused for; nothing is changed."""
    actor.require(ActorRole.VIEWER)
    return blockers(store)


def begin(*, actor: Actor, store: ImageStore, sample_percent: float = 100) -> Decommission:
    """Begin to retire a staging store. Workers read every original and its proven copy again; then the store is removed, with a
    signed report, and its files stay where they are.

    `sample_percent` below 100 is a choice that the report names; an original that nobody has hashed is read all the same.
    Raises Blocked with the list of what forbids it, Invalid, and Conflict while it is being retired already.
    """
    with audited(actor, ActorRole.STORAGE_ADMIN, ACTION, store.name):
        if not 0 < sample_percent <= 100:
            raise Invalid("The sample is a percentage above 0, up to 100.", remedy="100 reads all.", field="sample_percent")
        store = _locked(store)
        if (live := Decommission.objects.filter(store=store, state__in=LIVE).first()) is not None:
            message = f"{store.name} is being retired already ({live.uuid}, {live.state})."
            raise Conflict(message, remedy="Wait for it, or cancel it.", allowed=allowed(live))
        _insist(store)
        check = Verification.objects.create(
            store=store, actor=actor.name, mode=Verification.RETIRE, sample_percent=sample_percent
        )
        row = Decommission.objects.create(store=store, verification=check, actor=actor.name, former_readonly=store.readonly)
        ImageStore.objects.filter(pk=store.pk).update(readonly=True)  # nothing is staged there any more
        record(actor, ACTION, store.name, id=str(row.uuid), store=str(store.uuid), sample_percent=sample_percent)
        wake(RUN, check.pk)
        reach("retire.asked")
    return row


def _locked(store: ImageStore) -> ImageStore:
    """Its row, locked; of a zone all staging stores, so that not each of two is retired because there is the other."""
    rows = ImageStore.objects.select_for_update(of=("self",)).select_related("zone")
    if store.zone_id is not None:
        list(rows.filter(zone_id=store.zone_id, role=Role.IMAGE_CACHE).order_by("pk"))
    return rows.get(pk=store.pk)


def _insist(store: ImageStore) -> None:
    found = blockers(store)
    if found:
        more = f" ({len(found) - 1} more blockers)" if len(found) > 1 else ""
        raise Blocked(f"{found[0].message}{more}", remedy=found[0].remedy, field="store", findings=found)


def allowed(row: Decommission) -> tuple[str, ...]:
    """The events possible now."""
    return allowed_events(DECOMMISSION_TRANSITIONS, DecommissionState(row.state))


def _advance(row: Decommission, event: DecommissionEvent, **changes: Any) -> None:
    """Compare-and-set by the table; raises Conflict."""
    state = DecommissionState(row.state)
    target = DECOMMISSION_TRANSITIONS.get((state, event))
    values = {"lease_until": None, **changes}
    if target is None or not Decommission.objects.filter(pk=row.pk, state=state).update(state=target, **values):
        row.refresh_from_db()
        message = f"{event} is not possible: the retirement of {row.store.name} is {row.state}."
        raise Conflict(message, remedy="Look at its present state.", allowed=allowed(row))
    row.refresh_from_db()
    row.was = state


def _state_of(row: Decommission) -> Changes:
    """What the last event changed, for the audit trail."""
    return {"state": (row.was, row.state)}


def acknowledge(*, actor: Actor, row: Decommission, count: int, digest: str) -> Decommission:
    """Accept that files which no ref knows are not looked after any more. `count` and the beginning of `digest` say which are
    meant; the listing is taken once more, and if it differs then, one is asked again."""
    with audited(actor, ActorRole.STORAGE_ADMIN, f"{ACTION}.acknowledge", row.store.name):
        row = _row(row)
        if len(digest) < _DIGEST_LETTERS or not row.unknown_digest.startswith(digest.lower()) or count != row.unknown_count:
            message = f"There are {row.unknown_count} unknown files with the digest {row.unknown_digest or 'of none'}, not these."
            raise Conflict(message, remedy="Read the list, then acknowledge its count and digest.", field="digest")
        _advance(
            row,
            DecommissionEvent.ACKNOWLEDGE,
            acknowledged_digest=row.unknown_digest,
            acknowledged_by=actor.name,
            acknowledged_at=timezone.now(),
            note="",
        )
        _look_again(row)
        figures = {"count": count, "bytes": row.unknown_bytes, "digest": row.unknown_digest}
        record(actor, f"{ACTION}.acknowledge", row.store.name, changes=_state_of(row), id=str(row.uuid), **figures)
    return row


def _look_again(row: Decommission) -> None:
    """Let the verification go on: what it has no line of is read, and the listing is taken anew."""
    Verification.objects.filter(pk=row.verification_id, state=VerificationState.FINISHED).update(
        state=VerificationState.QUEUED, finished_at=None, lease_until=None, cursor={}
    )
    wake(RUN, row.verification_id)


def look_again(*, actor: Actor, row: Decommission) -> Decommission:
    """Take the listing once more, after unknown files were taken away or adopted by a scan."""
    with audited(actor, ActorRole.STORAGE_ADMIN, f"{ACTION}.look_again", row.store.name):
        row = _row(row)
        _advance(row, DecommissionEvent.LOOK_AGAIN, note="")
        _look_again(row)
        record(actor, f"{ACTION}.look_again", row.store.name, changes=_state_of(row), id=str(row.uuid))
    return row


def cancel(*, actor: Actor, row: Decommission) -> Decommission:
    """Give it up; the store stays as it was."""
    with audited(actor, ActorRole.STORAGE_ADMIN, f"{ACTION}.cancel", row.store.name):
        row = _row(row)
        _give_up(row, DecommissionEvent.CANCEL, f"Cancelled by {actor.name}.")
        record(actor, f"{ACTION}.cancel", row.store.name, changes=_state_of(row), id=str(row.uuid))
    return row


def _row(row: Decommission) -> Decommission:
    return Decommission.objects.select_for_update(of=("self",)).select_related("store", "verification").get(pk=row.pk)


def _give_up(row: Decommission, event: DecommissionEvent, note: str) -> None:
    _advance(row, event, note=note, ended_at=timezone.now())
    Verification.objects.filter(pk=row.verification_id, state__in=LIVE_VERIFICATION_STATES).update(
        state=VerificationState.CANCELLED, finished_at=Now(), lease_until=None
    )
    ImageStore.objects.filter(pk=row.store_id).update(readonly=row.former_readonly)


# --- ending it -------------------------------------------------------------------------------------------------------------


def tend() -> None:
    """Wake the queue for what was read and not ended, and for files that are to be deleted."""
    free = Q(lease_until=None) | Q(lease_until__lt=Now())
    read = Decommission.objects.filter(free, state=DecommissionState.CHECKING, verification__state=VerificationState.FINISHED)
    for number in read.values_list("verification_id", flat=True):
        wake(RUN, number)
    for number in Decommission.objects.filter(free, state=DecommissionState.DELETING).values_list("pk", flat=True):
        wake(DELETE, number)


def settle(row: Decommission) -> None:
    """Once all was read: refuse, ask, or retire the store. May be called at any time and by several at once."""
    if not _claimed(row, DecommissionState.CHECKING, Q(verification__state=VerificationState.FINISHED)):
        return
    check = row.verification
    system = Actor(row.actor, frozenset({ActorRole.STORAGE_ADMIN}))
    if check.findings_count:
        first = check.findings[0]
        note = f"{check.findings_count} differences; the first: {first['path']}: {first['problem']}."
        with transaction.atomic():
            _give_up(row, DecommissionEvent.FIND_DIFFERENCE, note)
            record(
                system,
                f"{ACTION}.refuse",
                row.store.name,
                changes=_state_of(row),
                id=str(row.uuid),
                differences=check.findings_count,
            )
    elif row.unknown_count and row.acknowledged_digest != row.unknown_digest:
        changed = " They are others than those that were acknowledged." if row.acknowledged_digest else ""
        note = f"Files that no ref knows lie there: {row.unknown_count}.{changed} Acknowledge them, or take them away."
        _advance(row, DecommissionEvent.ASK, note=note, acknowledged_digest="", acknowledged_by="", acknowledged_at=None)
    elif any(not_looked_at(kind, row).exists() for kind in KINDS):
        Decommission.objects.filter(pk=row.pk).update(lease_until=None)
        _look_again(row)
    else:
        _sign(row, system)


def _claimed(row: Decommission, state: DecommissionState, condition: Q) -> bool:
    if Installation.why_read_only():  # a restored backup does not know what has happened since
        return False
    free = Q(lease_until=None) | Q(lease_until__lt=Now())
    rows = Decommission.objects.filter(free, condition, pk=row.pk, state=state)
    if (
        not Decommission.objects.filter(pk__in=rows.values("pk"), state=state)
        .filter(free)
        .update(lease_until=Now() + timedelta(seconds=settings.LEASE_SECONDS))
    ):
        return False
    row.refresh_from_db()
    return True


def _sign(row: Decommission, actor: Actor) -> None:
    """The digest of the report first, which takes its time; then all at once, if nothing has changed meanwhile."""
    for kind in KINDS:
        _stale_lines(kind, row).delete()
    sums = report.sums_digest(row)
    totals = RetiredFile.objects.filter(decommission=row).aggregate(bytes=Sum("size"))
    lines = RetiredFile.objects.filter(decommission=row)
    counts = {
        "items": sum(lines.filter(kind=kind).values("ref_id").distinct().count() for kind in KINDS),
        "files": lines.count(),
        "bytes": totals["bytes"] or 0,
        "not_read_again": lines.filter(Q(original_read_at=None) | Q(copy_read_at=None)).count(),
    }
    reach("retire.summed")
    try:
        with transaction.atomic():
            _remove(row, actor, counts, sums)
            reach("retire.before-commit")
    except ServiceError as error:
        log.info("the retirement of %s waits: %s", row.store.name, error.message)
        Decommission.objects.filter(pk=row.pk, state=DecommissionState.CHECKING).update(
            note=f"All was read again; it waits to end: {error.message}", lease_until=Now() + timedelta(seconds=_RETRY_SECONDS)
        )
        return
    reach("retire.committed")


def _stale_lines(kind: Kind, row: Decommission) -> QuerySet[RetiredFile]:
    """Evidence of what was deleted meanwhile, or whose copy was disproven or written anew since: it is no part of the report."""
    refs = KINDS[kind].ref.objects.filter(pk=OuterRef("ref_id"), store=row.store_id, state__in=READABLE)
    copies = proven_copies(kind).filter(
        item__uuid=OuterRef("item_uuid"), store=OuterRef("copy_store"), proven_at=OuterRef("proven_at")
    )
    return RetiredFile.objects.filter(~Exists(refs) | ~Exists(copies), decommission=row, kind=kind)


def _remove(row: Decommission, actor: Actor, totals: dict[str, int], sums: str) -> None:
    """In the caller's transaction: the refs go by their table, the store leaves the cloud. Raises ServiceError where something
    has come, is held or is not proven any more; nothing is changed then."""
    store = _locked(row.store)
    _insist(store)
    stamp = timezone.now()
    if any(_stale_lines(kind, row).exists() for kind in KINDS):
        raise Conflict("Items on it were deleted, or copied anew, in this moment.", remedy="It is tried again by itself.")
    for kind in KINDS:
        _destroy_refs(kind, row, stamp)
    _advance(row, DecommissionEvent.RETIRE, note="", ended_at=stamp, totals=totals, sums_sha256=sums)
    remove_store(actor=actor, store=store)
    exceptions = report.exceptions(row)
    figures = {**totals, "sha256sums": sums, "exceptions": exceptions}
    record(actor, f"{ACTION}.retire", store.name, changes=_state_of(row), id=str(row.uuid), **figures)


def _destroy_refs(kind: Kind, row: Decommission, stamp: Any) -> None:
    models = KINDS[kind]
    refs = models.ref.objects.filter(store=row.store_id)
    seen = RetiredFile.objects.filter(decommission=row, kind=kind, ref_id=OuterRef("pk"))
    changes = {"updated": stamp, "update_count": F("update_count") + 1}
    for state in READABLE:
        going = next_state(REF_TRANSITIONS, state, RefEvent.DESTROY_REQUESTED)
        refs.filter(Exists(seen), state=state, ref_cnt=0).update(state=going, **changes)
    # Their rows are locked now: whoever takes a hold or deletes an item waits for us, or was faster and is seen here.
    ours = refs.filter(state=RefState.DESTROYING, updated=stamp)
    left = refs.filter(state__in=LIVE_REF_STATES).exclude(state=RefState.DESTROYING, updated=stamp).count()
    left += ours.filter(~Exists(proven_copies(kind).filter(item_id=OuterRef("item_id")))).count()
    if left:
        raise Conflict(f"{left} {kind}s there came, or were taken up, in this moment.", remedy="It is tried again by itself.")
    models.file.objects.filter(ref__store=row.store_id, ref__state=RefState.DESTROYING).delete()
    gone = next_state(REF_TRANSITIONS, RefState.DESTROYING, RefEvent.OPERATION_SUCCEEDED)
    ours.update(state=gone, **changes)


# --- its files -------------------------------------------------------------------------------------------------------------


def delete_files(*, actor: Actor, row: Decommission, confirm: str) -> Decommission:
    """Let the retired files go to the trash folder of their export, from where they are purged after the grace time. `confirm` is
    the store's name. What no ref knew is left, and so is what was changed since it was read."""
    with audited(actor, ActorRole.STORAGE_ADMIN, f"{ACTION}.delete_files", row.store.name):
        row = _row(row)
        if confirm != row.store.name:
            message = f"This deletes {row.totals.get('files', 0)} files of {row.store.name}, and it was not confirmed."
            raise Invalid(message, remedy=f"Confirm it with the store's name, {row.store.name}.", field="confirm")
        _refuse_reuse(row)
        _advance(row, DecommissionEvent.DELETE_FILES, deletion_by=actor.name, deletion_at=timezone.now())
        record(
            actor,
            f"{ACTION}.delete_files",
            row.store.name,
            changes=_state_of(row),
            id=str(row.uuid),
            files=row.totals.get("files"),
        )
        wake(DELETE, row.pk)
    return row


def _refuse_reuse(row: Decommission) -> None:
    if ImageStore.objects.exclude(state=StoreState.REMOVED).filter(pk=row.store_id).exists():
        message = f"{row.store.name} was added to the cloud again; what lies there may be in use."
        raise Conflict(message, remedy="Remove the store again, or retire it once more.")


def run_deletion(row: Decommission) -> None:
    """Move the retired files to the trash from where it stands; a second runner does nothing. A store that does not answer, or
    that was added again, keeps it waiting with a note."""
    if not _claimed(row, DecommissionState.DELETING, Q()):
        return
    try:
        _refuse_reuse(row)
        driver = driver_for(row.store)
        driver.check()
        files = RetiredFile.objects.filter(decommission=row).order_by("pk")
        while page := list(files.filter(pk__gt=row.deletion_cursor)[:_PAGE]):
            _refuse_last(files.filter(pk__gt=row.deletion_cursor, pk__lte=page[-1].pk))
            for file in page:
                _refuse_reuse(row)  # asked of each: only a scan after the store was added again can make refs to what is left
                taken = _to_trash(driver, file)
                row.files_deleted += taken
                row.files_left += not taken
                reach("retire.file-in-trash")
            row.deletion_cursor = page[-1].pk
            progress = {"deletion_cursor": row.deletion_cursor, "files_deleted": row.files_deleted, "files_left": row.files_left}
            lease = Now() + timedelta(seconds=settings.LEASE_SECONDS)
            Decommission.objects.filter(pk=row.pk).update(note="", lease_until=lease, **progress)
            reach("retire.page-in-trash")
    except (StoreError, ServiceError) as error:
        later = Now() + timedelta(seconds=_RETRY_SECONDS)
        Decommission.objects.filter(pk=row.pk).update(note=f"It waits: {error} {error.remedy}", lease_until=later)
        return
    _advance(row, DecommissionEvent.FILES_IN_TRASH, in_trash_at=timezone.now(), note="")


def _refuse_last(files: QuerySet[RetiredFile]) -> None:
    """Of what was found damaged since the retirement, and is proven nowhere now, they may be the last good bytes."""
    for kind, models in KINDS.items():
        living = models.ref.objects.filter(item=OuterRef("pk"), state__in=LIVE_REF_STATES - {RefState.DESTROYING})
        proven = proven_copies(kind).filter(item=OuterRef("pk"))
        unproven = models.item.objects.filter(Exists(living), ~Exists(proven), uuid=OuterRef("item_uuid"))
        if (file := files.filter(Exists(unproven), kind=kind).first()) is not None:
            message = f"Nothing proves the {kind} {file.item_name} any more, so {file.path} may be its last good bytes."
            raise Conflict(message, remedy="Mend its copy and verify that store, or delete the item; then it goes on by itself.")


def _to_trash(driver: StoreDriver, file: RetiredFile) -> bool:
    """Whether it is gone from its place; one that differs from what was read stays."""
    try:
        now = driver.stat(file.path)
    except NotFound:
        return True
    if now.size != file.size or (file.version and now.version != file.version):
        return False
    driver.delete(file.path)
    return True


def purge() -> None:
    """Finally remove what retired stores had and that has been in their trash for the grace time."""
    before = Now() - timedelta(seconds=settings.TRASH_GRACE_SECONDS)
    for row in Decommission.objects.filter(state=DecommissionState.IN_TRASH, in_trash_at__lt=before).select_related("store"):
        try:
            _refuse_last(RetiredFile.objects.filter(decommission=row).order_by("pk"))
            driver_for(row.store).purge_trash(older_than=settings.TRASH_GRACE_SECONDS)
            _advance(row, DecommissionEvent.PURGE, note="")
        except (StoreError, ServiceError) as error:
            log.exception("the trash of %s could not be purged; it is tried again", row.store.name)
            Decommission.objects.filter(pk=row.pk).update(note=f"It waits: {error} {error.remedy}")
