"""Removes what dead, cancelled and failed work left on the stores: objects without a ref, uploads without a row, probes."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection
from datetime import datetime

from django.conf import settings
from django.utils import timezone

from cloudstorage.checkpoints import reach
from stores.drivers.base import PendingUpload, Upload
from stores.drivers.probe import PROBE_FOLDER
from stores.models import ImageStore, Transfer, TransferUpload
from stores.services import items, transfers
from stores.services.image_stores import driver_for
from stores.states import StoreState, TransferState

log = logging.getLogger(__name__)

_TOKEN = re.compile(r"([0-9]{1,18})-([0-9]{1,9})")
"""Of a job."""


def sweep(*, limit: int = 100, avoid_stores: Collection[int] = ()) -> int:
    """Remove what cancelled and failed transfers left on their targets: recorded uploads, and objects that no ref has.

    Retried at the next tick when a store does not answer; returns how many transfers are clean for good.
    """
    swept = 0
    ended = Transfer.objects.filter(state__in=[TransferState.CANCELLED, TransferState.FAILED], swept=False)
    ended = ended.exclude(target__state=StoreState.REMOVED).exclude(target__in=avoid_stores)
    # In any order: what fails again and again does not keep the rest waiting.
    for transfer in ended.order_by("?").select_related("target", "source").prefetch_related("uploads")[:limit]:
        if not transfers.lease_for_sweep(transfer):
            continue
        clean = False
        try:
            clean = _sweep_one(transfer)
        except Exception:
            log.exception("debris of transfer %s could not be removed yet", transfer.pk)
        finally:
            swept += transfers.end_sweep(transfer, clean=clean)
        reach("sweep.committed")
    return swept


def _sweep_one(transfer: Transfer) -> bool:
    """Whether nothing is left; gives up when the lease has lapsed, for then somebody may copy to the same place."""
    driver = driver_for(transfer.target)
    for row in transfer.uploads.all():
        if not transfers.keep_sweeping(transfer):
            return False
        driver.abort_upload(Upload(row.key, row.upload_id, row.size, row.part_size, row.token))
        reach("sweep.aborted")
    path, kept = transfers.target_paths(transfer)
    if kept or not path:  # without a path its source was never there, so nothing was written
        return True
    # On an export, what is older was there before anybody copied: a file that a scan left out, or another writer's.
    since = transfers.first_asked_for(transfer).timestamp() - 2 * settings.LEASE_SECONDS if driver.scope == "ZONE" else 0.0
    for found in list(driver.list(path)):
        if not (found.key == path or found.key.startswith(path + "/")) or found.modified.timestamp() < since:
            continue
        if not transfers.keep_sweeping(transfer):
            return False
        if transfers.target_paths(transfer)[1]:  # somebody has begun an item of this path since
            return True
        driver.delete(found.key)
        reach("sweep.deleted")
    return True


def reap_uploads(store: ImageStore) -> int:
    """Abort uploads on `store` that no row records and that are older than two leases: their worker died between begin and
    record, or the row is gone."""
    driver = driver_for(store)
    reaped = 0
    for pending in driver.pending_uploads():
        if not _is_old(pending.started) or _is_known(store, pending) or items.is_being_written(store, pending.key):
            continue
        driver.abort_upload(driver.as_upload(pending))
        reaped += 1
    return reaped


def _is_known(store: ImageStore, pending: PendingUpload) -> bool:
    """Whether a row records it, or its transfer runs. Asked of each: a listing may take hours, in which others are begun."""
    if TransferUpload.objects.filter(transfer__target=store, upload_id=pending.upload_id).exists():
        return True
    if (token := _TOKEN.fullmatch(pending.token)) is None:
        return False
    pk, epoch = map(int, token.groups())
    return Transfer.objects.filter(pk=pk, epoch=epoch, target=store, state=TransferState.RUNNING).exists()


def reap_probes(store: ImageStore) -> int:
    """Remove what probes that died in the middle left on `store`; returns how many objects."""
    driver = driver_for(store)
    left = [info.key for info in driver.list(f"{PROBE_FOLDER}/") if _is_old(info.modified)]
    for key in left:
        driver.delete(key)
    return len(left)


def _is_old(moment: datetime) -> bool:
    """Whether something was made longer ago than anybody who lives is silent."""
    return bool(moment.timestamp() <= timezone.now().timestamp() - 2 * settings.LEASE_SECONDS)
