"""How the console's templates write amounts, times and states: a state is always an icon, a word and a colour."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from django import template
from django.templatetags.static import static
from django.utils import timezone
from django.utils.dateparse import parse_datetime
from django.utils.html import format_html
from django.utils.safestring import SafeString

from cloudstorage.commands import human_bytes, human_seconds

register = template.Library()

UNKNOWN = "\u2013"
"""A dash where nobody knows."""

_LOOKS: Mapping[str, tuple[str, str]] = {
    # state or word -> (icon, tone)
    "ready": ("check", "good"), "ok": ("check", "good"), "proven": ("check", "good"), "finished": ("check", "good"),
    "attached": ("check", "good"), "done": ("check", "good"), "converted": ("check", "good"), "committed": ("check", "good"),
    "alive": ("check", "good"), "reached": ("check", "good"), "complete": ("check", "good"),
    "running": ("play", "live"), "canary": ("play", "live"), "creating": ("play", "live"), "rollingback": ("play", "live"),
    "rolledback": ("check", "good"), "abandoned": ("cross", "quiet"), "detached": ("lock", "quiet"),
    "promised": ("clock", "wait"), "pending": ("clock", "wait"), "queued": ("clock", "wait"), "blocked": ("link", "wait"),
    "planned": ("clock", "wait"), "allocated": ("clock", "wait"), "paused": ("pause", "wait"),
    "failed": ("cross", "bad"), "blocker": ("cross", "bad"), "refused": ("cross", "bad"), "silent": ("cross", "bad"),
    "unreachable": ("cross", "bad"), "removed": ("cross", "quiet"), "warning": ("warn", "warn"), "stuck": ("warn", "warn"),
    "checking": ("play", "live"), "deleting": ("play", "live"), "waiting": ("question", "warn"), "retired": ("check", "good"),
    "incomplete": ("warn", "warn"), "unknown": ("question", "warn"), "read-only": ("lock", "warn"),
}  # fmt: skip


@register.filter
def iec(count: Any) -> str:
    """Bytes in IEC units; a dash where nobody knows."""
    return UNKNOWN if count in {None, ""} else human_bytes(float(count))


@register.filter
def duration(seconds: Any) -> str:
    """Seconds for people."""
    return UNKNOWN if seconds in {None, ""} else human_seconds(float(seconds))


@register.filter
def grouped(number: Any) -> str:
    """An integer with its digits in groups of three."""
    return UNKNOWN if number in {None, ""} else f"{int(number):,}".replace(",", "\u202f")


@register.filter
def pairs(mapping: Any) -> list[tuple[str, Any]]:
    """Names and values of a mapping, in which a template would take a key called items for the method."""
    return list(mapping.items()) if isinstance(mapping, Mapping) else []


@register.filter
def told(value: Any) -> str:
    """A value out of JSON, for people."""
    if isinstance(value, (dict, list)):
        return json.dumps(value, ensure_ascii=False) if value else UNKNOWN
    return UNKNOWN if value is None or value == "" else str(value)


@register.filter
def percent(part: Any, whole: Any) -> float:
    """Part of a whole, 0 to 100, one decimal."""
    return round(100 * float(part or 0) / float(whole), 1) if whole else 0.0


@register.filter
def moment(value: Any) -> SafeString | str:
    """A point in time, in the operator's zone, with its age; machine-readable."""
    at = parse_datetime(value) if isinstance(value, str) and value else value
    if not isinstance(at, datetime):
        return UNKNOWN
    local = timezone.localtime(at)
    seconds = (timezone.now() - at).total_seconds()
    age = f"in {_rough(-seconds)}" if seconds < 0 else f"{_rough(seconds)} ago" if seconds >= 10 else "just now"
    return format_html('<time datetime="{}" title="{}">{}</time>', at.isoformat(), f"{local:%Y-%m-%d %H:%M:%S %Z}", age)


def _rough(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


@register.filter
def clock(value: Any) -> SafeString | str:
    """A point in time as date and time."""
    if not isinstance(value, datetime):
        return UNKNOWN
    return format_html('<time datetime="{}">{}</time>', value.isoformat(), f"{timezone.localtime(value):%Y-%m-%d %H:%M:%S %Z}")


@register.simple_tag
def icon(name: str) -> SafeString:
    """A picture from the sprite; decoration beside a word."""
    return format_html(
        '<svg class="icon" aria-hidden="true" width="16" height="16"><use href="{}#{}"></use></svg>',
        static("console/icons.svg"),
        name,
    )


@register.simple_tag(takes_context=True)
def unless_same(context: Mapping[str, Any]) -> SafeString | str:
    """An attribute of a part that polls: it asks for what differs from itself. Nothing in a part that came with its page."""
    version = context.get("fragment_version", "")
    return format_html(' hx-headers=\'{{"If-None-Match":"\\"{}\\""}}\'', version) if version else ""


@register.simple_tag
def badge(state: Any, words: str = "") -> SafeString:
    """A state as icon, word and colour; `words` to say more than the state's own name."""
    name = str(state)
    shape, tone = _LOOKS.get(name.lower(), ("dot", "quiet"))
    return format_html('<span class="badge {}">{}{}</span>', tone, icon(shape), words or name)
