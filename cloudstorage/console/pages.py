"""What every page of the console stands on: who asks, which role it takes, refusals in words, paging by key, drafts."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from hashlib import sha256
from typing import Any
from weakref import WeakKeyDictionary

from django.contrib import messages
from django.contrib.auth.views import redirect_to_login
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect, QueryDict
from django.http.response import HttpResponseBase
from django.shortcuts import render, resolve_url
from django.urls import reverse
from django.utils.http import url_has_allowed_host_and_scheme
from django.views.decorators.cache import never_cache

from cloudstorage import secrets
from cloudstorage.actors import ANONYMOUS, Actor, ActorRole
from cloudstorage.audit import refused
from cloudstorage.errors import UNSTORABLE, Denied, ServiceError, unstorable
from cloudstorage.logs import request_id

log = logging.getLogger(__name__)

View = Callable[..., HttpResponseBase]


@dataclass(frozen=True, slots=True)
class Page:
    """A URL of the console below its root."""

    route: str
    name: str
    view: View


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the navigation, shown to those who have its role."""

    section: str
    label: str
    target: str
    icon: str
    role: ActorRole
    arguments: tuple[str, ...]


_UNKNOWN_VERSION = "version-of-this-fragment"
"""Stands in a fragment, which tells the browser its own version, until all of it is there to be hashed."""
_FORM_TOKEN = re.compile(rb'name="csrfmiddlewaretoken" value="[^"]*"')
"""Differs in every answer."""

_pages: list[Page] = []
_navigation: list[tuple[int, Entry]] = []
_overview: list[View] = []
_actors: WeakKeyDictionary[HttpRequest, Actor] = WeakKeyDictionary()


def registered() -> list[Page]:
    """Every page, in the order in which the apps told of them."""
    return list(_pages)


def navigation() -> list[Entry]:
    """The lines of the navigation in their order."""
    return [entry for _, entry in sorted(_navigation, key=lambda pair: pair[0])]


def overview() -> View:
    """The view of the first page."""
    return _overview[-1]


def is_overview(view: View) -> View:
    """Make a view the console's first page."""
    guarded = _guard(view, ActorRole.VIEWER, ActorRole.VIEWER, only_post=False)
    _overview.append(guarded)
    return guarded


def entry(
    order: int,
    section: str,
    label: str,
    target: str,
    icon: str,
    role: ActorRole = ActorRole.VIEWER,
    arguments: tuple[str, ...] = (),
) -> None:
    """Add a line to the navigation; `target` is a URL name of the console."""
    _navigation.append((order, Entry(section, label, target, icon, role, arguments)))


def page(route: str, name: str, role: ActorRole = ActorRole.VIEWER, *, form: ActorRole | None = None) -> Callable[[View], View]:
    """Make a view a page of the console, for those who have the role; `form` is what sending its form takes, when that is more.
    What a service refuses becomes an error page.
    """

    def register(view: View) -> View:
        guarded = _guard(view, role, form or role, only_post=False)
        _pages.append(Page(route, name, guarded))
        return guarded

    return register


def action(route: str, name: str, role: ActorRole = ActorRole.OPERATOR) -> Callable[[View], View]:
    """Make a view a button's URL: POST only. What a service refuses becomes a message on the page where the button was."""

    def register(view: View) -> View:
        guarded = _guard(view, role, role, only_post=True)
        _pages.append(Page(route, name, guarded))
        return guarded

    return register


def _guard(view: View, role: ActorRole, form: ActorRole, *, only_post: bool) -> View:
    @never_cache
    @wraps(view)
    def guarded(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        actor = actor_of(request)
        if not request.user.is_authenticated or not request.user.is_active:
            return redirect_to_login(request.get_full_path(), reverse("console:login"))
        if only_post and request.method != "POST":
            from cloudstorage.console.failures import not_allowed

            return not_allowed(request, ["POST"])
        try:
            _admit(request, actor, form if request.method == "POST" else role)
            if _has_null(request.GET) or _has_null(request.POST):
                raise unstorable()
            return view(request, *args, **kwargs)
        except ServiceError as error:
            refusal = error
        except UNSTORABLE as error:
            log.warning("a page got what cannot be kept", exc_info=error)
            refusal = unstorable()
        if only_post and not isinstance(refusal, Denied):
            complain(request, refusal)
            return redirect(came_from(request))
        return refuse(request, refusal)

    return guarded


def _has_null(sent: QueryDict) -> bool:
    return any("\0" in value for _, values in sent.lists() for value in values)


def _admit(request: HttpRequest, actor: Actor, role: ActorRole) -> None:
    """Raise Denied unless the actor has the role; an attempt to change something is noted in the audit trail."""
    try:
        actor.require(ActorRole.VIEWER)
        actor.require(role)
    except Denied as error:
        if request.method == "POST":
            refused(actor, "console.post", request.path, error)
        raise


# --- who asks, and answers -------------------------------------------------------------------------------------------------


def actor_of(request: HttpRequest) -> Actor:
    """The signed-in user with the roles of their groups; kept with the request, so that it costs one query."""
    kept = _actors.get(request)
    if kept is None:
        user: Any = getattr(request, "user", None)
        if user is None or not user.is_authenticated:
            return ANONYMOUS
        groups = user.groups.values_list("name", flat=True)
        kept = Actor.of_groups(user.get_username(), groups, superuser=user.is_superuser)
        _actors[request] = kept
    return kept


def show(request: HttpRequest, template: str, *, title: str, status: int = 200, **context: Any) -> HttpResponse:
    """A page in the console's frame."""
    from django.contrib.admin import site

    return render(request, template, {**site.each_context(request), "title": title, **context}, status=status)


def fragment(request: HttpRequest, template: str, *, running: bool, **context: Any) -> HttpResponse:
    """The live part of a page. Status 286 tells htmx to stop asking, 304 to leave what it has, with its focus and open parts."""
    response = render(
        request, template, {**context, "running": running, "fragment_version": _UNKNOWN_VERSION}, status=200 if running else 286
    )
    if not running:
        return response
    version = sha256(_FORM_TOKEN.sub(b"", response.content)).hexdigest()[:32]
    response.content = response.content.replace(_UNKNOWN_VERSION.encode(), version.encode())
    response["ETag"] = f'"{version}"'
    if response["ETag"] in request.headers.get("If-None-Match", ""):
        return HttpResponse(status=304, headers={"ETag": response["ETag"]})
    return response


def redirect(to: str, *args: Any, **kwargs: Any) -> HttpResponseRedirect:
    """Answer a POST: 303, so that a reload asks nothing twice."""
    response = HttpResponseRedirect(resolve_url(to, *args, **kwargs))
    response.status_code = 303
    return response


def came_from(request: HttpRequest) -> str:
    """The page of ours on which a button was pressed, else the overview."""
    back = request.headers.get("Referer", "")
    ours = url_has_allowed_host_and_scheme(back, {request.get_host()}, require_https=request.is_secure())
    return back if ours else reverse("console:index")


def complain(request: HttpRequest, error: ServiceError) -> None:
    """Say on the next page what a service refused, and what to do."""
    messages.error(request, f"{error.message} {error.remedy}".strip())


def refuse(request: HttpRequest, error: ServiceError) -> HttpResponse:
    """A refusal as a page of its own."""
    titles = {403: "Not allowed", 404: "Not found", 503: "No answer at the moment"}
    return failure(request, error.status, titles.get(error.status, "Not possible now"), error.message, error.remedy)


def failure(request: HttpRequest, status: int, title: str, message: str, remedy: str) -> HttpResponse:
    """An error page: what happened, what to do, and the id to quote. Works without a database."""
    context: dict[str, Any] = {
        "title": title,
        "message": message,
        "remedy": remedy,
        "request_id": request_id.get(),
        "status": status,
    }
    try:
        from django.contrib.admin import site

        context = {**site.each_context(request), **context}
    except Exception:  # noqa: BLE001 - the page that tells of an error must not fail itself
        context["has_permission"] = False
    return render(request, "console/error.html", context, status=status)


# --- long lists ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Slice:
    """Some rows of a long list, and where it goes on. Nobody counts it."""

    rows: Sequence[Any]
    next_query: str
    """Query string of the following rows; empty at the end."""
    first_query: str
    """Query string of the first rows; empty when these are they."""


def keyset(request: HttpRequest, rows: Any, *, size: int = 50, newest_first: bool = False) -> Slice:
    """The rows behind `?after=<id>`, by primary key; one query whatever the list's length."""
    after = request.GET.get("after", "")
    if after.isascii() and after.isdigit() and len(after) < 19:
        rows = rows.filter(**{"pk__lt" if newest_first else "pk__gt": int(after)})
    found = list(rows.order_by("-pk" if newest_first else "pk")[: size + 1])
    query = request.GET.copy()
    query.pop("after", None)
    first = "?" + query.urlencode() if after else ""
    following = ""
    if len(found) > size:
        query["after"] = str(found[size - 1].pk)
        following = "?" + query.urlencode()
    return Slice(found[:size], following, first)


# --- drafts: what was entered so far, kept on the server -------------------------------------------------------------------


def keep_draft(request: HttpRequest, name: str, draft: Mapping[str, Any]) -> None:
    """Keep a form's entries in the session, encrypted with the key ring since secrets are among them."""
    request.session[f"draft:{name}"] = secrets.encrypt(json.dumps(draft))


def draft_of(request: HttpRequest, name: str) -> dict[str, Any]:
    """What `keep_draft` kept, else nothing."""
    sealed = request.session.get(f"draft:{name}")
    found: dict[str, Any] = json.loads(secrets.decrypt(sealed)) if sealed else {}
    return found


def drop_draft(request: HttpRequest, name: str) -> None:
    """Forget a draft, its secrets with it."""
    request.session.pop(f"draft:{name}", None)
