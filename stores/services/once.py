"""Statements that the ORM puts together once for a process.

For those that a pump runs at every turn, that took several times as long as the database needs for them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeVar

from django.core.exceptions import EmptyResultSet
from django.db import connection
from django.db.models import Model, QuerySet
from django.db.models.sql import UpdateQuery

_M = TypeVar("_M", bound=Model)
_FIRST_STAND_IN = 1_917_304_001
"""No id, and no number that a statement of ours has of its own; fits all integer columns but the smallest."""
_PLACES = re.compile(r"%%|%s|\b19\d{8}\b")


@dataclass(frozen=True, slots=True)
class _Ready:
    sql: str
    params: tuple[Any, ...]
    """What stands in for the call's numbers among them."""
    converters: tuple[tuple[int, Sequence[Any], Any], ...] = ()


class Once:
    """A statement of which only numbers and lists of numbers differ from call to call; keyword arguments are part of it.

    `build` gets the arguments of a call, with stand-ins for the numbers, which it may only hand on to the ORM, as values of
    lookups and updates or as a limit. It returns a queryset or, for `update`, a queryset and what to set.
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
        filled = [_filled(number) for number in numbers]
        shape = (*(None if isinstance(number, int) else len(number) for number in filled), *fixed.items())
        if shape not in self._ready:
            self._ready[shape] = self._compiled(filled, fixed)
        ready = self._ready[shape]
        if ready is None:
            return None, []
        values = list(chain.from_iterable((number,) if isinstance(number, int) else number for number in filled))
        return ready, [values[param.place] if isinstance(param, _StandIn) else param for param in ready.params]

    def _compiled(self, filled: Sequence[int | Sequence[int]], fixed: dict[str, Any]) -> _Ready | None:
        place = _FIRST_STAND_IN
        arguments: list[int | list[int]] = []
        for number in filled:
            size = 1 if isinstance(number, int) else len(number)
            arguments.append(place if isinstance(number, int) else list(range(place, place + size)))
            place += size
        built = self._build(*arguments, **fixed)
        try:
            sql, params, converters = _select(built) if isinstance(built, QuerySet) else _update(*built)
        except EmptyResultSet:
            return None
        ready = _with_stand_ins(sql, params, converters, range(_FIRST_STAND_IN, place))
        used = {param.place for param in ready.params if isinstance(param, _StandIn)}
        assert used == set(range(place - _FIRST_STAND_IN)), f"not all numbers have come into {sql}"
        return ready


@dataclass(frozen=True, slots=True)
class _StandIn:
    place: int


def _filled(number: int | Sequence[int]) -> int | Sequence[int]:
    """A list repeats its last number until its length is a power of two: as a set it is the same, and there are few lengths."""
    if isinstance(number, int) or not number:
        return number
    return [*number, *[number[-1]] * ((1 << (len(number) - 1).bit_length()) - len(number))]


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
    sql: str, params: Sequence[Any], converters: tuple[tuple[int, Sequence[Any], Any], ...], stand_ins: range
) -> _Ready:
    """Mark the parameters that stand in for numbers; a limit stands in the text itself and becomes one."""
    given = iter(params)
    found: list[Any] = []

    def mark(place: re.Match[str]) -> str:
        if place[0] == "%%":
            return "%%"
        value = next(given) if place[0] == "%s" else int(place[0])
        ours = isinstance(value, int) and value in stand_ins
        if place[0] != "%s" and not ours:
            return place[0]
        found.append(_StandIn(value - _FIRST_STAND_IN) if ours else value)
        return "%s"

    return _Ready(_PLACES.sub(mark, sql), tuple(found), converters)


def _converted(row: Sequence[Any], ready: _Ready) -> tuple[Any, ...]:
    values = list(row)
    for place, converters, expression in ready.converters:
        for convert in converters:
            values[place] = convert(values[place], expression, connection)
    return tuple(values)
