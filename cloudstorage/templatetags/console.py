"""How the console's templates write amounts, times, states and the frames around them: each thing looks the same everywhere."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from django import template
from django.template.loader import render_to_string
from django.templatetags.static import static
from django.urls import reverse
from django.utils import timezone
from django.utils.dateparse import parse_datetime
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString, mark_safe

from cloudstorage.commands import human_age, human_bytes, human_seconds

register = template.Library()

UNKNOWN = "\u2013"
"""A dash where nobody knows."""
_CLOCK = "%Y-%m-%d %H:%M:%S %Z"

_LOOKS: Mapping[str, tuple[str, str]] = {
    # state or word -> (icon, tone)
    "ready": ("check", "good"), "ok": ("check", "good"), "proven": ("check", "good"), "finished": ("check", "good"),
    "attached": ("check", "good"), "done": ("check", "good"), "converted": ("check", "good"), "committed": ("check", "good"),
    "alive": ("check", "good"), "reached": ("check", "good"), "complete": ("check", "good"),
    "running": ("play", "live"), "canary": ("play", "live"), "creating": ("play", "live"), "rollingback": ("play", "live"),
    "rolledback": ("check", "good"), "abandoned": ("cross", "quiet"), "detached": ("lock", "quiet"),
    "promised": ("clock", "wait"), "pending": ("clock", "wait"), "queued": ("clock", "wait"), "blocked": ("link", "wait"),
    "planned": ("clock", "wait"), "closed": ("clock", "wait"), "allocated": ("clock", "wait"), "paused": ("pause", "wait"),
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
def duration(seconds: Any, up_to: Any = None) -> str:
    """Seconds for people; with another number a range, which is one where both read the same."""
    if seconds in {None, ""}:
        return UNKNOWN
    low = human_seconds(float(seconds))
    high = low if up_to in {None, ""} else human_seconds(float(up_to))
    return low if low == high else f"{low} to {high}"


@register.filter
def breakable(name: Any) -> SafeString:
    """A long name of words joined by underscores, which a narrow column breaks after one of these."""
    return format_html_join(mark_safe("_<wbr>"), "{}", ((word,) for word in str(name).split("_")))


@register.filter
def marked(text: Any) -> SafeString:
    """Text of our documents, with what stands between backticks as code."""
    parts = str(text).split("`")
    return format_html_join(
        "", "{}", ((format_html("<code>{}</code>", part) if n % 2 else part,) for n, part in enumerate(parts))
    )


@register.filter
def grouped(number: Any) -> str:
    """An integer with its digits in groups of three."""
    return UNKNOWN if number in {None, ""} else f"{int(number):,}".replace(",", "\u202f")


@register.filter
def pairs(mapping: Any) -> list[tuple[str, Any]]:
    """Names and values of a mapping, in which a template would take a key called items for the method."""
    return list(mapping.items()) if isinstance(mapping, Mapping) else []


def _told(value: Any) -> str:
    """A value out of JSON, exactly."""
    if isinstance(value, (dict, list)):
        return json.dumps(value, ensure_ascii=False) if value else UNKNOWN
    return UNKNOWN if value is None or value == "" else str(value)


_OF_BYTES = re.compile(r"(.*_)?bytes|bandwidth|read.limit.*")
_MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")


@register.filter
def told(value: Any, name: str = "") -> str:
    """A value out of JSON, for the reader of a page: a moment in their zone, bytes by the value's name in IEC units too."""
    if isinstance(value, str) and _MOMENT.fullmatch(value) and (at := parse_datetime(value)):
        return f"{timezone.localtime(at):{_CLOCK}}"
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1024 and _OF_BYTES.fullmatch(name):
        return f"{human_bytes(value)} ({value})"
    return _told(value)


def change_in_words(name: str, change: Mapping[str, Any]) -> str:
    """A difference out of the audit trail, exactly: `state: Planned → Canary`."""
    return f"{name}: {_told(change.get('before'))} → {_told(change.get('after'))}"


@register.filter
def differences(details: Any) -> list[str]:
    """What an entry of the audit trail says that was changed, each in the reader's words."""
    changes = details.get("changes") if isinstance(details, Mapping) else None
    return [f"{name}: {told(each.get('before'), name)} → {told(each.get('after'), name)}" for name, each in pairs(changes)]


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
    age = f"in {human_age(-seconds)}" if seconds < 0 else f"{human_age(seconds)} ago" if seconds >= 10 else "just now"
    return format_html('<time datetime="{}" title="{}">{}</time>', _machine(at), f"{local:{_CLOCK}}", age)


@register.filter
def clock(value: Any) -> SafeString | str:
    """A point in time as date and time, in the operator's zone."""
    if not isinstance(value, datetime):
        return UNKNOWN
    return format_html('<time datetime="{}">{}</time>', _machine(value), f"{timezone.localtime(value):{_CLOCK}}")


def _machine(at: datetime) -> str:
    return at.astimezone(UTC).isoformat()


@register.simple_tag
def icon(name: str) -> SafeString:
    """A picture from the sprite; decoration beside a word."""
    return format_html(
        '<svg class="icon" aria-hidden="true" width="16" height="16"><use href="{}#{}"></use></svg>',
        static("console/icons.svg"),
        name,
    )


@register.simple_tag
def badge(state: Any, words: str = "") -> SafeString:
    """A state as icon, word and colour; `words` to say more than the state's own name."""
    name = str(state)
    shape, tone = _LOOKS.get(name.lower(), ("dot", "quiet"))
    return format_html('<span class="badge {}">{}{}</span>', tone, icon(shape), words or name)


# --- frames ----------------------------------------------------------------------------------------------------------------

_COLUMN_LOOKS = {"right", "wide"}


@register.simple_block_tag
def table(content: SafeString, caption: str, *columns: str, title: str = "", inside: bool = False) -> SafeString:
    """Rows with their heads, in a panel of their own unless they are `inside` of one; the keyboard can scroll it.

    A column's name may begin with how it looks: `right` for figures, `wide` for what a phone leaves out. None where it is empty.
    """
    heads = format_html_join("\n", '<th scope="col"{}>{}</th>', (_head(column) for column in columns if column))
    framed = format_html(
        '<div class="scroll" tabindex="0"><table><caption>{}</caption><thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>',
        caption,
        heads,
        content,
    )
    if inside:
        return framed
    if title:
        return format_html('<section class="panel flush"><h2>{}</h2>{}</section>', title, framed)
    return format_html('<div class="panel flush">{}</div>', framed)


def _head(column: str) -> tuple[SafeString | str, str]:
    words = column.split(" ")
    looks = []
    while words[0] in _COLUMN_LOOKS:
        looks.append(words.pop(0))
    return format_html(' class="{}"', " ".join(looks)) if looks else "", " ".join(words)


@register.simple_block_tag
def figure(content: SafeString, name: str) -> SafeString:
    """A large number with its name above, inside of `<dl class="numbers">`; what is `<small>` in it stands below."""
    return format_html("<div><dt>{}</dt><dd>{}</dd></div>", name, content)


@register.simple_tag
def fact(name: str, value: Any) -> SafeString | str:
    """A line of `<dl class="facts">`; nothing where there is nothing to tell."""
    return "" if value in {None, ""} else format_html("<dt>{}</dt><dd>{}</dd>", name, value)


@register.simple_block_tag(takes_context=True)
def live(
    context: Mapping[str, Any], content: SafeString, target: str, *arguments: Any, part: str = "live", query: str = "part=1"
) -> SafeString:
    """A part of a page that asks for itself anew every two seconds while `running`, and for nothing that is as it is already."""
    asks: SafeString | str = ""
    if context.get("running"):
        url = f"{reverse(f'console:{target}', args=arguments)}{query and '?'}{query}"
        asks = format_html(' hx-get="{}" hx-trigger="every 2s" hx-swap="outerHTML"{}', url, _unless_same(context))
    return format_html('<div id="{}"{}>{}</div>', part, asks, content)


def _unless_same(context: Mapping[str, Any]) -> SafeString | str:
    """Nothing in a part that came with its page."""
    version = context.get("fragment_version", "")
    return format_html(' hx-headers=\'{{"If-None-Match":"\\"{}\\""}}\'', version) if version else ""


@register.filter
def of_all(shown: Any, count: Any) -> str:
    """Says whether a list is whole: `rows|of_all:count`."""
    return f"The first {len(shown)} of {grouped(count)}" if int(count or 0) > len(shown) else "All of them"


@register.simple_block_tag(takes_context=True)
def filters(context: Mapping[str, Any], content: SafeString, narrowed: Any) -> SafeString:
    """The form that narrows a list, around its fields, with the filters that the reader keeps of it."""
    request = context["request"]
    return render_to_string("console/filters.html", {"fields": content, "narrowed": narrowed, "path": request.path}, request)
