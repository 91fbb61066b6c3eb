"""The console's forms: fields are plain values that a template shows and a service checks; a refusal stands where it belongs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from django.http import HttpRequest, HttpResponse, QueryDict

from cloudstorage.console.pages import redirect, show
from cloudstorage.errors import Invalid, ServiceError


@dataclass(frozen=True, slots=True)
class Field:
    """One entry. `kind`: text, integer, boolean, choice, many (choices to tick), search (text, with proposals), password, secret
    (never shown)."""

    name: str
    label: str
    help: str = ""
    kind: str = "text"
    value: str = ""
    required: bool = False
    choices: Sequence[tuple[str, str]] = ()
    chosen: Sequence[str] = ()
    """Of many."""
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
        chosen = data.getlist(field.name) if isinstance(data, QueryDict) else data.get(field.name, ())
        result.append(replace(field, value=value, error=wrong, chosen=chosen if field.kind == "many" else ()))
    return result


def misplaced(fields: Iterable[Field], error: ServiceError | None) -> ServiceError | None:
    """An error that belongs to none of the fields, to be shown above the form."""
    return error if error is not None and error.field not in {field.name for field in fields} else None


def ask(
    request: HttpRequest,
    fields: Sequence[Field],
    do: Callable[[Mapping[str, Any]], HttpResponse],
    *,
    title: str,
    present: Mapping[str, Any] | None = None,
    template: str = "console/form.html",
    **context: Any,
) -> HttpResponse:
    """A form and what comes of it: `do` gets what was sent; where a service refuses that, the form is back with the reason. A
    template whose button destroys has another before it that goes back: the first is what Enter presses."""
    error: ServiceError | None = None
    if request.POST.get("do") == "back" and "back" in context:
        return redirect(*context["back"])
    if request.method == "POST":
        try:
            return do(request.POST)
        except ServiceError as refused:
            error = refused
    data = present if error is None and present is not None else request.POST
    status = error.status if error else 200
    shown = {"fields": filled(fields, data, error), "error": misplaced(fields, error)}
    return show(request, template, title=title, status=status, **shown, **context)


def confirm(
    request: HttpRequest,
    do: Callable[[], HttpResponse],
    *,
    title: str,
    effect: str,
    button: str,
    back: Sequence[Any],
) -> HttpResponse:
    """A page that states an effect and has it done when the button is pressed; to go back is the first choice."""
    words: dict[str, Any] = {"effect": effect, "button": button, "back": back}
    return ask(request, (), lambda _: do(), title=title, template="console/confirm.html", **words)


def whole_number(text: str, field: str) -> int:
    """An entry as a number; raises Invalid naming the field."""
    if not (text.isascii() and text.strip().isdigit() and len(text) < 10):
        raise Invalid(f"{text!r} is not a whole number.", remedy="Write it in digits.", field=field)
    return int(text)


def percentage(text: str, field: str) -> float:
    """An entry as a percentage; raises Invalid naming the field."""
    try:
        return float(text)
    except ValueError:
        raise Invalid(f"{text!r} is not a percentage.", remedy="Write a number up to 100.", field=field) from None
