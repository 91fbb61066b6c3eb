"""The signed report of a retired store as JSON, CSV and SHA256SUMS, streamed from its lines; its check against a store alone."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import Any

from django.db.models import QuerySet

from cloudstorage.errors import Invalid, Missing
from cloudstorage.spreadsheets import harmless
from migration.damage import difference
from migration.models import Decommission, RetiredFile
from migration.states import DecommissionState
from stores.copier import Control, CopyEngine
from stores.manifest import sum_line
from stores.models import ImageStore
from stores.services.image_stores import driver_for

FORMAT = "cloudstorage retirement report"
SIGNED = frozenset({DecommissionState.RETIRED, DecommissionState.DELETING, DecommissionState.IN_TRASH, DecommissionState.DELETED})
"""States in which there is a report."""
_PAGE = 500
_ITEMS, _UNKNOWN, _END = '"items": [', '], "unknown": [', '], "end": '
_KEPT = 1000
_SHOWN = 200
"""Letters of a line that is told as it was found."""
_ESCAPE = re.compile(r"\\(.)")


# --- writing ---------------------------------------------------------------------------------------------------------------


def stream(row: Decommission, form: str) -> Iterator[str]:
    """The report in one of `FORMS`, in pieces; raises Missing until it is signed, Invalid for another form."""
    if form not in FORMS:
        raise Invalid(f"There is no form {form!r} of the report.", remedy=f"Choose one of {', '.join(FORMS)}.", field="form")
    if row.state not in SIGNED:
        message = f"There is no signed report: the retirement of {row.store.name} is {row.state}."
        raise Missing(message, remedy="It is signed when the store is removed.", field="report")
    return FORMS[form](row)


def name_of(row: Decommission, form: str) -> str:
    """What a report's file is called."""
    store = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in row.store.name)
    return {"json": f"retired-{store}.json", "csv": f"retired-{store}.csv", "sha256sums": "SHA256SUMS"}[form]


def as_json(row: Decommission) -> Iterator[str]:
    """One JSON object, of which every line but the first and the last is a file; so it can be read as it can be written, bit by
    bit."""
    yield json.dumps(_header(row))[:-1] + f", {_ITEMS}\n"
    yield from _separated(json.dumps(line) for line in _lines(row))
    yield f"{_UNKNOWN}\n"
    unknown = _pages(row.unknown.all())
    yield from _separated(json.dumps({"path": found.path, "size": found.size}) for found in unknown)
    yield f"{_END}{json.dumps({**row.totals, 'sha256sums_sha256': row.sums_sha256})}}}\n"


def as_csv(row: Decommission) -> Iterator[str]:
    """A line for each file, with the names of the columns in the first; files that no ref knew come last, without a hash. Who
    accepted an exception stands on each line that it is about."""
    yield _csv_line([*_COLUMNS, "store_url", "accepted_by"])
    urls = {place["id"]: place["url"] for place in map(_place, _stores_of(row))}
    for line in _lines(row):
        unread = line["original_read_at"] is None or line["copy_read_at"] is None
        values = (line[name] if line[name] is not None else "" for name in _COLUMNS)
        yield _csv_line([*values, urls[line["store"]], row.actor if unread else ""])
    for found in _pages(row.unknown.all()):
        known = {"kind": "unknown", "original": found.path, "size": found.size}
        yield _csv_line([*(known.get(name, "") for name in _COLUMNS), "", row.acknowledged_by])


def as_sums(row: Decommission) -> Iterator[str]:
    """What `sha256sum -c` takes in a folder into which the object store was fetched."""
    for file in _pages(row.files.all()):
        yield sum_line(file.sha256, file.key)


FORMS: Mapping[str, Callable[[Decommission], Iterator[str]]] = {"json": as_json, "csv": as_csv, "sha256sums": as_sums}


def sums_digest(row: Decommission) -> str:
    """SHA-256 of the report's SHA256SUMS."""
    digest = hashlib.sha256()
    for line in as_sums(row):
        digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


_COLUMNS = (
    "kind", "item", "name", "account", "original", "size", "sha256", "store", "key", "proof", "proven_at", "original_read_at",
    "copy_read_at",
)  # fmt: skip


def _lines(row: Decommission) -> Iterator[dict[str, Any]]:
    stores = dict(ImageStore.objects.values_list("pk", "uuid"))
    for file in _pages(row.files.all()):
        yield {
            "kind": file.kind,
            "item": str(file.item_uuid),
            "name": file.item_name,
            "account": file.account,
            "original": file.path,
            "size": file.size,
            "sha256": file.sha256,
            "store": str(stores[file.copy_store_id]),
            "key": file.key,
            "proof": file.proof,
            "proven_at": _moment(file.proven_at),
            "original_read_at": _moment(file.original_read_at),
            "copy_read_at": _moment(file.copy_read_at),
        }


def _header(row: Decommission) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": 1,
        "id": str(row.uuid),
        "retired": _place(row.store),
        "stores": [_place(store) for store in _stores_of(row)],
        "asked_by": row.actor,
        "asked_at": _moment(row.created),
        "signed_at": _moment(row.ended_at),
        "checked": {"sample_percent": row.verification.sample_percent, "bytes_read": row.verification.bytes_checked},
        "exceptions": exceptions(row),
    }


def exceptions(row: Decommission) -> list[dict[str, Any]]:
    """What the retirement was allowed in spite of, and who accepted it."""
    found: list[dict[str, Any]] = []
    percent = row.verification.sample_percent
    if percent < 100:
        found.append(
            {
                "what": f"Of the copies, and of the originals that were hashed before, only {percent:g} % were read again, by"
                " choice; the others rest on their proof.",
                "files": row.totals.get("not_read_again", 0),
                "accepted_by": row.actor,
                "accepted_at": _moment(row.created),
            }
        )
    if row.acknowledged_digest:
        found.append(
            {
                "what": "Files that no ref knows lay on the store; they are on no other store of this cloud.",
                "files": row.unknown_count,
                "bytes": row.unknown_bytes,
                "digest": row.unknown_digest,
                "accepted_by": row.acknowledged_by,
                "accepted_at": _moment(row.acknowledged_at),
            }
        )
    return found


def _stores_of(row: Decommission) -> QuerySet[ImageStore]:
    """Where the proven copies are."""
    copies = RetiredFile.objects.filter(decommission=row).values("copy_store")
    return ImageStore.objects.filter(pk__in=copies).select_related("zone").order_by("pk")


def _place(store: ImageStore) -> dict[str, Any]:
    zone = store.zone.name if store.zone is not None else ""
    url = driver_for(store).display_url
    return {"name": store.name, "id": str(store.uuid), "provider": store.image_provider_name, "url": url, "zone": zone}


def _moment(at: datetime | None) -> str | None:
    return at.isoformat() if at is not None else None


def _pages(rows: QuerySet[Any]) -> Iterator[Any]:
    """Every row by key, in bounded memory on both databases."""
    after = 0
    while page := list(rows.filter(pk__gt=after).order_by("pk")[:_PAGE]):
        yield from page
        after = page[-1].pk


def _separated(lines: Iterable[str]) -> Iterator[str]:
    held = ""
    for line in lines:
        if held:
            yield f"{held},\n"
        held = line
    if held:
        yield f"{held}\n"


def _csv_line(values: Iterable[Any]) -> str:
    out = io.StringIO()
    csv.writer(out).writerow([harmless(value) if isinstance(value, str) else value for value in values])
    return out.getvalue()


# --- checking it without a row of ours -------------------------------------------------------------------------------------


@dataclass
class Checked:
    """What a store has of a report. `findings` are the first thousand: {path, problem, expected, found}."""

    files: int = 0
    bytes: int = 0
    findings_count: int = 0
    findings: list[dict[str, str]] = field(default_factory=list)

    def tell(self, path: str, found: Mapping[str, str]) -> None:
        self.findings_count += 1
        if len(self.findings) < _KEPT:
            self.findings.append({"path": path, **found})


def stores_named_in(path: Path) -> list[ImageStore]:
    """The stores that a report says its files are on; none where it does not say. Raises Missing where this cloud lacks one."""
    known = list(ImageStore.objects.filter(removed=None).select_related("zone"))
    found = []
    for place in _places(path):
        store = next(_at(place, known), None)
        if store is None:
            message = f"The report says that files are on {_name_of(place)}, which is no store of this cloud."
            raise Missing(message, remedy="Add it (store_add), or name the store that has them with --store.", field="store")
        found.append(store)
    return found


def _places(path: Path) -> list[dict[str, Any]]:
    with _opened(path) as file:
        first = file.readline()
    return list(_parsed_header(path, first)["stores"]) if first.startswith("{") else []


def _at(place: Mapping[str, Any], stores: Sequence[ImageStore]) -> Iterator[ImageStore]:
    """Of these stores the one that a report names; a database that was rebuilt knows it by another id."""
    yield from (store for store in stores if str(store.uuid) == place["id"])
    alike = (store for store in stores if store.image_provider_name == place.get("provider"))
    yield from (store for store in alike if driver_for(store).display_url == place.get("url"))


def _name_of(place: Mapping[str, Any]) -> str:
    return f"{place.get('name', 'a store')} ({place.get('url', place['id'])})"


_Entry = tuple[str, str, int | None]
"""(key, SHA-256, size where the report has one)"""


@dataclass(frozen=True, slots=True)
class _Unfit:
    """A line that is none of a report: somebody has changed it, so of which file it was is not known."""

    line: int
    text: str

    def as_difference(self) -> dict[str, str]:
        expected = "key, sha256, size and store of a file"
        return {"problem": "not a line of a report", "expected": expected, "found": self.text[:_SHOWN]}


def check(path: Path, store: ImageStore) -> Checked:
    """Read every file of a report (JSON or SHA256SUMS) from the store again; asks the database for the store's access only.

    Of a report about several stores only what it says is on this one. Raises Invalid for a file that is no report, is cut off,
    or says nothing of this store, StoreError where the store does not answer.
    """
    result = Checked()
    driver = driver_for(store)
    driver.check()
    places = _places(path)
    part = next((place["id"] for place in places if any(_at(place, [store]))), "") if len(places) > 1 else ""
    if len(places) > 1 and not part:
        message = f"The report says of none of its files that it is on {store.name}."
        raise Invalid(message, remedy=f"It names {', '.join(map(_name_of, places))}.", field="store")
    engine = CopyEngine(lanes=1)
    control = Control()
    try:
        for entry in _entries(path, part):
            result.files += 1
            if isinstance(entry, _Unfit):
                result.tell(f"line {entry.line} of the report", entry.as_difference())
                continue
            found, read = difference(engine, driver, control, *entry)
            result.bytes += read
            if found is not None:
                result.tell(entry[0], found)
    finally:
        engine.close()
    return result


def _opened(path: Path) -> io.TextIOWrapper:
    try:
        return path.open(encoding="utf-8", errors="surrogateescape", newline="\n")
    except OSError as error:
        raise Invalid(f"The report cannot be read: {error.strerror}.", remedy="Name its file.", field="report") from None


def _entries(path: Path, store: str) -> Iterator[_Entry | _Unfit]:
    with _opened(path) as file:
        first = file.readline()
        if first.startswith("{"):
            _parsed_header(path, first)
            yield from _of_json(path, file, store)
        else:
            yield from _of_sums(path, first, file)


def _parsed_header(path: Path, first: str) -> dict[str, Any]:
    if first.rstrip("\n").endswith(f", {_ITEMS}"):
        found = _loaded(path, first.rstrip("\n").removesuffix(f", {_ITEMS}") + "}")
        if found.get("format") == FORMAT and found.get("version") == 1 and _names_stores(found):
            return found
    raise _no_report(path, "it does not begin as one")


def _names_stores(header: Mapping[str, Any]) -> bool:
    stores = header.get("stores")
    return isinstance(stores, list) and all(isinstance(store, dict) and isinstance(store.get("id"), str) for store in stores)


def _of_json(path: Path, file: Iterable[str], store: str) -> Iterator[_Entry | _Unfit]:
    count = 0
    listing = True
    for number, line in enumerate(file, 2):
        text = line.rstrip("\n")
        if text == _UNKNOWN:
            listing = False
        elif text.startswith(_END):
            end = _loaded(path, text.removeprefix(_END)[:-1])
            if end.get("files") != count:
                raise _no_report(path, f"it says {end.get('files')} files and lists {count}")
            return
        elif listing:
            entry = _loaded(path, text.removesuffix(","))
            count += 1
            key, sha256, size, on = (entry.get(name) for name in ("key", "sha256", "size", "store"))
            if not (isinstance(key, str) and isinstance(sha256, str) and isinstance(on, str) and type(size) is int and sha256):
                yield _Unfit(number, text)
            elif store in {"", on}:
                yield key, sha256, size
    raise _no_report(path, "it is cut off")


def _of_sums(path: Path, first: str, file: Iterable[str]) -> Iterator[_Entry]:
    for line in chain([first], file):
        escaped, text = line.startswith("\\"), line.rstrip("\n").removeprefix("\\")
        digest, _, key = text.partition("  ")
        if len(digest) != 64 or not key:
            raise _no_report(path, "a line is not a SHA-256 with a name")
        yield _ESCAPE.sub(_unescaped, key) if escaped else key, digest, None


def _unescaped(match: re.Match[str]) -> str:
    return {"n": "\n", "r": "\r"}.get(match.group(1), match.group(1))


def _loaded(path: Path, text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        raise _no_report(path, "a line is not JSON") from None
    if not isinstance(found, dict):
        raise _no_report(path, "a line is not an object of JSON")
    return found


def _no_report(path: Path, why: str) -> Invalid:
    remedy = "Fetch the report again, as JSON or SHA256SUMS, and do not edit it."
    return Invalid(f"{path} is not the report of a retired store: {why}.", remedy=remedy, field="report")
