"""Makes an object store self-describing: append-only journal objects beside the data say what each object is and how we know.

One JSON line per item: identity, owner, zones, chain, files with size, SHA-256, etag and proof. A line may stand twice (a crash
between the object and the row, or an item that changed); readers take the last. Objects of a deleted item are gone, so its lines
mean nothing.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from django.db import transaction
from django.db.models import F, Prefetch, Q
from django.db.models.functions import Now

from cloudstorage.checkpoints import reach
from stores.drivers.base import Reader, StoreDriver
from stores.drivers.errors import NotFound, Unavailable
from stores.models import KINDS, ImageStore, Kind, TemplateZoneRef, Zone
from stores.services.image_stores import driver_for
from stores.states import READABLE

FOLDER = ".cs-journal/"
SMALL = 64 * 1024
"""Bytes below which a journal object is worth being merged with its neighbours."""
MERGED = 4 * 1024 * 1024
_LINES = 500
_BLOCK = 1024 * 1024
_MAX_LINE = 4 * 1024 * 1024


# --- writing ---------------------------------------------------------------------------------------------------------------


def write(store: ImageStore, *, batches: int = 20) -> int:
    """Write what the journal of `store` lacks, at most `batches` objects per kind; returns how many items."""
    written = 0
    for kind, models in KINDS.items():
        for _ in range(batches):
            lacking = models.ref.objects.filter(store=store, state__in=READABLE, journalled=False)
            lacking = lacking.select_related(*_related(kind)).prefetch_related(*_with_files(kind))
            refs = list(lacking.annotate(read_at=Now()).order_by("pk")[:_LINES])
            if not refs:
                break
            body = "".join(json.dumps(_line(kind, ref), separators=(",", ":")) + "\n" for ref in refs).encode()
            _put(driver_for(store), body, key=_key(refs[0].read_at))
            reach("journal.written")
            with transaction.atomic():
                rows = models.ref.objects.select_for_update(of=("self",)).filter(pk__in=[ref.pk for ref in refs])
                now = dict(rows.order_by("pk").values_list("pk", "update_count"))
                told = [ref.pk for ref in refs if now.get(ref.pk) == ref.update_count]  # else it changed while it was told
                models.ref.objects.filter(pk__in=told).update(journalled=True)
            written += len(refs)
    return written


def outdated(kind: Kind, items: Q) -> None:
    """What the journals say of the items that `items` selects is true no longer; they are told again by the next `write`.

    Inside the transaction that changes the items.
    """
    models = KINDS[kind]
    changed = models.item.objects.filter(items).values("pk")
    told = models.ref.objects.filter(item__in=changed, journalled=True)
    told.update(journalled=False, update_count=F("update_count") + 1)


def compact(store: ImageStore) -> int:
    """Merge runs of small journal objects into larger ones, in their order; returns how many were merged away.

    A death in between leaves lines twice, which changes nothing. The newest object stays: somebody may be writing beside it.
    """
    driver = driver_for(store)
    merged = 0
    run: list[tuple[str, int]] = []
    listed = [(info.key, info.size) for info in driver.list(FOLDER)][:-1]
    for key, size in [*listed, ("", SMALL)]:
        if size < SMALL and sum(bytes_ for _, bytes_ in run) < MERGED:
            run.append((key, size))
            continue
        if len(run) > 1:
            body = b"".join(_whole(driver, name) for name, _ in run)
            # The name of the last one with a tail: nothing sorts between them, so "the last line counts" still holds. A new tail
            # each time: one that was merged before a death is not what is deleted here.
            _put(driver, body, key=f"{run[-1][0].removesuffix('.jsonl')}+{uuid.uuid4().hex[:8]}.jsonl")
            reach("journal.merged")
            for name, _ in run:
                driver.delete(name)
            merged += len(run)
        run = [(key, size)] if size < SMALL else []
    return merged


def _key(read_at: datetime) -> str:
    """Sorts by the moment in which the rows were read, by the database's clock: so the last line is what they said last, however
    late a worker writes it and whatever its own clock says. That settles only what the embedded database, which counts
    milliseconds, has read within one."""
    return f"{FOLDER}{read_at:%Y%m%dT%H%M%S.%fZ}-{time.time_ns():020}-{uuid.uuid4().hex[:8]}.jsonl"


def _put(driver: StoreDriver, body: bytes, *, key: str) -> None:
    driver.put(key, body, metadata={"cs-kind": "journal"}, token=f"journal-{uuid.uuid4().hex[:8]}")


def _related(kind: Kind) -> list[str]:
    return {
        Kind.TEMPLATE: ["item__account"],
        Kind.SNAPSHOT: ["item__account", "item__zone", "item__parent"],
        Kind.VOLUME: ["item__account", "item__zone"],
    }[kind]


def _with_files(kind: Kind) -> list[Any]:
    found: list[Any] = [Prefetch("files", queryset=KINDS[kind].file.objects.order_by("path"))]
    if kind is Kind.TEMPLATE:
        shown = TemplateZoneRef.objects.filter(removed=None).select_related("zone").order_by("zone_id")
        found.append(Prefetch("item__zone_refs", queryset=shown))
    return found


_FILE_FIELDS = ("path", "size", "sha256", "etag", "proof", "format", "virtual_size", "backing", "problem")


def _line(kind: Kind, ref: Any) -> dict[str, Any]:
    item = ref.item
    line = {
        "kind": str(kind),
        "uuid": str(item.uuid),
        "name": item.name,
        "account": item.account_id,
        "account_name": item.account.account_name,
        "account_uuid": str(item.account.uuid),
        "upstream_id": item.upstream_id,
        "format": item.format,
        "hypervisor": item.hypervisor_type,
        "virtual_size": item.size,
        "created": item.created.isoformat(),
        "state": ref.state,
        "install_path": ref.install_path,
        "sha256": ref.sha256,
        "physical_size": ref.physical_size,
        "proof": ref.proof,
        "proven_at": ref.proven_at.isoformat() if ref.proven_at else None,
        "files": [{name: getattr(file, name) for name in _FILE_FIELDS} for file in ref.files.all()],
    }
    if kind == Kind.TEMPLATE:
        line |= {name: getattr(item, name) for name in TEMPLATE_FIELDS}
        line["zones"] = [_zone(shown.zone) for shown in item.zone_refs.all()]
    else:
        line["zones"] = [_zone(item.zone)] if item.zone else []
    if kind == Kind.SNAPSHOT:
        line |= {"volume": item.volume_upstream_id, "path": item.path, "depth": item.depth}
        line["parent"] = str(item.parent.uuid) if item.parent else None
    return line


TEMPLATE_FIELDS = (
    "unique_name", "display_text", "public", "featured", "extractable", "type", "url", "checksum", "cross_zones",
)  # fmt: skip
"""Columns of a template that stand in its line under their own names."""


def _zone(zone: Zone) -> dict[str, str]:
    return {"uuid": str(zone.uuid), "name": zone.name}


# --- reading ---------------------------------------------------------------------------------------------------------------


def lines(driver: StoreDriver) -> Iterator[tuple[str, Mapping[str, Any] | None]]:
    """(key of the journal object, line) in the order they were written; None for a line that cannot be read.

    Raises Unavailable where an object is listed and gone, for its lines stand in one that the listing may not have yet.
    """
    for info in driver.list(FOLDER):
        rest = b""
        with _listed(driver, info.key) as reader:
            for offset in range(0, reader.size, _BLOCK):
                *whole, rest = (rest + reader.pread(offset, _BLOCK)).split(b"\n")
                for text in whole:
                    yield info.key, _parsed(text)
                if len(rest) > _MAX_LINE:
                    break
        if rest:
            yield info.key, _parsed(rest)


def _listed(driver: StoreDriver, key: str) -> Reader:
    try:
        return driver.open(key)
    except NotFound:
        message = f"{key} was listed and is gone: the journal is being merged, or the store's listings lag behind. Scan again."
        raise Unavailable(message) from None


def _parsed(text: bytes) -> Mapping[str, Any] | None:
    try:
        line = json.loads(text)
    except ValueError:
        return None
    return line if isinstance(line, dict) else None


def _whole(driver: StoreDriver, key: str) -> bytes:
    with driver.open(key) as reader:
        body = b"".join(reader.pread(offset, _BLOCK) for offset in range(0, reader.size, _BLOCK))
    return body if body.endswith(b"\n") else body + b"\n"
