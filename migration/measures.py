"""What a monitoring system is told of an installation: figures by name, in a fixed number of queries."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from django.conf import settings
from django.db.models import Count, OuterRef, QuerySet, Subquery
from django.db.models.functions import Now

from cloudstorage import queue
from cloudstorage.models import Installation
from migration.drain import totals
from migration.models import Drain, Verification
from migration.states import ENDED_DRAINS, VerificationState
from stores.models import KINDS, ImageStore, Transfer, Worker, WorkerReach
from stores.states import TransferState

OPEN_DRAINS = 8
"""So many, the newest, are told of by name."""


Samples = dict[tuple[str, ...], float]
"""Figures by the values of their labels."""


@dataclass(slots=True)
class Measure:
    """One figure, or one for each set of labels; `samples` is empty where there is nothing to tell at the moment."""

    name: str
    help: str
    labels: Sequence[str] = ()
    samples: Samples = field(default_factory=dict)

    def lines(self) -> Iterator[str]:
        """In the text format of Prometheus."""
        yield f"# HELP {self.name} {self.help}"
        yield f"# TYPE {self.name} gauge"
        for values, number in self.samples.items():
            told = ",".join(f'{name}="{_escaped(value)}"' for name, value in zip(self.labels, values, strict=True))
            yield f"{self.name}{{{told}}} {number:.17g}" if told else f"{self.name} {number:.17g}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def measures() -> list[Measure]:
    """Every figure, those without samples too."""
    return [*_installation(), *_items(), *_transfers(), *_workers(), *_drains(), *_stores()]


def as_text(found: Sequence[Measure]) -> str:
    """What `/metrics` answers."""
    return "".join(f"{line}\n" for measure in found for line in measure.lines())


def _installation() -> Iterator[Measure]:
    yield Measure("cloudstorage_info", "Version of the web server; always 1.", ["version"], {(settings.VERSION,): 1})
    told = "1 while nothing may be changed, since a restored database was not yet compared with its stores."
    yield Measure("cloudstorage_read_only", told, samples={(): bool(Installation.why_read_only())})
    yield Measure("cloudstorage_queue_messages", "Wake-ups that no worker has fetched.", samples={(): queue.pending()})


def _items() -> Iterator[Measure]:
    found = Measure("cloudstorage_copies", "Copies of items on stores, by state.", ["kind", "state"])
    for kind, models in KINDS.items():
        for state, count in models.ref.objects.order_by().values_list("state").annotate(Count("pk")):
            found.samples[kind.value, state] = count
    yield found


def _transfers() -> Iterator[Measure]:
    states = dict(Transfer.objects.order_by().values_list("state").annotate(Count("pk")))
    by_state: Samples = {(state.value,): float(states.get(state, 0)) for state in TransferState}
    yield Measure("cloudstorage_transfers", "Transfers by state.", ["state"], by_state)
    failed = Transfer.objects.filter(state=TransferState.FAILED).order_by()
    causes: Samples = {(cause,): float(count) for cause, count in failed.values_list("error_cause").annotate(Count("pk"))}
    yield Measure("cloudstorage_transfers_failed", "Transfers that wait for a person, by cause.", ["cause"], causes)
    running = Transfer.objects.filter(state=TransferState.RUNNING, progress_at__isnull=False).order_by("progress_at")
    told = "Since the copy that is longest without progress had any; 0 where nothing is copied."
    yield Measure("cloudstorage_transfer_stalled_seconds", told, samples={(): _age(running, "progress_at") or 0.0})


def _workers() -> Iterator[Measure]:
    age = _age(Worker.objects.filter(stopped=None).order_by("-heartbeat"), "heartbeat")
    told = "Since any worker that did not say good-bye was heard of; nothing where there is none."
    samples: Samples = {} if age is None else {(): age}
    yield Measure("cloudstorage_worker_heartbeat_age_seconds", told, samples=samples)


def _age(rows: QuerySet[Any], column: str) -> float | None:
    """Seconds since the moment in a column of the first row, by the clock that wrote it; None where there is no row."""
    told = rows.annotate(now=Now()).values_list("now", column).first()
    return None if told is None else max(0.0, (told[0] - told[1]).total_seconds())


def _drains() -> Iterator[Measure]:
    state = Measure("cloudstorage_drain", "A drain that is not at its end and its state; 1.", ["drain", "state"])
    items = Measure("cloudstorage_drain_items", "Items of a drain by the state of their copying.", ["drain", "state"])
    content = Measure("cloudstorage_drain_bytes", "Bytes of a drain: total, proven, copied, remaining.", ["drain", "part"])
    for drain in Drain.objects.exclude(state__in=ENDED_DRAINS).select_related("batch").order_by("-pk")[:OPEN_DRAINS]:
        name = str(drain.uuid)
        found = totals(Transfer.objects.filter(batch=drain.batch_id))
        state.samples[name, drain.state] = 1
        items.samples |= {(name, each.value): found.items.get(each, 0) for each in TransferState}
        parts: Mapping[str, int] = {
            "total": found.bytes_total,
            "proven": found.bytes_proven,
            "copied": found.bytes_copied,
            "remaining": found.bytes_total - found.bytes_proven - found.bytes_copied,
        }
        content.samples |= {(name, part): count for part, count in parts.items()}
    yield from (state, items, content)


def _stores() -> Iterator[Measure]:
    reached = Measure("cloudstorage_store_reached", "1 where a living worker reaches the store.", ["store"])
    size = Measure("cloudstorage_store_size_bytes", "Size of the store's file system.", ["store"])
    used = Measure("cloudstorage_store_used_bytes", "Bytes used of it.", ["store"])
    findings = Measure("cloudstorage_store_findings", "Differences that the newest ended verification found.", ["store"])
    age = Measure("cloudstorage_store_verified_age_seconds", "Since a verification of the store ended.", ["store"])
    ok = set(WorkerReach.objects.of_living_workers().filter(ok=True).values_list("store_id", flat=True))
    ended = Verification.objects.filter(store=OuterRef("pk"), state=VerificationState.FINISHED).order_by("-pk")
    stores: Any = ImageStore.objects.attached().annotate(
        found=Subquery(ended.values("findings_count")[:1]),
        verified_at=Subquery(ended.values("finished_at")[:1]),
        now=Now(),
    )
    for store in stores.only("name", "total_size", "used_bytes"):
        reached.samples[store.name,] = store.pk in ok
        if store.total_size:
            size.samples[store.name,] = store.total_size
            used.samples[store.name,] = store.used_bytes or 0
        if store.found is not None:
            findings.samples[store.name,] = store.found
        if store.verified_at is not None:
            age.samples[store.name,] = max(0.0, (store.now - store.verified_at).total_seconds())
    yield from (reached, size, used, findings, age)
