"""The base of every REST view: role by method, strict parameters, pages, and the words that describe it as OpenAPI."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

from django.db.models import QuerySet
from django_filters.rest_framework import DjangoFilterBackend
from drf_spectacular.extensions import OpenApiAuthenticationExtension
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.exceptions import ValidationError
from rest_framework.generics import GenericAPIView
from rest_framework.negotiation import BaseContentNegotiation
from rest_framework.renderers import BaseRenderer
from rest_framework.request import Request
from rest_framework.response import Response

from cloudstorage.actors import Actor, ActorRole
from cloudstorage.errors import unstorable
from cloudstorage.rest import KeysetPagination, actor_of
from cloudstorage.rest.problems import MEDIA_TYPE

Serializer = serializers.Serializer[Any]
View = TypeVar("View", bound=Callable[..., Any])


class Body(Serializer):
    """A request's body; what it does not know is refused, for a misspelt limit must not be taken for none."""

    def to_internal_value(self, data: Any) -> Any:
        """The fields, checked; ValidationError naming each that is wrong or unknown."""
        if isinstance(data, Mapping) and (unknown := sorted(set(data) - set(self.fields))):
            known = ", ".join(self.fields) or "none"
            raise serializers.ValidationError(dict.fromkeys(unknown, f"There is no such field; there are: {known}."))
        return super().to_internal_value(data)


class OneRepresentation(BaseContentNegotiation):
    """There is one form of every answer, whatever a client says that it accepts."""

    def select_parser(self, request: Request, parsers: Iterable[Any]) -> Any:
        """The parser of the body's media type; None makes it a 415."""
        media_type = (request.content_type or "").partition(";")[0].strip()
        return next((parser for parser in parsers if parser.media_type in {media_type, "*/*"}), None)

    def select_renderer(self, request: Request, renderers: Any, format_suffix: str | None = None) -> tuple[BaseRenderer, str]:
        """The first renderer."""
        return renderers[0], renderers[0].media_type


class ServiceView(GenericAPIView[Any]):
    """A view that calls services. Subclasses name in `roles` what each method takes and in `query` what it may be asked."""

    roles: ClassVar[Mapping[str, ActorRole]] = {}
    query: ClassVar[Mapping[str, Iterable[str]]] = {}
    """Query parameters by method, beyond those of filters and pages."""
    newest_first: ClassVar[bool] = False
    content_negotiation_class = OneRepresentation
    pagination_class = KeysetPagination
    filter_backends = [DjangoFilterBackend]

    @property
    def actor(self) -> Actor:
        """Who asks."""
        return actor_of(self.request)

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        """Refuse query parameters that nothing would look at: a misspelt filter must not list everything."""
        super().initial(request, *args, **kwargs)
        method = "GET" if request.method == "HEAD" else str(request.method)
        known = set(self.query.get(method, ()))
        if method == "GET" and (filters := getattr(self, "filterset_class", None)) is not None:
            known |= set(filters.base_filters)
        if method == "GET" and getattr(self, "paged", False):
            known |= set(KeysetPagination.parameters)
        if unknown := sorted(set(request.query_params) - known):
            allowed = ", ".join(sorted(known)) or "none"
            raise ValidationError(dict.fromkeys(unknown, f"There is no such parameter; there are: {allowed}."))
        if any("\0" in str(value) for value in (*kwargs.values(), *request.query_params.values())):
            raise unstorable()

    def options(self, request: Any, *args: Any, **kwargs: Any) -> Response:
        """What may be asked of it stands in the header Allow of every answer."""
        return Response(status=204)

    def pointer_to(self, field: str) -> str:
        """Where in the request a field stands that a service refused."""
        return f"#/{field}"

    def body(self, serializer: type[Serializer]) -> dict[str, Any]:
        """The request's body, checked by a serializer."""
        checked = serializer(data=self.request.data)
        checked.is_valid(raise_exception=True)
        found: dict[str, Any] = checked.validated_data
        return found

    def page(
        self,
        queryset: QuerySet[Any],
        serializer: type[Serializer],
        context: Callable[[list[Any]], Mapping[str, Any]] | None = None,
    ) -> Response:
        """A page of rows. `context` takes the page's rows and returns what the serializer needs beside them."""
        rows = self.paginate_queryset(self.filter_queryset(queryset))
        assert rows is not None
        more = context(list(rows)) if context is not None else {}
        found = serializer(rows, many=True, context={**self.get_serializer_context(), **more})
        return self.get_paginated_response(found.data)


class PagedView(ServiceView):
    """A view whose GET lists rows by pages."""

    paged = True


class ErrorField(Serializer):
    """The place in the request that is at fault."""

    pointer = serializers.CharField(help_text="JSON pointer into the body, or the query parameter.")
    code = serializers.CharField()
    detail = serializers.CharField()


class Problem(Serializer):
    """RFC 9457: what happened, what it means, what to do next."""

    type = serializers.CharField(help_text="urn:cloudstorage:problem:<code>")
    title = serializers.CharField()
    status = serializers.IntegerField()
    code = serializers.CharField(help_text="Stable word to act upon.")
    detail = serializers.CharField()
    remedy = serializers.CharField()
    request_id = serializers.CharField(help_text="Stands in the server's log too.")
    errors = ErrorField(many=True, required=False)  # type: ignore[assignment]  # the field's name is also an attribute of Serializer
    allowed = serializers.ListField(child=serializers.CharField(), required=False, help_text="Events possible in this state.")
    findings = serializers.ListField(child=serializers.DictField(), required=False, help_text="What must be mended first.")


def operation(
    name: str,
    *,
    answer: Any = None,
    status: int = 200,
    body: Any = None,
    parameters: Sequence[Any] = (),
    more: Mapping[Any, Any] | None = None,
) -> Callable[[View], View]:
    """Describe a method as OpenAPI: its id, its body, its answer, and that every other answer is a problem."""
    responses = {status: answer, **(more or {}), ("default", MEDIA_TYPE): Problem}
    return extend_schema(operation_id=name, request=body, responses=responses, parameters=list(parameters))


class BearerScheme(OpenApiAuthenticationExtension):  # type: ignore[no-untyped-call]  # registered by a hook without types
    """How OpenAPI describes our tokens."""

    target_class = "cloudstorage.rest.BearerAuthentication"
    name = "bearer"

    def get_security_definition(self, auto_schema: Any) -> dict[str, str]:
        """The scheme."""
        return {"type": "http", "scheme": "bearer", "description": "A token of `POST /tokens` or `manage.py token_create`."}
