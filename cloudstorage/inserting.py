"""INSERT ... SELECT, which the ORM lacks: a million rows from others without one of them in Python."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.core.exceptions import EmptyResultSet
from django.db import connection, models
from django.db.models import Expression, F, QuerySet, Value


class NewUUID(models.Func):
    """A random UUID (version 4) for each row, made by the database."""

    function = "gen_random_uuid"
    output_field = models.UUIDField()

    def as_sqlite(self, compiler: Any, connection: Any, **context: Any) -> tuple[str, tuple[Any, ...]]:
        digits = "substr(hex(randomblob(2)), 2)"
        variant = "substr('89AB', 1 + (random() & 3), 1)"
        return f"lower(hex(randomblob(6)) || '4' || {digits} || {variant} || {digits} || hex(randomblob(6)))", ()


def insert_select(
    model: type[models.Model], source: QuerySet[Any], values: Mapping[str, object], *, or_nothing: bool = False
) -> int:
    """One row of `model` for each of `source`; returns how many.

    `values` maps fields to constants or expressions over the source; fields left out get their default. `or_nothing`: what a
    unique constraint forbids is left out.
    """
    columns: list[str] = []
    chosen: dict[str, Any] = {}
    for field in model._meta.concrete_fields:  # noqa: SLF001 - Django documents it
        value = values.get(field.name, field.get_default())
        if field.primary_key or value is None:
            continue
        columns.append(connection.ops.quote_name(str(field.column)))
        expression = isinstance(value, F | Expression)
        chosen[f"column_{field.name}"] = value if expression else Value(value, output_field=_plain(field))
    query = source.annotate(**chosen).values_list(*chosen).query
    try:
        sql, params = query.get_compiler(connection=connection).as_sql()
    except EmptyResultSet:  # no store, so no row
        return 0
    ending = " ON CONFLICT DO NOTHING" if or_nothing else ""
    table = connection.ops.quote_name(model._meta.db_table)  # noqa: SLF001 - Django documents it
    with connection.cursor() as cursor:
        cursor.execute(f"INSERT INTO {table} ({', '.join(columns)}) {sql}{ending}", params)
        return int(cursor.rowcount)


def _plain(field: models.Field[Any, Any]) -> models.Field[Any, Any]:
    """A foreign key's constant is a plain number to the database."""
    return models.BigIntegerField() if field.is_relation else field
