"""Who am I, my tokens, and the audit trail, over REST."""

from __future__ import annotations

from typing import Any

import django_filters
from django.urls import path
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from cloudstorage import people
from cloudstorage.actors import ActorRole
from cloudstorage.models import ApiToken, AuditEvent
from cloudstorage.rest.views import Body, PagedView, Serializer, ServiceView, operation

_ROLES = [role.value for role in ActorRole]


class TokenView(Serializer):
    """A bearer token; its secret is shown once, when it is made."""

    id = serializers.CharField(source="prefix", help_text="The token's first characters.")
    name = serializers.CharField()
    role = serializers.ChoiceField(_ROLES)
    created = serializers.DateTimeField()
    expires = serializers.DateTimeField(allow_null=True)
    last_used = serializers.DateTimeField(allow_null=True)
    revoked = serializers.DateTimeField(allow_null=True)


class NewTokenView(TokenView):
    """A token that was just made."""

    token = serializers.CharField(help_text="The secret. It is kept nowhere and cannot be shown again.")


class TokenBody(Body):
    """A token to make for oneself."""

    name = serializers.CharField(max_length=255, help_text="What it is for.")
    role = serializers.ChoiceField(_ROLES, help_text="It can do no more than this, and no more than its user.")
    days = serializers.IntegerField(required=False, default=people.DEFAULT_TOKEN_DAYS, help_text="Until it expires.")


class WhoamiView(Serializer):
    """The one who asks."""

    name = serializers.CharField()
    roles = serializers.ListField(child=serializers.ChoiceField(_ROLES), help_text="Everything that is included.")
    token = TokenView(allow_null=True)


class AuditView(Serializer):
    """An entry of the audit trail."""

    id = serializers.IntegerField()
    at = serializers.DateTimeField()
    actor = serializers.CharField()
    action = serializers.CharField()
    target = serializers.CharField()
    outcome = serializers.ChoiceField(["done", "refused"])
    details = serializers.DictField()


class AuditFilter(django_filters.FilterSet):  # type: ignore[misc] # the package has no types
    """Of the audit trail."""

    actor = django_filters.CharFilter()
    action = django_filters.CharFilter()
    target = django_filters.CharFilter(lookup_expr="icontains")
    outcome = django_filters.ChoiceFilter(choices=[("done", "done"), ("refused", "refused")])
    since = django_filters.IsoDateTimeFilter(field_name="at", lookup_expr="gte")
    until = django_filters.IsoDateTimeFilter(field_name="at", lookup_expr="lt")


class Whoami(ServiceView):
    """The one who asks."""

    @operation("whoami", answer=WhoamiView)
    def get(self, request: Request) -> Response:
        """Show who I am to the API and what I may do."""
        token = request.auth if isinstance(request.auth, ApiToken) else None
        roles = [role.value for role in ActorRole if self.actor.may(role)]
        return Response(WhoamiView({"name": self.actor.name, "roles": roles, "token": token}).data)


class Tokens(PagedView):
    """One's own bearer tokens."""

    roles = {"POST": ActorRole.VIEWER}
    newest_first = True

    @operation("tokens_list", answer=TokenView(many=True))
    def get(self, request: Request) -> Response:
        """List my tokens, newest first."""
        user: Any = request.user
        return self.page(ApiToken.objects.filter(user=user), TokenView)

    @operation("tokens_create", body=TokenBody, status=201, answer=NewTokenView)
    def post(self, request: Request) -> Response:
        """Make a token for myself; only signed in at the console, for a stolen token must not make others."""
        people.refuse_token(self.actor, request.auth)
        given = self.body(TokenBody)
        token, secret = people.create_token(actor=self.actor, username=request.user.get_username(), **given)
        return Response({**TokenView(token).data, "token": secret}, status=201)


class Token(ServiceView):
    """One of one's own bearer tokens."""

    roles = {"DELETE": ActorRole.VIEWER}

    @operation("tokens_revoke", status=204)
    def delete(self, request: Request, id: str) -> Response:  # noqa: A002 - the name in the address
        """Take a token back, at once and for good."""
        people.revoke_token(actor=self.actor, prefix=id)
        return Response(status=204)


class Audit(PagedView):
    """The audit trail, which nobody can change."""

    roles = {"GET": ActorRole.AUDITOR}
    newest_first = True
    filterset_class = AuditFilter

    @operation("audit_list", answer=AuditView(many=True))
    def get(self, request: Request) -> Response:
        """List who did what, newest first."""
        return self.page(AuditEvent.objects.all(), AuditView)


urlpatterns = [
    path("whoami", Whoami.as_view()),
    path("tokens", Tokens.as_view()),
    path("tokens/<str:id>", Token.as_view()),
    path("audit", Audit.as_view()),
]
