"""The platform's part of the console: people and their tokens, and the audit trail."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.contrib import admin, messages
from django.contrib.auth import get_user_model
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.utils import timezone

from cloudstorage import people
from cloudstorage.actors import ActorRole
from cloudstorage.console.exports import exported, wanted_form
from cloudstorage.console.forms import Field, filled, misplaced
from cloudstorage.console.pages import action, actor_of, entry, keyset, page, redirect, show
from cloudstorage.console.site import ReadOnlyAdmin
from cloudstorage.errors import Invalid, ServiceError
from cloudstorage.models import ApiToken, AuditEvent
from cloudstorage.templatetags.console import clock

User = get_user_model()

entry(40, "People", "Users", "auth_user_changelist", "people", ActorRole.STORAGE_ADMIN)
entry(41, "People", "Tokens", "token_list", "key")
entry(42, "People", "Audit trail", "audit_list", "audit", ActorRole.AUDITOR)
entry(50, "Installation", "Settings", "setting_list", "menu", ActorRole.STORAGE_ADMIN)

ROLES = tuple((role.value, role.value) for role in ActorRole)


@admin.register(User)
class UserAdmin(ReadOnlyAdmin):
    """People and their roles, to look at; `user_add` and the page of the same name make new ones."""

    role = ActorRole.STORAGE_ADMIN
    list_display = ("username", "roles", "is_active", "signed_in")
    list_filter = ("is_active", "groups")
    search_fields = ("username",)
    change_list_template = "console/users.html"

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
        Field("role", "Role", "Operator includes viewer, storage-admin includes operator.", "choice", "viewer", choices=ROLES),
        Field("password", "Password", "12 characters or more.", "password", required=True, autocomplete="new-password"),
    ]
    error: ServiceError | None = None
    if request.method == "POST":
        given = {field.name: request.POST.get(field.name, "") for field in fields}
        try:
            people.add_user(actor=actor_of(request), **given)
        except ServiceError as refused:
            error = refused
        else:
            messages.success(request, f"{given['name']} may sign in now.")
            return redirect("console:auth_user_changelist")
    return show(
        request,
        "console/form.html",
        title="Add a user",
        status=error.status if error else 200,
        fields=filled(fields, request.POST, error),
        error=misplaced(fields, error),
        button="Add the user",
        back=("console:auth_user_changelist",),
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
    error: ServiceError | None = None
    if request.method == "POST":
        try:
            days = request.POST.get("days", "")
            if not (days.isascii() and days.isdigit() and len(days) < 6):
                raise Invalid(f"{days!r} is not a number of days.", remedy="Write it in digits.", field="days")
            token, secret = people.create_token(
                actor=actor,
                username=request.user.get_username(),
                name=request.POST.get("name", ""),
                role=request.POST.get("role", ""),
                days=int(days),
            )
        except ServiceError as refused:
            error = refused
        else:
            return show(request, "console/token.html", title="Your new token", token=token, secret=secret)
    return show(
        request,
        "console/form.html",
        title="Make a token",
        status=error.status if error else 200,
        fields=filled(fields, request.POST, error),
        error=misplaced(fields, error),
        intro="Programs use it as: Authorization: Bearer … It is shown once and kept nowhere.",
        button="Make the token",
        back=("console:token_list",),
    )


@action("tokens/<slug:prefix>/revoke/", "token_revoke", ActorRole.VIEWER)
def token_revoke(request: HttpRequest, prefix: str) -> HttpResponse:
    """Take a token back at once."""
    people.revoke_token(actor=actor_of(request), prefix=prefix)
    messages.success(request, f"The token {prefix}… was taken back.")
    return redirect("console:token_list")


# --- audit -----------------------------------------------------------------------------------------------------------------


@page("audit/", "audit_list", ActorRole.AUDITOR)
def audit(request: HttpRequest) -> HttpResponseBase:
    """Who did what to what, newest first, refusals too; `?format=csv` or `json` gives all that match."""
    rows = AuditEvent.objects.all()
    filters = {name: request.GET.get(name, "").strip()[:255] for name in ("actor", "action", "target", "outcome", "days")}
    for name in ("actor", "action", "target", "outcome"):
        if filters[name]:
            rows = rows.filter(**{name if name in {"outcome", "target"} else f"{name}__startswith": filters[name]})
    if filters["days"].isascii() and filters["days"].isdigit() and len(filters["days"]) < 5:
        rows = rows.filter(at__gte=timezone.now() - timedelta(days=int(filters["days"])))
    if form := wanted_form(request):
        columns = ("at", "actor", "action", "target", "outcome", "details")
        return exported(form, "audit", columns, rows.order_by("-id").values_list(*columns).iterator())
    found = keyset(request, rows, newest_first=True)
    return show(request, "console/audit.html", title="Audit trail", slice=found, filters=filters, filtered=any(filters.values()))


# --- settings --------------------------------------------------------------------------------------------------------------

_MEANING = re.compile(r"^\| `(?P<name>[A-Z_]+)` \|[^|]*\| (?P<words>.*) \|$", re.MULTILINE)


@page("settings/", "setting_list", ActorRole.STORAGE_ADMIN)
def setting_list(request: HttpRequest) -> HttpResponse:
    """Every setting with its value, where that came from, and what it means; of secrets only that they are set."""
    try:
        meanings = dict(_MEANING.findall((settings.BASE_DIR / "docs" / "settings.md").read_text()))
    except OSError:
        meanings = {}  # an installation without its documents
    rows = [(setting, meanings.get(setting.name, "")) for setting in settings.SETTINGS_READ]
    return show(request, "console/settings.html", title="Settings", rows=rows)
