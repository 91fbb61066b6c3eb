"""What holds a drain up now: where its copies waited during the last minute, in words, with what can be done about it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from django.db.models import QuerySet
from django.db.models.functions import Now

from migration.models import Drain
from migration.states import DrainState
from stores.models import Claimer, ImageStore, Transfer, TransferBatch, Worker, WorkerReach
from stores.services.windows import hours
from stores.states import LIVE_TRANSFER_STATES, TransferState
from stores.timing import DATABASE, EITHER, LIMIT, NETWORK, OURS, SOURCE, STORE, shares_of

WINDOW, STUCK, WORKERS, RETRY, CANARY, NOTHING = "window", "stuck", "workers", "retry", "canary", "nothing"
CAUSES = (SOURCE, NETWORK, STORE, EITHER, OURS, LIMIT, DATABASE, WINDOW, STUCK, WORKERS, RETRY, CANARY, NOTHING)

_TOLD = timedelta(seconds=10)
"""A pump that has not been seen for so long tells of another time."""
_ALL_CPU = 0.85


@dataclass(frozen=True, slots=True)
class Bottleneck:
    """What holds a drain up, and how that is known."""

    cause: str
    words: str
    why: str = ""
    remedy: str = ""
    shares: Mapping[str, float] = field(default_factory=dict)
    """Of the time that copies took in the last minute, by cause; empty where it is not from them that we know."""


def bottleneck(drain: Drain, running: Sequence[Mapping[str, Any]], rate: float, items: Mapping[str, int]) -> Bottleneck | None:
    """None while the drain does not run. `running` are copies under way, `items` counts by state; a few queries."""
    batch = drain.batch
    if drain.state not in {DrainState.CANARY, DrainState.RUNNING}:
        return None
    if (window := hours(batch.window, batch.time_zone)) and window.opens:
        return Bottleneck(
            WINDOW,
            f"its time window {window.words}, which is closed now",
            f"It opens {window.when}. Nothing is copied before that; what was under way has stopped within a part.",
            "It goes on by itself then. Change the window to go on now.",
        )
    if stuck := [row["stuck"] for row in running if row["stuck"]]:
        return Bottleneck(
            STUCK,
            str(stuck[0]),
            "Not a byte has moved for that long, so its place was given to other copies.",
            "Look whether the server that is named answers, from the worker's host. The copy goes on by itself when it does.",
        )
    if not running:
        return _idle(drain, items)
    return _measured(batch, items) or _guessed(drain, running, rate)


# --- nothing is copied -----------------------------------------------------------------------------------------------------


def _idle(drain: Drain, items: Mapping[str, int]) -> Bottleneck:
    rows = Transfer.objects.filter(batch=drain.batch_id)
    if drain.state == DrainState.CANARY and not rows.filter(canary=True, state__in=LIVE_TRANSFER_STATES).exists():
        return Bottleneck(
            CANARY,
            "the canary is being read back",
            "Its items are copied; they are read from the object store and hashed again before the rest begins.",
            "Nothing needs to be done.",
        )
    if not items[TransferState.QUEUED] + items[TransferState.BLOCKED]:
        failed = items[TransferState.FAILED]
        if not failed:
            return Bottleneck(NOTHING, "nothing to do", "All that was planned is copied.", "It ends within seconds.")
        why = f"What could be copied is copied; {failed} failed."
        return Bottleneck(NOTHING, "nothing to do", why, "Mend what failed, then retry it.")
    return _without_worker(drain.conversion.object_store) or _waiting(rows)


def _without_worker(store: ImageStore) -> Bottleneck | None:
    if not Worker.objects.living().exists():
        return Bottleneck(
            WORKERS,
            "waiting for workers: none runs",
            "No worker has given a sign of life for a minute and a half.",
            "Start one on a host that mounts the exports and reaches the object store: manage.py worker",
        )
    if error := _unreached(store):
        return Bottleneck(
            WORKERS,
            f"no worker reaches {store.name}: {error}",
            "Workers run, but cannot use the object store, so they claim nothing for it.",
            "Mend what the message says; they look again by themselves.",
        )
    return None


def _unreached(store: ImageStore) -> str:
    """Why no living worker reaches it; empty where one does, or none has tried."""
    rows = WorkerReach.objects.of_living_workers().filter(store=store).order_by("-ok", "pk")
    told = rows.values_list("ok", "error").first()
    return str(told[1]) if told and not told[0] else ""


def _waiting(rows: QuerySet[Transfer]) -> Bottleneck:
    queued = rows.filter(state=TransferState.QUEUED)
    first = queued.annotate(now=Now()).order_by("next_attempt_at").values_list("next_attempt_at", "now")
    if not queued.filter(next_attempt_at__lte=Now()).exists() and (soon := first.first()):
        seconds = max(0, round((soon[0] - soon[1]).total_seconds()))
        return Bottleneck(
            RETRY,
            f"waiting to try again, in {seconds} s",
            "All that is left failed in a way that may pass, and is tried again with growing pauses.",
            "The failures by cause say what it was.",
        )
    return Bottleneck(
        WORKERS,
        "waiting for workers: none has claimed anything yet",
        "Workers run, but none has taken up an item: it must reach the export and the object store, and have room.",
        "The page of the workers tells which stores each of them reaches.",
    )


# --- something is copied ---------------------------------------------------------------------------------------------------


def _measured(batch: TransferBatch, items: Mapping[str, int]) -> Bottleneck | None:
    """What the pumps that copy for this batch tell of their last minute; None before they have told anything."""
    pumps = list(Claimer.objects.filter(seen__gt=Now() - _TOLD).exclude(times={}).select_related("worker"))
    by_source: defaultdict[int, Counter[str]] = defaultdict(Counter)
    for pump in pumps:
        for told in pump.times.get("copies", []):
            if told["batch"] == batch.pk:
                by_source[told["source"]].update(told["spent"])
    spent: Counter[str] = Counter()
    for one in by_source.values():
        spent.update(one)
    shares = shares_of(spent)
    if not shares:
        return None
    host, load = _busiest_host(pumps)
    if load >= _ALL_CPU:
        return _us(f"The CPUs of {host} are {round(100 * load)} % busy with copying.", shares)
    cause = max(shares, key=lambda name: shares[name])
    percent = f"{round(100 * shares[cause])} %"
    if cause == SOURCE:
        slowest = max(by_source, key=lambda pk: by_source[pk]["path.source"] + by_source[pk]["part.source"])
        return _source(slowest, percent, shares, _more(batch, items))
    if cause == LIMIT:
        return _limit(batch, [*by_source], percent, shares)
    if cause in {OURS, DATABASE}:
        return _own(cause, percent, shares)
    return _far_end(cause, spent, percent, shares, _more(batch, items))


def _busiest_host(pumps: Collection[Claimer]) -> tuple[str, float]:
    """(its name, the share of its CPUs that its pumps used)."""
    loads: dict[str, float] = defaultdict(float)
    for pump in pumps:
        if seconds := pump.times.get("seconds"):
            loads[pump.worker.hostname] += pump.times["cpu"] / seconds / pump.times["cores"]
    return max(loads.items(), key=lambda found: found[1], default=("", 0.0))


def _more(batch: TransferBatch, items: Mapping[str, int]) -> str:
    """What more copies at once take, where any wait for their turn: a higher limit, or workers that make use of it."""
    if not items[TransferState.QUEUED]:
        return ""
    seated = Transfer.objects.filter(batch=batch, state=TransferState.RUNNING, pump__isnull=False).count()
    if seated >= batch.concurrency:
        return "Raise the concurrency if it can bear more at once. "
    return f"Only {seated} of the {batch.concurrency} copies that may run at once do: if it can bear more, start more workers. "


def _source(pk: int, percent: str, shares: Mapping[str, float], more: str) -> Bottleneck:
    store = ImageStore.objects.select_related("zone").only("name", "zone__name").get(pk=pk)
    where = f" ({store.zone.name}'s export)" if store.zone else ""
    return Bottleneck(
        SOURCE,
        f"the source: {store.name}{where}",
        f"Copies waited {percent} of the last minute for what they read from there.",
        f"{more}Look at the load and the network of that file server.",
        shares,
    )


def _us(why: str, shares: Mapping[str, float]) -> Bottleneck:
    remedy = "Start a worker on another host, or give this one more CPUs."
    return Bottleneck(OURS, "us: the workers' CPU", why, remedy, shares)


def _own(cause: str, percent: str, shares: Mapping[str, float]) -> Bottleneck:
    if cause == OURS:
        return _us(f"Copies spent {percent} of the last minute on checksums, encryption and bookkeeping of ours.", shares)
    return Bottleneck(
        DATABASE,
        "the database",
        f"Copies waited {percent} of the last minute until something was written down.",
        "Look at the database's disk and load; on SQLite, move to PostgreSQL.",
        shares,
    )


def _limit(batch: TransferBatch, sources: Sequence[int], percent: str, shares: Mapping[str, float]) -> Bottleneck:
    limited = ImageStore.objects.filter(pk__in=sources, read_limit__isnull=False).values_list("name", flat=True)[:3]
    names = ["the drain's bandwidth"] if batch.bandwidth else []
    names += [f"the read limit of {name}" for name in limited]
    return Bottleneck(
        LIMIT,
        f"a limit that was set: {', '.join(names) or 'one that was just lifted'}",
        f"Copies held back for {percent} of the last minute so as not to exceed it.",
        "Raise the limit, or take it away, if source and network can bear more.",
        shares,
    )


def _far_end(cause: str, spent: Mapping[str, float], percent: str, shares: Mapping[str, float], more: str) -> Bottleneck:
    requests = spent.get("net.requests", 0.0)
    trip = f" A round trip takes {1000 * spent['net.round_trips'] / requests:.1f} ms." if requests else ""
    if cause == NETWORK:
        return Bottleneck(
            NETWORK,
            "the network to the object store",
            f"Copies waited {percent} of the last minute while bytes were on their way; the store took what arrived.{trip}",
            f"{more}Look at the link between the workers and the object store, or run workers nearer to it.",
            shares,
        )
    if cause == STORE:
        return Bottleneck(
            STORE,
            "the object store",
            f"Copies waited {percent} of the last minute for it to take bytes or to answer when it had them all.{trip}",
            f"{more}Look at the object store's load, its disks, and what stands in front of it.",
            shares,
        )
    return Bottleneck(
        EITHER,
        "the network or the object store",
        f"Copies waited {percent} of the last minute to send and to be answered; which of the two it is cannot be told.",
        f"{more}Compare with another client of the store on a worker's host.",
        shares,
    )


def _guessed(drain: Drain, running: Sequence[Mapping[str, Any]], rate: float) -> Bottleneck:
    """What the copies' last heartbeat says, until there are measurements."""
    if drain.batch.bandwidth and rate >= _ALL_CPU * drain.batch.bandwidth:
        return Bottleneck(LIMIT, "a limit that was set: the drain's bandwidth", "As much is copied as it allows.", "Raise it.")
    at_source = sum(row["waiting_on"] == "source" for row in running) * 2 > len(running)
    why = "So it was at the last heartbeat; what copies wait for is measured after some seconds."
    if at_source:
        return Bottleneck(SOURCE, "reading from the source", why)
    return Bottleneck(EITHER, "writing to the object store", why)
