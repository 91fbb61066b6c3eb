"""What every reading of a store shares: its row's lease and progress, its pace, pages of refs, and what is proven elsewhere."""

from __future__ import annotations

import time
import zlib
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.db.models import QuerySet
from django.db.models.functions import Now

from migration.damage import TWICE
from migration.models import Verification
from migration.states import VerificationState
from stores.copier import Control, Stopped, Throttle
from stores.models import KINDS, ImageStore, Kind
from stores.services.inventory import relative_name
from stores.states import PROVEN, READABLE, RefState, Role, StoreState

WITH_BYTES = (*READABLE, RefState.FAILED)
"""What a reading of the content looks at: what was found damaged, too, until it is mended."""
REMEDIES = {
    "missing": "Bring it back (trash, bucket versions, backup), then scan and verify; or delete the item, if it is to be gone.",
    "size differs": "Somebody wrote to it. Bring the former content back, or scan the store to see what the item is now.",
    "changed": "Somebody wrote to it since it was known. Verify its content; scan the store to take over what is meant.",
    "content differs": "These bytes are not what was proven. Put the right content back and verify again, or delete the item.",
    TWICE: "Two readings differ, so nothing is said of the bytes. Look what changes them on the way: memory, network, a proxy.",
    "foreign": "Nobody here wrote it. If a backup was restored or a database lost, scan the store; else ask who writes there.",
    "foreign write": "Somebody still writes to a converted export. Scan the store: what is an item is adopted and promised.",
    "not adopted": "Written by the cloud since the last scan. Scan the store.",
}
_OTHER_REMEDY = "Look at the file on the store, and at the worker's log; then verify again."
_KEPT_FINDINGS = 1000
_REFS = 20


def lease_end() -> Any:
    return Now() + timedelta(seconds=settings.LEASE_SECONDS)


def ours(row: Verification) -> QuerySet[Verification]:
    """The row as long as nobody has cancelled it or taken it over."""
    return Verification.objects.filter(pk=row.pk, epoch=row.epoch, state=VerificationState.RUNNING)


def save(row: Verification, findings: Sequence[dict[str, Any]]) -> None:
    told = [{"remedy": REMEDIES.get(finding["problem"], _OTHER_REMEDY)} | finding for finding in findings]
    row.findings = [*row.findings, *told][:_KEPT_FINDINGS]
    row.findings_count += len(findings)
    if not ours(row).update(
        cursor=row.cursor,
        items_checked=row.items_checked,
        bytes_checked=row.bytes_checked,
        findings=row.findings,
        findings_count=row.findings_count,
        lease_until=lease_end(),
    ):
        raise Stopped("it was cancelled, or another worker has taken it over")


class Watch(Control):
    """Paces the reading from one store by that store's limit, keeps the lease meanwhile, and stops whoever has lost it."""

    def __init__(self, row: Verification, store: ImageStore) -> None:
        self._throttle = Throttle(store.read_limit)
        super().__init__([self._throttle])
        self._row, self._store = row, store
        self._renew_at = time.monotonic() + settings.HEARTBEAT_SECONDS

    def check(self) -> None:
        if time.monotonic() >= self._renew_at:
            self._renew_at = time.monotonic() + settings.HEARTBEAT_SECONDS
            self._throttle.set_rate(ImageStore.objects.values_list("read_limit", flat=True).get(pk=self._store.pk))
            if not ours(self._row).update(lease_until=lease_end()):
                self.stop("it was cancelled, or another worker has taken it over")
        super().check()


def next_refs(row: Verification, kind: Kind, refs: QuerySet[Any], states: Sequence[RefState] = READABLE) -> list[Any]:
    """A page of what has bytes behind the cursor. One query for each state: asked for all, the database would sort all that is
    left of the store for every page."""
    behind = refs.filter(pk__gt=row.cursor.get(kind, 0)).order_by("pk")
    behind = behind.select_related("item__account").prefetch_related("files")
    found = {ref.pk: ref for state in states for ref in behind.filter(state=state)[:_REFS]}
    return [found[pk] for pk in sorted(found)[:_REFS]]


def sampled(identity: bytes, row: Verification) -> bool:
    """The same items on every run of one verification, other ones on the next."""
    return zlib.crc32(identity + row.uuid.bytes) * 100 < row.sample_percent * 2**32


def proven_copies(kind: Kind) -> QuerySet[Any]:
    """Refs that let an original go: proven, hashed, and on a store of record that is in use."""
    refs: QuerySet[Any] = KINDS[kind].ref.objects.filter(
        state__in=READABLE, proof__in=PROVEN, store__role=Role.IMAGE, store__state=StoreState.ATTACHED
    )
    return refs.exclude(sha256="")


def proven_hashes(kind: Kind, refs: Sequence[Any]) -> dict[int, dict[str, str]]:
    """Item -> name in its directory -> SHA-256, as proven on a store of record: what an original that nobody hashed must be."""
    copies = proven_copies(kind).filter(item_id__in=[ref.item_id for ref in refs]).prefetch_related("files")
    return {
        copy.item_id: {relative_name(copy.install_path, file.path): file.sha256 for file in copy.files.all()} for copy in copies
    }


def is_going(ref: Any) -> bool:
    """Whether it was deleted, or withdrawn, meanwhile: then nothing about it is a finding."""
    return not type(ref).objects.filter(pk=ref.pk, state__in=WITH_BYTES).exists()
