"""Lists page by key: nothing twice, nothing left out while rows come and go, and as many queries for 30 rows as for 3."""

from __future__ import annotations

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from cloudstorage.actors import SYSTEM
from cloudstorage.audit import record
from stores.models import Worker, WorkerReach, Zone
from tests.api.conftest import make_token, make_user
from tests.factories import make_chain, make_store, make_template, make_volume, make_zone

pytestmark = [pytest.mark.db, pytest.mark.django_db]


@pytest.fixture
def client(api):
    Zone.objects.bulk_create(Zone(name=f"z{number:02}") for number in range(10))
    return api("viewer")


def names(answer) -> list[str]:
    assert answer.status_code == 200, answer.content
    return [row["name"] for row in answer.json()["results"]]


def follow(client, link: str):
    assert link.startswith("http://testserver/api/v1/")
    return client.get(link.removeprefix("http://testserver/api/v1/"))


def test_every_row_comes_once_forth_and_back(client):
    pages = [client.get("zones?limit=4")]
    assert pages[0].json()["previous"] is None
    while link := pages[-1].json()["next"]:
        pages.append(follow(client, link))
    assert [names(page) for page in pages] == [
        ["z00", "z01", "z02", "z03"], ["z04", "z05", "z06", "z07"], ["z08", "z09"]
    ]  # fmt: skip
    back = [pages[-1]]
    while link := back[-1].json()["previous"]:
        back.append(follow(client, link))
    assert [names(page) for page in back[1:]] == [["z04", "z05", "z06", "z07"], ["z00", "z01", "z02", "z03"]]


def test_rows_that_come_and_go_shift_nothing(client):
    first = client.get("zones?limit=4").json()
    Zone.objects.filter(name__in=["z00", "z01", "z05"]).delete()
    Zone.objects.create(name="new")
    assert names(follow(client, first["next"])) == ["z04", "z06", "z07", "z08"]


def test_filters_stay_in_the_links(api):
    user = make_user("ann", "auditor")
    for number in range(5):
        record(SYSTEM, "some.action", f"thing-{number}")
        record(SYSTEM, "other.action", f"thing-{number}")
    client = api("auditor")
    page = client.get("audit?limit=2&action=some.action").json()
    seen = [row["target"] for row in page["results"]]
    while page["next"]:
        page = follow(client, page["next"]).json()
        seen += [row["target"] for row in page["results"]]
    assert seen == ["thing-4", "thing-3", "thing-2", "thing-1", "thing-0"]
    assert make_token(user, "auditor")


def test_empty_list_has_no_links(api):
    assert api("viewer").get("zones").json() == {"next": None, "previous": None, "results": []}


def fill(objects, nfs, count: int) -> None:
    for number in range(count):
        zone = make_zone()
        make_template([nfs])
        make_volume([nfs])
        make_chain([nfs], length=2)
        worker = Worker.objects.create(hostname=f"host-{number}", pid=number)
        WorkerReach.objects.create(worker=worker, store=nfs, ok=True)
        make_store(name=f"extra-{zone.name}")
        record(SYSTEM, "some.action", f"thing-{number}")


def test_lists_take_as_many_queries_for_thirty_rows_as_for_three(api, memory_store, settings, tmp_path, admin):
    from migration.models import Conversion, ConversionStore, Drain, Preflight, Verification
    from stores.models import TransferBatch
    from stores.services import transfers

    nfs = make_store("NFS", zone=make_zone(), folder=tmp_path / "export")
    objects = make_store(name="objects")
    client = api("auditor")
    user = make_user("ann", "auditor")
    paths = ["zones", "accounts", "stores", "templates", "snapshots", "volumes", "transfers", "workers", "audit", "tokens",
             "drains", "conversions", "preflights", "verifications"]  # fmt: skip
    counts: dict[str, list[int]] = {path: [] for path in paths}
    for rows in (3, 27):
        fill(objects, nfs, rows)
        make_token(user, "viewer")
        for number in range(rows):
            make_token(_user_of(client), "viewer", name=f"t{number}")
            batch = TransferBatch.objects.create(name="b")
            preflight = Preflight.objects.create(actor="a", name="n", provider="Memory", details_digest="d")
            conversion = Conversion.objects.create(object_store=objects, preflight=preflight, actor="a", state="RolledBack")
            ConversionStore.objects.create(conversion=conversion, store=nfs, former_role="Image", former_readonly=False)
            Drain.objects.create(conversion=conversion, batch=batch, actor="a", state="Finished")
            Verification.objects.create(store=objects, actor="a")
        _promise(objects)
        transfers.plan_batch(batch, objects)
        for path in paths:
            client.get(path)
            with CaptureQueriesContext(connection) as captured:
                answer = client.get(f"{path}?limit=200")
            assert answer.status_code == 200, answer.content
            assert len(answer.json()["results"]) >= (rows if path != "accounts" else 1), path
            counts[path].append(len(captured))
    assert {path: found for path, found in counts.items() if not found[0] == found[1] <= 12} == {}


def _user_of(client):
    from cloudstorage.models import ApiToken

    return ApiToken.objects.get(digest=ApiToken.digest_of(client.token)).user


def _promise(objects) -> None:
    from stores.models import KINDS

    for models in KINDS.values():
        have = models.ref.objects.filter(store=objects).values("item_id")
        for item in models.item.objects.exclude(pk__in=have):
            models.ref.objects.create(store=objects, item=item, state="Promised")
