"""What the queue and the worker's clock call for whole-cloud work."""

from __future__ import annotations

import logging

from cloudstorage.errors import Conflict
from cloudstorage.models import Installation
from migration import decommission, drafts, drain, preflight, rollback, verify
from migration.findings import nfs_stores
from migration.models import Decommission, Verification
from stores.tasks import hand_on

log = logging.getLogger(__name__)


def advance(_number: int = 0) -> None:
    """Queue entry: whatever was proven last may be what a drain or a roll-back waits for."""
    if Installation.why_read_only():  # a message may be of the life before a restore
        return
    advance_drains()
    advance_rollbacks()


def advance_drains() -> None:
    """One turn of the clock for every live drain, and for verifications whose worker is gone."""
    for row in drain.live_drains():
        try:
            drain.advance(row)
        except Conflict as error:
            log.info("drain %s was changed by somebody in this moment: %s", row.uuid, error.message)
        except Exception:
            log.exception("drain %s could not be advanced; its next turn comes by itself", row.uuid)
    verify.resume_abandoned()
    preflight.wake_forgotten()
    drafts.expire()


def advance_rollbacks() -> None:
    """One turn of the clock for the roll-back that is under way."""
    for row in rollback.live_rollbacks():
        try:
            rollback.advance(row)
        except Conflict as error:
            log.info("roll-back %s was changed by somebody in this moment: %s", row.uuid, error.message)
        except Exception:
            log.exception("roll-back %s could not be advanced; its next turn comes by itself", row.uuid)


def run_verification(number: int) -> None:
    """Queue entry: go on with a verification, and with the retirement that it is for."""
    if Installation.why_read_only():
        return
    row = Verification.objects.select_related("store").get(pk=number)
    if hand_on(verify.RUN, number, [row.store_id]):
        return
    verify.run(row)
    if row.mode == Verification.RETIRE:
        decommission.settle(row.decommission)


def tend_retirements() -> None:
    """Wake the queue for retirements that wait for nobody."""
    decommission.tend()


def delete_retired_files(number: int) -> None:
    """Queue entry: move what a retired store had to its trash."""
    row = Decommission.objects.select_related("store").get(pk=number)
    if not hand_on(decommission.DELETE, number, [row.store_id]):
        decommission.run_deletion(row)


def purge_retired_stores() -> None:
    """Finally remove what has been in a retired store's trash for the grace time."""
    decommission.purge()


def run_preflight(number: int) -> None:
    """Queue entry: look at the region and keep the report."""
    if Installation.why_read_only():
        return
    if not hand_on(preflight.TASK, number, [store.pk for store in nfs_stores()]):
        preflight.run_preflight(number)


def schedule_drift_checks() -> None:
    """Compare each store's listing with the refs once a day, and hash a sample of its content again."""
    verify.schedule_drift_checks()
