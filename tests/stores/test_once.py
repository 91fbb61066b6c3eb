"""Statements that are put together once: they say the same as the ORM does anew, whatever numbers they are called with."""

from __future__ import annotations

import pytest
from django.db import connection, transaction
from django.db.models import Case, F, When
from django.test.utils import CaptureQueriesContext

from stores.models import TransferBatch, Worker
from stores.services.once import Once

pytestmark = pytest.mark.db


@pytest.fixture
def rows(db):
    return [
        TransferBatch.objects.create(name=f"batch {number}", open=number % 2 == 0, concurrency=number, bandwidth=2**40 + number)
        for number in range(1, 6)
    ]


def test_finds_what_the_orm_finds_for_lists_of_any_length_and_any_limit(rows):
    once = Once(lambda ids, least, limit: TransferBatch.objects.filter(pk__in=ids, bandwidth__gt=least).order_by("-pk")[:limit])
    ids = [row.pk for row in rows]
    for length in (0, 1, 2, 3, 5):
        for limit in (1, 4):
            expected = TransferBatch.objects.filter(pk__in=ids[:length], bandwidth__gt=2**40 + 1).order_by("-pk")[:limit]
            found = once.objects(TransferBatch, ids[:length], 2**40 + 1, limit)
            assert [vars(row) | {"_state": None} for row in found] == [vars(row) | {"_state": None} for row in expected]


def test_values_come_as_the_orm_gives_them(rows):
    worker = Worker.objects.create(hostname="one", pid=1)
    assert Once(lambda pk: Worker.objects.filter(pk=pk).values_list("uuid", "started")).rows(worker.pk) == [
        (worker.uuid, worker.started)
    ]
    once = Once(lambda ids: TransferBatch.objects.filter(pk__in=ids).order_by("pk").values_list("open", "uuid"))
    assert once.rows([row.pk for row in rows]) == [(row.open, row.uuid) for row in rows]


def test_updates_what_it_is_called_with_and_tells_how_many(rows):
    once = Once(
        lambda ids, chosen, value, *, name: (
            TransferBatch.objects.filter(pk__in=ids),
            {
                "bandwidth": Case(When(pk__in=chosen, then=value), default=None),
                "concurrency": F("concurrency") + 1,
                "name": name,
            },
        )
    )
    first, second, third, *_ = [row.pk for row in rows]
    assert once.update([first, second, third], [second], 7, name="50 % of 1917304001") == 3
    assert once.update([third], [third], 9, name="other") == 1
    assert once.update([], [third], 9, name="nobody") == 0
    found = list(TransferBatch.objects.order_by("pk").values_list("name", "bandwidth", "concurrency"))
    assert found[:3] == [("50 % of 1917304001", None, 2), ("50 % of 1917304001", 7, 3), ("other", 9, 5)]
    assert found[3:] == [("batch 4", 2**40 + 4, 4), ("batch 5", 2**40 + 5, 5)]


def test_locks_what_it_finds(rows):
    once = Once(lambda ids: TransferBatch.objects.select_for_update().filter(pk__in=ids).values_list("pk"))
    with CaptureQueriesContext(connection) as queries, transaction.atomic():
        assert once.rows([rows[0].pk]) == [(rows[0].pk,)]
    assert any("FOR UPDATE" in query["sql"] for query in queries) == connection.features.has_select_for_update


def test_refuses_a_statement_that_has_no_place_for_a_number(db):
    with pytest.raises(AssertionError, match="not all numbers"):
        Once(lambda ids, _unused: TransferBatch.objects.filter(pk__in=ids)).rows([1], 2)
