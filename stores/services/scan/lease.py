"""Lets one scan of a store run at a time: a lease on the store's row that expires by itself when its scan dies."""

from __future__ import annotations

import uuid
from datetime import timedelta

from django.conf import settings
from django.db.models import Q
from django.db.models.functions import Now

from cloudstorage.errors import Busy
from stores.models import ImageStore


class Lease:
    """Held by the one scan whose token stands in the store's row, by the database's clock."""

    def __init__(self, store: ImageStore) -> None:
        self._row = ImageStore.objects.filter(pk=store.pk)
        self._name = store.name
        self._token = uuid.uuid4()

    def take(self) -> None:
        """Raise Busy while another scan holds it."""
        free = Q(scan_until=None) | Q(scan_until__lt=Now())
        if not self._row.filter(free).update(scan_token=self._token, scan_until=self._end()):
            message = f"Another scan of {self._name} is running."
            raise Busy(message, remedy="Wait for it to end; if its process died, the next scan can start within two minutes.")

    def renew(self) -> None:
        """Inside the transaction of every batch, so that a scan that was taken over writes nothing any more."""
        if not self._row.filter(scan_token=self._token).update(scan_until=self._end()):
            message = f"This scan of {self._name} was silent for too long and another one has taken over."
            raise Busy(message, remedy="Look at the other scan's report. What this one has adopted stays.")

    def release(self) -> None:
        self._row.filter(scan_token=self._token).update(scan_token=None, scan_until=None)

    @staticmethod
    def _end() -> object:
        return Now() + timedelta(seconds=settings.LEASE_SECONDS)
