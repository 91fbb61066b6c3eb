"""What a service refuses, in one vocabulary that every face translates: REST to a 4xx, commands to an exit code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from typing import Any, ClassVar

from django.db import DataError


class ServiceError(Exception):
    """A refusal; nothing was changed.

    `message` says what happened and what it means, `remedy` what to do next, `field` the parameter at fault, if one is.
    """

    status: ClassVar[int] = 400
    exit_code: ClassVar[int] = 1
    code: ClassVar[str] = "error"

    def __init__(self, message: str, *, remedy: str = "", field: str | None = None, allowed: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy
        self.field = field
        self.allowed = tuple(allowed)


class Invalid(ServiceError):
    """A parameter is missing, malformed, or contradicts another."""

    status, exit_code, code = 400, 2, "invalid"


class Denied(ServiceError):
    """The actor's role does not allow it."""

    status, exit_code, code = 403, 4, "denied"


class Missing(ServiceError):
    """What was named does not exist."""

    status, exit_code, code = 404, 3, "not-found"


class Conflict(ServiceError):
    """The present state does not allow it; `allowed` lists what it does allow."""

    status, exit_code, code = 409, 4, "conflict"


class Blocked(Conflict):
    """A check found blockers; `findings` are what the operator must mend first."""

    code = "blocked"

    def __init__(self, message: str, *, remedy: str = "", field: str | None = None, findings: Sequence[object] = ()) -> None:
        super().__init__(message, remedy=remedy, field=field)
        self.findings = tuple(findings)


class Unreachable(ServiceError):
    """A store does not answer now; trying later may succeed."""

    status, exit_code, code = 503, 5, "unreachable"


class Busy(Conflict):
    """Somebody else does the same thing right now."""

    exit_code, code = 5, "busy"


UNSTORABLE = (DataError, OverflowError)
"""What is raised for a value that fits no column: the first by PostgreSQL, the second by Python, for SQLite and for dates."""


def unstorable() -> Invalid:
    """The refusal of what fits no column, where no service has looked at it before; its transaction was rolled back."""
    message = "Something that was sent cannot be kept: a number or date out of range, a text too long, or a null character in it."
    return Invalid(message, remedy="Correct it and send it again.")


def plain(finding: object) -> dict[str, Any]:
    """A finding (a dataclass or mapping of whichever app raised it) as JSON takes it, the same in every face."""
    if isinstance(finding, Mapping):
        return dict(finding)
    if is_dataclass(finding) and not isinstance(finding, type):
        return asdict(finding)
    return {"message": str(finding)}
