"""Adds, checks, changes and removes image stores, and makes their drivers: the one place that decrypts a store's secrets."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from typing import Any

from django.conf import settings
from django.db import IntegrityError, transaction
from django.utils import timezone

from cloudstorage import audit, secrets
from cloudstorage.actors import Actor, ActorRole
from cloudstorage.checkpoints import reach
from cloudstorage.commands import check_rate
from cloudstorage.errors import Blocked, Conflict, Invalid, ServiceError, Unreachable
from cloudstorage.models import Installation
from cloudstorage.net import ForbiddenUrl, OutboundPolicy, UnknownHost, networks_of
from stores import drivers
from stores.drivers.base import DriverEnvironment, ProbeStep, StoreConfig, StoreDriver
from stores.drivers.errors import (
    AccessDenied,
    Corrupt,
    Foreign,
    Misconfigured,
    NotFound,
    SourceChanged,
    StoreError,
    Unavailable,
    UploadGone,
)
from stores.drivers.probe import facts_of
from stores.models import KINDS, ImageStore, ImageStoreDetail, ScanRun, Transfer, Zone
from stores.services.probing import probe_in_time, within
from stores.states import (
    LIVE_REF_STATES,
    LIVE_SCAN_STATES,
    LIVE_TRANSFER_STATES,
    STORE_TRANSITIONS,
    Role,
    StoreEvent,
    StoreState,
    sources,
)

_UNSET: Any = object()
_AWAY = (StoreState.DETACHED, StoreState.REMOVED)
"""States from which a place is taken into use again."""

# --- drivers ---------------------------------------------------------------------------------------------------------------


def provider_names() -> list[str]:
    """The providers that the settings know."""
    return list(settings.STORE_DRIVERS)


def driver_class(provider: str) -> type[StoreDriver]:
    """The driver of a provider; raises Invalid for an unknown one, for which upstream silently takes NFS."""
    path = settings.STORE_DRIVERS.get(provider)
    if path is None:
        known = ", ".join(provider_names())
        raise Invalid(f"There is no provider {provider!r}.", remedy=f"Use one of: {known}.", field="provider")
    return drivers.load(path)


_cache: dict[int, tuple[str, StoreDriver]] = {}
_lock = threading.Lock()


def _forget_drivers() -> None:
    """A forked child makes its own drivers: sockets and SDK threads do not survive a fork, nor does a lock held meanwhile."""
    global _lock  # noqa: PLW0603 - one cache per process
    _lock = threading.Lock()
    _cache.clear()


os.register_at_fork(after_in_child=_forget_drivers)


def driver_for(store: ImageStore) -> StoreDriver:
    """The driver of a store, kept per process and made anew as soon as its url, details or facts are others."""
    return drivers_of([store])[store.pk]()


def drivers_of(stores: Collection[ImageStore]) -> dict[int, Callable[[], StoreDriver]]:
    """For each of some stores what `driver_for` does, for two queries in all; what cannot be made raises when it is called."""
    details: dict[int, list[tuple[str, str, bool]]] = {store.pk: [] for store in stores}
    rows = ImageStoreDetail.objects.filter(store_id__in=list(details)).order_by("name")
    for store_id, name, value, secret in rows.values_list("store_id", "name", "value", "secret"):
        details[store_id].append((name, value, secret))
    cloud = str(Installation.get().uuid)
    return {store.pk: partial(_driver, store, details[store.pk], cloud) for store in stores}


def _driver(store: ImageStore, details: Sequence[tuple[str, str, bool]], cloud: str) -> StoreDriver:
    where = [store.image_provider_name, str(store.uuid), cloud, store.url, details, store.facts]
    outbound = [settings.OUTBOUND_ALLOW_LOOPBACK, settings.OUTBOUND_ALLOW_PRIVATE, settings.OUTBOUND_CIDRS]
    known = [where, settings.NFS_MOUNTS, settings.ALLOW_PLAIN_EXPORTS, outbound]
    digest = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()
    with _lock:
        kept = _cache.get(store.pk)
        if kept is not None and kept[0] == digest:
            return kept[1]
        plain = {name: secrets.decrypt(value) if secret else value for name, value, secret in details}
        config = StoreConfig(store.url, plain, str(store.uuid), cloud, store.facts, _environment())
        driver = driver_class(store.image_provider_name)(config)
        # The former driver is not closed: another thread may be reading through it.
        _cache[store.pk] = (digest, driver)
        return driver


def _environment() -> DriverEnvironment:
    policy = OutboundPolicy(
        allow_loopback=settings.OUTBOUND_ALLOW_LOOPBACK,
        allow_private=settings.OUTBOUND_ALLOW_PRIVATE,
        networks=networks_of(settings.OUTBOUND_CIDRS),
    )

    def check_url(url: str) -> None:
        try:
            policy.check(url)
        except UnknownHost as error:  # a resolver that fails for a moment must not condemn a transfer
            raise Unavailable(str(error)) from error
        except ForbiddenUrl as error:
            raise Misconfigured(str(error), field="url") from error

    return DriverEnvironment(
        mounts=dict(settings.NFS_MOUNTS), allow_plain_exports=settings.ALLOW_PLAIN_EXPORTS, check_url=check_url
    )


def details_of(store: ImageStore, *, reveal: bool = False, but: Collection[str] = ()) -> dict[str, str]:
    """The options of a store by name; secrets are empty unless `reveal`, which is for drivers only, and those of `but` always."""
    found: dict[str, str] = {}
    for detail in sorted(store.details.all(), key=lambda detail: detail.name):
        if detail.secret:
            found[detail.name] = secrets.decrypt(detail.value) if reveal and detail.name not in but else ""
        else:
            found[detail.name] = detail.value
    return found


def refusal(error: StoreError, *, field: str | None = None) -> ServiceError:
    """What a store's error means to whoever asked: 503 where waiting helps, 400 where a parameter is at fault, 409 else."""
    field = error.field or field
    kind: type[ServiceError] = Conflict
    if isinstance(error, (Unavailable, Corrupt, SourceChanged, UploadGone)):
        kind = Unreachable
    elif isinstance(error, (AccessDenied, Misconfigured, Foreign, NotFound)):
        kind = Invalid
    return kind(str(error), remedy=error.remedy, field=field)


@contextmanager
def store_errors(*, field: str | None = None) -> Iterator[None]:
    """Translate what a driver raises into what services raise."""
    try:
        yield
    except StoreError as error:
        raise refusal(error, field=field) from error


# --- the gate --------------------------------------------------------------------------------------------------------------


def check_new_store(
    *,
    name: str,
    provider: str,
    url: str,
    details: Mapping[str, str],
    zone: Zone | None,
    role: str = Role.IMAGE,
    converting: bool = False,
) -> tuple[str, dict[str, str]]:
    """The parameter gate of adding a store and of a conversion: (url, details) normalised, or Invalid or Conflict naming the
    field. Changes nothing and asks no server.

    `converting`: the store of record changes from NFS to this store, so NFS stores of role Image are expected and no others
    (CloudStack's rule for updateCloudToUseObjectStore).
    """
    driver = driver_class(provider)
    clean_url, clean = _clean(driver, url, details, zone)
    if role == Role.IMAGE_CACHE and driver.scope == "REGION":
        message = f"{provider} stores belong to the region, and a staging store to a zone."
        raise Invalid(message, remedy="Use an NFS store for staging.", field="provider")
    if converting and driver.scope != "REGION":
        remedy = "Choose S3 or Swift."
        raise Invalid(f"{provider} is no object store, so a region cannot be converted to it.", remedy=remedy, field="provider")
    if role == Role.IMAGE:
        _refuse_mixed(provider, converting=converting)
    chosen = _name(driver, name, clean_url, clean)
    if len(chosen) > 255:
        raise Invalid("The name is longer than 255 characters.", remedy="Choose a shorter name.", field="name")
    if ImageStore.objects.filter(name=chosen, removed=None).exclude(state=StoreState.DETACHED).exists():
        raise Conflict(f"There is already a store called {chosen!r}.", remedy="Choose another name.", field="name")
    return clean_url, clean


def _clean(driver: type[StoreDriver], url: str, details: Mapping[str, str], zone: Zone | None) -> tuple[str, dict[str, str]]:
    if driver.scope == "ZONE" and zone is None:
        message = f"{driver.name} stores belong to a zone, and none is given."
        raise Invalid(message, remedy="Name the zone that the export serves.", field="zone")
    if driver.scope == "REGION" and zone is not None:
        message = f"{driver.name} stores serve the whole region and take no zone."
        raise Invalid(message, remedy="Leave the zone out.", field="zone")
    try:
        return driver.clean(url, details)
    except Misconfigured as error:
        raise Invalid(str(error), remedy=error.remedy, field=error.field or "details") from error


def _refuse_mixed(provider: str, *, converting: bool) -> None:
    """All stores of record are of one provider, as in CloudStack."""
    expected = "NFS" if converting else provider
    others = ImageStore.objects.filter(role=Role.IMAGE, state=StoreState.ATTACHED).exclude(image_provider_name=expected)
    other = others.order_by("id").first()
    if other is None:
        return
    if converting:
        message = f"The region is not on NFS: its store of record {other.name} is of provider {other.image_provider_name}."
        remedy = "A conversion starts from NFS only; this region has been converted already, or never was on NFS."
    else:
        message = f"The store {other.name} is of provider {other.image_provider_name}; stores of record cannot be mixed."
        remedy = f"Add a {other.image_provider_name} store, or convert the region (use_object_store)."
    raise Invalid(message, remedy=remedy, field="provider")


def _name(driver: type[StoreDriver], name: str, url: str, details: Mapping[str, str]) -> str:
    """The name given, else what identifies the place (upstream: the url)."""
    return name.strip() or driver(_config(url, details, uuid.UUID(int=0))).display_url[:255]


def _config(url: str, details: Mapping[str, str], store_uuid: uuid.UUID, cloud: uuid.UUID | None = None) -> StoreConfig:
    """As of a store that was never probed: facts of another configuration would be promises that nobody made."""
    return StoreConfig(url, details, str(store_uuid), str(cloud or Installation.get().uuid), environment=_environment())


def trial_driver(provider: str, url: str, details: Mapping[str, str], zone: Zone | None) -> StoreDriver:
    """A driver of a place that is no store yet; Invalid for parameters that cannot even be tried."""
    driver = driver_class(provider)
    clean_url, clean = _clean(driver, url, details, zone)
    return driver(_config(clean_url, clean, uuid.UUID(int=0)))


# --- adding ----------------------------------------------------------------------------------------------------------------


def test_store(
    *,
    actor: Actor,
    provider: str,
    url: str,
    details: Mapping[str, str],
    zone: Zone | None = None,  # noqa: PT028 - no test
) -> list[ProbeStep]:
    """Try a store out without saving anything; raises Invalid for parameters that cannot even be tried."""
    with audit.refusals_noted(actor, ActorRole.STORAGE_ADMIN, "store.test", url or provider):
        driver = driver_class(provider)
        clean_url, clean = _clean(driver, url, details, zone)
        cloud = Installation.get().uuid
        trial = driver(_config(clean_url, clean, _identify(driver, clean_url, clean, cloud)[0], cloud))
        audit.record(actor, "store.test", trial.display_url)
        return _probe(trial)


def add_store(
    *,
    actor: Actor,
    name: str = "",
    provider: str,
    url: str = "",
    details: Mapping[str, str],
    zone: Zone | None = None,
    role: str = Role.IMAGE,
) -> ImageStore:
    """Add an image store: gate, live probe, ownership marker, row. Nothing is saved when the probe finds a blocker (Blocked).

    A run that died between the marker and the row is simply repeated: the marker of this cloud names the row to make.
    """
    with audit.refusals_noted(actor, ActorRole.STORAGE_ADMIN, "store.add", name or url or provider):
        clean_url, clean = check_new_store(name=name, provider=provider, url=url, details=details, zone=zone, role=role)
        prepared = prepare_store(name=name, provider=provider, url=clean_url, details=clean, zone=zone, role=role)
        reach("store.add.claimed")
        with transaction.atomic():
            store = save_store(prepared)
            record_added(actor, store)
    reach("store.add.saved")
    return store


def prepare_store(
    *, name: str, provider: str, url: str, details: Mapping[str, str], zone: Zone | None, role: str
) -> tuple[ImageStore, dict[str, str]]:
    """Probe and claim a place that passed the gate; returns the unsaved row and its details for `save_store`.

    Talks to the store, so it is called outside of any transaction. Blockers raise Blocked with every step as finding.
    """
    driver = driver_class(provider)
    cloud = Installation.get().uuid
    store_uuid, _ = _identify(driver, url, details, cloud)
    trial = driver(_config(url, details, store_uuid, cloud))
    steps = _probe(trial)
    refuse_blockers(steps, trial.display_url)
    chosen = _name(driver, name, url, details)
    _refuse_name_of_another(chosen, store_uuid)
    with store_errors(field="url"):
        trial.claim()
    facts = facts_of(steps)
    store = ImageStore(
        uuid=store_uuid,
        name=chosen,
        image_provider_name=provider,
        protocol=trial.protocol,
        url=url,
        place=trial.display_url[:2048],
        zone=zone,
        scope=driver.scope,
        role=role,
    )
    _keep_probe(store, steps, facts)
    return store, dict(details)


def save_store(prepared: tuple[ImageStore, Mapping[str, str]]) -> ImageStore:
    """Save what `prepare_store` made, inside the caller's transaction; Conflict when somebody was faster."""
    store, details = prepared
    former = ImageStore.objects.filter(uuid=store.uuid, state__in=_AWAY).values_list("pk", "created").first()
    if former is not None:  # the same place once more: it goes on under the row that its marker names
        store.pk, store.created = former
        ImageStoreDetail.objects.filter(store_id=store.pk).delete()
    try:
        with transaction.atomic():
            store.save(force_update=former is not None)
    except IntegrityError as error:
        message = f"A store called {store.name!r}, or of the same place, was added at the same moment."
        raise Conflict(message, remedy="Look at the list of stores; choose another name or place.", field="name") from error
    _save_details(store, details)
    return store


def _refuse_name_of_another(name: str, store_uuid: uuid.UUID) -> None:
    """A detached store keeps its name, which only the same place may take up again."""
    if ImageStore.objects.filter(name=name, removed=None).exclude(uuid=store_uuid).exists():
        message = f"There is already a store called {name!r}, of another place."
        raise Conflict(message, remedy="Choose another name.", field="name")


def detached_at(*, provider: str, url: str, details: Mapping[str, str]) -> ImageStore | None:
    """The detached store at this place, by the marker there: it would be attached again, with what is proven on it."""
    _, former = _identify(driver_class(provider), url, details, Installation.get().uuid)
    return former if former is not None and former.state == StoreState.DETACHED else None


def record_added(actor: Actor, store: ImageStore) -> None:
    """The audit row of a new store."""
    zone = store.zone.name if store.zone is not None else ""
    where: dict[str, Any] = {"provider": store.image_provider_name, "url": store.url, "zone": zone, "role": str(store.role)}
    audit.record(actor, "store.add", store.name, uuid=str(store.uuid), **where, details=_public(store))


def _public(store: ImageStore) -> dict[str, str]:
    return {name: value for name, value in details_of(store).items() if value}


def _identify(
    driver: type[StoreDriver], url: str, details: Mapping[str, str], cloud: uuid.UUID
) -> tuple[uuid.UUID, ImageStore | None]:
    """The uuid of the store at this place: what our marker there says, else derived from the place; and the row that a former
    use of it has left.

    Both are the same however often an addition is repeated, and for two that run at once; the table's constraint decides.
    Raises Conflict when a store that is in use has it.
    """
    trial = driver(_config(url, details, uuid.UUID(int=0), cloud))
    store_uuid = uuid.uuid5(cloud, f"{driver.name} {trial.display_url}")
    try:
        marker = within(settings.PROBE_SECONDS / 5, trial.display_url, trial.read_marker) or {}
    except StoreError:
        marker = {}  # the probe tells what is wrong, step by step
    if marker.get("cloud") == str(cloud):
        try:
            store_uuid = uuid.UUID(marker.get("store", ""))
        except ValueError:
            message = f"The ownership marker at {trial.display_url} is of this cloud but unreadable."
            raise Conflict(
                message, remedy="Look at the marker by hand; remove it if no store is kept there.", field="url"
            ) from None
    row = ImageStore.objects.filter(uuid=store_uuid).first()
    if row is not None and row.state not in _AWAY:
        message = f"{trial.display_url} is already the store {row.name!r} of this cloud."
        raise Conflict(message, remedy="Use that store, or give the new one a place of its own.", field="url")
    return store_uuid, row


def _probe(driver: StoreDriver) -> list[ProbeStep]:
    with store_errors():
        return probe_in_time(driver)


def refuse_blockers(steps: Sequence[ProbeStep], place: str) -> None:
    """Raise Blocked, with every step as finding, when one is a blocker."""
    for step in steps:
        if step.status == "blocker":
            message = f"{place} cannot be used: {step.message}"
            raise Blocked(message, remedy=step.remedy, field=step.field, findings=steps)


def _keep_probe(store: ImageStore, steps: Sequence[ProbeStep], facts: Mapping[str, object]) -> None:
    store.probed_at = timezone.now()
    store.probe_steps = [{**asdict(step), "facts": dict(step.facts)} for step in steps]
    store.facts = dict(facts)
    total, free = facts.get("total_bytes"), facts.get("free_bytes")
    if isinstance(total, int) and isinstance(free, int):
        store.total_size, store.used_bytes = total, total - free


def _save_details(store: ImageStore, details: Mapping[str, str]) -> None:
    secret = {option.name for option in driver_class(store.image_provider_name).options if option.secret}
    ImageStoreDetail.objects.filter(store_id=store.pk).delete()
    rows = [
        ImageStoreDetail(
            store_id=store.pk, name=name, value=secrets.encrypt(value) if name in secret else value, secret=name in secret
        )
        for name, value in details.items()
        if value
    ]
    ImageStoreDetail.objects.bulk_create(rows)


# --- afterwards ------------------------------------------------------------------------------------------------------------


def probe_store(*, actor: Actor, store: ImageStore) -> list[ProbeStep]:
    """Try the store out again and keep the steps on it; facts of an earlier probe stay where this one met a blocker."""
    with audit.refusals_noted(actor, ActorRole.OPERATOR, "store.probe", store.name):
        _refuse_removed(store)
        steps = _probe(driver_for(store))
    blockers = [step.name for step in steps if step.status == "blocker"]
    with transaction.atomic():
        _keep_probe(store, steps, store.facts if blockers else facts_of(steps))
        store.save(update_fields=["probed_at", "probe_steps", "facts", "total_size", "used_bytes"])
        audit.record(actor, "store.probe", store.name, blockers=blockers)
    return steps


def update_store(
    *,
    actor: Actor,
    store: ImageStore,
    name: str | None = None,
    readonly: bool | None = None,
    details: Mapping[str, str] | None = None,
    read_limit: int | None = _UNSET,
) -> ImageStore:
    """Change what is given. `details` are merged into the present ones: an empty secret stays, another empty value falls back
    to its default. New details must pass the live probe and lead to the same store.
    """
    with audit.refusals_noted(actor, ActorRole.STORAGE_ADMIN, "store.update", store.name):
        _refuse_removed(store)
        changes: dict[str, tuple[object, object]] = {}
        fields: list[str] = []
        merged: dict[str, str] | None = None
        if name is not None and name.strip() != store.name:
            _check_rename(name.strip())
            changes["name"] = store.name, name.strip()
            store.name = name.strip()
            fields.append("name")
        if readonly is not None and readonly != store.readonly:
            changes["readonly"] = store.readonly, readonly
            store.readonly = readonly
            fields.append("readonly")
        if read_limit is not _UNSET and read_limit != store.read_limit:
            check_rate(read_limit, "read_limit")
            changes["read_limit"] = store.read_limit, read_limit
            store.read_limit = read_limit
            fields.append("read_limit")
        if details is not None:
            merged = _try_details(store, details)
            changes |= _changed_details(store, details, merged)
            fields += ["protocol", "place", "probed_at", "probe_steps", "facts", "total_size", "used_bytes"]
        with transaction.atomic():
            try:
                with transaction.atomic():
                    if fields:
                        store.save(update_fields=fields)
            except IntegrityError as error:
                message = f"There is already a store called {store.name!r}."
                raise Conflict(message, remedy="Choose another name.", field="name") from error
            if merged is not None:
                _save_details(store, merged)
            audit.record(actor, "store.update", store.name, changes=changes, uuid=str(store.uuid))
    return store


def _changed_details(
    store: ImageStore, given: Mapping[str, str], merged: Mapping[str, str]
) -> Iterator[tuple[str, tuple[object, object]]]:
    """Details before and after; of a secret only that another was given."""
    before = details_of(store)
    for option in driver_class(store.image_provider_name).options:
        if option.secret:
            if given.get(option.name):
                yield option.name, ("a secret", "another secret") if option.name in before else ("", "a secret")
        else:
            yield option.name, (before.get(option.name, ""), merged.get(option.name, ""))


def _check_rename(name: str) -> None:
    if not name or len(name) > 255:
        raise Invalid("A store's name has 1 to 255 characters.", remedy="Choose another name.", field="name")
    if ImageStore.objects.filter(name=name, removed=None).exists():
        raise Conflict(f"There is already a store called {name!r}.", remedy="Choose another name.", field="name")


def _try_details(store: ImageStore, details: Mapping[str, str]) -> dict[str, str]:
    """The merged details, after a driver made with them found this very store."""
    driver = driver_class(store.image_provider_name)
    secret = {option.name for option in driver.options if option.secret}
    given = {name: value for name, value in details.items() if value or name not in secret}
    # A secret that is replaced need not be legible: this is the way out when the key ring was lost.
    present = details_of(store, reveal=True, but=given.keys())
    url, merged = _clean(driver, store.url, {**present, **given}, store.zone)
    trial = driver(_config(url, merged, store.uuid))
    with store_errors():
        trial.check()
    steps = _probe(trial)
    refuse_blockers(steps, trial.display_url)
    store.protocol, store.place = trial.protocol, trial.display_url[:2048]
    _keep_probe(store, steps, facts_of(steps))
    return merged


def remove_store(*, actor: Actor, store: ImageStore) -> None:
    """Take a store out of the cloud; nothing on it is deleted. Conflict while anything of ours is, or is to be, on it."""
    with audit.audited(actor, ActorRole.STORAGE_ADMIN, "store.remove", store.name):
        ImageStore.objects.select_for_update().filter(pk=store.pk).first()
        _refuse_used(store)
        removable = sources(STORE_TRANSITIONS, StoreEvent.REMOVE)
        now = timezone.now()
        rows = ImageStore.objects.filter(pk=store.pk, state__in=removable).update(state=StoreState.REMOVED, removed=now)
        if not rows:
            raise Conflict(f"The store {store.name} is removed already.", remedy="Nothing to do.")
        ImageStoreDetail.objects.filter(store_id=store.pk, secret=True).delete()
        changes = {"state": (str(store.state), str(StoreState.REMOVED))}
        audit.record(actor, "store.remove", store.name, changes=changes, uuid=str(store.uuid), url=store.url)
    store.state, store.removed = StoreState.REMOVED, now


def _refuse_used(store: ImageStore) -> None:
    for message, remedy in forbids_removal(store):
        raise Conflict(message, remedy=remedy)


def forbids_removal(store: ImageStore) -> Iterator[tuple[str, str]]:
    """What stands against the removal of a store, and what to do about each."""
    for kind, models in KINDS.items():
        count = models.ref.objects.filter(store_id=store.pk, state__in=LIVE_REF_STATES).count()
        if count:
            yield f"The store {store.name} still has {count} {kind} refs.", "Move or delete what is on it first."
    if Transfer.objects.filter(state__in=LIVE_TRANSFER_STATES, target_id=store.pk).exists():
        yield f"Copies to the store {store.name} are under way.", "Wait for them or cancel them."
    if ScanRun.objects.filter(store_id=store.pk, state__in=LIVE_SCAN_STATES).exists():
        yield f"A scan of the store {store.name} waits or runs, and adopts what it finds.", "Wait for it or cancel it."
    staging = ImageStore.objects.filter(role=Role.IMAGE_CACHE, state=StoreState.ATTACHED).exclude(pk=store.pk)
    records = ImageStore.objects.filter(role=Role.IMAGE, state=StoreState.ATTACHED).exclude(pk=store.pk)
    if store.role == Role.IMAGE and store.state == StoreState.ATTACHED and staging.exists() and not records.exists():
        message = f"{store.name} is the only store of record, and staging stores stand before it."
        yield message, "Remove the staging stores first, or roll the conversion back while that can be done."


def _refuse_removed(store: ImageStore) -> None:
    if store.state == StoreState.REMOVED:
        raise Conflict(f"The store {store.name} was removed.", remedy="Add it again.")
