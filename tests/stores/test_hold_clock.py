"""Holds live by the database's clock, whatever the clock of the host that takes them says."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.utils import timezone

from stores.models import Hold, Kind, Volume
from stores.services import holds
from tests import factories

pytestmark = [pytest.mark.db, pytest.mark.django_db]


def test_a_hold_protects_when_the_hosts_clock_is_an_hour_late(monkeypatch):
    store = factories.make_store(name="objects")
    item = Volume.objects.create(name="data", account=factories.make_account(), upstream_id=1)
    ref = factories.make_ref(Kind.VOLUME, item, store, "volumes/2/1", {"volumes/2/1/a.raw": b"a"})
    late = timezone.now() - timedelta(hours=1)
    monkeypatch.setattr(timezone, "now", lambda: late)
    holds.take_hold(Kind.VOLUME, ref.pk, "read", "reader", 600)
    holds.take_hold(Kind.VOLUME, ref.pk, "read", "reader", 600)
    assert holds.expire_holds() == 0
    assert Hold.objects.count() == 1
    ref.refresh_from_db()
    assert ref.ref_cnt == 1
