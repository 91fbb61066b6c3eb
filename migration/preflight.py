"""Looks before a conversion leaps: reads and samples every export and tries the object store, and keeps the report."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import timedelta
from typing import Any

from django.db import transaction
from django.utils import timezone

from cloudstorage import audit, queue, secrets
from cloudstorage.actors import SYSTEM, Actor, ActorRole
from cloudstorage.errors import Missing, ServiceError
from migration import census, sampling
from migration.findings import Finding, details_digest, fingerprint, known_findings, nfs_stores, probe_export
from migration.models import Preflight
from stores.drivers.base import ProbeStep
from stores.models import ImageStore
from stores.services import image_stores

log = logging.getLogger(__name__)

TASK = "migration.tasks.run_preflight"
FORGOTTEN_AFTER = timedelta(minutes=30)
"""Longer than a preflight takes; one that runs twice after all does no harm, the first report stays."""
UNREACHED = frozenset({"mount", "reach", "ownership"})
"""Steps of an export's probe without which nothing at all can be said of it."""


def preflight(*, actor: Actor, name: str, url: str, provider: str, details: Mapping[str, str]) -> Preflight:
    """Run a preflight now and return it with its report; takes minutes on a large region, and changes nothing.

    The report is JSON: zones, findings, object_store, requests, time, not_checked. Raises what `request_preflight` raises, and
    ServiceError where it could not be brought to an end.
    """
    return run_preflight(_request(actor, name, url, provider, details).pk)


def request_preflight(*, actor: Actor, name: str, url: str, provider: str, details: Mapping[str, str]) -> Preflight:
    """Note that a preflight is wanted and wake the queue for it: `finished` is empty until it has ended.

    Raises Invalid or Conflict naming the field when the parameters alone rule the conversion out.
    """
    requested = _request(actor, name, url, provider, details)
    queue.wake(TASK, requested.pk)
    return requested


def wake_forgotten() -> int:
    """Ask the queue again for preflights that it lost or whose worker died; returns how many. For the worker's clock."""
    now = timezone.now()
    forgotten = 0
    for row in Preflight.objects.filter(finished=None, woken__lt=now - FORGOTTEN_AFTER).order_by("pk")[:10]:
        with transaction.atomic():
            if Preflight.objects.filter(pk=row.pk, finished=None, woken=row.woken).update(woken=now):
                queue.wake(TASK, row.pk)
                forgotten += 1
    return forgotten


def _request(actor: Actor, name: str, url: str, provider: str, details: Mapping[str, str]) -> Preflight:
    with audit.audited(actor, ActorRole.STORAGE_ADMIN, "conversion.preflight", name or url or provider):
        clean_url, clean = image_stores.check_new_store(
            name=name, provider=provider, url=url, details=details, zone=None, converting=True
        )
        digest = details_digest(provider, clean_url, clean)
        Preflight.objects.filter(details_digest=digest).exclude(sealed="").update(sealed="")
        requested = Preflight.objects.create(
            actor=actor.name,
            name=name,
            provider=provider,
            url=clean_url,
            details_digest=digest,
            sealed=secrets.encrypt(json.dumps(clean)),
        )
        audit.record(actor, "conversion.preflight", f"preflight {requested.uuid}", provider=provider, url=clean_url)
    return requested


def sealed_details(found: Preflight) -> dict[str, str]:
    """The object store's details as the preflight was given them, secrets among them: for the conversion, never for a face.

    Raises Missing once they were forgotten (a newer preflight, or a conversion, came after it).
    """
    if not found.sealed:
        raise Missing(f"The preflight {found.uuid} no longer knows the object store's secrets.", remedy="Run it again.")
    details: dict[str, str] = json.loads(secrets.decrypt(found.sealed))
    return details


def run_preflight(preflight_id: int) -> Preflight:
    """Look at everything and keep the report; may run twice, the first report stays."""
    row = Preflight.objects.get(pk=preflight_id)
    if row.finished is not None:
        return row
    try:
        mark, report = _look(row.provider, row.url, sealed_details(row))
    except Exception as error:
        message = error.message if isinstance(error, ServiceError) else f"{type(error).__name__}: {error}"
        Preflight.objects.filter(pk=row.pk, finished=None).update(finished=timezone.now(), error=message)
        raise
    severities = [finding["severity"] for finding in report["findings"]]
    Preflight.objects.filter(pk=row.pk, finished=None).update(
        finished=timezone.now(),
        fingerprint=mark,
        report=report,
        blockers=severities.count("blocker"),
        warnings=severities.count("warning"),
    )
    row.refresh_from_db()
    return row


def _look(provider: str, url: str, details: Mapping[str, str]) -> tuple[str, dict[str, Any]]:
    stores = nfs_stores()
    known = known_findings(stores)
    mark = fingerprint(stores, known)
    findings = [*known, *_no_nfs(stores), *census.findings(stores)]
    reached = [store for store in stores if _reached(store, findings)]
    samples = [sampling.look_at(store) for store in reached]
    for sample in samples:
        findings += sample.findings
    comparison = sampling.compare_copies(reached)
    findings += comparison.findings
    steps = image_stores.test_store(actor=SYSTEM, provider=provider, url=url, details=details, zone=None)
    findings += [found for step in steps if (found := _object_store_finding(step))]
    writable = all(step.status != "blocker" for step in steps)
    target = sampling.Target(provider, url, details, steps) if writable else None
    requests = census.requests(stores, target.driver if target else None)
    speed = target.measure() if target else None
    report = {
        "zones": census.zones(stores, {sample.store.pk: sample for sample in samples}),
        "findings": [asdict(found) for found in sorted(findings, key=_order)],
        "object_store": {"provider": provider, "url": url, "steps": [_step(step) for step in steps]},
        "requests": requests,
        "time": sampling.time_range(requests, samples, speed),
        "not_checked": [*_not_checked(samples, comparison), *_speed_unknown(speed, writable=writable)],
    }
    return mark, report


def _order(found: Finding) -> tuple[int, str, str]:
    return ("blocker", "warning", "info").index(found.severity), found.code, found.store


def _step(step: ProbeStep) -> dict[str, Any]:
    return {**asdict(step), "facts": dict(step.facts)}


def _no_nfs(stores: Sequence[ImageStore]) -> Iterable[Finding]:
    if not stores:
        message = "The region has no NFS store of record: converting it only adds the object store."
        yield Finding("no-nfs-stores", "info", message, "Nothing to do, unless an export was to be adopted first.")


def _reached(store: ImageStore, findings: list[Finding]) -> bool:
    """Probe an export from this process: is it there, and may we write, rename and delete on it?"""
    reached = True
    for step in probe_export(store):
        if step.status == "blocker":
            unreachable = step.name in UNREACHED
            reached = reached and not unreachable
            code = "export-unreachable" if unreachable else "export-rights"
            message = f"{store.name}, {step.name}: {step.message}"
            findings.append(Finding(code, "blocker", message, step.remedy, not unreachable).at(store))
        elif step.status in {"warning", "unknown"}:
            message = f"{store.name}, {step.name}: {step.message}"
            findings.append(Finding("export-probe", "warning", message, step.remedy).at(store))
    return reached


def _object_store_finding(step: ProbeStep) -> Finding | None:
    message = f"{step.name}: {step.message}"
    if step.status == "blocker":
        return Finding("object-store", "blocker", message, step.remedy, overridable=False)
    if step.status in {"warning", "unknown"}:
        return Finding("object-store-probe", "warning", message, step.remedy)
    return None


def _speed_unknown(speed: sampling.Speed | None, *, writable: bool) -> list[str]:
    if speed is not None:
        return []
    why = "it failed while it was measured, though its probe found no blocker" if writable else "its probe found blockers"
    return [f"The speed of the object store, because {why}."]


def _not_checked(samples: Sequence[sampling.Sample], comparison: sampling.Comparison) -> list[str]:
    said = [
        "Whether every byte on the exports can be read: only the first bytes of the files named above were read.",
        "Rights to rename and delete in each item's own folder: they were tried in the export's own folders only.",
        "Free space, quota and cost of the object store: stores of this kind do not tell.",
        "Whether the workers reach the object store: they try it when the store has been added.",
        "Programs outside of cloudstorage that write to the exports: later scans report what they wrote.",
    ]
    said += [
        f"{sample.store.name}: {sample.files - sample.opened} of {sample.files} files were not opened."
        for sample in samples
        if sample.opened < sample.files
    ]
    if comparison.not_compared:
        said.append(f"{comparison.not_compared} items with copies in several zones were compared by size only, not by content.")
    return said
