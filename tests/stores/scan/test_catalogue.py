"""A catalogue names what an export cannot tell; object stores are only compared."""

from __future__ import annotations

import uuid

import pytest

from cloudstorage.errors import Invalid
from stores.models import KINDS, Account, Snapshot, Template, Volume
from stores.services.image_stores import add_store, driver_for
from stores.services.scan import scan_store
from stores.states import Kind, Proof, RefState
from tests.stores.scan.helpers import paths, rows

pytestmark = [pytest.mark.db, pytest.mark.django_db(transaction=True)]


# --- the catalogue ---


def test_items_get_names_and_uuids_when_a_catalogue_is_given(operator, region, zone1):
    numbers = [str(uuid.UUID(int=number)) for number in range(1, 4)]
    chain = region.chain("zone1", 11)
    catalogue = {
        "accounts": [{"id": 2, "name": "acme"}, {"id": 77, "name": "nobody"}],
        "templates": [{"account_id": 2, "id": 201, "uuid": numbers[0], "name": "Debian", "public": True}],
        "volumes": [{"account_id": 2, "id": 301, "uuid": numbers[1]}],
        "snapshots": [
            {"account_id": 2, "volume_id": 11, "path": chain[1].name, "id": 9, "uuid": numbers[2], "parent": chain[0].name},
            {"account_id": 2, "volume_id": 11, "path": chain[2].name, "parent": chain[0].name},
        ],
    }
    report = scan_store(actor=operator, store=zone1, catalogue=catalogue)
    assert report.catalogue == {"matched": 5, "updated": 4, "unmatched": 1}
    template = Template.objects.get(upstream_id=201)
    assert (str(template.uuid), template.name, template.public) == (numbers[0], "Debian", True)
    assert template.account.account_name == "acme"
    snapshot = Snapshot.objects.get(path=chain[1].name)
    assert (str(snapshot.uuid), snapshot.upstream_id) == (numbers[2], 9)
    assert len(paths(report.conflicts)) == 1
    assert chain[2].name in paths(report.conflicts)[0]
    before = rows()
    assert scan_store(actor=operator, store=zone1, catalogue=catalogue).catalogue["updated"] == 0
    assert rows() == before


@pytest.mark.parametrize(
    ("catalogue", "named"),
    [
        ([], "must be an object"),
        ({"template": []}, "template is no list"),
        ({"templates": {}}, "templates must be a list"),
        ({"templates": [{"account_id": 2}]}, "templates[0] lacks id"),
        ({"templates": [{"account_id": 2, "id": 1}, {"account_id": 2, "id": True}]}, "templates[1] id must be a whole number"),
        ({"templates": [{"account_id": 2, "id": 1, "uuid": "x"}]}, "uuid must be a UUID"),
        ({"volumes": [{"account_id": 2, "id": 1, "name": "n\0"}]}, "volumes[0] name must be text"),
        ({"volumes": [{"account_id": 2, "id": 1, "size": 3}]}, "has 'size'"),
        ({"volumes": [{"account_id": 2, "id": 1}, {"account_id": 2, "id": 1}]}, "volumes[1] names an item"),
    ],
)
def test_catalogue_is_refused_by_entry_when_it_is_not_valid(operator, zone1, catalogue, named):
    with pytest.raises(Invalid) as refused:
        scan_store(actor=operator, store=zone1, catalogue=catalogue)
    assert named in refused.value.message
    assert refused.value.field == "catalogue"
    assert Template.objects.count() == 0


# --- object stores ---


def test_objects_are_compared_with_the_rows_when_the_store_is_no_export(operator, admin):
    store = add_store(actor=admin, name="objects", provider="Memory", url="memory://objects", details={})
    driver = driver_for(store)
    volume = Volume.objects.create(name="v", account=Account.objects.create(pk=2, account_name="a"), upstream_id=7)
    models = KINDS[Kind.VOLUME]
    ref = models.ref.objects.create(
        store=store, item=volume, state=RefState.READY, proof=Proof.VERIFIED, install_path="volumes/2/7"
    )
    for name in ("good", "other", "gone"):
        models.file.objects.create(ref=ref, path=f"volumes/2/7/{name}", size=4, proof=Proof.VERIFIED)
    coming = Volume.objects.create(name="w", account_id=2, upstream_id=8)
    models.ref.objects.create(store=store, item=coming, state=RefState.PROMISED)
    for key, data in {
        "volumes/2/7/good": b"good",
        "volumes/2/7/other": b"too long",
        "volumes/2/7/extra": b"?",
        "volumes/2/8/early": b"?",
        "elsewhere": b"?",
        ".cs-journal/1.jsonl": b"?",
    }.items():
        driver.put(key, data, metadata={}, token="t")
    report = scan_store(actor=operator, store=store)
    problems = dict(models.file.objects.values_list("path", "problem"))
    assert problems["volumes/2/7/good"] == ""
    assert problems["volumes/2/7/other"].startswith("changed: 4 bytes were stored, 8 are there now")
    assert problems["volumes/2/7/gone"].startswith("missing: ")
    assert models.ref.objects.get(pk=ref.pk).error_str != ""
    before = rows()
    assert scan_store(actor=operator, store=store).missing.count == 1
    assert rows() == before
    driver.put("volumes/2/7/other", b"same", metadata={}, token="t")
    driver.put("volumes/2/7/gone", b"back", metadata={}, token="t")
    assert scan_store(actor=operator, store=store).changed.count == 0
    assert set(models.file.objects.values_list("problem", flat=True)) == {""}
    assert models.ref.objects.get(pk=ref.pk).error_str == ""
    assert (report.complete, report.unchanged, report.files) == (True, 1, 2)
    assert paths(report.changed) == ["volumes/2/7/other"]
    assert paths(report.missing) == ["volumes/2/7/gone"]
    assert paths(report.orphaned) == ["volumes/2/7/extra"]
    assert paths(report.in_flight) == ["volumes/2/8/early"]
    assert paths(report.unknown) == ["elsewhere"]
    assert dict(report.skipped) == {"own": 1}
