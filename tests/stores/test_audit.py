"""The audit trail: nobody rewrites it, what was done is noted with it or not at all, and what was refused is noted too."""

from __future__ import annotations

import pytest
from django.db import DatabaseError, connection, transaction

from cloudstorage.actors import Actor
from cloudstorage.audit import record, refused
from cloudstorage.errors import Denied, Invalid, ServiceError
from cloudstorage.models import AuditEvent
from migration import drain, verify
from migration.models import Conversion, Drain
from stores.models import KINDS, ImageStore, Kind, Transfer, Zone
from stores.services import image_stores, items, region, transfers
from tests import factories
from tests.fakes.memory import server_at

pytestmark = pytest.mark.db


@pytest.fixture
def event(db, admin) -> AuditEvent:
    record(admin, "test.done", "something", detail=1)
    return AuditEvent.objects.get(action="test.done")


TABLE = AuditEvent._meta.db_table


@pytest.mark.parametrize(
    "statement",
    [
        f"UPDATE {TABLE} SET actor = 'nobody'",
        f"UPDATE {TABLE} SET details = details",
        f"DELETE FROM {TABLE}",
        f"DELETE FROM {TABLE} WHERE action = 'test.done'",
    ],
)
def test_database_refuses_to_rewrite_the_trail(event, statement):
    before = list(AuditEvent.objects.values())
    with pytest.raises(DatabaseError), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(statement)
    assert list(AuditEvent.objects.values()) == before


def test_database_refuses_to_empty_the_trail(event):
    """SQLite has no TRUNCATE; what stands for it there is DELETE without a condition."""
    statement = f"TRUNCATE {TABLE}" if connection.vendor == "postgresql" else f"DELETE FROM {TABLE}"
    with pytest.raises(DatabaseError), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(statement)
    assert AuditEvent.objects.filter(pk=event.pk).exists()


@pytest.mark.parametrize("act", ["save", "delete", "update"])
def test_models_refuse_to_rewrite_the_trail(event, act):
    acts = {"save": event.save, "delete": event.delete, "update": lambda: AuditEvent.objects.update(actor="nobody")}
    pk = event.pk
    with pytest.raises(DatabaseError), transaction.atomic():
        acts[act]()
    assert AuditEvent.objects.get(pk=pk).actor == "admin"


class Region:
    """A converted region with a planned drain, and every service as a call."""

    def __init__(self, folder) -> None:
        self.zone = factories.make_zone("east")
        self.nfs = factories.make_store("NFS", zone=self.zone, folder=folder / "east")
        self.volume = factories.make_volume([self.nfs])
        self.other = factories.make_volume([self.nfs])
        self.objects = factories.make_store("Memory", name="objects")
        factories.make_promises(self.objects)
        self.conversion = Conversion.objects.create(object_store=self.objects, actor="test")
        self.empty = factories.make_store("Memory", name="empty")

    def drain(self, actor: Actor) -> Drain:
        return drain.plan(actor=actor, conversion=self.conversion, canary_items=0)


@pytest.fixture
def cloud(db, tmp_path, settings) -> Region:
    settings.NFS_MOUNTS = {}
    return Region(tmp_path)


def _started(cloud: Region, actor: Actor) -> Drain:
    return drain.start(actor=actor, drain=cloud.drain(actor))


def _paused(cloud: Region, actor: Actor) -> Drain:
    return drain.pause(actor=actor, drain=_started(cloud, actor))


DONE = {
    # action: (what must be there before, the service)
    "zone.add": (None, lambda cloud, actor, _: region.add_zone(actor=actor, name="new")),
    "store.remove": (None, lambda cloud, actor, _: image_stores.remove_store(actor=actor, store=cloud.empty)),
    "volume.begin": (
        None,
        lambda cloud, actor, _: items.begin_item(
            actor=actor, kind=Kind.VOLUME, zone=cloud.zone, account=factories.make_account(), name="new"
        ),
    ),
    "volume.delete": (None, lambda cloud, actor, _: items.delete_item(actor=actor, kind=Kind.VOLUME, item=cloud.volume)),
    "transfer.ensure": (None, lambda cloud, actor, _: transfers.ensure(actor=actor, kind=Kind.VOLUME, item=cloud.volume)),
    "transfer.retry": (
        None,
        lambda cloud, actor, _: transfers.retry(actor=actor, transfers=Transfer.objects.all(), target="test"),
    ),
    "drain.plan": (None, lambda cloud, actor, _: cloud.drain(actor)),
    "drain.start": (lambda cloud, actor: cloud.drain(actor), lambda cloud, actor, row: drain.start(actor=actor, drain=row)),
    "drain.pause": (_started, lambda cloud, actor, row: drain.pause(actor=actor, drain=row)),
    "drain.resume": (_paused, lambda cloud, actor, row: drain.resume(actor=actor, drain=row)),
    "drain.cancel": (_started, lambda cloud, actor, row: drain.cancel(actor=actor, drain=row)),
    "drain.limits": (_started, lambda cloud, actor, row: drain.set_limits(actor=actor, drain=row, concurrency=3)),
    "drain.retry": (_paused, lambda cloud, actor, row: drain.retry_failed(actor=actor, drain=row)),
    "store.verify": (None, lambda cloud, actor, _: verify.verify(actor=actor, store=cloud.objects)),
}


class Undone(Exception):
    pass


def _rows() -> list[object]:
    models = [
        Transfer,
        Drain,
        ImageStore,
        Zone,
        *(model for kind in KINDS.values() for model in (kind.item, kind.ref, kind.file)),
    ]
    return [list(model.objects.order_by("pk").values()) for model in models]


@pytest.mark.parametrize("action", DONE)
def test_service_notes_what_it_did_in_the_transaction_that_did_it(cloud, admin, action):
    prepare, act = DONE[action]
    before = prepare(cloud, admin) if prepare else None
    noted, rows = AuditEvent.objects.count(), _rows()

    def act_and_fail() -> None:
        with transaction.atomic():
            act(cloud, admin, before)
            assert AuditEvent.objects.filter(action=action, outcome="done", actor="admin").exists()
            raise Undone

    with pytest.raises(Undone):
        act_and_fail()
    assert AuditEvent.objects.count() == noted
    assert _rows() == rows
    act(cloud, admin, before)
    event = AuditEvent.objects.filter(action=action).first()
    assert (event.actor, event.outcome) == ("admin", "done")


@pytest.mark.parametrize("action", DONE)
def test_refusal_is_noted_and_nothing_else_changes(cloud, admin, viewer, action):
    prepare, act = DONE[action]
    before = prepare(cloud, admin) if prepare else None
    rows = _rows()
    with pytest.raises(Denied):
        act(cloud, viewer, before)
    assert _rows() == rows
    event = AuditEvent.objects.filter(actor="viewer").get()
    assert (event.action, event.outcome) == (action, "refused")
    assert event.details["reason"]


CHANGED = {
    "drain.start": {"state": {"before": "Planned", "after": "Canary"}},
    "drain.pause": {"state": {"before": "Canary", "after": "Paused"}},
    "drain.resume": {"state": {"before": "Paused", "after": "Canary"}},
    "drain.cancel": {"state": {"before": "Canary", "after": "Cancelled"}},
    "drain.limits": {"concurrency": {"before": 8, "after": 3}},
    "store.remove": {"state": {"before": "Attached", "after": "Removed"}},
}


@pytest.mark.parametrize("action", CHANGED)
def test_what_changed_is_noted_as_it_was_and_as_it_is(cloud, admin, action):
    prepare, act = DONE[action]
    act(cloud, admin, prepare(cloud, admin) if prepare else None)
    assert AuditEvent.objects.filter(action=action).first().details["changes"] == CHANGED[action]


def test_what_is_given_anew_and_stays_the_same_is_no_change_and_a_secret_is_not_told(cloud, admin):
    given = {"details": {"password": "hunter3"}, "name": "empty", "readonly": True}
    server_at(cloud.empty.url).password = "hunter3"
    image_stores.update_store(actor=admin, store=cloud.empty, **given)
    image_stores.update_store(actor=admin, store=ImageStore.objects.get(pk=cloud.empty.pk), **given)
    again, first = AuditEvent.objects.filter(action="store.update")
    secret = {"password": {"before": "", "after": "a secret"}}
    assert first.details["changes"] == {"readonly": {"before": False, "after": True}} | secret
    assert again.details["changes"] == {"password": {"before": "a secret", "after": "another secret"}}
    assert "hunter" not in str([first.details, again.details])


def test_note_is_gone_when_the_service_fails_half_way(cloud, admin, monkeypatch):
    """The note is written last of all, yet a failure after it takes it back with the rest."""
    monkeypatch.setattr("stores.services.items.reach", lambda name: (_ for _ in ()).throw(Undone()))
    rows = _rows()
    with pytest.raises(Undone), transaction.atomic():
        items.delete_item(actor=admin, kind=Kind.VOLUME, item=cloud.volume)
    assert not AuditEvent.objects.filter(action="volume.delete").exists()
    assert _rows() == rows


def test_secrets_never_reach_the_trail(db, admin, settings):
    server = server_at("memory://secretive")
    server.password = "hunter2hunter2"
    image_stores.add_store(
        actor=admin, name="secretive", provider="Memory", url="memory://secretive", details={"password": "hunter2hunter2"}
    )
    with pytest.raises(ServiceError):
        image_stores.add_store(
            actor=admin, name="secretive", provider="Memory", url="memory://other", details={"password": "hunter2hunter2"}
        )
    told = " ".join(str(values) for values in AuditEvent.objects.values())
    assert "secretive" in told
    assert "hunter2hunter2" not in told


def test_refusal_of_what_no_database_keeps_is_noted_all_the_same(db, admin):
    refused(admin, "store.add", "a\0b", Invalid("There is no provider 'a\0b'.", remedy="Choose one."))
    noted = AuditEvent.objects.get()
    assert (noted.target, noted.details["reason"]) == ("a\ufffdb", "There is no provider 'a\ufffdb'.")
