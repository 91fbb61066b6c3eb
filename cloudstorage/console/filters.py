"""What a list is narrowed to: the parameters of its URL, the same as a file, and the filters that a person keeps by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlencode

from django.contrib import messages
from django.http import HttpRequest, HttpResponse, QueryDict

from cloudstorage import preferences
from cloudstorage.actors import ActorRole
from cloudstorage.console.pages import action, actor_of, came_from, redirect
from cloudstorage.errors import Missing
from cloudstorage.models import SavedFilter


@dataclass(frozen=True, slots=True)
class Narrowed:
    """A list as one request asks for it."""

    page: str
    values: Mapping[str, str]
    saved: Sequence[SavedFilter]

    @property
    def active(self) -> bool:
        return any(self.values.values())

    @property
    def query(self) -> str:
        """Only what narrows it; nothing of paging and of forms."""
        return urlencode({name: value for name, value in self.values.items() if value})

    @property
    def exports(self) -> Mapping[str, str]:
        """Query strings of all that match, as files."""
        return {form: urlencode({**self.values, "format": form}) for form in ("csv", "json")}


@dataclass(frozen=True, slots=True)
class Listing:
    """A list with filters in its URL: their names, and who may look at it."""

    page: str
    names: tuple[str, ...]
    role: ActorRole

    def narrowed(self, request: HttpRequest, part: str = "") -> Narrowed:
        """What a request wants of it; `part` where several lists share a page, as kinds of items do."""
        values = {name: request.GET.get(name, "").strip()[: preferences.MAX_VALUE] for name in self.names}
        page = f"{self.page} {part}".strip()
        return Narrowed(page, values, preferences.saved_filters(request.user, page))


_listings: dict[str, Listing] = {}


def listing(page: str, *names: str, role: ActorRole = ActorRole.VIEWER) -> Listing:
    """Tell of a list, so that its filters can be kept; `page` is its URL's name."""
    return _listings.setdefault(page, Listing(page, names, role))


@action("filters/save/", "filter_save", ActorRole.VIEWER)
def filter_save(request: HttpRequest) -> HttpResponse:
    """Keep what a list is narrowed to: of what was sent only parameters that the list knows."""
    page = request.POST.get("page", "")
    found = _listings.get(page.partition(" ")[0])
    if found is None or len(page) > 64:
        raise Missing("There is no such list.", remedy="Reload the list and save its filter again.")
    actor_of(request).require(found.role)
    given = QueryDict(request.POST.get("query", "")[:4000])
    values = {name: given.get(name, "") for name in found.names}
    kept = preferences.save_filter(user=request.user, page=page, name=request.POST.get("name", ""), values=values)
    messages.success(request, f"The filter {kept.name} was saved; only you see it.")
    return redirect(came_from(request))


@action("filters/<int:pk>/delete/", "filter_delete", ActorRole.VIEWER)
def filter_delete(request: HttpRequest, pk: int) -> HttpResponse:
    """Forget one."""
    name = preferences.delete_filter(user=request.user, pk=pk)
    messages.success(request, f"The filter {name} was deleted.")
    return redirect(came_from(request))
