"""What every REST view stands on: who asks, what their role lets them do, paging by key, and refusals as problems.

The settings of Django REST framework name classes of this module, and its views read those settings while they are imported:
so this module imports no views, and `cloudstorage.rest.views` is the place for them.
"""

from __future__ import annotations

import base64
import binascii
import logging
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from django.db.models import Q
from django.utils import timezone
from rest_framework.authentication import BaseAuthentication, get_authorization_header
from rest_framework.authentication import SessionAuthentication as SessionAuthentication
from rest_framework.exceptions import AuthenticationFailed, ValidationError
from rest_framework.pagination import BasePagination
from rest_framework.permissions import SAFE_METHODS, BasePermission
from rest_framework.request import Request
from rest_framework.utils.urls import remove_query_param, replace_query_param

from cloudstorage.actors import ANONYMOUS, Actor, ActorRole
from cloudstorage.audit import refused
from cloudstorage.errors import Denied
from cloudstorage.models import ApiToken
from cloudstorage.rest.problems import problem

__all__ = ["BearerAuthentication", "KeysetPagination", "RolePermission", "SessionAuthentication", "actor_of", "problem"]

log = logging.getLogger(__name__)

LAST_USED_EVERY = timedelta(minutes=1)
"""A busy token costs one write in this time, not one per request."""


class BearerAuthentication(BaseAuthentication):
    """`Authorization: Bearer cs_…`; the token must be known by its SHA-256, not revoked, not expired, and its user active."""

    keyword = "Bearer"

    def authenticate(self, request: Request) -> tuple[Any, ApiToken] | None:
        """(user, token), or None where no bearer token was sent."""
        scheme, _, secret = get_authorization_header(request).partition(b" ")
        if scheme.lower() != b"bearer":
            return None
        now = timezone.now()
        usable = Q(expires=None) | Q(expires__gt=now)
        digest = ApiToken.digest_of(secret.strip().decode("ascii", "replace"))
        token = ApiToken.objects.select_related("user").filter(usable, digest=digest, revoked=None, user__is_active=True).first()
        if token is None:
            raise AuthenticationFailed("The bearer token is unknown, expired or revoked.")
        stale = Q(last_used=None) | Q(last_used__lt=now - LAST_USED_EVERY)
        if token.last_used is None or token.last_used < now - LAST_USED_EVERY:
            ApiToken.objects.filter(stale, pk=token.pk).update(last_used=now)
        return token.user, token

    def authenticate_header(self, request: Request) -> str:
        """The challenge that makes an unauthenticated request a 401."""
        return 'Bearer realm="cloudstorage"'


def actor_of(request: Any) -> Actor:
    """Who asks: the signed-in user by groups, and with a token no more than the token's role.

    Kept on the request, so that a request costs one query for it. Works for Django's requests too (console).
    """
    kept: Actor | None = getattr(request, "cloudstorage_actor", None)
    if kept is None:
        kept = _actor_of(request.user, getattr(request, "auth", None))
        request.cloudstorage_actor = kept
    return kept


def _actor_of(user: Any, token: object) -> Actor:
    if not user.is_authenticated:
        return ANONYMOUS
    actor = Actor.of_groups(user.get_username(), user.groups.values_list("name", flat=True), superuser=user.is_superuser)
    if not isinstance(token, ApiToken):
        return actor
    name = f"{actor.name} (token {token.prefix})"
    limit = Actor.of_groups(name, [token.role])
    return Actor(name, frozenset(role for role in ActorRole if actor.may(role) and limit.may(role)))


class RolePermission(BasePermission):
    """A view says in `roles` which role each method takes; what it does not name takes viewer to read, storage-admin to change.

    Services ask again: this only keeps strangers from learning what exists. An attempt to change is noted in the audit trail.
    """

    def has_permission(self, request: Request, view: Any) -> bool:
        """Whether somebody is signed in; raises Denied where their role does not allow the method."""
        if not request.user.is_authenticated:
            return False
        actor, method = actor_of(request), request.method or ""
        try:
            actor.require(role_for(view, method))
        except Denied as error:
            if method not in SAFE_METHODS:
                refused(actor, f"rest.{method.lower()}", request.path, error)
            raise
        return True


def role_for(view: Any, method: str) -> ActorRole:
    """The role that a method of a view takes."""
    named: Mapping[str, ActorRole] = getattr(view, "roles", {})
    safe = method in SAFE_METHODS
    return named.get("GET" if safe else method, ActorRole.VIEWER if safe else ActorRole.STORAGE_ADMIN)


class KeysetPagination(BasePagination):
    """Pages by primary key, so that page one thousand costs what page one costs, and rows that come or go shift nothing.

    `{next, previous, results}`; `limit` up to 200. A view with `newest_first` is listed backwards.
    """

    default_limit = 50
    max_limit = 200
    parameters = ("limit", "cursor")

    def paginate_queryset(self, queryset: Any, request: Request, view: Any = None) -> list[Any]:
        """The page that `cursor` names, as a list in listing order; ValidationError for a malformed parameter."""
        limit = self._limit(request.query_params.get("limit", ""))
        backwards, key = self._decode(request.query_params.get("cursor", ""))
        descending = bool(getattr(view, "newest_first", False))
        downwards = descending != backwards
        rows = queryset.order_by("-pk" if downwards else "pk")
        if key is not None:
            rows = rows.filter(pk__lt=key) if downwards else rows.filter(pk__gt=key)
        found = list(rows[: limit + 1])
        more, found = len(found) > limit, found[:limit]
        if backwards:
            found.reverse()
        self._url = request.build_absolute_uri()
        onwards = bool(found) if backwards else more
        before = more if backwards else bool(found) and key is not None
        self._next = self._encode("n", found[-1].pk) if onwards else None
        self._previous = self._encode("p", found[0].pk) if before else None
        return found

    def _limit(self, text: str) -> int:
        if not text:
            return self.default_limit
        if not (text.isascii() and text.isdigit() and 1 <= int(text) <= self.max_limit):
            raise ValidationError({"limit": f"A page has 1 to {self.max_limit} rows."})
        return int(text)

    @staticmethod
    def _encode(direction: str, key: int) -> str:
        return base64.urlsafe_b64encode(f"{direction}{key}".encode()).decode().rstrip("=")

    @staticmethod
    def _decode(cursor: str) -> tuple[bool, int | None]:
        if not cursor:
            return False, None
        try:
            text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode("ascii")
            if text[:1] in {"n", "p"} and text[1:].isdigit() and len(text) < 20:
                return text[0] == "p", int(text[1:])
        except (binascii.Error, ValueError):
            pass
        raise ValidationError({"cursor": "Take cursors from the links of an answer; this is none."})

    def get_paginated_response(self, data: Any) -> Any:
        """The page with its links."""
        from rest_framework.response import Response

        return Response({"next": self._link(self._next), "previous": self._link(self._previous), "results": data})

    def _link(self, cursor: str | None) -> str | None:
        if cursor is None:
            return None
        url: str = replace_query_param(remove_query_param(self._url, "cursor"), "cursor", cursor)
        return url

    def get_paginated_response_schema(self, schema: Mapping[str, Any]) -> dict[str, Any]:
        """The answer as OpenAPI."""
        link = {"type": ["string", "null"], "format": "uri"}
        properties = {"next": link, "previous": link, "results": schema}
        return {"type": "object", "required": ["next", "previous", "results"], "properties": properties}

    def get_schema_operation_parameters(self, view: Any) -> list[Any]:
        """The query parameters as OpenAPI."""
        limit = {"type": "integer", "minimum": 1, "maximum": self.max_limit, "default": self.default_limit}
        return [
            {"name": "limit", "in": "query", "required": False, "description": "Rows of a page.", "schema": limit},
            {
                "name": "cursor",
                "in": "query",
                "required": False,
                "description": "Where the page begins; take it from `next` or `previous`.",
                "schema": {"type": "string"},
            },
        ]
