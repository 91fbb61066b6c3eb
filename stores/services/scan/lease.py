"""Lets one process at a time run a scan: a lease on the scan's row that expires by itself when the process dies."""

from __future__ import annotations

import time
from datetime import timedelta

from django.conf import settings
from django.db.models.functions import Now

from cloudstorage.errors import Busy, Conflict, ServiceError
from stores.models import ScanRun
from stores.services.scan.report import ScanReport
from stores.states import ScanState

_BEAT_SECONDS = 2.0


def lease_end() -> object:
    """When a lease that is taken or renewed now ends."""
    return Now() + timedelta(seconds=settings.LEASE_SECONDS)


class Lease:
    """Held by the one process whose token stands in the run's row; renewing it tells how many files `report` has."""

    def __init__(self, run: ScanRun, report: ScanReport) -> None:
        self.mine = ScanRun.objects.filter(pk=run.pk, token=run.token, state=ScanState.RUNNING)
        self._run = run
        self._report = report
        self._renewed = time.monotonic()

    def renew(self) -> None:
        """Inside the transaction of every batch, so that a scan that was cancelled or taken over writes nothing any more."""
        if not self.mine.update(lease_until=lease_end(), files=self._report.files):
            raise self.lost()
        self._renewed = time.monotonic()

    def beat(self) -> None:
        """Renew if that is some time ago; for the steps of what takes long without a batch."""
        if time.monotonic() - self._renewed > _BEAT_SECONDS:
            self.renew()

    def lost(self) -> ServiceError:
        """Why this process may not go on."""
        name = self._run.store.name
        if ScanRun.objects.filter(pk=self._run.pk, state=ScanState.CANCELLED).exists():
            return Conflict(
                f"This scan of {name} was cancelled.", remedy="What it has adopted stays; another scan goes on from there."
            )
        message = f"This scan of {name} was silent for too long and another one has taken over."
        return Busy(message, remedy="Look at the other scan's report. What this one has adopted stays.")
