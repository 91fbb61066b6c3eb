"""The rows that are the work: which transfers there are, who runs them, and how they end. Callers use this package's names."""

from stores.services.transfers.endings import (
    cancel_live,
    cancel_unattached,
    end_sweep,
    errors_by_cause,
    fail,
    first_asked_for,
    lease_for_sweep,
    mark_unswept,
    prove,
    target_paths,
)
from stores.services.transfers.jobs import BACKGROUND, MAX_ATTEMPTS, ON_DEMAND, PUMP, READABLE, Job, install_path_on
from stores.services.transfers.leases import Lease, claim, expire_leases, release, renew, waits_for
from stores.services.transfers.planning import (
    Wanted,
    cancel_batch,
    ensure,
    handled,
    plan_batch,
    plan_copies,
    retry,
    unblock_ready,
)
from stores.services.transfers.shares import enlist, open_batch, pumps_at_work

__all__ = [
    "BACKGROUND",
    "MAX_ATTEMPTS",
    "ON_DEMAND",
    "PUMP",
    "READABLE",
    "Job",
    "Lease",
    "Wanted",
    "cancel_batch",
    "cancel_live",
    "cancel_unattached",
    "claim",
    "end_sweep",
    "enlist",
    "ensure",
    "errors_by_cause",
    "expire_leases",
    "fail",
    "first_asked_for",
    "handled",
    "install_path_on",
    "lease_for_sweep",
    "mark_unswept",
    "open_batch",
    "plan_batch",
    "plan_copies",
    "prove",
    "pumps_at_work",
    "release",
    "renew",
    "retry",
    "target_paths",
    "unblock_ready",
    "waits_for",
]
