"""Raises the proof of what was adopted, once its bytes were read and are what was proven; takes back what was disproven."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from enum import StrEnum
from typing import Any

from django.db import transaction
from django.db.models import Exists, F, OuterRef
from django.db.models.functions import Now
from django.utils import timezone

from stores.drivers.base import ObjectInfo
from stores.manifest import manifest_sha256
from stores.models import KINDS, ImageStore, Kind, Transfer
from stores.services import holds
from stores.services.history import note_withdrawn
from stores.services.inventory import keep_hidden, relative_name, transition
from stores.services.scan.rows import CHANGED, MISSING
from stores.services.transfers import choose_other_sources
from stores.states import (
    LIVE_TRANSFER_STATES,
    READABLE,
    REF_TRANSITIONS,
    Proof,
    RefEvent,
    RefState,
    Role,
    StoreState,
    TransferState,
    next_state,
)

DAMAGED = "damaged: "
"""How the problem of a file begins whose bytes were read twice and are not what was proven."""


def confirm(kind: Kind, ref: Any, seen: Mapping[str, str]) -> None:
    """All files of `ref` were read just now and have the hashes `seen`, by path.

    Where each was known before (from the journal, after a rebuild) this is a proof by reading back. A hash that nobody knew is
    only noted: the bytes are what they are, and nothing says that they are right.
    """
    models = KINDS[kind]
    with transaction.atomic():
        readable = models.ref.objects.select_for_update().filter(pk=ref.pk, state__in=READABLE)
        row = readable.filter(update_count=ref.update_count, proof=Proof.ADOPTED).first()
        files = list(models.file.objects.filter(ref_id=ref.pk).order_by("path"))
        if row is None or {file.path for file in files} != set(seen):
            return  # it changed while it was read
        proven = all(file.sha256 == seen[file.path] for file in files)
        if any(file.sha256 and file.sha256 != seen[file.path] for file in files):
            return
        for file in files:
            file.sha256 = seen[file.path]
            file.proof = Proof.READ_BACK if proven else file.proof
            file.problem = "" if _was_found(file.problem) else file.problem
        models.file.objects.bulk_update(files, ["sha256", "proof", "problem"])
        row.sha256 = manifest_sha256((relative_name(row.install_path, file.path), file.sha256) for file in files)
        if proven:
            row.proof = Proof.READ_BACK
            row.proven_at = row.updated = timezone.now()
            row.error_str = "" if _was_found(row.error_str) else row.error_str
        row.update_count, row.journalled = row.update_count + 1, False
        row.save(update_fields=["sha256", "proof", "proven_at", "updated", "error_str", "update_count", "journalled"])


def _was_found(problem: str) -> bool:
    return problem.startswith((DAMAGED, MISSING, CHANGED))


def withdraw(kind: Kind, ref_ids: Collection[int], reason: str) -> list[int]:
    """Make promises of refs on the object store that were disproven, where another copy of the item can be read; returns those
    items' ids. What was proven stays noted as what the next copy has to be; what lies there is written over by it.

    The caller owns the transaction.
    """
    models = KINDS[kind]
    _lock(kind, list(models.ref.objects.filter(pk__in=ref_ids).values_list("item_id", flat=True)))
    others = _others(kind).filter(item_id=OuterRef("item_id")).exclude(pk=OuterRef("pk"))
    ours = models.ref.objects.filter(Exists(others), pk__in=ref_ids, state__in=READABLE)
    ours = ours.filter(store__scope="REGION", store__role=Role.IMAGE, store__state=StoreState.ATTACHED)
    found = dict(ours.order_by("pk").values_list("pk", "item_id"))
    note_withdrawn(kind, found, reason)
    models.file.objects.filter(ref__in=found).update(proof="")
    models.ref.objects.filter(pk__in=found).update(
        state=next_state(REF_TRANSITIONS, RefState.READY, RefEvent.PROOF_WITHDRAWN),
        install_path="",
        proof="",
        proven_at=None,
        error_str=reason[:255],
        update_count=F("update_count") + 1,
        updated=Now(),
    )
    reading = Transfer.objects.filter(kind=kind, source_ref_id__in=found, state__in=LIVE_TRANSFER_STATES)
    choose_other_sources(list(reading.values_list("pk", flat=True)))
    holds.keep_promises(kind, list(found.values()))
    return list(found.values())


def _lock(kind: Kind, item_ids: Collection[int]) -> None:
    """All copies at once and in key order: who retires or deletes another of them was before us, or finds a promise. What is to
    read them before, or whoever proves a copy would wait for us, and we for him."""
    reading = Transfer.objects.filter(kind=kind, item_id__in=item_ids, state__in=LIVE_TRANSFER_STATES)
    list(reading.select_for_update().order_by("pk").values_list("pk"))
    holds.lock_copies(kind, item_ids)


def _others(kind: Kind) -> Any:
    """Copies that can be read as far as anybody knows."""
    readable = KINDS[kind].ref.objects.filter(state__in=READABLE, store__state=StoreState.ATTACHED)
    for problem in (DAMAGED, MISSING, CHANGED):
        readable = readable.exclude(error_str__startswith=problem)
    return readable


class Fate(StrEnum):
    """What becomes of a ref whose bytes are not what was proven."""

    LEFT = "left"
    """It changed meanwhile, or its store has left the cloud: nothing was done."""
    PROMISED = "promised"
    SET_ASIDE = "set aside"
    """Another copy is read instead; this one is kept, and served to nobody."""
    ONLY_COPY = "only copy"
    """Kept, and served to nobody: there is no other."""
    NOTED = "noted"
    """An adopted copy of which nobody knows what it should be, and no other can be read."""


def disprove(kind: Kind, ref: Any, damage: Mapping[str, str], known: Mapping[str, str]) -> Fate:
    """Take back what was said of a ref's bytes: `damage` is what is wrong, by path; `known` the SHA-256 that files must have.

    The caller has read them twice, and owns the transaction. Nothing happens to a ref that is another since `ref` was loaded, or
    that is being written. On a detached store it is Failed: whoever attaches the store again is to find no proof that is none.
    """
    models = KINDS[kind]
    _lock(kind, [ref.item_id])
    row = models.ref.objects.select_related("store").get(pk=ref.pk)
    writing = Transfer.objects.filter(kind=kind, target_ref_id=row.pk, state=TransferState.RUNNING)
    if (row.state, row.update_count) != (ref.state, ref.update_count) or row.state not in READABLE or writing.exists():
        return Fate.LEFT
    if row.store.state == StoreState.REMOVED:
        return Fate.LEFT
    reason = next(iter(damage.values()))
    for file in models.file.objects.filter(ref=row):
        file.problem = damage.get(file.path, "")[:255] or file.problem
        file.sha256 = file.sha256 or known.get(file.path, "")
        file.save(update_fields=["problem", "sha256"])
    if withdraw(kind, [row.pk], reason):
        return Fate.PROMISED
    other = _others(kind).filter(item_id=row.item_id).exclude(pk=row.pk).exists()
    if row.state == RefState.HIDDEN and not other:  # it stays deleted, and is kept for what builds on it
        models.ref.objects.filter(pk=row.pk).update(
            proof=Proof.ADOPTED, error_str=_only(reason), update_count=F("update_count") + 1, updated=Now()
        )
        return Fate.ONLY_COPY
    if row.proof == Proof.ADOPTED and not other and not any(known.get(path) for path in damage):
        models.ref.objects.filter(pk=row.pk).update(error_str=reason[:255], updated=Now())
        return Fate.NOTED
    transition(row, RefEvent.DAMAGE_FOUND, proof="", proven_at=None, error_str=reason[:255] if other else _only(reason))
    reading = Transfer.objects.filter(kind=kind, source_ref_id=row.pk, state__in=LIVE_TRANSFER_STATES)
    choose_other_sources(list(reading.values_list("pk", flat=True)))
    holds.keep_promises(kind, [row.item_id])
    return Fate.SET_ASIDE if other else Fate.ONLY_COPY


def _only(reason: str) -> str:
    return f"{reason[:200]}; this was the only copy"


def note(kind: Kind, ref: Any, problems: Mapping[str, str]) -> None:
    """Say of adopted files, of which nobody knows what they should be, what is wrong with them, as a scan would; the next scan
    takes it back or the file over. The caller owns the transaction."""
    models = KINDS[kind]
    same = models.ref.objects.filter(pk=ref.pk, state__in=READABLE, update_count=ref.update_count)
    if same.filter(proof=Proof.ADOPTED, sha256="").update(error_str=next(iter(problems.values()))[:255], updated=Now()):
        for path, problem in problems.items():
            models.file.objects.filter(ref_id=ref.pk, path=path, sha256="").update(problem=problem[:255])


def mend(kind: Kind, ref: Any, seen: Mapping[str, ObjectInfo], hashes: Mapping[str, str]) -> bool:
    """What was found damaged was read just now and is what it should be: it is served again, proven by this reading."""
    models = KINDS[kind]
    with transaction.atomic():
        # As in `finish_item`: a conversion sees the copy readable, or is seen here.
        ImageStore.objects.select_for_update(no_key=True).only("pk").get(pk=ref.store_id)
        holds.lock_copies(kind, [ref.item_id])
        row = models.ref.objects.get(pk=ref.pk)
        files = list(models.file.objects.filter(ref=row).order_by("path"))
        if (row.state, row.update_count) != (RefState.FAILED, ref.update_count) or not row.install_path:
            return False
        if {file.path for file in files} != set(hashes):
            return False
        for file in files:
            file.problem = "" if _was_found(file.problem) else file.problem
            file.proof, file.sha256 = Proof.READ_BACK, hashes[file.path]
            file.version, file.etag = seen[file.path].version, seen[file.path].etag or ""
        models.file.objects.bulk_update(files, ["problem", "proof", "sha256", "version", "etag"])
        sha256 = manifest_sha256((relative_name(row.install_path, file.path), file.sha256) for file in files)
        now = timezone.now()
        mended = {"proof": Proof.READ_BACK, "proven_at": now, "sha256": sha256, "error_str": "", "journalled": False}
        transition(row, RefEvent.DAMAGE_MENDED, **mended)
        keep_hidden(kind, [row.item_id])
        holds.make_promises(kind, row.store_id, [row])
        holds.keep_promises(kind, [row.item_id])
    return True
