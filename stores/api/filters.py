"""Which rows a list shows: the query parameters of every list, each documented and checked by its field."""

from __future__ import annotations

from typing import Any, ClassVar

import django_filters
from django.db.models import Exists, OuterRef, Prefetch, Q, QuerySet

from stores.models import KINDS, Kind, Template, Transfer, heavy
from stores.states import RefState, Role, StoreState, TransferState

_GONE = (RefState.DESTROYING, RefState.DESTROYED)


def listed(kind: Kind) -> QuerySet[Any]:
    """Items that exist for a user: some copy or promise is alive, and it was not deleted for its children's sake only."""
    models = KINDS[kind]
    refs = models.ref.objects.filter(item=OuterRef("pk"))
    items: QuerySet[Any] = models.item.objects.filter(removed=None)
    return items.filter(Exists(refs.exclude(state__in=_GONE)), ~Exists(refs.filter(state=RefState.HIDDEN)))


def with_refs(items: QuerySet[Any], kind: Kind, *, files: bool = False) -> QuerySet[Any]:
    """The items with their refs as `listed_refs`, in a fixed number of queries."""
    models = KINDS[kind]
    refs = models.ref.objects.exclude(state=RefState.DESTROYED).select_related("store").defer(*heavy("store")).order_by("pk")
    if files:
        refs = refs.prefetch_related(Prefetch("files", queryset=models.file.objects.order_by("path").select_related("ref")))
    items = items.select_related("account").prefetch_related(Prefetch("refs", queryset=refs, to_attr="listed_refs"))
    if kind is Kind.TEMPLATE:
        return items.prefetch_related("zone_refs__zone")
    return items.select_related("zone", "parent") if kind is Kind.SNAPSHOT else items.select_related("zone")


def _choices(words: Any) -> list[tuple[str, str]]:
    return [(str(word), str(word)) for word in words]


class TrueOrFalse(django_filters.TypedChoiceFilter):  # type: ignore[misc] # the package has no types
    """`true` or `false`; django-filter's own takes every other word for no filter at all."""

    def __init__(self, **options: Any) -> None:
        super().__init__(choices=_choices(["true", "false"]), coerce=lambda word: word == "true", **options)


class StoreFilter(django_filters.FilterSet):  # type: ignore[misc] # the package has no types
    """Of stores."""

    name = django_filters.CharFilter(lookup_expr="iexact")
    provider = django_filters.CharFilter(field_name="image_provider_name", lookup_expr="iexact")
    zone = django_filters.UUIDFilter(field_name="zone__uuid")
    role = django_filters.ChoiceFilter(choices=_choices(Role))
    state = django_filters.ChoiceFilter(choices=_choices(StoreState))


class ItemFilter(django_filters.FilterSet):  # type: ignore[misc] # the package has no types
    """Of items of any kind."""

    name = django_filters.CharFilter(lookup_expr="icontains", label="Part of the name.")
    account = django_filters.UUIDFilter(field_name="account__uuid")
    upstream_id = django_filters.NumberFilter()
    format = django_filters.CharFilter(lookup_expr="iexact")
    store = django_filters.UUIDFilter(method="on_store", label="Has a copy, or the promise of one, on this store.")
    state = django_filters.ChoiceFilter(
        choices=_choices(RefState), method="in_state", label="Its ref has this state (on `store`, when that is given too)."
    )
    pending = TrueOrFalse(method="is_pending", label="Promised on an object store, not yet in bytes.")

    kind: ClassVar[Kind]

    def _refs(self, **where: Any) -> Exists:
        return Exists(KINDS[self.kind].ref.objects.filter(item=OuterRef("pk"), **where).exclude(state=RefState.DESTROYED))

    def on_store(self, items: QuerySet[Any], _name: str, store: Any) -> QuerySet[Any]:
        """Items with a ref on a store."""
        return items.filter(self._refs(store__uuid=store))

    def in_state(self, items: QuerySet[Any], _name: str, state: str) -> QuerySet[Any]:
        """Items with a ref in a state; on the given store, where one is given."""
        store = self.form.cleaned_data.get("store")
        return items.filter(self._refs(state=state, **({"store__uuid": store} if store else {})))

    def is_pending(self, items: QuerySet[Any], _name: str, pending: bool) -> QuerySet[Any]:
        """Items whose promise is not kept yet, or those without one."""
        promised = self._refs(state=RefState.PROMISED)
        return items.filter(promised if pending else ~promised)


class TemplateFilter(ItemFilter):
    """Of templates."""

    kind = Kind.TEMPLATE
    zone = django_filters.UUIDFilter(method="in_zone", label="Shown in this zone.")
    unique_name = django_filters.CharFilter()

    def in_zone(self, items: QuerySet[Any], _name: str, zone: Any) -> QuerySet[Any]:
        """Templates that a zone shows."""
        shown = Template.objects.filter(zone_refs__zone__uuid=zone, zone_refs__removed=None).values("pk")
        return items.filter(pk__in=shown)


class SnapshotFilter(ItemFilter):
    """Of snapshots."""

    kind = Kind.SNAPSHOT
    zone = django_filters.UUIDFilter(field_name="zone__uuid")
    volume_upstream_id = django_filters.NumberFilter()
    parent = django_filters.UUIDFilter(field_name="parent__uuid")
    full = TrueOrFalse(field_name="parent", lookup_expr="isnull", label="Builds on no other snapshot.")


class VolumeFilter(ItemFilter):
    """Of volumes."""

    kind = Kind.VOLUME
    zone = django_filters.UUIDFilter(field_name="zone__uuid")


class TransferFilter(django_filters.FilterSet):  # type: ignore[misc] # the package has no types
    """Of transfers."""

    state = django_filters.ChoiceFilter(choices=_choices(TransferState))
    kind = django_filters.ChoiceFilter(choices=_choices(Kind))
    source = django_filters.UUIDFilter(field_name="source__uuid")
    target = django_filters.UUIDFilter(field_name="target__uuid")
    batch = django_filters.UUIDFilter(field_name="batch__uuid")
    worker = django_filters.UUIDFilter(field_name="worker__uuid")
    error_cause = django_filters.CharFilter()
    item = django_filters.UUIDFilter(method="of_item", label="Of this template, snapshot or volume.")

    def of_item(self, transfers: QuerySet[Transfer], _name: str, item: Any) -> QuerySet[Transfer]:
        """Transfers of one item, whatever its kind."""
        wanted = Q(pk=None)
        for kind, models in KINDS.items():
            wanted |= Q(kind=kind, item_id__in=models.item.objects.filter(uuid=item).values("pk"))
        return transfers.filter(wanted)


FILTERS: dict[Kind, type[ItemFilter]] = {
    Kind.TEMPLATE: TemplateFilter,
    Kind.SNAPSHOT: SnapshotFilter,
    Kind.VOLUME: VolumeFilter,
}
