"""Statements that the ORM puts together once for a process.

For those that a pump runs at every turn, that took several times as long as the database needs for them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from django.core.exceptions import EmptyResultSet
from django.db import connection
from django.db.models import Model, QuerySet
from django.db.models.sql import UpdateQuery

_M = TypeVar("_M", bound=Model)
_FIRST_STAND_IN = 1_917_304_001
"""No id, and no number that a statement of ours has of its own; fits all integer columns but the smallest."""
_PLACES = re.compile(r"%%|IN \(%s\)|%s|\b19\d{8}\b")


@dataclass(frozen=True, slots=True)
class _Ready:
    sql: str
    params: tuple[Any, ...]
    """What stands in for the call's numbers among them."""
    converters: tuple[tuple[int, Sequence[Any], Any], ...] = ()


class Once:
    """A statement of which only numbers and lists of numbers differ from call to call; keyword arguments are part of it.

    `build` gets the arguments of a call, with stand-ins for the numbers, which it may only hand on to the ORM: numbers as values
    of lookups and updates or as a limit, lists to `__in`. It returns a queryset or, for `update`, a queryset and what to set.
    """

    def __init__(self, build: Callable[..., Any]) -> None:
        self._build = build
        self._ready: dict[Any, _Ready | None] = {}

    def rows(self, *numbers: int | Sequence[int], **fixed: Any) -> list[tuple[Any, ...]]:
        """What a SELECT finds, as it stands in the queryset's columns."""
        ready, params = self._prepared(numbers, fixed)
        if ready is None:
            return []
        with connection.cursor() as cursor:
            cursor.execute(ready.sql, params)
            rows: list[tuple[Any, ...]] = cursor.fetchall()
        return [_converted(row, ready) for row in rows] if ready.converters else rows

    def objects(self, model: type[_M], *numbers: int | Sequence[int], **fixed: Any) -> list[_M]:
        """The same as instances, where the queryset has all columns of the model and no others."""
        names = [field.attname for field in model._meta.concrete_fields]  # noqa: SLF001 - Django's public name for it
        return [model.from_db(connection.alias, names, row) for row in self.rows(*numbers, **fixed)]

    def update(self, *numbers: int | Sequence[int], **fixed: Any) -> int:
        """Run an UPDATE; returns how many rows it found."""
        ready, params = self._prepared(numbers, fixed)
        if ready is None:
            return 0
        with connection.cursor() as cursor:
            cursor.execute(ready.sql, params)
            return int(cursor.rowcount)

    def _prepared(self, numbers: Sequence[int | Sequence[int]], fixed: dict[str, Any]) -> tuple[_Ready | None, list[Any]]:
        # A list that is empty makes another statement, or none at all; of what length it is otherwise, the database is told.
        shape = (*(None if isinstance(number, int) else bool(number) for number in numbers), *fixed.items())
        if shape not in self._ready:
            self._ready[shape] = self._compiled(numbers, fixed)
        ready = self._ready[shape]
        if ready is None:
            return None, []
        return ready, [_told(numbers[param.place]) if isinstance(param, _StandIn) else param for param in ready.params]

    def _compiled(self, numbers: Sequence[int | Sequence[int]], fixed: dict[str, Any]) -> _Ready | None:
        stand_ins = {
            _FIRST_STAND_IN + place: _StandIn(place, not isinstance(number, int)) for place, number in enumerate(numbers)
        }
        arguments = [
            ([place] if number else []) if stand_in.many else place
            for number, (place, stand_in) in zip(numbers, stand_ins.items(), strict=True)
        ]
        built = self._build(*arguments, **fixed)
        try:
            sql, params, converters = _select(built) if isinstance(built, QuerySet) else _update(*built)
        except EmptyResultSet:
            return None
        ready = _with_stand_ins(sql, params, converters, stand_ins)
        expected = {place for place, number in enumerate(numbers) if isinstance(number, int) or number}
        assert expected == {param.place for param in ready.params if isinstance(param, _StandIn)}, (
            f"not all numbers have come into {sql}"
        )
        return ready


@dataclass(frozen=True, slots=True)
class _StandIn:
    place: int
    many: bool
    """Whether a list stands there."""


def _told(number: int | Sequence[int]) -> Any:
    """A number or a list of them as one parameter."""
    if isinstance(number, int):
        return number
    return list(number) if connection.vendor == "postgresql" else json.dumps(list(number))


def _select(queryset: QuerySet[Any, Any]) -> tuple[str, Sequence[Any], tuple[tuple[int, Sequence[Any], Any], ...]]:
    compiler: Any = queryset.query.get_compiler(connection.alias)
    sql, params = compiler.as_sql()
    converters = compiler.get_converters([expression for expression, _, _ in compiler.select])
    return sql, params, tuple((place, *found) for place, found in converters.items())


def _update(queryset: QuerySet[Any, Any], values: dict[str, Any]) -> tuple[str, Sequence[Any], tuple[()]]:
    query: Any = queryset.query.chain(UpdateQuery)
    query.add_update_values(values)
    sql, params = query.get_compiler(connection.alias).as_sql()
    return sql, params, ()


def _with_stand_ins(
    sql: str, params: Sequence[Any], converters: tuple[tuple[int, Sequence[Any], Any], ...], stand_ins: Mapping[int, _StandIn]
) -> _Ready:
    """Mark the parameters that stand in for numbers and lists; a limit stands in the text itself and becomes one."""
    given = iter(params)
    found: list[Any] = []
    any_of = "= ANY(%s)" if connection.vendor == "postgresql" else "IN (SELECT value FROM json_each(%s))"

    def mark(place: re.Match[str]) -> str:
        text = place[0]
        if text == "%%":
            return text
        in_text = not text.endswith(("%s", "%s)"))
        value = int(text) if in_text else next(given)
        stand_in = stand_ins.get(value) if isinstance(value, int) else None
        if in_text and stand_in is None:
            return text
        found.append(stand_in or value)
        if stand_in is None or not stand_in.many:
            return "%s" if in_text else text
        assert text == "IN (%s)", f"a list of numbers stands elsewhere than behind IN in {sql}"
        return any_of

    return _Ready(_PLACES.sub(mark, sql), tuple(found), converters)


def _converted(row: Sequence[Any], ready: _Ready) -> tuple[Any, ...]:
    values = list(row)
    for place, converters, expression in ready.converters:
        for convert in converters:
            values[place] = convert(values[place], expression, connection)
    return tuple(values)
