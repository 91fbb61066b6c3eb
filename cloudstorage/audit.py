"""Writes the audit trail: in the service's own transaction when something was done, outside of any when it was refused."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from django.db import transaction

from cloudstorage.actors import Actor, ActorRole
from cloudstorage.errors import Conflict, ServiceError
from cloudstorage.models import AuditEvent, Installation

_CREDENTIALS = re.compile(r"(?<=://)[^/\s]*@")
"""What somebody typed into a url, where it is refused."""


Changes = Mapping[str, tuple[object, object]]
"""Name -> (before, after)."""


def record(actor: Actor, action: str, target: object, *, changes: Changes | None = None, **details: Any) -> None:
    """Note what was done. Call it inside the transaction that does it; `details` must be JSON and free of secrets, and so must
    `changes`, of which only what differs is noted."""
    told = {name: {"before": before, "after": after} for name, (before, after) in (changes or {}).items() if before != after}
    if told:
        details["changes"] = told
    AuditEvent.objects.create(actor=actor.name, action=action, target=_target(target), details=details)


def refused(actor: Actor, action: str, target: object, error: ServiceError) -> None:
    """Note a refusal, outside of the transaction that it rolled back."""
    details = {"reason": _kept(error.message)}
    AuditEvent.objects.create(actor=actor.name, action=action, target=_target(target), outcome="refused", details=details)


def _target(target: object) -> str:
    return _kept(str(target))[:255]


def _kept(text: str) -> str:
    """What somebody sent, as it may be kept: PostgreSQL has no place for a null character."""
    return _CREDENTIALS.sub("", text).replace("\0", "\ufffd")


@contextmanager
def audited(actor: Actor, role: ActorRole, action: str, target: object) -> Iterator[None]:
    """Check the role and run the block in one transaction; a refusal is noted after the roll-back and raised on.

    The block itself calls `record` for what it did.
    """
    with refusals_noted(actor, role, action, target), transaction.atomic():
        yield


@contextmanager
def refusals_noted(actor: Actor, role: ActorRole, action: str, target: object) -> Iterator[None]:
    """Like `audited` without its transaction, for services that speak to a store before they change a row."""
    try:
        actor.require(role)
        if not actor.recovers and (why := Installation.why_read_only()):
            raise Conflict(f"Nothing can be changed now. {why}", remedy="Run: manage.py restore --reconcile")
        yield
    except ServiceError as error:
        refused(actor, action, target, error)
        raise
