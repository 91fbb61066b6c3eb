"""Sums over the items or copies of all kinds in one query, for pages that ask about each kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.db.models import Aggregate, CharField, Count, QuerySet, Value

from stores.models import Kind


def by_kind(rows: Mapping[Kind, QuerySet[Any]], **sums: Aggregate) -> dict[str, dict[str, int]]:
    """`sums` over the rows of each kind, 0 where there is none; `items`, their number, where no sums are named."""
    wanted = sums or {"items": Count("pk")}
    first, *others = (
        found.order_by().annotate(of=Value(str(kind), CharField())).values("of").annotate(**wanted)
        for kind, found in rows.items()
    )
    found = {row.pop("of"): {name: value or 0 for name, value in row.items()} for row in first.union(*others, all=True)}
    return {str(kind): found.get(kind) or dict.fromkeys(wanted, 0) for kind in rows}


def total(rows: Mapping[Kind, QuerySet[Any]]) -> int:
    """The number of the rows of all kinds."""
    return sum(found["items"] for found in by_kind(rows).values())


def kinds_with_any(rows: Mapping[Kind, QuerySet[Any]]) -> list[Kind]:
    """The kinds of which there is any row."""
    first, *others = (found.order_by().annotate(of=Value(str(kind), CharField())).values("of") for kind, found in rows.items())
    there = {row["of"] for row in first.union(*others)}
    return [kind for kind in rows if str(kind) in there]
