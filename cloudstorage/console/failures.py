"""Error pages for what Django itself refuses: each says what to do next and gives the request's id."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import Any

from django.conf import settings
from django.db import OperationalError
from django.http import HttpRequest, HttpResponse

from cloudstorage.commands import human_seconds
from cloudstorage.console.pages import failure

log = logging.getLogger(__name__)


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:  # noqa: ARG001 - Django's name
    """400."""
    message = "The browser sent something that this page cannot read."
    return failure(request, 400, "Request not understood", message, "Go back, reload the page and try again.")


def forbidden(request: HttpRequest, exception: Exception) -> HttpResponse:  # noqa: ARG001 - Django's name
    """403."""
    return failure(request, 403, "Not allowed", "Your role does not allow this.", "Ask an administrator for the role.")


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:  # noqa: ARG001 - Django's name
    """404."""
    message = "There is no such page. What it showed may have been removed meanwhile."
    return failure(request, 404, "Not found", message, "Start from the overview, or check the address.")


def not_allowed(request: HttpRequest, allowed: Sequence[str]) -> HttpResponse:
    """405."""
    message = "This address takes what a button sends; there is nothing to look at."
    response = failure(request, 405, "Not a page", message, "Go back to the page with the button, and press it there.")
    response["Allow"] = ", ".join(allowed)
    return response


def locked_out(request: HttpRequest, *_: Any) -> HttpResponse:
    """429: too many failed sign-ins; the settings name this function."""
    seconds = int(settings.AXES_COOLOFF_TIME * 3600)
    message = f"Too many sign-ins with a wrong password: this name is not let in from this address for {human_seconds(seconds)}."
    remedy = "Wait, then try again. A password that was forgotten is set anew on the server: manage.py changepassword NAME"
    response = failure(request, 429, "Wait before you try again", message, remedy)
    response["Retry-After"] = str(seconds)
    return response


def server_error(request: HttpRequest) -> HttpResponse:
    """500; 503 while it is the database that does not answer."""
    if isinstance(sys.exception(), OperationalError):
        message = "The database does not answer in time, so the page could not be made."
        remedy = (
            "Try again in a moment; after a button, look first whether it took effect. If it lasts, /readyz says whether the"
            " database answers, and manage.py doctor what else is amiss."
        )
        response = failure(request, 503, "No answer at the moment", message, remedy)
        response["Retry-After"] = "5"
        return response
    message = "An error of ours: the page could not be made. What was under way in the background goes on."
    remedy = "Try again. If it happens again, look for the request id below in the web server's log, and run: manage.py doctor"
    return failure(request, 500, "Something broke", message, remedy)


def csrf_failure(request: HttpRequest, reason: str = "") -> HttpResponse:
    """A form without its token, mostly one that stood open since before the last sign-in."""
    log.info("a form was refused: %s", reason)
    message = "The form was not accepted: its safety token is missing or old. Nothing was changed."
    remedy = "Go back, reload the page and send the form again. Cookies must be allowed for this address."
    return failure(request, 403, "Form not accepted", message, remedy)
