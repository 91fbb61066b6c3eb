"""The REST API's reference as pages of the console: made from its OpenAPI description, with nothing fetched from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from django.http import Http404, HttpRequest, HttpResponse
from django.urls import resolve
from drf_spectacular.generators import SchemaGenerator

from cloudstorage.console.pages import page, show
from cloudstorage.rest import role_for

SAMPLE_ID = "00000000-0000-0000-0000-000000000000"
DEPTH = 3
"""Of fields inside of fields that are listed."""

Schema = Mapping[str, Any]


@cache
def _description() -> Schema:
    """The code's own description; it cannot change while the process lives."""
    found: Schema = SchemaGenerator().get_schema(request=None, public=True)  # type: ignore[no-untyped-call]  # not typed there
    return found


@cache
def operations() -> Mapping[str, Mapping[str, Any]]:
    """Every operation by its id: method, path, words, role, and the description it was made from."""
    found = {}
    for path, methods in _description()["paths"].items():
        view = resolve(path.replace("{id}", SAMPLE_ID)).func
        for method, about in methods.items():
            found[about["operationId"]] = {
                "id": about["operationId"],
                "group": about["tags"][0],
                "method": method.upper(),
                "path": path,
                "words": about.get("description", ""),
                "role": role_for(getattr(view, "view_class", view), method.upper()).value,
                "about": about,
            }
    return found


@page("rest/", "rest_list")
def rest_list(request: HttpRequest) -> HttpResponse:
    """All operations, by what they are about."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for operation in operations().values():
        groups.setdefault(operation["group"], []).append(operation)
    return show(request, "console/rest_list.html", title="REST API", groups=groups)


@page("rest/<slug:name>/", "rest_operation")
def rest_operation(request: HttpRequest, name: str) -> HttpResponse:
    """What an operation takes and answers."""
    operation = operations().get(name)
    if operation is None:
        raise Http404
    about = operation["about"]
    body = _content(about.get("requestBody", {}))
    return show(
        request,
        "console/rest_operation.html",
        title=f"{operation['method']} {operation['path']}",
        operation=operation,
        parameters=[_parameter(each) for each in about.get("parameters", ())],
        body=body,
        answers=[
            (status, kind, words)
            for status, answer in about.get("responses", {}).items()
            for kind, words in (_content(answer) or {"": {"words": "no content", "fields": []}}).items()
        ],
        curl=_curl(request, operation, "application/json" in body),
    )


def _parameter(about: Schema) -> Mapping[str, Any]:
    schema = _resolved(about.get("schema", {}))
    words = about.get("description") or schema.get("description", "")
    return {
        "name": about["name"],
        "type": _type(schema),
        "required": about.get("required", False),
        "words": words,
        "in": about["in"],
    }


def _content(about: Schema) -> dict[str, dict[str, Any]]:
    """By media type: what it is, and its fields."""
    found = {}
    for kind, given in about.get("content", {}).items():
        schema = _resolved(given.get("schema", {}))
        found[kind] = {"words": schema.get("description", "") or _type(schema), "fields": list(_fields(schema))}
    return found


def _fields(schema: Schema, before: str = "", depth: int = DEPTH) -> Iterator[Mapping[str, Any]]:
    """The fields of an object or of the objects of a list, those inside of them behind a dot."""
    schema = _resolved(schema)
    if schema.get("type") == "array":
        yield from _fields(schema.get("items", {}), f"{before}[]" if before else "", depth)
        return
    required = set(schema.get("required", ()))
    for name, given in schema.get("properties", {}).items():
        inner = _resolved(given)
        words = given.get("description") or inner.get("description", "")
        path = f"{before}.{name}" if before else name
        yield {"name": path, "type": _type(inner), "required": name in required, "words": words}
        if depth > 1:
            yield from _fields(inner, path, depth - 1)


def _resolved(schema: Schema) -> Schema:
    """What a reference stands for; of several that apply all at once, or of one that may be null, the one that says something."""
    if reference := schema.get("$ref"):
        return _resolved(_description()["components"]["schemas"][reference.rpartition("/")[2]])
    for several in ("allOf", "oneOf", "anyOf"):
        named = [part for part in schema.get(several, ()) if part.get("type") != "null"]
        if len(named) == 1:
            return {**_resolved(named[0]), **({"description": schema["description"]} if "description" in schema else {})}
    return schema


def _type(schema: Schema) -> str:
    kind = schema.get("type", "object" if "properties" in schema else "any")
    kind = " or ".join(kind) if isinstance(kind, list) else kind
    if kind == "array":
        return f"list of {_type(_resolved(schema.get('items', {})))}"
    if values := schema.get("enum"):
        return " | ".join("null" if value is None else str(value) for value in values)
    return f"{kind} ({schema['format']})" if "format" in schema else str(kind)


def _curl(request: HttpRequest, operation: Mapping[str, Any], has_body: bool) -> str:
    words = ["curl", '-H "Authorization: Bearer $TOKEN"']
    words += [f"-X {operation['method']}"] if operation["method"] != "GET" else []
    words += ["-H 'Content-Type: application/json'", "-d @body.json"] if has_body else []
    return " ".join([*words, request.build_absolute_uri(operation["path"]).replace("%7B", "{").replace("%7D", "}")])
