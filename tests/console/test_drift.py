"""The page of a store shows what its last checks found, with what to do about it."""

from __future__ import annotations

import pytest
from django.urls import reverse

from migration.models import Verification
from migration.rereading import REMEDIES
from tests import factories

pytestmark = [pytest.mark.db, pytest.mark.django_db]


def test_the_page_of_a_store_shows_its_drift_and_the_remedy(sign_in, settings):
    settings.STORE_DRIVERS = settings.STORE_DRIVERS | factories.MEMORY
    store = factories.make_store("Memory", name="objects")
    client = sign_in("viewer")
    page = reverse("console:store", args=[store.uuid])
    assert "Not checked yet" in client.get(page).content.decode()
    finding = {"path": "volumes/2/7/disk.raw", "problem": "missing", "remedy": REMEDIES["missing"]}
    row = Verification.objects.create(
        store=store, actor="system", mode="listing", state="Finished", findings_count=1, findings=[finding]
    )
    shown = client.get(page).content.decode()
    assert "volumes/2/7/disk.raw" in shown
    assert "Bring it back" in shown
    assert reverse("console:verification", args=[row.uuid]) in shown
    assert "Bring it back" in client.get(reverse("console:verification", args=[row.uuid])).content.decode()
