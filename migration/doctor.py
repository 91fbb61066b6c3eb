"""Examines an installation: each finding says what is wrong, what that means, and the command that mends it."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Literal

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.exceptions import ImproperlyConfigured
from django.db import connection
from django.db.migrations.executor import MigrationExecutor
from django.db.models import Exists, OuterRef
from django.db.models.functions import Now
from django.utils import timezone

from cloudstorage import queue, secrets
from cloudstorage.actors import Actor, ActorRole
from cloudstorage.audit import audited, record
from cloudstorage.models import Installation
from migration.conversion import open_conversion
from migration.models import Drain, Rollback
from migration.states import ConversionState, DrainState
from stores.drivers.errors import StoreError
from stores.models import KINDS, SILENT_AFTER, ImageStore, ImageStoreDetail, Transfer, Worker, WorkerReach, Zone
from stores.services import holds
from stores.services.image_stores import driver_for
from stores.services.probing import within
from stores.states import LIVE_TRANSFER_STATES, READABLE, RefState, StoreState, TransferState
from stores.worker import STUCK_SECONDS

MANY_MESSAGES = 100
SKEW_SECONDS = 5.0
ANSWER_SECONDS = 10.0
"""How long a store may take to answer: on a hung export one would wait for ever, and be told nothing of the rest."""

Level = Literal["ok", "warning", "problem"]


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the examination."""

    name: str
    status: Level
    message: str
    remedy: str = ""


def examine(*, actor: Actor) -> list[Check]:
    """Look at everything; changes nothing. When the database is not usable, only that is said."""
    actor.require(ActorRole.VIEWER)
    checks = list(_database())
    if checks[0].status == "problem":
        return checks
    for look in (_clock, _key_ring, _settings, _people, _queue, _workers, _stores, _conversion, _transfers, _items, _counts):
        checks += _looked(look)
    return checks


def repair_counts(*, actor: Actor) -> int:
    """Set every ref count to what holds and promises say; returns how many were wrong."""
    with audited(actor, ActorRole.STORAGE_ADMIN, "doctor.repair-counts", "ref counts"):
        repaired = holds.recount(repair=True)
        record(actor, "doctor.repair-counts", "ref counts", repaired=len(repaired))
    return len(repaired)


def _looked(look: Callable[[], Iterator[Check]]) -> Iterator[Check]:
    """A check that cannot be made is itself a problem, and keeps no other from being made."""
    try:
        yield from look()
    except Exception as error:  # noqa: BLE001 - that is the finding
        name = look.__name__.strip("_").replace("_", " ")
        yield Check(name, "problem", f"It could not be looked at: {type(error).__name__}: {error}", "Read the worker's log.")


def _database() -> Iterator[Check]:
    try:
        executor = MigrationExecutor(connection)
        pending = executor.migration_plan(executor.loader.graph.leaf_nodes())
    except Exception as error:  # noqa: BLE001 - that is the finding
        yield Check("database", "problem", f"The database does not answer: {error}", "Check DATABASE_URL and its server.")
        return
    if pending:
        yield Check("database", "problem", f"{len(pending)} schema migrations are not applied.", "manage.py migrate")
        return
    yield Check("database", "ok", f"{connection.vendor}, all schema migrations applied, cloud {Installation.get().uuid}")
    if why := Installation.why_read_only():
        yield Check(
            "read-only", "problem", f"Nothing can be changed, and workers do nothing. {why}", "manage.py restore --reconcile"
        )


def _clock() -> Iterator[Check]:
    theirs = Installation.objects.annotate(now=Now()).values_list("now", flat=True).first()
    skew = (timezone.now() - theirs).total_seconds() if theirs else 0.0
    if abs(skew) > SKEW_SECONDS:
        message = f"This host's clock differs from the database's by {skew:+.0f} s; leases and expiries are off by that."
        yield Check("clock", "problem", message, "Keep both in step with NTP (timedatectl set-ntp true).")
    else:
        yield Check("clock", "ok", f"agrees with the database within {abs(skew):.1f} s")


def _key_ring() -> Iterator[Check]:
    path = Path(settings.SECRET_KEYS_FILE)
    if not path.exists():
        if Installation.get().key_ring_used:
            message = f"{path} is missing, and the secrets of the stores cannot be read without it."
            yield Check("key ring", "problem", message, f"Restore {path} from the backup.")
        else:
            yield Check("key ring", "ok", f"none yet; {path} is made with the first secret")
        return
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        yield Check("key ring", "problem", f"{path} can be read by others.", f"chmod 600 {path}")
        return
    count = 0
    for value in ImageStoreDetail.objects.filter(secret=True).exclude(value="").values_list("value", flat=True):
        try:
            secrets.decrypt(value)
        except ImproperlyConfigured as error:
            yield Check("key ring", "problem", str(error), f"Restore the {path} that belongs to this database.")
            return
        count += 1
    yield Check("key ring", "ok", f"{path} opens {count} secrets; it belongs into the backup, apart from the database")


def _settings() -> Iterator[Check]:
    found = False
    local = {"localhost", "127.0.0.1", "[::1]"}
    if "*" in settings.ALLOWED_HOSTS:
        found = True
        yield Check("settings", "warning", "Any Host header is accepted.", "Name the hosts in CLOUDSTORAGE_ALLOWED_HOSTS.")
    if not settings.SESSION_COOKIE_SECURE and not set(settings.ALLOWED_HOSTS) <= local:
        found = True
        message = "The console is served to other hosts without HTTPS: passwords and tokens can be read on the way."
        yield Check("settings", "warning", message, "Put a TLS proxy before it and set CLOUDSTORAGE_HTTPS=true.")
    if settings.ALLOW_PLAIN_EXPORTS:
        found = True
        message = "Plain folders are accepted as exports, so a lost mount is only noticed by its marker."
        yield Check("settings", "warning", message, "Unset CLOUDSTORAGE_ALLOW_PLAIN_EXPORTS; it is for demos and tests.")
    if not found:
        yield Check("settings", "ok", f"version {settings.VERSION}, data in {settings.DATA_DIR}")


def _people() -> Iterator[Check]:
    users = get_user_model().objects.filter(is_active=True)
    if users.exists():
        yield Check("users", "ok", f"{users.count()} active")
    else:
        yield Check("users", "warning", "Nobody can sign in.", "manage.py user_add NAME --role storage-admin")


def _queue() -> Iterator[Check]:
    waiting = queue.pending()
    if waiting > MANY_MESSAGES:
        message = f"{waiting} messages wait: no worker fetches them. Nothing is lost, but work begins late."
        yield Check("queue", "warning", message, "manage.py worker")
    else:
        yield Check("queue", "ok", f"{waiting} messages wait")


def _workers() -> Iterator[Check]:
    alive = list(Worker.objects.living())
    if not alive:
        waits = Transfer.objects.filter(state__in=LIVE_TRANSFER_STATES).exists()
        message = "No worker is running" + (", and transfers wait." if waits else ".")
        yield Check("workers", "problem" if waits else "warning", message, "manage.py worker")
    for worker in alive:
        if worker.version and worker.version != settings.VERSION:
            message = f"{worker} runs version {worker.version}, this is {settings.VERSION}."
            yield Check("workers", "warning", message, f"Stop it and start it again on {worker.hostname}.")
        else:
            yield Check("workers", "ok", f"{worker} is running")
    gone = Worker.objects.filter(stopped=None, heartbeat__lte=Now() - SILENT_AFTER)
    for worker in gone.filter(heartbeat__gt=Now() - timedelta(days=1)):
        message = f"{worker} was last heard of at {worker.heartbeat:%Y-%m-%d %H:%M:%S} and did not say good-bye."
        yield Check(
            "workers", "warning", message, f"manage.py worker, on {worker.hostname}; what it held is taken over by itself."
        )


def _stores() -> Iterator[Check]:
    if not Zone.objects.exists():
        yield Check("zones", "warning", "There is no zone, and an NFS store needs one.", "manage.py zone_add NAME")
    stores = list(ImageStore.objects.attached().defer("scan_report"))
    if not stores:
        yield Check(
            "stores", "warning", "There is no store.", "manage.py store_add --provider NFS --url nfs://host/path --zone NAME"
        )
    heard = {(row.store_id, row.ok): row for row in WorkerReach.objects.of_living_workers()}
    running = Worker.objects.living().exists()
    for store in stores:
        yield from _store(store)
        if running and (store.pk, True) not in heard:
            silent = heard.get((store.pk, False))
            reason = silent.error if silent else "none has tried yet"
            message = f"No running worker reaches {store.name}: {reason}"
            yield Check(
                "reach", "problem", message, f"Mount or open it on the workers' hosts; manage.py store_check '{store.name}'"
            )
        elif running:
            yield Check("reach", "ok", f"{store.name} is reached by a worker")


def _store(store: ImageStore) -> Iterator[Check]:
    again = f"manage.py store_check '{store.name}'"
    try:
        within(ANSWER_SECONDS, store.name, driver_for(store).check)
    except StoreError as error:
        yield Check("stores", "problem", f"{store.name} is not reached from here: {error}", f"{error.remedy} Then: {again}")
        return
    blockers = [step["message"] for step in store.probe_steps if step["status"] == "blocker"]
    warnings = [step["message"] for step in store.probe_steps if step["status"] == "warning"]
    if blockers:
        yield Check("stores", "problem", f"{store.name}, at its last probe: {blockers[0]}", again)
    elif warnings:
        yield Check("stores", "warning", f"{store.name}, at its last probe: {warnings[0]}", again)
    else:
        yield Check("stores", "ok", f"{store.name} answers and is ours")


def _conversion() -> Iterator[Check]:
    found = open_conversion()
    if found is None:
        yield Check("conversion", "ok", "none is open")
        return
    drain = Drain.objects.filter(conversion=found).first()
    told = f"to {found.object_store.name} since {found.converted_at:%Y-%m-%d %H:%M} is {found.state}"
    if found.state == ConversionState.ROLLING_BACK:
        notes = Rollback.objects.filter(conversion=found).values_list("note", flat=True)
        message = f"The conversion {told}. {notes.first() or ''}".strip()
        yield Check("conversion", "warning", message, "manage.py migration_rollback --status")
    elif drain is None:
        yield Check("conversion", "warning", f"The conversion {told}; nothing moves its items.", "manage.py migration_plan")
    elif drain.state == DrainState.PLANNED:
        yield Check("conversion", "warning", f"The conversion {told}; its drain is not started.", "manage.py migration_start")
    elif drain.state == DrainState.PAUSED:
        yield Check(
            "conversion", "warning", f"The conversion {told}; its drain is paused. {drain.note}", "manage.py migration_resume"
        )
    elif drain.state == DrainState.CANCELLED:
        yield Check("conversion", "warning", f"The conversion {told}; its drain was cancelled.", "manage.py migration_plan")
    else:
        yield Check("conversion", "ok", f"{told}; its drain is {drain.state}")


def _transfers() -> Iterator[Check]:
    found = False
    running = Transfer.objects.filter(state=TransferState.RUNNING)
    stuck = running.filter(progress_at__lt=Now() - timedelta(seconds=STUCK_SECONDS), lease_until__gte=Now())
    for transfer in stuck.select_related("source", "target")[:10]:
        found = True
        at = transfer.source if transfer.waiting_on == "source" else transfer.target
        message = f"Transfer {transfer.uuid} has made no progress since {transfer.progress_at:%H:%M:%S}; it waits for {at.name}."
        yield Check("transfers", "warning", message, f"manage.py store_check '{at.name}'")
    if lapsed := running.filter(lease_until__lt=Now()).count():
        found = True
        yield Check(
            "transfers", "warning", f"The lease of {lapsed} running transfers has lapsed.", "manage.py worker takes them over."
        )
    if failed := Transfer.objects.filter(state=TransferState.FAILED).count():
        found = True
        message = f"{failed} transfers failed and wait for a person."
        yield Check("transfers", "warning", message, "manage.py migration_status tells why; then manage.py migration_retry")
    ended = Transfer.objects.filter(state__in=[TransferState.FAILED, TransferState.CANCELLED], swept=False)
    if unswept := ended.exclude(target__state=StoreState.REMOVED).count():
        found = True
        message = f"{unswept} ended transfers may have left something on their stores."
        yield Check("transfers", "warning", message, "manage.py worker removes it.")
    if not found:
        yield Check("transfers", "ok", f"{running.count()} running, none stuck or failed")


def _items() -> Iterator[Check]:
    """Items that exist and that nobody could read now as far as the rows tell (I3)."""
    found = False
    for kind, models in KINDS.items():
        refs = models.ref.objects.filter(item=OuterRef("pk"))
        readable = refs.filter(state__in=READABLE, store__state=StoreState.ATTACHED)
        lost = models.item.objects.filter(Exists(refs.filter(state=RefState.PROMISED)), ~Exists(readable), removed=None)
        for item in lost[:10]:
            found = True
            message = f"No readable copy of the {kind} {item.name} ({item.uuid}) is on any attached store."
            yield Check("items", "problem", message, "manage.py store_scan STORE, of the store that should have it")
        damaged = models.ref.objects.filter(state=RefState.FAILED, store__state=StoreState.ATTACHED).exclude(install_path="")
        if count := damaged.count():
            found = True
            names = ", ".join(damaged.order_by("pk").values_list("item__name", flat=True)[:3])
            message = f"{count} {kind} copies are damaged or missing, and served to nobody: {names}{', …' if count > 3 else ''}."
            remedy = "Put the right content back, then manage.py migration_verify --store STORE; each item's page says more."
            yield Check("items", "problem", message, remedy)
    if not found:
        yield Check("items", "ok", "every promised item has a readable copy, and none is known to be damaged")


def _counts() -> Iterator[Check]:
    if wrong := holds.recount():
        message = f"The ref count of {len(wrong)} copies is not what their holds and promises say."
        yield Check("ref counts", "problem", message, "manage.py doctor --repair-counts")
    else:
        yield Check("ref counts", "ok", "all equal their holds and promises")
