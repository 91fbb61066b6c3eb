"""What keeps the copies on a staging store there, and what could go because the same is proven elsewhere and nobody holds it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from django.db.models import Case, CharField, Count, Exists, OuterRef, Q, Sum, Value, When

from stores.models import KINDS, Hold, ImageStore, Kind
from stores.states import PROVEN, READABLE, RefState, Role, StoreState


class Keeper(StrEnum):
    """The first of these that is so keeps a copy where it is."""

    PROMISE = "promise"
    HOLD = "hold"
    ONLY = "only"
    UNREAD = "unread"
    DIFFERS = "differs"
    NOTHING = "nothing"


@dataclass(frozen=True, slots=True)
class Share:
    """Some of the copies on a store."""

    items: int
    bytes: int
    """That they occupy."""


def kept(store: ImageStore) -> Mapping[Keeper, Mapping[Kind, Share]]:
    """The readable copies on a store by what keeps them; a query per kind."""
    found: dict[Keeper, dict[Kind, Share]] = {keeper: {} for keeper in Keeper}
    for kind in Kind:
        rows = KINDS[kind].ref.objects.filter(store=store, state__in=READABLE).order_by().annotate(keeper=_keeper(kind, store))
        counted = rows.values("keeper").annotate(items=Count("pk"), occupied=Sum("physical_size"))
        for keeper, items, occupied in counted.values_list("keeper", "items", "occupied"):
            found[Keeper(keeper)][kind] = Share(items, occupied)
    return found


def _keeper(kind: Kind, store: ImageStore) -> Case:
    elsewhere = KINDS[kind].ref.objects.filter(item_id=OuterRef("item_id")).exclude(store=store)
    of_record = elsewhere.filter(store__role=Role.IMAGE, store__state=StoreState.ATTACHED)
    proven = of_record.filter(state__in=READABLE, proof__in=PROVEN)
    return Case(
        When(Exists(elsewhere.filter(state=RefState.PROMISED)), then=Value(Keeper.PROMISE.value)),
        When(Exists(Hold.objects.filter(kind=kind, ref_id=OuterRef("pk"))), then=Value(Keeper.HOLD.value)),
        When(~Exists(proven), then=Value(Keeper.ONLY.value)),
        When(sha256="", then=Value(Keeper.UNREAD.value)),
        When(~Exists(proven.filter(sha256=OuterRef("sha256"))), then=Value(Keeper.DIFFERS.value)),
        default=Value(Keeper.NOTHING.value),
        output_field=CharField(),
    )


def holds_on(store: ImageStore) -> Any:
    """Who holds copies on a store, as rows."""
    own = Q()
    for kind in Kind:
        own |= Q(kind=kind, ref_id__in=KINDS[kind].ref.objects.filter(store=store).values("pk"))
    return Hold.objects.filter(own)
