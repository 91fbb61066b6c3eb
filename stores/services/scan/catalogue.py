"""Reads an optional catalogue: what the cloud's own database knows of items and an export cannot tell."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.db import transaction
from django.db.models import Q

from cloudstorage.errors import Invalid
from stores.models import KINDS, Account
from stores.services import journal
from stores.services.scan.lease import Lease
from stores.services.scan.report import ScanReport
from stores.states import Kind

_CHUNK = 500
_MAX_ID = 2**63 - 1
_KEYS: dict[str, tuple[Kind, str, set[str]]] = {
    "templates": (Kind.TEMPLATE, "id", {"display_text", "public", "featured", "extractable"}),
    "volumes": (Kind.VOLUME, "id", set()),
    "snapshots": (Kind.SNAPSHOT, "volume_id", {"path", "id", "parent"}),
}
_TEXTS = {"name": 255, "display_text": 4096, "path": 255, "parent": 255}
_FLAGS = {"public", "featured", "extractable"}
_NUMBERS = {"account_id", "id", "volume_id"}

_Key = tuple[int, int, str]


@dataclass(frozen=True, slots=True)
class Catalogue:
    """A validated catalogue.

    `{"accounts": [{"id", "name", "uuid"?}], "templates": [{"account_id", "id", "uuid"?, "name"?, "display_text"?, "public"?,
    "featured"?, "extractable"?}], "volumes": [{"account_id", "id", "uuid"?, "name"?}], "snapshots": [{"account_id",
    "volume_id", "path", "id"?, "uuid"?, "name"?, "parent"?}]}`. Snapshots are named by file or directory; `parent` is the path
    of another one of the same volume, and must agree with the file's header.
    """

    accounts: Mapping[int, Mapping[str, Any]]
    items: Mapping[Kind, Mapping[_Key, Mapping[str, Any]]]

    @classmethod
    def parse(cls, data: object) -> Catalogue:
        """Raises Invalid naming the entry and what is wrong with it; nothing has been changed then."""
        if not isinstance(data, Mapping):
            raise _invalid("catalogue", "must be an object with the lists accounts, templates, volumes and snapshots")
        for name in data:
            if name != "accounts" and name not in _KEYS:
                raise _invalid(str(name), "is no list of a catalogue")
        accounts: dict[int, Mapping[str, Any]] = {}
        uuids: set[str] = set()
        for where, entry in _entries(data, "accounts"):
            _check(where, entry, required={"id", "name"}, optional={"uuid"}, uuids=uuids)
            if entry["id"] in accounts:
                raise _invalid(where, "names an account that another entry names too")
            accounts[entry["id"]] = entry
        items: dict[Kind, dict[_Key, Mapping[str, Any]]] = {}
        for name, (kind, owner, optional) in _KEYS.items():
            required = {"account_id", owner} | ({"path"} if kind is Kind.SNAPSHOT else set())
            items[kind] = {}
            for where, entry in _entries(data, name):
                _check(where, entry, required=required, optional=optional | {"uuid", "name"}, uuids=uuids)
                key = (entry["account_id"], entry[owner], entry.get("path", ""))
                if key in items[kind]:
                    raise _invalid(where, "names an item that another entry names too")
                items[kind][key] = entry
        return cls(accounts, items)

    def apply(self, report: ScanReport, lease: Lease) -> None:
        """Give the items that exist the names, uuids and owners of their entries, some hundreds to a transaction."""
        counts = {"matched": 0, "updated": 0, "unmatched": 0}
        ids = sorted(self.accounts)
        for chunk in (ids[at : at + _CHUNK] for at in range(0, len(ids), _CHUNK)):
            with transaction.atomic():
                lease.renew()
                self._apply_accounts(chunk, counts)
        for kind, entries in self.items.items():
            keys = sorted(entries)
            for some in (keys[at : at + _CHUNK] for at in range(0, len(keys), _CHUNK)):
                with transaction.atomic():
                    lease.renew()
                    delta = _apply_items(kind, {key: entries[key] for key in some}, counts)
                report.merge(delta)
        report.catalogue = counts

    def _apply_accounts(self, ids: Sequence[int], counts: dict[str, int]) -> None:
        found = Account.objects.in_bulk(ids)
        changed = []
        for pk in ids:
            entry, account = self.accounts[pk], found.get(pk)
            if account is None:
                counts["unmatched"] += 1
                continue
            counts["matched"] += 1
            wanted = (entry["name"], uuid.UUID(entry["uuid"]) if "uuid" in entry else account.uuid)
            if (account.account_name, account.uuid) != wanted:
                account.account_name, account.uuid = wanted
                changed.append(account)
        counts["updated"] += len(changed)
        Account.objects.bulk_update(changed, ["account_name", "uuid"], batch_size=_CHUNK)
        for kind in KINDS if changed else ():
            journal.outdated(kind, Q(account__in=changed))


def _apply_items(kind: Kind, entries: Mapping[_Key, Mapping[str, Any]], counts: dict[str, int]) -> ScanReport:
    model = KINDS[kind].item
    owner = "volume_upstream_id" if kind is Kind.SNAPSHOT else "upstream_id"
    delta = ScanReport()
    rows = model.objects.filter(
        removed=None, account_id__in={key[0] for key in entries}, **{f"{owner}__in": {key[1] for key in entries}}
    )
    if kind is Kind.SNAPSHOT:
        rows = rows.select_related("parent")
    items = {(row.account_id, getattr(row, owner), row.path if kind is Kind.SNAPSHOT else ""): row for row in rows}
    wanted = [uuid.UUID(entry["uuid"]) for entry in entries.values() if "uuid" in entry]
    holders = dict(model.objects.filter(uuid__in=wanted).values_list("uuid", "pk"))
    changed = []
    fields = ["name", "uuid", "upstream_id"] + (sorted({"display_text", *_FLAGS}) if kind is Kind.TEMPLATE else [])
    for key, entry in entries.items():
        item = items.get(key)
        counts["unmatched" if item is None else "matched"] += 1
        if item is None:
            continue
        before = [getattr(item, name) for name in fields]
        if "uuid" in entry and holders.get(uuid.UUID(entry["uuid"]), item.pk) != item.pk:
            delta.conflicts.add(_place(kind, key), f"The catalogue gives it the uuid {entry['uuid']}, which another item has.")
            continue
        _name(item, entry)
        if kind is Kind.SNAPSHOT and (conflict := _parent_conflict(item, entry)):
            delta.conflicts.add(_place(kind, key), conflict)
        if [getattr(item, name) for name in fields] != before:
            changed.append(item)
    counts["updated"] += len(changed)
    model.objects.bulk_update(changed, fields, batch_size=_CHUNK)
    journal.outdated(kind, Q(pk__in=[item.pk for item in changed]))
    return delta


def _name(item: Any, entry: Mapping[str, Any]) -> None:
    for name in ("name", "display_text", *sorted(_FLAGS)):
        if name in entry:
            setattr(item, name, entry[name])
    if "uuid" in entry:
        item.uuid = uuid.UUID(entry["uuid"])
    item.upstream_id = entry.get("id", item.upstream_id)


def _parent_conflict(item: Any, entry: Mapping[str, Any]) -> str:
    parent = item.parent.path if item.parent else ""
    if entry.get("parent", parent) == parent:
        return ""
    return f"The catalogue says its parent is {entry['parent'] or 'none'}, the file says {parent or 'none'}."


def _place(kind: Kind, key: _Key) -> str:
    return f"{kind} {'/'.join(str(part) for part in key if part != '')}"


def _entries(data: Mapping[str, Any], name: str) -> list[tuple[str, Mapping[str, Any]]]:
    listed = data.get(name, [])
    if not isinstance(listed, list):
        raise _invalid(name, "must be a list")
    found = []
    for number, entry in enumerate(listed):
        where = f"{name}[{number}]"
        if not isinstance(entry, Mapping):
            raise _invalid(where, "must be an object")
        found.append((where, entry))
    return found


def _check(where: str, entry: Mapping[str, Any], *, required: set[str], optional: set[str], uuids: set[str]) -> None:
    for name in sorted(required - set(entry)):
        raise _invalid(where, f"lacks {name}")
    for name, value in entry.items():
        if name not in required | optional:
            raise _invalid(where, f"has {name!r}, which means nothing here")
        problem = _CHECKS[name](value, _TEXTS.get(name, 0))
        if problem:
            raise _invalid(where, f"{name} {problem}")
    if "uuid" in entry:
        number = str(uuid.UUID(entry["uuid"]))
        if number in uuids:
            raise _invalid(where, "has a uuid that another entry has too")
        uuids.add(number)


def _number(value: object, _: int) -> str:
    good = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX_ID
    return "" if good else "must be a whole number from 0 to 2^63-1"


def _text(value: object, longest: int) -> str:
    if not isinstance(value, str) or len(value) > longest or "\0" in value:
        return f"must be text of at most {longest} characters"
    try:
        value.encode()
    except UnicodeEncodeError:
        return "must be valid Unicode"
    return ""


def _flag(value: object, _: int) -> str:
    return "" if isinstance(value, bool) else "must be true or false"


def _uuid(value: object, _: int) -> str:
    try:
        uuid.UUID(value if isinstance(value, str) else "")
    except ValueError:
        return "must be a UUID"
    return ""


_CHECKS: dict[str, Callable[[object, int], str]] = {
    **dict.fromkeys(_NUMBERS, _number),
    **dict.fromkeys(_TEXTS, _text),
    **dict.fromkeys(_FLAGS, _flag),
    "uuid": _uuid,
}


def _invalid(where: str, what: str) -> Invalid:
    return Invalid(f"The catalogue is not valid: {where} {what}.", remedy="Correct the entry and scan again.", field="catalogue")
