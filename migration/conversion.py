"""Switches a region from NFS to an object store: a gate that asks everything first, then one transaction that writes it down."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.db import DatabaseError, IntegrityError, OperationalError, connection, transaction
from django.db.models import CharField, Count, Exists, F, Max, OuterRef, Q, QuerySet, Sum, Value
from django.template.defaultfilters import pluralize
from django.utils import timezone

from cloudstorage import audit, checkpoints
from cloudstorage.actors import SYSTEM, Actor, ActorRole
from cloudstorage.commands import human_age
from cloudstorage.errors import Blocked, Busy, Conflict
from cloudstorage.inserting import insert_select
from migration import standstill, verify
from migration.findings import Finding, details_digest, fingerprint, known_findings, nfs_stores, unreached
from migration.models import Conversion, ConversionStore, Draft, Preflight, Verification
from migration.states import CONVERSION_TRANSITIONS, ConversionEvent, ConversionState
from stores.models import KINDS, ImageStore, Kind, Template, TemplateStoreRef, TemplateZoneRef, Zone
from stores.services import holds, image_stores
from stores.services.counts import by_kind, total
from stores.states import READABLE, RefState, Role, StoreState, allowed_events

ACTION = "conversion.convert"
PreparedStore = tuple[ImageStore, Mapping[str, str]]
OPEN_STATES = (ConversionState.CONVERTED, ConversionState.ROLLING_BACK)

_TOO_LATE = {
    ConversionState.CONVERTED: (
        "the conversion to {name} is neither committed nor being rolled back.",
        "Commit it, or roll it back.",
    ),
    ConversionState.COMMITTED: (
        "the conversion to {name} was committed{when}. Since then the originals on NFS are cache and may be gone.",
        "There is no way back to NFS any more; what is on the object store is the record.",
    ),
    ConversionState.ROLLING_BACK: (
        "the conversion to {name} is being rolled back.",
        "Let the roll-back end, or abandon it first.",
    ),
    ConversionState.ROLLED_BACK: (
        "the conversion to {name} was rolled back{when}; the region is on NFS.",
        "Convert again when the time has come.",
    ),
}
"""State -> what it means for an event that it does not allow, and what to do instead."""

PREFLIGHT_CODES = {
    "preflight-absent": "no preflight of this object store has ended",
    "preflight-old": "the newest preflight is too old",
    "preflight-stale": "stores or blockers have changed since the preflight",
}
"""May be overridden: the gate itself asks again for every blocker that may not."""


@dataclass(frozen=True, slots=True)
class ConvertPlan:
    """What a conversion would change, exactly, as the rows are now."""

    object_store: dict[str, str]
    """name, provider, url"""
    zones: list[dict[str, Any]]
    """zone, stores [{name, uuid, role_from, role_to, refs {kind: {count, bytes}}}], template_refs_added"""
    promised: dict[str, int]
    """Refs added on the object store, by kind: one for each item that is not proven there from an earlier conversion."""
    reused: dict[str, int]
    """Items, by kind, that are: they need not be moved again."""
    counted: dict[str, int]
    """Copies on NFS, staged ones too, whose ref count rises by one, by kind."""
    templates_made_region_wide: int
    preflight: str | None
    overridden: list[str]
    findings: list[dict[str, Any]]
    """Of the preflight and the gate, so that the one who decides reads them once more."""


@dataclass(frozen=True, slots=True)
class _Gate:
    """What the gate let through."""

    name: str
    provider: str
    url: str
    details: dict[str, str]
    stores: list[ImageStore]
    preflight: Preflight | None
    overridden: list[str]
    findings: list[Finding]


def open_conversion() -> Conversion | None:
    """The conversion that is neither committed nor rolled back, if there is one."""
    return Conversion.objects.select_related("object_store").filter(state__in=OPEN_STATES).first()


def pinned_by(store: ImageStore) -> Conversion | None:
    """The conversion that pins the originals on `store`, None once it is committed or rolled back."""
    return Conversion.objects.filter(stores__store=store, state__in=OPEN_STATES).select_related("object_store").first()


def advance_state(conversion: Conversion, event: ConversionEvent, *, dry_run: bool = False, **changes: Any) -> Conversion:
    """Compare-and-set by the table, the row locked; raises Conflict saying why it is too late. With `dry_run` only asks."""
    rows = Conversion.objects.select_related("object_store").filter(pk=conversion.pk)
    row = rows.get() if dry_run else rows.select_for_update(of=("self",)).get()
    state = ConversionState(row.state)
    target = CONVERSION_TRANSITIONS.get((state, event))
    if target is None:
        allowed = allowed_events(CONVERSION_TRANSITIONS, state)
        message, remedy = _TOO_LATE[state]
        when = f" {_age(row.ended_at)} ago" if row.ended_at else ""
        message = message.format(name=row.object_store.name, when=when)
        raise Conflict(f"{event} is not possible: {message}", remedy=remedy, allowed=allowed)
    if not dry_run:
        Conversion.objects.filter(pk=row.pk, state=state).update(state=target, **changes)
        row.refresh_from_db()
        row.was = state
    return row


def update_cloud_to_use_object_store(
    *, actor: Actor, provider: str, name: str = "", url: str = "", details: Mapping[str, str] | None = None, **options: Any
) -> Conversion | ConvertPlan:
    """`convert` under CloudStack's parameters, of which only the provider is required; the name defaults to the url."""
    return convert(actor=actor, name=name or url, url=url, provider=provider, details=details or {}, **options)


def convert(
    *,
    actor: Actor,
    name: str,
    url: str,
    provider: str,
    details: Mapping[str, str],
    preflight: Preflight | None = None,
    override: Sequence[str] = (),
    dry_run: bool = False,
) -> Conversion | ConvertPlan:
    """Add an object store and make every NFS store of record a staging store, in one transaction.

    `preflight` defaults to the newest one of this object store. `override` names codes of blockers that are accepted, and
    `preflight-absent`, `preflight-old` or `preflight-stale`. With `dry_run` everything is asked and nothing written.

    Raises Invalid (a parameter), Conflict (a conversion is open, the preflight does not fit), Blocked (with findings or probe
    steps), Busy (somebody converts at this moment). In every one of these nothing was changed but, at most, the ownership
    marker on the object store, which the next attempt takes up.
    """
    with audit.refusals_noted(actor, ActorRole.STORAGE_ADMIN, ACTION, name or url or provider):
        gate = _pass_gate(name, url, provider, details, preflight, override)
        if dry_run:
            steps = image_stores.test_store(actor=actor, provider=provider, url=gate.url, details=gate.details, zone=None)
            image_stores.refuse_blockers(steps, gate.url or provider)
            known = image_stores.detached_at(provider=provider, url=gate.url, details=gate.details)
            return _plan(gate, known)
        prepared = image_stores.prepare_store(
            name=name, provider=provider, url=gate.url, details=gate.details, zone=None, role=Role.IMAGE
        )
        checkpoints.reach("convert.claimed")
        return _switch(actor, gate, prepared)


# --- the gate: everything that can refuse, outside any transaction -------------------------------------------------------


def _pass_gate(
    name: str,
    url: str,
    provider: str,
    details: Mapping[str, str],
    preflight: Preflight | None,
    override: Sequence[str],
) -> _Gate:
    _refuse_second()
    clean_url, clean = image_stores.check_new_store(
        name=name, provider=provider, url=url, details=details, zone=None, converting=True
    )
    stores = nfs_stores()
    accepted = list(dict.fromkeys(override))
    known = known_findings(stores)
    mark = fingerprint(stores, known)
    report, findings = _accept_preflight(preflight, details_digest(provider, clean_url, clean), mark, accepted)
    insist(known, accepted)
    insist([*unreached(stores)], accepted)
    return _Gate(name, provider, clean_url, clean, stores, report, accepted, findings)


def _age(since: datetime) -> str:
    return human_age((timezone.now() - since).total_seconds())


def _refuse_second() -> None:
    if (found := open_conversion()) is not None:
        raise Conflict(
            f"The region was converted to {found.object_store.name} {_age(found.converted_at)} ago, and that conversion"
            f" ({found.uuid}) is still {found.state}.",
            remedy="Commit it or roll it back before converting again.",
            field="name",
        )


def _accept_preflight(
    given: Preflight | None, digest: str, mark: str, accepted: list[str]
) -> tuple[Preflight | None, list[Finding]]:
    found = given or Preflight.objects.filter(details_digest=digest, finished__isnull=False, error="").first()
    if found is None:
        insist([_unfit("preflight-absent", "No preflight of this object store has ended.")], accepted)
        return None, []
    if found.details_digest != digest:
        message = f"The preflight {found.uuid} is of another object store ({found.provider} {found.url})."
        raise Conflict(message, remedy="Run a preflight with the same provider, url and details.", field="preflight")
    if found.finished is None or found.error:
        message = f"The preflight {found.uuid} has no report: {found.error or 'it has not ended yet'}"
        raise Conflict(message, remedy="Wait for it, or run another one.", field="preflight")
    age = timezone.now() - found.created
    if age > timedelta(seconds=settings.PREFLIGHT_MAX_AGE_SECONDS):
        hours = age.total_seconds() / 3600
        insist([_unfit("preflight-old", f"The preflight {found.uuid} is {hours:.0f} hours old.")], accepted)
    if found.fingerprint != mark:
        message = f"Stores, zones or blockers have changed since the preflight {found.uuid}; its report no longer holds."
        insist([_unfit("preflight-stale", message)], accepted)
    findings = [Finding(**(entry | {"examples": tuple(entry.get("examples", ()))})) for entry in found.report["findings"]]
    insist(findings, accepted)
    return found, findings


def _unfit(code: str, message: str) -> Finding:
    return Finding(code, "blocker", message, "Run the preflight for this object store, read it, then convert.", overridable=True)


def insist(findings: Sequence[Finding], accepted: Sequence[str]) -> None:
    """Raise Blocked unless every blocker is overridable and its code accepted."""
    hard = [found for found in findings if found.severity == "blocker" and not (found.overridable and found.code in accepted)]
    if not hard:
        return
    first = hard[0]
    remedy = first.remedy
    if all(found.overridable for found in hard):
        remedy += f" To accept this as it is, override: {', '.join(sorted({found.code for found in hard}))}."
    field = "preflight" if first.code in PREFLIGHT_CODES else "override" if first.code in accepted else "stores"
    more = f" ({len(hard) - 1} more blockers)" if len(hard) > 1 else ""
    raise Blocked(f"{first.message}{more}", remedy=remedy, field=field, findings=hard)


# --- the plan ------------------------------------------------------------------------------------------------------------


def _plan(gate: _Gate, known: ImageStore | None) -> ConvertPlan:
    """`known`: the object store, where it was detached by an earlier roll-back."""
    if known is not None:
        _refuse_deletes(gate.stores, known)
    staging = list(ImageStore.objects.filter(role=Role.IMAGE_CACHE).exclude(state=StoreState.REMOVED))
    readable = {kind: _readable(kind, gate.stores) for kind in KINDS}
    missing = readable if known is None else {kind: rows.filter(~_is_on(kind, known)) for kind, rows in readable.items()}
    refs: dict[int, dict[str, dict[str, int]]] = {store.pk: {} for store in gate.stores}
    on_each, *others = (
        rows.annotate(of=Value(str(kind), CharField())).values_list("store_id", "of").annotate(Count("id"), Sum("size"))
        for kind, rows in readable.items()
    )
    for store_id, kind, count, size in on_each.union(*others, all=True):
        refs[store_id][kind] = {"count": count, "bytes": size}
    found = by_kind(missing, items=Count("item_id", distinct=True), refs=Count("pk"))
    staged = {
        kind: KINDS[kind].ref.objects.filter(item__in=rows.values("item"), store__in=staging, state__in=READABLE)
        for kind, rows in missing.items()
    }
    counted = {kind: sums["items"] for kind, sums in by_kind(staged).items()} if staging else dict.fromkeys(found, 0)
    templates = readable[Kind.TEMPLATE].values("item_id").distinct()
    wanted = Template.objects.filter(pk__in=templates).aggregate(
        all=Count("pk"), of_one_zone=Count("pk", filter=Q(cross_zones=False))
    )
    shown = TemplateZoneRef.objects.filter(template__in=templates, removed=None).order_by().values_list("zone")
    listed = dict(shown.annotate(Count("template", distinct=True)))
    zones = [
        {
            "zone": zone.name,
            "stores": [
                {
                    "name": store.name,
                    "uuid": str(store.uuid),
                    "role_from": Role.IMAGE,
                    "role_to": Role.IMAGE_CACHE,
                    "refs": refs[store.pk],
                }
                for store in gate.stores
                if store.zone_id == zone.pk
            ],
            "template_refs_added": wanted["all"] - listed.get(zone.pk, 0),
        }
        for zone in Zone.objects.order_by("id")
    ]
    return ConvertPlan(
        object_store={"name": gate.name, "provider": gate.provider, "url": gate.url},
        zones=zones,
        promised={kind: sums["items"] for kind, sums in found.items()},
        reused=_reused(gate.stores, known) if known is not None else dict.fromkeys(found, 0),
        counted={kind: sums["refs"] + counted[kind] for kind, sums in found.items()},
        templates_made_region_wide=wanted["of_one_zone"],
        preflight=str(gate.preflight.uuid) if gate.preflight else None,
        overridden=gate.overridden,
        findings=[asdict(found) for found in gate.findings],
    )


def _is_on(kind: Kind, target: ImageStore) -> Exists:
    """Whether a ref's item has a ref on the object store that was neither destroyed nor found damaged."""
    there = KINDS[kind].ref.objects.filter(store=target.pk, item=OuterRef("item"))
    return Exists(there.exclude(state__in=[RefState.DESTROYED, RefState.FAILED]))


def _refuse_deletes(stores: Sequence[ImageStore], target: ImageStore) -> None:
    """What a roll-back left to be removed stands in the place of the item's next promise until it is gone."""
    rows = {}
    for kind, models in KINDS.items():
        needed = _readable(kind, stores).filter(item=OuterRef("item"))
        rows[kind] = models.ref.objects.filter(Exists(needed), store=target.pk, state=RefState.DESTROYING)
    going = total(rows)
    if going:
        told = f"{going} former cop{pluralize(going, 'y,ies')} on {target.name} wait{pluralize(going, 's,')} to be removed"
        message = f"{told}, of items that are on NFS."
        raise Busy(message, remedy="Let a worker remove them (manage.py worker), then convert again.", field="name")


def _reused(stores: Sequence[ImageStore], target: ImageStore) -> dict[str, int]:
    rows = {}
    for kind, models in KINDS.items():
        readable = _readable(kind, stores).filter(item=OuterRef("item"))
        rows[kind] = models.ref.objects.filter(Exists(readable), store=target, state__in=READABLE)
    return {kind: sums["items"] for kind, sums in by_kind(rows).items()}


def _readable(kind: Kind, stores: Sequence[ImageStore]) -> QuerySet[Any]:
    """The refs that a conversion is about."""
    refs: QuerySet[Any] = KINDS[kind].ref.objects.filter(store__in=[store.pk for store in stores], state__in=READABLE)
    return refs.order_by()


# --- the transaction: no input or output but to the database, no row in Python -------------------------------------------


def _switch(actor: Actor, gate: _Gate, prepared: PreparedStore) -> Conversion:
    started = time.monotonic()
    try:
        with transaction.atomic():
            conversion = _write(actor, gate, prepared)
            checkpoints.reach("convert.before-commit")
    except IntegrityError as error:
        raise Busy(
            f"Somebody changed the stores at the same moment; nothing was changed here ({_first_line(error)}).",
            remedy="Look at the stores, then convert again.",
            field="name",
        ) from error
    except OperationalError as error:
        raise Busy(
            f"The database did not let the conversion have its rows within {standstill.LOCK_SECONDS} s; nothing was changed"
            f" ({_first_line(error)}).",
            remedy="Wait for the long-running work on the stores to end, then convert again.",
        ) from error
    checkpoints.reach("convert.committed")
    conversion.counts["seconds"] = round(time.monotonic() - started, 3)
    conversion.save(update_fields=["counts"])
    return conversion


def _first_line(error: DatabaseError) -> str:
    return str(error).partition("\n")[0]


def _write(actor: Actor, gate: _Gate, prepared: PreparedStore) -> Conversion:
    """Promises first, which takes long and holds nobody up; then, while nobody else changes a ref, what came and went in the
    meantime, and the counts."""
    standstill.let_one_in()
    _refuse_second()
    now = timezone.now()
    store = image_stores.save_store(prepared)
    image_stores.record_added(actor, store)
    fresh = not any(models.ref.objects.filter(store=store).exists() for models in KINDS.values())
    if not fresh:
        _refuse_deletes(gate.stores, store)
    reused = _reused(gate.stores, store)
    conversion = Conversion.objects.create(
        object_store=store,
        preflight=gate.preflight,
        actor=actor.name,
        converted_at=now,
        overrides=gate.overridden,
    )
    ConversionStore.objects.bulk_create(
        ConversionStore(conversion=conversion, store=nfs, former_role=nfs.role, former_readonly=nfs.readonly)
        for nfs in gate.stores
    )
    promised = {kind: _promise(kind, gate.stores, store, now, fresh=fresh) for kind in KINDS}
    staging, templates = _hold_still(gate, conversion)
    if connection.features.has_select_for_update:
        promised = {kind: promised[kind] + _catch_up(kind, gate.stores, store, now) for kind in KINDS}
    counted = {kind: _count(kind, gate.stores, staging, store, fresh=fresh) for kind in KINDS}
    zone_refs = _show_in_all_zones(conversion, store, now)
    ImageStore.objects.filter(pk__in=[nfs.pk for nfs in gate.stores]).update(role=Role.IMAGE_CACHE)
    Preflight.objects.exclude(sealed="").update(sealed="")
    Draft.objects.all().delete()
    conversion.counts = {"promised": promised, "counted": counted, "templates": templates, "zone_refs": zone_refs}
    if any(reused.values()):  # nobody has looked after what is there while the store was detached
        conversion.counts["reused"] = reused
        verify.verify(actor=SYSTEM, store=store, mode=Verification.LISTING)
    conversion.save(update_fields=["counts"])
    audit.record(
        actor,
        ACTION,
        f"conversion {conversion.uuid}",
        object_store=str(store.uuid),
        stores=[str(nfs.uuid) for nfs in gate.stores],
        overrides=gate.overridden,
        **conversion.counts,
    )
    return conversion


def _catch_up(kind: Kind, stores: Sequence[ImageStore], target: ImageStore, now: datetime) -> int:
    """Promise what became readable since the promises were made, and take back those whose item went; how many more it makes."""
    refs = KINDS[kind].ref.objects
    readable = _readable(kind, stores)
    gone = refs.filter(~Exists(readable.filter(item=OuterRef("item"))), store=target, state=RefState.PROMISED)
    taken_back: int = gone._raw_delete(gone.db)  # noqa: SLF001 - nothing refers to these rows yet
    return _promise(kind, stores, target, now, fresh=False) - taken_back


def _hold_still(gate: _Gate, conversion: Conversion) -> tuple[list[int], int]:
    """Let nobody else change a ref until we end: no item becomes Ready unseen, none is deleted half-way. Returns the ids of
    staging stores that were there before, and how many templates became region-wide.
    """

    def lock() -> tuple[list[int], int]:
        staging = _lock_stores(gate, conversion.object_store)
        standstill.lock_refs()
        return staging, _make_region_wide(gate.stores, conversion)

    return standstill.hold_still(lock)


def _lock_stores(gate: _Gate, target: ImageStore) -> list[int]:
    rows = standstill.lock_stores(but=target)
    record = {pk for pk, role, state in rows if role == Role.IMAGE and state == StoreState.ATTACHED}
    if record != {store.pk for store in gate.stores}:
        message = "A store was added or removed at the same moment; nothing was changed."
        raise Busy(message, remedy="Run the preflight again, then convert.", field="stores")
    return [pk for pk, role, _ in rows if role == Role.IMAGE_CACHE]


def _make_region_wide(stores: Sequence[ImageStore], conversion: Conversion) -> int:
    kept = _readable(Kind.TEMPLATE, stores).filter(item=OuterRef("pk"))
    local = Template.objects.filter(Exists(kept), cross_zones=False)
    return local.update(cross_zones=True, cross_zones_by=conversion.uuid)


def _count(kind: Kind, stores: Sequence[ImageStore], staging: Sequence[int], target: ImageStore, *, fresh: bool) -> int:
    """Raise the count of every copy of a promised item, on the converted stores and where it was staged before.

    `fresh`: no ref was on the target, so every readable item of the stores is promised, and none need be looked up.
    """
    copies = _readable(kind, stores)
    if staging or not fresh:
        refs = KINDS[kind].ref.objects
        # Not EXISTS: without statistics SQLite looks each item up by store and state, and so reads all promises for each.
        promised = refs.filter(store=target, state=RefState.PROMISED).values("item")
        copies = refs.filter(item__in=promised, store__in=[*(store.pk for store in stores), *staging], state__in=READABLE)
    return int(copies.update(ref_cnt=F("ref_cnt") + 1))


def _promise(kind: Kind, stores: Sequence[ImageStore], target: ImageStore, now: datetime, *, fresh: bool) -> int:
    """One Promised ref on the target for each readable item that has none there; on a `fresh` target none has. The size is that
    of the largest copy: zones' copies can differ. In the items' order, which halves the work on a million rows: indexes and the
    check of each item's key then touch page after page."""
    readable = missing = _readable(kind, stores)
    again = 0
    if not fresh:
        damaged = KINDS[kind].ref.objects.filter(Exists(readable.filter(item=OuterRef("item"))), store=target.pk)
        again = holds.promise_damaged(damaged)
        missing = readable.filter(~_is_on(kind, target))
    items = missing.values("item_id").annotate(content=Max("size")).order_by("item_id")
    values = {"item": F("item_id"), "store": target.pk, "state": RefState.PROMISED, "size": F("content")}
    return again + insert_select(KINDS[kind].ref, items, values | {"created": now, "updated": now})


def _show_in_all_zones(conversion: Conversion, store: ImageStore, now: datetime) -> int:
    added = 0
    for zone in Zone.objects.order_by("id"):
        shown = TemplateZoneRef.objects.filter(zone=zone, template=OuterRef("item_id"), removed=None)
        there = TemplateStoreRef.objects.filter(store=store, state__in=[RefState.PROMISED, *READABLE])
        hidden = there.filter(~Exists(shown)).order_by()
        values = {"zone": zone.pk, "template": F("item_id"), "created": now, "added_by": conversion.uuid}
        # Somebody may show a template in the zone at the same moment; then it is shown, which is all that is wanted.
        added += insert_select(TemplateZoneRef, hidden, values, or_nothing=True)
    return added
