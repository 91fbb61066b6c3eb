"""The form in which a drain's rules are entered: in the wizard, in the plan of a drain, and its limits while it runs."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.http import QueryDict

from cloudstorage.commands import bytes_from, exact_bytes
from cloudstorage.console.forms import Field, whole_number
from migration.rules import DEFAULT, KIND_NAMES, ORDERS, VERIFICATIONS, Given, Limits, Rules
from stores.models import Zone


def scope_fields() -> list[Field]:
    """What a drain moves, in which order, and how that is proven: chosen before it begins."""
    zones = [(name, name) for name in Zone.objects.values_list("name", flat=True)[:200]]
    return [
        Field("zones", "Zones", "What has a copy there, with the snapshots that it builds on. None ticked: all.", "many",
              choices=zones),
        Field("kinds", "Kinds", "None ticked: all.", "many", choices=[(str(kind), name) for kind, name in KIND_NAMES.items()]),
        Field("order", "Order", "Parents go before their children in any order, and what is asked for at once before all else.",
              "choice", choices=[(str(order), words) for order, words in ORDERS.items()]),
        Field("verification", "Proof", "What makes a copy count as proven.", "choice", choices=list(VERIFICATIONS.items())),
        Field("canary_items", "Canary items", "Copied first, read back before the rest; 0 for none.", "integer", required=True),
    ]  # fmt: skip


def limit_fields() -> list[Field]:
    """What may change while it runs."""
    return [
        Field("concurrency", "Items at once", "Over all workers, 1 to 256.", "integer", required=True),
        Field("bandwidth", "Bandwidth", "Per second over all workers, like 100M or 1.5GiB. Empty: no limit."),
        Field("window", "Time windows", "Like 22:00-06:00, or Mon-Fri 22:00-06:00; Sat,Sun 00:00-24:00. Empty: always."),
        Field("time_zone", "Time zone of the windows", "Like Europe/Berlin: windows go by the clock on the wall there."),
    ]


def limits_entered(data: QueryDict) -> Limits:
    """What the form sent of the limits; raises Invalid naming the field."""
    window = data.get("window", "").strip()
    return {
        "concurrency": whole_number(data.get("concurrency", ""), "concurrency"),
        "bandwidth": bytes_from(data.get("bandwidth", "").strip() or "none", "bandwidth"),
        "window": window,
        "time_zone": data.get("time_zone", "").strip() if window else "",
    }


def rules_entered(data: QueryDict) -> Given:
    """What the form sent; raises Invalid naming the field."""
    return {
        "zones": data.getlist("zones"),
        "kinds": data.getlist("kinds"),
        "order": data.get("order") or DEFAULT.order,
        "verification": data.get("verification") or DEFAULT.verification,
        "canary_items": whole_number(data.get("canary_items", ""), "canary_items"),
        **limits_entered(data),
    }


def as_entered(rules: Rules) -> dict[str, Any]:
    """The rules as the form shows them."""
    zone = rules.time_zone or settings.TIME_ZONE
    return rules.as_json() | {"bandwidth": exact_bytes(rules.bandwidth), "time_zone": zone}
