"""The fields of the console's forms: plain values that a template shows and a service checks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cloudstorage.errors import ServiceError


@dataclass(frozen=True, slots=True)
class Field:
    """One entry. `kind`: text, integer, boolean, choice, password, or secret, of which the value is never shown."""

    name: str
    label: str
    help: str = ""
    kind: str = "text"
    value: str = ""
    required: bool = False
    choices: Sequence[tuple[str, str]] = ()
    error: str = ""
    kept: bool = False
    """A secret that the server has already."""
    autocomplete: str = "off"


def filled(fields: Iterable[Field], data: Mapping[str, Any], error: ServiceError | None = None) -> list[Field]:
    """The fields with what was entered, and the error at the one that is at fault."""
    result = []
    for field in fields:
        hidden = field.kind in {"secret", "password"}
        value = "" if hidden else str(data.get(field.name, field.value))
        wrong = f"{error.message} {error.remedy}".strip() if error is not None and error.field == field.name else ""
        result.append(replace(field, value=value, error=wrong))
    return result


def misplaced(fields: Iterable[Field], error: ServiceError | None) -> ServiceError | None:
    """An error that belongs to none of the fields, to be shown above the form."""
    return error if error is not None and error.field not in {field.name for field in fields} else None
