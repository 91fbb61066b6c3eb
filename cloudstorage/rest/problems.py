"""Refusals and failures as RFC 9457 problems: what happened, which field, what to do next, and never an internal."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from django.conf import settings
from django.core.exceptions import PermissionDenied, RequestDataTooBig, SuspiciousOperation
from django.db import OperationalError
from django.http import Http404, HttpRequest, JsonResponse
from django.http.multipartparser import MultiPartParserError
from django.views.decorators.csrf import csrf_exempt
from rest_framework.exceptions import APIException, NotAuthenticated, ValidationError
from rest_framework.utils.encoders import JSONEncoder

from cloudstorage.errors import UNSTORABLE, ServiceError, plain, unstorable
from cloudstorage.logs import request_id

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"

_REMEDIES = {
    400: "Correct the request and send it again.",
    401: "Send `Authorization: Bearer <token>`; `manage.py token_create` makes one.",
    403: "Ask an administrator for the role.",
    404: "Look at the list that it should be in.",
    405: "The header Allow names the methods that are possible.",
    406: "Leave the header Accept out, or ask for what the API description names.",
    411: "Send the header Content-Length.",
    413: "Send less at once; a long catalogue is read by `manage.py store_scan --catalogue`.",
    415: "Send the media type that the API description names.",
}


def problem(error: Exception, context: Mapping[str, Any]) -> JsonResponse:
    """The answer to an exception raised by a view; the settings name this function."""
    body = _body(error, context)
    headers = {}
    wait = getattr(error, "wait", None)
    if wait or body["status"] == HTTPStatus.SERVICE_UNAVAILABLE:
        headers["Retry-After"] = str(int(wait or 5))
    challenge = getattr(error, "auth_header", None)
    if challenge:
        headers["WWW-Authenticate"] = challenge
    return _response(body, headers)


def _body(error: Exception, context: Mapping[str, Any]) -> dict[str, Any]:  # noqa: PLR0911 - one for each family
    if isinstance(error, ServiceError):
        return _refusal(error, context)
    if isinstance(error, ValidationError):
        errors = list(_fields(error.get_full_details()))
        return _problem(400, "invalid", "; ".join(entry["detail"] for entry in errors), "Correct what is named.", errors=errors)
    if isinstance(error, Http404):
        return _problem(404, "not-found", "There is no such thing here.")
    if isinstance(error, PermissionDenied):
        return _problem(403, "denied", str(error) or "This is not allowed.")
    if isinstance(error, APIException):
        return _of_the_framework(error)
    if isinstance(error, RequestDataTooBig):
        return _problem(413, "too-large", f"The body is longer than {settings.DATA_UPLOAD_MAX_MEMORY_SIZE} bytes.")
    if isinstance(error, (SuspiciousOperation, MultiPartParserError)):
        return _problem(400, "malformed", "The request cannot be read.")
    if isinstance(error, OperationalError):
        log.warning("the database did not answer in time: %s", error)
        return _problem(503, "database-busy", "The database did not answer in time.", "Try again in a moment.")
    if isinstance(error, UNSTORABLE):
        log.warning("a REST view got what cannot be kept", exc_info=error)
        return _refusal(unstorable(), context)
    log.error("a REST view failed", exc_info=error)
    return _problem(
        500, "unexpected", "Something failed here that nobody foresaw.", "Look for the request id in the server's log."
    )


def _of_the_framework(error: APIException) -> dict[str, Any]:
    if str(error.detail).startswith("CSRF Failed"):
        remedy = "Send the cookie's token in the header X-CSRFToken, or a bearer token in the place of a session."
        return _problem(403, "csrf-failed", str(error.detail), remedy)
    code = "not-authenticated" if isinstance(error, NotAuthenticated) else str(error.get_codes()).replace("_", "-")
    return _problem(error.status_code, code, str(error.detail))


def _refusal(error: ServiceError, context: Mapping[str, Any]) -> dict[str, Any]:
    more: dict[str, Any] = {}
    if error.field:
        pointer_to = getattr(context.get("view"), "pointer_to", "#/{}".format)
        more["errors"] = [{"pointer": pointer_to(error.field), "code": error.code, "detail": error.message}]
    if error.allowed:
        more["allowed"] = list(error.allowed)
    if findings := getattr(error, "findings", ()):
        more["findings"] = [plain(finding) for finding in findings]
    return _problem(error.status, error.code, error.message, error.remedy, **more)


def _fields(details: Any, path: str = "#") -> Any:
    """Flatten DRF's nested errors to `{pointer, code, detail}`."""
    if isinstance(details, list):
        for entry in details:
            yield from _fields(entry, path)
    elif isinstance(details, Mapping) and set(details) == {"message", "code"}:
        yield {"pointer": path, "code": str(details["code"]), "detail": str(details["message"])}
    elif isinstance(details, Mapping):
        for name, entry in details.items():
            inner = path if name == "non_field_errors" else f"{path}/{name}"
            yield from _fields(entry, inner)


def _problem(status: int, code: str, detail: str, remedy: str = "", **more: Any) -> dict[str, Any]:
    return {
        "type": f"urn:cloudstorage:problem:{code}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "code": code,
        "detail": detail,
        "remedy": remedy or _REMEDIES.get(status, ""),
        "request_id": request_id.get(),
        **more,
    }


def _response(body: dict[str, Any], headers: Mapping[str, str]) -> JsonResponse:
    """JSON whatever the view answers otherwise, and whatever was asked for."""
    return JsonResponse(body, encoder=JSONEncoder, status=body["status"], headers=dict(headers), content_type=MEDIA_TYPE)


@csrf_exempt  # nothing is here to protect, and a form's refusal would hide that
def no_such_resource(_request: HttpRequest, _path: str = "") -> JsonResponse:
    """What the API says of an address that leads nowhere."""
    body = _problem(404, "not-found", "The API has no such address.", "Its description is at /api/v1/schema/.")
    return JsonResponse(body, status=404, content_type=MEDIA_TYPE)
