"""What somebody has entered on the way to a conversion: kept in the database, so that it survives the browser and the machine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from django.utils import timezone

from cloudstorage import secrets
from cloudstorage.actors import Actor, ActorRole
from cloudstorage.audit import audited, record
from cloudstorage.errors import Missing
from migration.models import Draft, Preflight
from migration.rules import Rules, of

STORE, RULES, REPORT, REVIEW = 1, 2, 3, 4
"""The wizard's steps."""
KEPT_FOR = timedelta(days=14)
"""Secrets are not kept longer for somebody who does not come back."""


def draft_of(actor: Actor) -> Draft | None:
    """Their draft; None for who has none, or lost the role that it takes."""
    if not actor.may(ActorRole.STORAGE_ADMIN):
        return None
    found = Draft.objects.filter(actor=actor.name, updated__gt=timezone.now() - KEPT_FOR)
    return found.select_related("preflight").defer("preflight__report").first()


def entries(draft: Draft | None) -> dict[str, Any]:
    """What was entered of the object store, secrets among it: never for a face."""
    found: dict[str, Any] = json.loads(secrets.decrypt(draft.sealed)) if draft is not None else {}
    return found


def keep(*, actor: Actor, provider: str, entered: Mapping[str, Any]) -> Draft:
    """Keep the entries of the first step; those of another provider are given up."""
    actor.require(ActorRole.STORAGE_ADMIN)
    values = {"provider": provider, "sealed": secrets.encrypt(json.dumps(entered)), "step": STORE, "updated": timezone.now()}
    draft, _ = Draft.objects.update_or_create(actor=actor.name, defaults=values)
    return draft


def go_on(*, actor: Actor, preflight: Preflight) -> None:
    """The object store was entered to the end, and this preflight looks at it. Rules that were chosen before are kept."""
    actor.require(ActorRole.STORAGE_ADMIN)
    draft = draft_of(actor)
    if draft is None:
        return
    if draft.preflight is not None:
        Preflight.objects.filter(pk=preflight.pk).update(rules=draft.preflight.rules, then=draft.preflight.then)
    Draft.objects.filter(pk=draft.pk).update(preflight=preflight, step=RULES, updated=timezone.now())


def reach(actor: Actor, preflight: Preflight, step: int) -> None:
    """Note where they are, to go on from there."""
    mine = Draft.objects.filter(actor=actor.name, preflight=preflight)
    mine.exclude(step=step).update(step=step, updated=timezone.now())


def keep_rules(*, actor: Actor, preflight: Preflight, rules: Rules, then: str) -> None:
    """Let the conversion that follows this preflight be followed by such a drain: planned, started too, or none.

    Raises Missing once there is nothing to convert with it any more.
    """
    with audited(actor, ActorRole.STORAGE_ADMIN, "conversion.rules", f"preflight {preflight.uuid}"):
        if not Preflight.objects.filter(pk=preflight.pk).exclude(sealed="").update(rules=rules.as_json(), then=then):
            raise Missing(f"The preflight {preflight.uuid} is of no use any more.", remedy="Run another one.")
        reach(actor, preflight, REPORT)
        record(actor, "conversion.rules", f"preflight {preflight.uuid}", then=then, **rules.as_json())


def rules_of(preflight: Preflight | None) -> Rules:
    """The rules that were chosen with it, else those by default."""
    return of(preflight.rules if preflight is not None else {})


def discard(*, actor: Actor) -> bool:
    """Forget their draft, and the secrets that its preflight keeps; the report stays. False where there was none."""
    with audited(actor, ActorRole.STORAGE_ADMIN, "conversion.draft-discard", actor.name):
        draft = draft_of(actor)
        if draft is None:
            return False
        Preflight.objects.filter(drafts=draft, actor=actor.name).update(sealed="")
        draft.delete()
        record(actor, "conversion.draft-discard", actor.name)
    return True


def expire() -> int:
    """Forget drafts to which nobody came back. For the worker's clock."""
    gone, _ = Draft.objects.filter(updated__lt=timezone.now() - KEPT_FOR).delete()
    return gone
