"""The admin site of the console: roles instead of model permissions, our own pages beside the admin's change lists."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.contrib.admin import AdminSite, ModelAdmin, ShowFacets
from django.contrib.admin.views.main import ERROR_FLAG
from django.http import HttpRequest, HttpResponse
from django.urls import NoReverseMatch, path, reverse
from django.utils import timezone
from django.views.decorators.cache import never_cache

from cloudstorage.actors import ActorRole
from cloudstorage.console import pages
from cloudstorage.console.filters import Listing, listing
from cloudstorage.console.pages import actor_of
from cloudstorage.logs import request_id


class ConsoleSite(AdminSite):
    """Whoever has a role may enter; what else they may do is asked of the services."""

    site_header = site_title = "cloudstorage"
    index_title = "Overview"
    site_url = ""
    enable_nav_sidebar = False

    def __init__(self, name: str = "console") -> None:
        super().__init__(name)

    def register(self, model_or_iterable: Any, admin_class: Any = None, **options: Any) -> None:
        """Only what is read-only: the change forms of other packages would write behind the back of services and audit trail."""
        if admin_class is not None and issubclass(admin_class, ReadOnlyAdmin):
            super().register(model_or_iterable, admin_class, **options)

    def has_permission(self, request: HttpRequest) -> bool:
        """A role lets in; being staff, or a superuser's flag, alone does not."""
        return bool(request.user.is_active) and actor_of(request).may(ActorRole.VIEWER)

    def get_urls(self) -> list[Any]:
        """Our pages, then the admin's, which end with one that catches all."""
        own = [path(page.route, page.view, name=page.name) for page in pages.registered()]
        return [*own, *super().get_urls()]

    def each_context(self, request: Any) -> dict[str, Any]:
        """What every page shows: where one can go, who one is, and the request's id."""
        context = super().each_context(request)
        context["request_id"] = request_id.get()
        if not context["has_permission"]:
            return context
        actor = actor_of(request)
        roles = [role.value for role in ActorRole if actor.may(role)]
        zone = timezone.get_current_timezone_name()
        return {**context, "navigation": _navigation(request), "roles": roles, "actor": actor, "time_zone": zone}

    def logout(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> Any:
        """Ask whoever comes by a link; only a button signs out."""
        if request.method != "POST":
            return never_cache(pages.show)(request, "console/sign_out.html", title="Sign out?")
        return super().logout(request, extra_context)

    def index(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> Any:
        """The overview, which the topmost app provides."""
        return never_cache(pages.overview())(request)

    def app_index(self, request: HttpRequest, app_label: str, extra_context: dict[str, Any] | None = None) -> Any:
        """There is one overview."""
        return pages.redirect("console:index")


def _navigation(request: HttpRequest) -> list[tuple[str, list[dict[str, Any]]]]:
    actor = actor_of(request)
    sections: dict[str, list[dict[str, Any]]] = {}
    best = 0
    for entry in pages.navigation():
        if not actor.may(entry.role):
            continue
        try:
            url = reverse(f"console:{entry.target}", args=entry.arguments)
        except NoReverseMatch:
            continue
        here = request.path == url or (url != reverse("console:index") and request.path.startswith(url))
        best = max(best, len(url) if here else 0)
        sections.setdefault(entry.section, []).append({"label": entry.label, "url": url, "icon": entry.icon, "here": here})
    for entries in sections.values():
        for found in entries:
            found["here"] = found["here"] and len(found["url"]) == best
    return list(sections.items())


if TYPE_CHECKING:
    _ModelAdmin = ModelAdmin[Any]
else:
    _ModelAdmin = ModelAdmin  # generic for the type checker only


class ReadOnlyAdmin(_ModelAdmin):
    """A change list of a small table to look at; changes go through pages that call services."""

    role = ActorRole.VIEWER
    add: tuple[str, str, ActorRole] | None = None
    """Label and URL name of the page that makes a new one, and the role that it takes."""
    empty = ""
    """What a list without a row teaches."""
    narrowing: tuple[str, ...] = ("q",)
    """Parameters of the URL that narrow it."""
    actions = None
    show_facets = ShowFacets.NEVER
    list_display_links = None
    change_list_template = "console/changelist.html"

    def __init__(self, model: Any, admin_site: Any) -> None:
        super().__init__(model, admin_site)
        self._listing()

    def get_urls(self) -> list[Any]:
        """The list alone: there is nothing to add, change or delete, and the list shows all that there is to see."""
        return [url for url in super().get_urls() if str(url.name).endswith("_changelist")]

    def _listing(self) -> Listing:
        return listing(f"{self.opts.app_label}_{self.opts.model_name}_changelist", *self.narrowing, role=self.role)

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """The list under its own name, since there is nothing to select for a change; what it does not understand is said."""
        if ERROR_FLAG in request.GET:
            message = "The list does not understand the filter in its address."
            return pages.failure(request, 400, "Filter not understood", message, f"Open the list without it: {request.path}")
        title = str(self.model._meta.verbose_name_plural).capitalize()  # noqa: SLF001 - Django's public name for it
        add = (
            {"label": self.add[0], "url": reverse(f"console:{self.add[1]}")}
            if self.add and actor_of(request).may(self.add[2])
            else None
        )
        narrowed = self._listing().narrowed(request)
        context = {"title": title, "add": add, "empty": self.empty, "narrowed": narrowed, **(extra_context or {})}
        return super().changelist_view(request, context)

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest) -> bool:
        """Only by what the list offers: the hash of a password could be asked for letter by letter."""
        return lookup.partition("__")[0] in self.list_filter and super().lookup_allowed(lookup, value, request)

    def has_module_permission(self, request: HttpRequest) -> bool:
        return actor_of(request).may(self.role)

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return actor_of(request).may(self.role)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False
