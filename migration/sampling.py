"""Opens, reads, hashes and times a bounded sample of what lies on the exports, and times the object store."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from django.db.models import Count, F, Max, Min

from cloudstorage.models import Installation
from migration.findings import EXAMPLES, Finding
from stores.drivers.base import MiB, ProbeStep, Reader, StoreConfig, StoreDriver
from stores.drivers.errors import StoreError
from stores.drivers.probe import Sandbox, facts_of
from stores.models import KINDS, ImageStore, Kind
from stores.services.image_stores import driver_class, driver_for
from stores.states import READABLE

OPEN_AT_MOST = 2000
"""Files per store that are opened; a larger store is sampled evenly over all its files."""
OPEN_SECONDS = 120.0
READ_AT_MOST = 64 * MiB
"""Bytes per store that are read to time it."""
COMPARE_AT_MOST = 256 * MiB
"""Bytes that are hashed altogether to compare the copies of several zones."""
BLOCK = 4 * MiB
WRITE_SIZE = 8 * MiB
STREAMS = 4
SMALL_WRITES = 5


@dataclass(slots=True)
class Sample:
    """What was seen of one store."""

    store: ImageStore
    files: int = 0
    opened: int = 0
    unreadable: int = 0
    choice: str = ""
    """How the opened files were chosen, for people."""
    bytes_read: int = 0
    seconds: float = 0.0
    findings: list[Finding] = field(default_factory=list)

    @property
    def rate(self) -> float | None:
        """Bytes per second that one stream read; None when there was nothing to read."""
        return self.bytes_read / self.seconds if self.bytes_read and self.seconds > 0 else None


def look_at(store: ImageStore) -> Sample:
    """Open the files of a store, as this process's user, and time the reading of a few large ones."""
    sample = Sample(store)
    driver = driver_for(store)
    sample.files = sum(_files(kind, store).count() for kind in KINDS)
    step = -(-sample.files // OPEN_AT_MOST) or 1
    sample.choice = "every file" if step == 1 else f"one file in {step}"
    examples: list[str] = []
    deadline = time.monotonic() + OPEN_SECONDS
    for path in _paths(store, step):
        if time.monotonic() > deadline:
            sample.choice += f", as far as {OPEN_SECONDS:.0f} s went"
            break
        sample.opened += 1
        try:
            with driver.open(path) as reader:
                reader.pread(0, 512)
        except StoreError as error:
            sample.unreadable += 1
            examples.append(f"{path}: {error}")
            del examples[EXAMPLES:]
    if sample.unreadable:
        sample.findings.append(_unreadable(sample, examples))
    _time_reading(sample, driver)
    return sample


def _files(kind: Kind, store: ImageStore) -> Any:
    return KINDS[kind].file.objects.filter(ref__store=store, ref__state__in=READABLE)


def _paths(store: ImageStore, step: int) -> Iterator[str]:
    for kind in KINDS:
        rows = _files(kind, store).order_by()
        if step > 1:
            rows = rows.annotate(turn=F("id") % step).filter(turn=0)
        yield from rows.values_list("path", flat=True).iterator(chunk_size=2000)


def _unreadable(sample: Sample, examples: Sequence[str]) -> Finding:
    message = (
        f"{sample.unreadable} of {sample.opened} files that were opened on {sample.store.name} cannot be read ({sample.choice})."
    )
    remedy = "Give the user that runs cloudstorage the right to read them, or restore them; a scan finds what is gone."
    return Finding("unreadable-files", "blocker", message, remedy, True, examples=tuple(examples)).at(sample.store)


def _time_reading(sample: Sample, driver: StoreDriver) -> None:
    largest = [
        path for kind in KINDS for path in _files(kind, sample.store).order_by("-size", "id").values_list("path", flat=True)[:2]
    ]
    started = time.monotonic()
    for path in largest:
        left = READ_AT_MOST - sample.bytes_read
        if left <= 0:
            break
        try:
            with driver.open(path) as reader:
                sample.bytes_read += sum(len(block) for block in _blocks(reader, left))
        except StoreError:
            continue  # reported as unreadable where it was opened
    sample.seconds = time.monotonic() - started


def _blocks(reader: Reader, at_most: int | None = None) -> Iterator[bytes]:
    size = reader.size if at_most is None else min(reader.size, at_most)
    for offset in range(0, size, BLOCK):
        yield reader.pread(offset, min(BLOCK, size - offset))


# --- copies in several zones ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Comparison:
    """Whether items with several copies are the same everywhere."""

    findings: list[Finding]
    several: int
    """Items with more than one copy."""
    compared: int
    """Of them, items whose content was hashed."""

    @property
    def not_compared(self) -> int:
        return self.several - self.compared


def compare_copies(stores: Sequence[ImageStore]) -> Comparison:
    """Compare sizes of all items that lie on several exports, and the content of some within COMPARE_AT_MOST bytes."""
    findings: list[Finding] = []
    several = compared = 0
    budget = COMPARE_AT_MOST
    differing: list[str] = []
    for kind, models in KINDS.items():
        copies = models.ref.objects.filter(store__in=stores, state__in=READABLE).order_by().values("item_id")
        items = copies.annotate(copies=Count("id"), least=Min("size"), most=Max("size")).filter(copies__gt=1)
        several += items.count()
        other_sizes = items.exclude(least=F("most"))
        if count := other_sizes.count():
            findings.append(_other_sizes(kind, count, [row["item_id"] for row in other_sizes.order_by("item_id")[:EXAMPLES]]))
        for row in items.filter(least=F("most")).order_by("least", "item_id")[:1000]:
            cost = row["least"] * row["copies"]
            if cost > budget:
                break
            budget -= cost
            try:
                hashes = _hashes(kind, row["item_id"], stores)
            except StoreError:
                continue  # an unreadable copy is a finding of its own; this item counts as not compared
            compared += 1
            if len(set(hashes.values())) > 1:
                differing.append(f"{kind} {models.item.objects.get(pk=row['item_id']).name} on {', '.join(sorted(hashes))}")
    if differing:
        message = f"{len(differing)} of {compared} compared items have another content on another export, at the same size."
        remedy = "Only one of the copies goes to the object store; decide which is right and delete or replace the other first."
        findings.append(
            Finding("differing-copies", "blocker", message, remedy, overridable=True, examples=tuple(differing[:EXAMPLES]))
        )
    return Comparison(findings, several, compared)


def _other_sizes(kind: Kind, count: int, item_ids: Sequence[int]) -> Finding:
    names = KINDS[kind].item.objects.filter(pk__in=item_ids).order_by("pk").values_list("name", flat=True)
    message = f"{count} {kind} items have copies of different size on different exports."
    remedy = "Only one of the copies goes to the object store; decide which is right and delete or replace the other first."
    return Finding("differing-copies", "blocker", message, remedy, overridable=True, examples=tuple(names))


def _hashes(kind: Kind, item_id: int, stores: Sequence[ImageStore]) -> dict[str, str]:
    """Store name -> SHA-256 over the item's files in order of their paths."""
    models = KINDS[kind]
    found: dict[str, str] = {}
    refs = models.ref.objects.filter(item_id=item_id, store__in=stores, state__in=READABLE).select_related("store")
    for ref in refs.order_by("store_id"):
        digest = hashlib.sha256()
        driver = driver_for(ref.store)
        for path in models.file.objects.filter(ref=ref).order_by("path").values_list("path", flat=True):
            with driver.open(path) as reader:
                for block in _blocks(reader):
                    digest.update(block)
        found[ref.store.name] = digest.hexdigest()
    return found


# --- the object store ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Speed:
    """What the object store did in a small trial: bytes per second, and seconds per small object."""

    one_stream: float
    streams: float
    """With STREAMS at once."""
    small_seconds: float
    seconds: float
    written: int


class Target:
    """The object store that is to be, before it has a row."""

    def __init__(self, provider: str, url: str, details: Mapping[str, str], steps: Sequence[ProbeStep]) -> None:
        cloud = str(Installation.get().uuid)
        config = StoreConfig(url, details, str(UUID(int=0)), cloud, facts_of(steps))
        self.driver = driver_class(provider)(config)

    def measure(self) -> Speed | None:
        """Time some writes below the probe's own prefix, and remove them; None where one failed."""
        sandbox = Sandbox(self.driver)
        data = _noise(WRITE_SIZE)
        started = time.monotonic()
        try:
            one = _timed(lambda: sandbox.put("speed-0", data))
            with ThreadPoolExecutor(STREAMS) as pool:
                names = [f"speed-{number}" for number in range(1, STREAMS + 1)]
                several = _timed(lambda: list(pool.map(lambda name: sandbox.put(name, data), names)))
            small = _timed(lambda: [sandbox.put(f"small-{number}", b"x" * 4096) for number in range(SMALL_WRITES)])
        except StoreError:
            return None
        finally:
            sandbox.clean()
            self.driver.close()
        return Speed(
            one_stream=len(data) / one,
            streams=len(data) * STREAMS / several,
            small_seconds=small / SMALL_WRITES,
            seconds=time.monotonic() - started,
            written=len(data) * (1 + STREAMS),
        )


def _timed(work: Any) -> float:
    started = time.monotonic()
    work()
    return max(time.monotonic() - started, 1e-6)


def _noise(size: int) -> bytes:
    """Bytes that do not compress, without draining the system's randomness."""
    block = b"".join(hashlib.sha256(number.to_bytes(8, "big")).digest() for number in range(MiB // 32))
    return block * (size // MiB)


def time_range(requests: Mapping[str, int], samples: Sequence[Sample], speed: Speed | None) -> dict[str, Any]:
    """How long a drain of everything may take: `low_seconds` with several streams at once, `high_seconds` with one.

    Both are null where there is nothing to base them on.
    """
    rates = [sample.rate for sample in samples if sample.rate]
    if speed is None or (not rates and requests["bytes"]):
        basis = "Not enough could be measured: the object store or the exports were not usable."
        return {"low_seconds": None, "high_seconds": None, "basis": basis}
    read = min(rates, default=float("inf"))
    per_object = speed.small_seconds
    low = requests["bytes"] / min(read * STREAMS, speed.streams) + requests["objects"] * per_object / STREAMS
    high = requests["bytes"] / min(read, speed.one_stream) + requests["objects"] * per_object
    basis = (
        f"Measured: {sum(sample.bytes_read for sample in samples) // MiB} MiB read from {len(rates)} exports with one stream at"
        f" {min(rates, default=0.0) / MiB:.0f} MiB/s on the slowest (files in a cache read faster than the disks);"
        f" {speed.written // MiB} MiB written to the object store at {speed.one_stream / MiB:.0f} MiB/s with one stream and"
        f" {speed.streams / MiB:.0f} MiB/s with {STREAMS}; {per_object * 1000:.0f} ms for a small object."
        f" Low: {STREAMS} streams, high: one. More workers, limits and other load change it."
    )
    return {"low_seconds": round(min(low, high), 1), "high_seconds": round(max(low, high), 1), "basis": basis}
