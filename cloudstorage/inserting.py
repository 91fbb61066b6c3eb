"""INSERT ... SELECT, which the ORM lacks: a million rows from others without one of them in Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.core.exceptions import EmptyResultSet
from django.db import connection, models
from django.db.models import Expression, F, QuerySet, Value
from django.db.models.expressions import OrderBy


class NewUUID(models.Func):
    """A random UUID (version 4) for each row, made by the database."""

    function = "gen_random_uuid"
    output_field = models.UUIDField()

    def as_sqlite(self, compiler: Any, connection: Any, **context: Any) -> tuple[str, tuple[Any, ...]]:
        digits = "substr(hex(randomblob(2)), 2)"
        variant = "substr('89AB', 1 + (random() & 3), 1)"
        return f"lower(hex(randomblob(6)) || '4' || {digits} || {variant} || {digits} || hex(randomblob(6)))", ()


@dataclass(frozen=True, slots=True)
class Ordered:
    """One row for each of `rows`; `values` as `insert_select` takes them. All sources have ranks of the same types."""

    rows: QuerySet[Any]
    values: Mapping[str, object]
    ranks: Sequence[OrderBy]


def insert_select(
    model: type[models.Model], source: QuerySet[Any], values: Mapping[str, object], *, or_nothing: bool = False
) -> int:
    """One row of `model` for each of `source`; returns how many.

    `values` maps fields to constants or expressions over the source; fields left out get their default. `or_nothing`: what a
    unique constraint forbids is left out.
    """
    columns, chosen = _columns(model, values)
    selected = _select(source, chosen)
    return _insert(model, columns, *selected, or_nothing=or_nothing) if selected else 0


def insert_ordered(model: type[models.Model], sources: Sequence[Ordered], *, or_nothing: bool = False) -> int:
    """Rows of `model` out of several sources, in one order over all of them, which is that of their ids; returns how many."""
    parts: list[str] = []
    params: list[Any] = []
    columns: list[str] = []
    names: list[str] = []
    order: list[str] = []
    for source in sources:
        columns, chosen = _columns(model, source.values)
        ranks = {f"rank_{number}": rank for number, rank in enumerate(source.ranks)}
        order = [f"{name}{' DESC' if rank.descending else ''}" for name, rank in ranks.items()]
        names = list(chosen)
        if selected := _select(source.rows.order_by(), chosen | {name: rank.expression for name, rank in ranks.items()}):
            parts.append(selected[0])
            params += selected[1]
    if not parts:
        return 0
    every = " UNION ALL ".join(parts)
    sql = f"SELECT {', '.join(names)} FROM ({every}) AS every_source ORDER BY {', '.join(order)}"  # noqa: S608 - names of ours
    return _insert(model, columns, sql, params, or_nothing=or_nothing)


def _columns(model: type[models.Model], values: Mapping[str, object]) -> tuple[list[str], dict[str, Any]]:
    """(the columns to be written, what to select for each)"""
    columns: list[str] = []
    chosen: dict[str, Any] = {}
    for field in model._meta.concrete_fields:  # noqa: SLF001 - Django documents it
        value = values.get(field.name, field.get_default())
        if field.primary_key or value is None:
            continue
        columns.append(connection.ops.quote_name(str(field.column)))
        expression = isinstance(value, F | Expression)
        chosen[f"column_{field.name}"] = value if expression else Value(value, output_field=_plain(field))
    return columns, chosen


def _select(source: QuerySet[Any], chosen: Mapping[str, Any]) -> tuple[str, tuple[Any, ...]] | None:
    query = source.annotate(**chosen).values_list(*chosen).query
    try:
        sql, params = query.get_compiler(connection=connection).as_sql()
    except EmptyResultSet:  # no store, so no row
        return None
    return sql, tuple(params)


def _insert(model: type[models.Model], columns: Sequence[str], sql: str, params: Sequence[Any], *, or_nothing: bool) -> int:
    ending = " ON CONFLICT DO NOTHING" if or_nothing else ""
    table = connection.ops.quote_name(model._meta.db_table)  # noqa: SLF001 - Django documents it
    with connection.cursor() as cursor:
        cursor.execute(f"INSERT INTO {table} ({', '.join(columns)}) {sql}{ending}", params)
        return int(cursor.rowcount)


def _plain(field: models.Field[Any, Any]) -> models.Field[Any, Any]:
    """A foreign key's constant is a plain number to the database."""
    return models.BigIntegerField() if field.is_relation else field
