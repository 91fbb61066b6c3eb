"""Raises the proof of what was adopted, once its bytes were read and are what somebody had proven; withdraws what was a lie."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from django.db import transaction
from django.db.models import Exists, F, OuterRef
from django.db.models.functions import Now
from django.utils import timezone

from stores.manifest import manifest_sha256
from stores.models import KINDS, Kind
from stores.services import holds
from stores.services.inventory import relative_name
from stores.states import REF_TRANSITIONS, Proof, RefEvent, RefState, StoreState, next_state


def confirm(kind: Kind, ref: Any, seen: Mapping[str, str]) -> None:
    """All files of `ref` were read just now and have the hashes `seen`, by path.

    Where each was known before (from the journal, after a rebuild) this is a proof by reading back. A hash that nobody knew is
    only noted: the bytes are what they are, and nothing says that they are right.
    """
    models = KINDS[kind]
    with transaction.atomic():
        readable = models.ref.objects.select_for_update().filter(pk=ref.pk, state__in=[RefState.READY, RefState.HIDDEN])
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
        models.file.objects.bulk_update(files, ["sha256", "proof"])
        row.sha256 = manifest_sha256((relative_name(row.install_path, file.path), file.sha256) for file in files)
        if proven:
            row.proof = Proof.READ_BACK
            row.proven_at = row.updated = timezone.now()
        row.update_count, row.journalled = row.update_count + 1, False
        row.save(update_fields=["sha256", "proof", "proven_at", "updated", "update_count", "journalled"])


def withdraw(kind: Kind, ref_ids: Collection[int], reason: str) -> list[int]:
    """Make promises of refs whose store was seen to lie, where another copy of the item can be read; returns those items' ids.

    The caller owns the transaction.
    """
    models = KINDS[kind]
    others = models.ref.objects.filter(
        item_id=OuterRef("item_id"), state__in=[RefState.READY, RefState.HIDDEN], store__state=StoreState.ATTACHED
    ).exclude(pk=OuterRef("pk"))
    ready = models.ref.objects.select_for_update(of=("self",)).filter(Exists(others), pk__in=ref_ids, state=RefState.READY)
    found = dict(ready.order_by("pk").values_list("pk", "item_id"))
    models.file.objects.filter(ref__in=found).delete()
    models.ref.objects.filter(pk__in=found).update(
        state=next_state(REF_TRANSITIONS, RefState.READY, RefEvent.PROOF_WITHDRAWN),
        install_path="",
        proof="",
        sha256="",
        proven_at=None,
        error_str=reason[:255],
        update_count=F("update_count") + 1,
        updated=Now(),
    )
    holds.keep_promises(kind, list(found.values()))
    return list(found.values())
