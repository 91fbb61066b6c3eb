"""The platform's part of the console: people and their tokens, and the audit trail."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from typing import Any

from django.conf import settings
from django.contrib import admin, messages
from django.contrib.auth import get_user_model
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import get_object_or_404
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html

from cloudstorage import people, preferences
from cloudstorage.actors import ActorRole
from cloudstorage.commands import human_age, human_bytes
from cloudstorage.console import rest_docs
from cloudstorage.console.exports import exported, wanted_form
from cloudstorage.console.filters import listing
from cloudstorage.console.forms import Field, ask, confirm, whole_number
from cloudstorage.console.pages import actor_of, entry, keyset, page, redirect, show
from cloudstorage.console.site import ReadOnlyAdmin
from cloudstorage.environment import Setting
from cloudstorage.models import ApiToken, AuditEvent
from cloudstorage.templatetags.console import change_in_words, clock

__all__ = ["rest_docs"]

User = get_user_model()

entry(40, "People", "Users", "auth_user_changelist", "people", ActorRole.STORAGE_ADMIN)
entry(41, "People", "Tokens", "token_list", "key")
entry(42, "People", "Audit trail", "audit_list", "audit", ActorRole.AUDITOR)
entry(50, "Installation", "Settings", "setting_list", "menu", ActorRole.STORAGE_ADMIN)
entry(51, "Installation", "REST API", "rest_list", "link")

AUDIT = listing("audit_list", "actor", "action", "target", "outcome", "since", "until", "days", role=ActorRole.AUDITOR)
_FIRST_DAY, _LAST_DAY = date(1970, 1, 1), date(9998, 12, 31)
"""Nothing happened before or after, and a day more or less in any zone is still a date."""
AUDIT_COLUMNS = ("at", "actor", "action", "target", "outcome")
INCLUDED = "Operator includes viewer, storage-admin includes operator."
ROLES = tuple((role.value, role.value) for role in ActorRole)


@admin.register(User)
class UserAdmin(ReadOnlyAdmin):
    """People and their roles, to look at; pages of their own make and change them."""

    role = ActorRole.STORAGE_ADMIN
    list_display = ("person", "roles", "is_active", "signed_in")
    list_filter = ("is_active", "groups")
    narrowing = ("q", "is_active__exact", "groups__id__exact")
    search_fields = ("username",)
    add = ("Add a user", "user_add", ActorRole.STORAGE_ADMIN)

    @admin.display(description="username", ordering="username")
    def person(self, user: Any) -> str:
        return format_html('<a href="{}">{}</a>', reverse("console:user_edit", args=[user.pk]), user.username)

    @admin.display(description="roles")
    def roles(self, user: Any) -> str:
        names = sorted(group.name for group in user.groups.all())
        return ", ".join(names + ["superuser"] * user.is_superuser) or "none"

    @admin.display(description="last sign-in", ordering="last_login")
    def signed_in(self, user: Any) -> str:
        return clock(user.last_login)

    def get_queryset(self, request: HttpRequest) -> Any:
        return super().get_queryset(request).prefetch_related("groups")


@page("people/add/", "user_add", ActorRole.STORAGE_ADMIN)
def user_add(request: HttpRequest) -> HttpResponse:
    """A new person with one role."""
    fields = [
        Field("name", "Name", "For signing in.", required=True),
        Field("role", "Role", INCLUDED, "choice", "viewer", choices=ROLES),
        Field("password", "Password", "12 characters or more.", "password", required=True, autocomplete="new-password"),
    ]

    def add(given: Mapping[str, Any]) -> HttpResponse:
        people.add_user(actor=actor_of(request), **{field.name: given.get(field.name, "") for field in fields})
        messages.success(request, f"{given['name']} may sign in now.")
        return redirect("console:auth_user_changelist")

    return ask(request, fields, add, title="Add a user", button="Add the user", back=("console:auth_user_changelist",))


@page("people/<int:number>/", "user_edit", ActorRole.STORAGE_ADMIN)
def user_edit(request: HttpRequest, number: int) -> HttpResponse:
    """What a person may do from now on."""
    user = get_object_or_404(User, pk=number)
    fields = [
        Field("roles", "Roles", f"{INCLUDED} No others are left: a superuser becomes an ordinary user.", "many", choices=ROLES),
        Field("active", "May sign in", "If not, their sessions end at once, and their tokens are refused.", "boolean"),
    ]

    def change(given: Mapping[str, Any]) -> HttpResponse:
        roles, active = request.POST.getlist("roles"), given.get("active") == "true"
        people.change_user(actor=actor_of(request), name=user.username, roles=roles, active=active)
        messages.success(request, f"{user.username} was changed.")
        return redirect("console:auth_user_changelist")

    present = {"roles": [group.name for group in user.groups.all()], "active": "true" if user.is_active else "false"}
    back = ("console:auth_user_changelist",)
    return ask(request, fields, change, present=present, title=f"Change {user.username}", button="Save", back=back)


# --- one's own --------------------------------------------------------------------------------------------------------------


@page("preferences/", "preferences")
def own_preferences(request: HttpRequest) -> HttpResponse:
    """The time zone in which one sees all times."""
    zones = tuple((name, name.replace("_", " ")) for name in preferences.time_zones())
    words = "All times are shown in it; exports and the REST API stay in UTC. Type a part of its name. Empty: the browser's zone."
    fields = [Field("time_zone", "Time zone", words, "search", choices=zones)]

    def keep(given: Mapping[str, Any]) -> HttpResponse:
        preferences.choose_time_zone(user=request.user, time_zone=given.get("time_zone", "").strip())
        messages.success(request, "Your preferences were saved.")
        return redirect("console:preferences")

    return ask(
        request,
        fields,
        keep,
        title="Preferences",
        present={"time_zone": preferences.time_zone_of(request.user)},
        button="Save",
        back=("console:index",),
    )


# --- tokens ----------------------------------------------------------------------------------------------------------------


@page("tokens/", "token_list")
def tokens(request: HttpRequest) -> HttpResponse:
    """One's own tokens; everybody's for storage-admins."""
    rows = ApiToken.objects.select_related("user")
    if not actor_of(request).may(ActorRole.STORAGE_ADMIN):
        rows = rows.filter(user__username=request.user.get_username())
    return show(request, "console/tokens.html", title="Tokens", slice=keyset(request, rows, newest_first=True), at=timezone.now())


@page("tokens/add/", "token_add")
def token_add(request: HttpRequest) -> HttpResponse:
    """Make a token; its secret is on the answer to this POST and nowhere else."""
    actor = actor_of(request)
    own = tuple((role.value, role.value) for role in ActorRole if actor.may(role))
    fields = [
        Field("name", "What it is for", "So that it can be told from others later.", required=True),
        Field("role", "Role", "It can do no more than this.", "choice", "viewer", choices=own),
        Field(
            "days",
            "Days",
            f"Until it expires, 1 to {people.MAX_TOKEN_DAYS}.",
            "integer",
            str(people.DEFAULT_TOKEN_DAYS),
            required=True,
        ),
    ]

    def make(given: Mapping[str, Any]) -> HttpResponse:
        token, secret = people.create_token(
            actor=actor,
            username=request.user.get_username(),
            name=given.get("name", ""),
            role=given.get("role", ""),
            days=whole_number(given.get("days", ""), "days"),
        )
        return show(request, "console/token.html", title="Your new token", token=token, secret=secret)

    return ask(
        request,
        fields,
        make,
        title="Make a token",
        intro="Programs use it as: Authorization: Bearer … It is shown once and kept nowhere.",
        button="Make the token",
        back=("console:token_list",),
    )


@page("tokens/<slug:prefix>/revoke/", "token_revoke")
def token_revoke(request: HttpRequest, prefix: str) -> HttpResponse:
    """Ask, then take a token back at once."""
    actor = actor_of(request)

    def do() -> HttpResponse:
        people.revoke_token(actor=actor, prefix=prefix)
        messages.success(request, f"The token {prefix}… was taken back.")
        return redirect("console:token_list")

    if request.method == "POST":
        return do()
    token = people.find_token(actor=actor, prefix=prefix)
    return confirm(
        request,
        do,
        title=f"Take back the token {prefix}…?",
        effect=f"Whatever uses this token of {token.user.get_username()} ({token.name}) is refused from then on. It cannot be"
        " given back; another one can be made at any time.",
        button="Take it back",
        back=("console:token_list",),
    )


# --- audit -----------------------------------------------------------------------------------------------------------------


@page("audit/", "audit_list", ActorRole.AUDITOR)
def audit(request: HttpRequest) -> HttpResponseBase:
    """Who did what to what, newest first, refusals too; `?format=csv` or `json` gives all that match."""
    rows = AuditEvent.objects.all()
    narrowed = AUDIT.narrowed(request)
    filters = narrowed.values
    for name in ("actor", "action", "target", "outcome"):
        if filters[name]:
            rows = rows.filter(**{name if name in {"outcome", "target"} else f"{name}__startswith": filters[name]})
    if filters["days"].isascii() and filters["days"].isdigit() and len(filters["days"]) < 5:
        rows = rows.filter(at__gte=timezone.now() - timedelta(days=int(filters["days"])))
    if since := _midnight(filters["since"]):
        rows = rows.filter(at__gte=since)
    if until := _midnight(filters["until"]):
        rows = rows.filter(at__lt=until + timedelta(days=1))
    if form := wanted_form(request):
        return exported(form, "audit", (*AUDIT_COLUMNS, "changes", "details"), _audit_rows(rows, in_words=form == "csv"))
    found = keyset(request, rows, newest_first=True)
    return show(request, "console/audit.html", title="Audit trail", slice=found, narrowed=narrowed, outcomes=("done", "refused"))


def _midnight(text: str) -> datetime | None:
    """The beginning of a day in the reader's zone; None for what is no date."""
    try:
        day = min(max(date.fromisoformat(text), _FIRST_DAY), _LAST_DAY)
    except ValueError:
        return None
    return timezone.make_aware(datetime.combine(day, time.min))


def _audit_rows(rows: QuerySet[AuditEvent], *, in_words: bool) -> Iterator[Sequence[Any]]:
    for *values, details in rows.order_by("-id").values_list(*AUDIT_COLUMNS, "details").iterator():
        rest = dict(details)
        changes = rest.pop("changes", {})
        yield [*values, "; ".join(change_in_words(*change) for change in changes.items()) if in_words else changes, rest]


# --- settings --------------------------------------------------------------------------------------------------------------

_MEANING = re.compile(r"^\| `(?P<name>[A-Z_]+)` \|[^|]*\| (?P<words>.*) \|$", re.MULTILINE)


@page("settings/", "setting_list", ActorRole.STORAGE_ADMIN)
def setting_list(request: HttpRequest) -> HttpResponse:
    """Every setting with its value, where that came from, and what it means; of secrets only that they are set."""
    try:
        meanings = dict(_MEANING.findall((settings.BASE_DIR / "docs" / "settings.md").read_text()))
    except OSError:
        meanings = {}  # an installation without its documents
    rows = [(each, meanings.get(each.name, ""), _in_words(each)) for each in settings.SETTINGS_READ]
    return show(request, "console/settings.html", title="Settings", rows=rows)


def _in_words(setting: Setting) -> str:
    """A large amount for people; else nothing."""
    if not setting.value.isdecimal():
        return ""
    amount = int(setting.value)
    if "_BYTES" in setting.name and amount >= 1024:
        return human_bytes(amount)
    return human_age(amount) if setting.name.endswith("_SECONDS") and amount >= 60 else ""
