"""Answers the one question everything asks, "where can I read this now?", and changes refs by the state table only."""

from __future__ import annotations

import time
import uuid
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self

from django.db.models import Case, Exists, F, IntegerField, OuterRef, Q, Value, When
from django.db.models.functions import Now
from django.utils import timezone

from cloudstorage.actors import Actor, ActorRole
from cloudstorage.errors import Conflict, Invalid, Missing, ServiceError
from stores.drivers.base import MiB, Reader
from stores.drivers.errors import NotFound, SourceChanged, StoreError
from stores.models import KINDS, ImageStore, Item, Kind, StoreFile, StoreRef, WorkerReach, Zone
from stores.services import holds
from stores.services.image_stores import driver_for, refusal
from stores.services.once import Once
from stores.states import (
    PROVEN,
    READABLE,
    REF_TRANSITIONS,
    IllegalTransition,
    RefEvent,
    RefState,
    Role,
    StoreState,
    allowed_events,
    next_state,
)

READ_HOLD_SECONDS = 600
"""How long a reader that died keeps a copy from deletion; one that lives prolongs its hold while it reads."""
SIDE_FILES = frozenset({"template.properties", "volume.properties"})
"""Files that describe an image; the image is what a person means by the item's content."""


def transition(ref: StoreRef, event: RefEvent, **changes: Any) -> None:
    """Bring a ref to the state that `event` leads to, with further columns in the same UPDATE; changes `ref` likewise.

    Compare-and-set on (id, state, update_count) as upstream does; raises Conflict with the events that the row allows now.
    """
    try:
        state = next_state(REF_TRANSITIONS, RefState(ref.state), event)
    except IllegalTransition as error:
        raise Conflict(str(error), remedy="Look at its present state.", allowed=error.allowed) from error
    rows: Any = type(ref)._default_manager  # noqa: SLF001 - Django's public name for it
    values = {"state": state, "updated": timezone.now(), **changes}
    same = rows.filter(pk=ref.pk, state=ref.state, update_count=ref.update_count)
    if not same.update(update_count=F("update_count") + 1, **values):
        now = rows.filter(pk=ref.pk).values_list("state", flat=True).first() or RefState.DESTROYED
        allowed = allowed_events(REF_TRANSITIONS, RefState(now))
        message = f"{event} came too late: somebody else changed the copy, which is {now} now."
        raise Conflict(message, remedy="Look at its present state, then decide again.", allowed=allowed)
    ref.update_count += 1
    for name, value in values.items():
        setattr(ref, name, value)


# --- where can I read this now? --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Copy:
    """A copy of an item that can be read as far as the rows tell."""

    store: ImageStore
    ref_id: int
    state: RefState
    proof: str
    zone_id: int | None
    """Zone of its store; None for the region's."""


def readable_copies(kind: Kind, item_ids: Collection[int], *, zone: Zone | None = None) -> dict[int, list[Copy]]:
    """For every id asked for, its readable copies, best first; one query.

    Copies on stores that no worker reaches come last; proven ones before adopted ones, then those of `zone`, then the store of
    record before staging. Hidden ones (deleted snapshots that a child still needs) are among them, for chains.
    """
    found: dict[int, list[Copy]] = {item_id: [] for item_id in item_ids}
    if not found:
        return found
    reaches = WorkerReach.objects.of_living_workers().filter(store_id=OuterRef("store_id"))
    dark = Exists(reaches.filter(ok=False)) & ~Exists(reaches.filter(ok=True))
    near = Q(store__zone=zone) if zone is not None else Q(store__zone=None)
    rows = (
        KINDS[kind]
        .ref.objects.filter(item_id__in=list(found), state__in=READABLE, store__state=StoreState.ATTACHED)
        .annotate(
            dark=_rank(dark), unproven=_rank(~Q(proof__in=PROVEN)), far=_rank(~near), staged=_rank(~Q(store__role=Role.IMAGE))
        )
        .select_related("store")
        .defer("store__scan_report", "store__probe_steps")
        .order_by("dark", "unproven", "far", "staged", "pk")
    )
    for row in rows:
        found[row.item_id].append(Copy(row.store, row.pk, RefState(row.state), row.proof, row.store.zone_id))
    return found


def _rank(condition: Any) -> Case:
    """0 where the condition does not hold, 1 where it does: what sorts behind."""
    return Case(When(condition, then=Value(1)), default=Value(0), output_field=IntegerField())


def keep_hidden(kind: Kind, item_ids: Collection[int]) -> int:
    """Hide what became Ready of items that were deleted but are kept for their children, such as a promise that was kept."""
    return _HIDE.update([*item_ids], kind=kind)


def _hidden(item_ids: Collection[int], *, kind: Kind) -> tuple[Any, dict[str, Any]]:
    refs = KINDS[kind].ref.objects
    hidden = refs.filter(item_id=OuterRef("item_id"), state=RefState.HIDDEN)
    return refs.filter(Exists(hidden), item_id__in=item_ids, state=RefState.READY), {
        "state": next_state(REF_TRANSITIONS, RefState.READY, RefEvent.HIDE_REQUESTED),
        "updated": Now(),
        "update_count": F("update_count") + 1,
        "journalled": False,
    }


_HIDE = Once(_hidden)


def _copies(kind: Kind, item: Item, zone: Zone | None = None) -> list[Copy]:
    copies = [] if item.removed else readable_copies(kind, [item.pk], zone=zone)[item.pk]
    if any(copy.state == RefState.HIDDEN for copy in copies):
        message = f"The {kind} {item.name} was deleted; it is kept only until the snapshots that build on it are gone."
        raise Missing(message, remedy="Use one of those snapshots, which contain it.")
    if not copies:
        message = f"No readable copy of the {kind} {item.name} is on any attached store."
        raise Missing(message, remedy="If it was not deleted, scan the stores that should have it.")
    return copies


# --- reading ---------------------------------------------------------------------------------------------------------------


class Content:
    """One open file of an item. Holds its copy until `close`; reads any range in bounded memory."""

    def __init__(self, reader: Reader, file: StoreFile, filename: str, store: ImageStore, hold: _ReadHold) -> None:
        self.reader = reader
        self.filename = filename
        self.size = reader.size
        self.sha256 = file.sha256 if reader.info.version == file.version else ""
        """Hex; empty while nobody hashed the file as it is now."""
        self.store = store
        self.format = file.format
        self._hold = hold

    @property
    def etag(self) -> str:
        """Changes with the content: its SHA-256 where known, else the store's version of the file."""
        return self.sha256 or f"{self.store.uuid.hex[:8]}-{uuid.uuid5(self.store.uuid, self.reader.info.version).hex}"

    def pread(self, offset: int, length: int) -> bytes:
        """Bytes at [offset, offset+length) cut at the end; raises Unreachable or Conflict when the store fails meanwhile."""
        self._hold.prolong()
        try:
            return self.reader.pread(offset, length)
        except StoreError as error:
            raise refusal(error) from error

    def chunks(self, offset: int = 0, length: int | None = None, *, block: int = MiB) -> Iterator[bytes]:
        """The bytes of a range in blocks; all of it by default. Closing the iterator early closes nothing else."""
        end = self.size if length is None else min(self.size, offset + length)
        while offset < end:
            data = self.pread(offset, min(block, end - offset))
            if not data:
                return
            offset += len(data)
            yield data

    def close(self) -> None:
        """Release the file and the hold; may be called twice."""
        self.reader.close()
        self._hold.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class _ReadHold:
    """The hold of one reader, prolonged while it reads so that a dead reader's ends by itself."""

    def __init__(self, kind: Kind, ref_id: int, owner: str) -> None:
        self._key = (kind, ref_id, "read", owner)
        self._released = False
        self._take(READABLE)

    def _take(self, states: Collection[RefState]) -> None:
        holds.take_hold(*self._key, READ_HOLD_SECONDS, states=states)
        self._next = time.monotonic() + READ_HOLD_SECONDS / 3

    def prolong(self) -> None:
        if time.monotonic() >= self._next:
            # A copy that is being deleted is not taken from somebody who is reading it.
            self._take((*READABLE, RefState.DESTROYING))

    def release(self) -> None:
        if not self._released:
            self._released = True
            holds.release_hold(*self._key)


def open_content(*, actor: Actor, kind: Kind, item: Item, path: str | None = None, zone: Zone | None = None) -> Content:
    """Open an item's content on its best copy, or the next when that one fails.

    `path`: a file's name relative to the item's directory; left out, the only image among its files. Raises Missing (deleted,
    no copy, no such file), Invalid (several files and no path), Unreachable (every copy's store fails now).
    """
    actor.require(ActorRole.VIEWER)
    owner = f"{actor.name[:200]} {uuid.uuid4().hex}"
    failed: ServiceError | None = None
    for copy in _copies(kind, item, zone):
        try:
            hold = _ReadHold(kind, copy.ref_id, owner)
        except Conflict as error:
            failed = failed or error
            continue
        try:
            return _open_copy(kind, item, copy, path, hold)
        except StoreError as error:
            hold.release()
            failed = _worse(failed, _unreadable(item, copy, error))
        except BaseException:
            hold.release()
            raise
    assert failed is not None
    raise failed


def _open_copy(kind: Kind, item: Item, copy: Copy, path: str | None, hold: _ReadHold) -> Content:
    ref = KINDS[kind].ref.objects.get(pk=copy.ref_id)
    files = list(KINDS[kind].file.objects.filter(ref_id=ref.pk).order_by("path"))
    file = _choose(item, ref, files, path)
    reader = driver_for(copy.store).open(file.path)
    if reader.size != file.size:
        reader.close()
        message = f"{file.path} has {reader.size} bytes on {copy.store.name}, not {file.size}: somebody changed it there."
        raise SourceChanged(message)
    return Content(reader, file, file.path.rpartition("/")[2], copy.store, hold)


def _choose(item: Item, ref: StoreRef, files: Sequence[StoreFile], path: str | None) -> StoreFile:
    names = {relative_name(ref.install_path, file.path): file for file in files}
    if path is not None:
        if path not in names:
            message = f"{item.name} has no file {path!r}."
            raise Missing(message, remedy=f"It has: {', '.join(names) or 'none'}.", field="path")
        return names[path]
    images = [file for name, file in names.items() if name not in SIDE_FILES] or list(files)
    if len(images) != 1:
        message = f"{item.name} consists of {len(images)} files."
        raise Invalid(message, remedy=f"Name one of them: {', '.join(names) or 'none'}.", field="path")
    return images[0]


def names_of(rows: Iterable[Any], *, by: Literal["item_id", "ref_id"] = "item_id") -> dict[tuple[str, int], tuple[str, str]]:
    """(uuid, name) of the items that rows are about, by the row's kind and id; a query per kind."""
    ids: dict[str, set[int]] = defaultdict(set)
    for row in rows:
        ids[row.kind].add(getattr(row, by))
    names: dict[tuple[str, int], tuple[str, str]] = {}
    for kind, models in KINDS.items():
        if wanted := ids.get(kind):
            table, before = (models.item, "") if by == "item_id" else (models.ref, "item__")
            found = table.objects.filter(pk__in=wanted).values_list("pk", f"{before}uuid", f"{before}name")
            names |= {(kind.value, pk): (str(number), name) for pk, number, name in found}
    return names


def relative_name(install_path: str, path: str) -> str:
    """A file's name relative to its item's directory; of an item that is one file, its own name."""
    inside = path.removeprefix(f"{install_path}/")
    return inside if inside != path else path.rpartition("/")[2]


def _unreadable(item: Item, copy: Copy, error: StoreError) -> ServiceError:
    if isinstance(error, NotFound):
        message = f"{item.name} should be on {copy.store.name}, but is not there any more."
        return Missing(message, remedy="Scan the store: somebody deleted or moved it behind our back.")
    if isinstance(error, SourceChanged):
        return Conflict(str(error), remedy="Scan the store, then decide what the file is.")
    return refusal(error)


def _worse(former: ServiceError | None, now: ServiceError) -> ServiceError:
    """Of the copies' failures, the one that still leaves hope: a store that is away may hold what another has lost."""
    return former if former is not None and former.status == 503 else now


def identity_of(item: Item, cloud: uuid.UUID, *, files: int = 1) -> dict[str, str]:
    """What every object says of itself from its first byte, so that the store alone tells what it holds; `files`: of how many its
    item consists, so that half an item is never taken for one.
    """
    return {
        "cs-cloud": str(cloud),
        "cs-kind": str(item.kind),
        "cs-uuid": str(item.uuid),
        "cs-account": str(item.account_id),
        "cs-upstream-id": str(item.upstream_id or ""),
        "cs-files": str(files),
        "cs-format": item.format,
        "cs-name": item.name.encode()[:80].decode(errors="ignore"),  # Swift takes 256 bytes, and quoted it is three times as long
    }
