"""Turns a store's sorted listing into one item directory after the other, and accounts for everything else in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from stores import layout
from stores.drivers.base import ObjectInfo, StoreDriver
from stores.images import is_plain_name
from stores.layout import Place
from stores.services.scan.report import ScanReport
from stores.states import Kind


@dataclass(slots=True)
class Folder:
    """The directory of a template or volume, or that of a volume's snapshots, with the regular files in it."""

    place: Place
    entries: dict[str, ObjectInfo] = field(default_factory=dict)
    """By whole key, in the order of the listing."""

    @property
    def path(self) -> str:
        return self.place.folder

    def name_of(self, key: str) -> str:
        """The name of an entry, relative to the directory."""
        return key[len(self.path) + 1 :]

    def units(self) -> dict[str, list[ObjectInfo]]:
        """Entries by the install path of the item that they would be of: the directory, or one path per snapshot in it."""
        if self.place.kind is not Kind.SNAPSHOT:
            return {self.path: list(self.entries.values())}
        units: dict[str, list[ObjectInfo]] = {}
        for key, info in self.entries.items():
            units.setdefault(f"{self.path}/{self.name_of(key).split('/')[0]}", []).append(info)
        return units


def folders(driver: StoreDriver, report: ScanReport) -> Iterator[Folder]:
    """Every item directory in the order of the listing, empty ones too; memory holds one of them at a time.

    What is no item's file goes straight to the report. Raises what the driver raises.
    """
    entered: list[Place] = []

    folder: Folder | None = None
    for info in driver.list(prune=_pruner(entered, report)):
        place = layout.parse(info.key)
        if folder is not None and (place is None or place.folder != folder.path):
            yield folder
            folder = None
        while entered and (place is None or entered[0].folder != place.folder):
            yield Folder(entered.pop(0))
        if place is not None and place.rest:
            entered.clear()
            folder = folder or Folder(Place(place.kind, place.account_id, place.owner_id))
        if _belongs(info, place, report) and folder is not None:
            folder.entries[info.key] = info
    if folder is not None:
        yield folder
    for place in entered:
        yield Folder(place)


def _pruner(entered: list[Place], report: ScanReport) -> Callable[[str], bool]:
    """Skips by the named rules, and notes each item directory that is entered: an empty one shows in no other way."""

    def prune(key: str) -> bool:
        rule = layout.skip_rule(key)
        if rule is not None:
            report.skipped[rule] += 1
            return True
        place = layout.parse(key) if key.endswith("/") else None
        if place is not None and not place.rest:
            entered.append(place)
        return False

    return prune


def _belongs(info: ObjectInfo, place: Place | None, report: ScanReport) -> bool:
    """Whether it may be a file of an item; reports it where not."""
    if info.kind == "unreadable":
        report.unreadable.add(info.key, "The export refuses to show it to the user of the worker.")
    elif info.kind != "file":
        what = "A symbolic link" if info.kind == "symlink" else "A special file"
        report.unknown.add(info.key, f"{what}: neither followed nor opened.")
    elif layout.is_system_iso(info.key):
        report.found["system"] += 1
    elif place is None or not place.rest:
        report.unknown.add(info.key, "Not in CloudStack's layout.")
    elif not _is_storable(info.key, place):
        report.unknown.add(info.key, "Its name is not UTF-8 text without control characters, so no row can hold it.")
    elif layout.is_unfinished(place.rest[-1]):
        report.in_flight.add(info.key, "A download that CloudStack has not finished.")
    elif len(place.rest) > (2 if place.kind is Kind.SNAPSHOT else 1):
        report.orphaned.add(info.key, "It lies deeper in the directory than any item's file.")
    else:
        return True
    return False


def _is_storable(key: str, place: Place) -> bool:
    return layout.is_storable(key) and all(is_plain_name(name) for name in place.rest)
