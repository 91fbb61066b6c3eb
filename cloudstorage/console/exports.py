"""A list as a file: CSV or JSON, sent while it is read, so that its length costs neither memory nor queries."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any

from django.http import HttpRequest, StreamingHttpResponse

from cloudstorage.spreadsheets import harmless

_TYPES = {"csv": "text/csv; charset=utf-8", "json": "application/json"}


def wanted_form(request: HttpRequest) -> str:
    """`csv` or `json` where a list is asked for as a file, else nothing."""
    form = request.GET.get("format", "")
    return form if form in _TYPES else ""


def exported(form: str, name: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> StreamingHttpResponse:
    """The rows as a download. Give it an iterator of the database's, not a list."""
    lines = _csv(columns, rows) if form == "csv" else _json(columns, rows)
    response = StreamingHttpResponse(lines, content_type=_TYPES[form])
    response["Content-Disposition"] = f'attachment; filename="{name}.{form}"'
    return response


class _Line:
    """What csv writes to: gives each line back."""

    def write(self, line: str) -> str:
        return line


def _csv(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Iterator[str]:
    writer = csv.writer(_Line())
    yield writer.writerow(columns)
    for row in rows:
        yield writer.writerow([harmless(_plain(value)) for value in row])


def _json(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Iterator[str]:
    before = "[\n"
    for row in rows:
        yield before + json.dumps(dict(zip(columns, row, strict=True)), default=_plain)
        before = ",\n"
    yield "\n]\n" if before == ",\n" else "[]\n"


def _plain(value: Any) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, (dict, list)):
        return json.dumps(value)
    return "" if value is None else str(value)
