"""The rules of a drain: what it moves, in which order, how that is proven, how much it may take; checked here for every face."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, TypedDict

from django.conf import settings
from django.template.defaultfilters import pluralize

from cloudstorage.commands import check_rate, human_bytes
from cloudstorage.errors import Invalid, Missing
from migration.models import Drain
from stores.models import Kind, Zone
from stores.services import windows
from stores.services.region import find_zone
from stores.services.transfers import Order, Scope

SERVER, READ_BACK = "server", "read-back"
MAX_CONCURRENCY = 256

ORDERS = {
    Order.PLANNED: "as planned: templates, snapshots, then volumes",
    Order.SMALLEST: "the smallest first",
    Order.LARGEST: "the largest first",
    Order.NEWEST: "the newest first",
}
VERIFICATIONS = {
    SERVER: "the object store's own check of every part",
    READ_BACK: "every object is also fetched and hashed again, which reads everything once more",
}
KIND_NAMES = {Kind.TEMPLATE: "templates and ISOs", Kind.SNAPSHOT: "snapshots", Kind.VOLUME: "volumes"}


class Limits(TypedDict, total=False):
    """What may change while a drain runs."""

    concurrency: int
    bandwidth: int | None
    window: str
    time_zone: str


class Given(Limits, total=False):
    """Rules as a face has them; what is left out is as in `Rules`."""

    zones: Sequence[str]
    kinds: Sequence[str]
    order: str
    verification: str
    canary_items: int


@dataclass(frozen=True, slots=True)
class Rules:
    """What a drain moves and how; made by `checked` or `of`."""

    zones: tuple[str, ...] = ()
    """Names; none = all. What has a copy in one of them is moved, and the snapshots that it builds on, wherever they are."""
    kinds: tuple[str, ...] = ()
    """None = all."""
    order: str = Order.PLANNED
    verification: str = SERVER
    canary_items: int = 5
    concurrency: int = 8
    bandwidth: int | None = None
    """Bytes per second; None = no limit."""
    window: str = ""
    """When it may run, as `windows` reads it; empty = always."""
    time_zone: str = ""
    """Of the windows; empty = CLOUDSTORAGE_TIME_ZONE."""

    @property
    def partial(self) -> bool:
        """Whether it leaves anything out."""
        return bool(self.zones or self.kinds)

    def limits(self) -> dict[str, Any]:
        """What may change while it runs: the columns of its batch."""
        return {name: getattr(self, name) for name in LIMITS}

    def fixed(self) -> dict[str, Any]:
        """What holds from its plan to its end, as JSON."""
        return {name: value for name, value in self.as_json().items() if name not in LIMITS}

    def as_json(self) -> dict[str, Any]:
        """All rules, as `of` reads them."""
        return asdict(self) | {"zones": list(self.zones), "kinds": list(self.kinds)}

    def given(self) -> Given:
        """The same as a face gives them."""
        found: Given = self.as_json()  # type: ignore[assignment]  # has the same names, by construction
        return found

    def changed(self) -> dict[str, Any]:
        """Those that are not the default, as a REST body has them."""
        return {name: value for name, value in self.as_json().items() if value != _DEFAULTS[name]}

    def arguments(self) -> list[str]:
        """The same as arguments of `migration_plan`."""
        words: list[str] = []
        for name, value in self.changed().items():
            for one in value if isinstance(value, list) else [value]:
                words += [OPTIONS[name], str(one)]
        return words

    def scope(self) -> Scope:
        """What is to be planned."""
        zones = Zone.objects.filter(name__in=self.zones).values_list("pk", flat=True)
        return Scope(
            kinds=tuple(map(Kind, self.kinds)) or tuple(Kind),
            zones=tuple(zones) if self.zones else None,
            order=Order(self.order),
            read_back=self.verification == READ_BACK,
        )

    def words(self) -> list[tuple[str, str]]:
        """Each rule as (what it is about, what it says)."""
        kinds = ", ".join(KIND_NAMES[Kind(kind)] for kind in self.kinds) or "everything"
        zones = f"zone{pluralize(len(self.zones))} {', '.join(self.zones)}" if self.zones else "all zones"
        smallest = f"{self.canary_items} smallest item{pluralize(self.canary_items)}"
        canary = f"{smallest} and the deepest chain, read back before the rest"
        limit = f"{human_bytes(self.bandwidth)}/s" if self.bandwidth else "as much as there is"
        return [
            ("What", f"{kinds} in {zones}"),
            ("Order", f"{ORDERS[Order(self.order)]}; parents before their children, and what is asked for at once before all"),
            ("Proof", VERIFICATIONS[self.verification]),
            ("Canary", canary if self.canary_items else "none: everything begins at once"),
            ("At once", f"{self.concurrency} item{pluralize(self.concurrency)} over all workers"),
            ("Bandwidth", limit),
            ("When", f"{self.window} by the clock of {self.time_zone or settings.TIME_ZONE}" if self.window else "at any hour"),
        ]


LIMITS = ("concurrency", "bandwidth", "window", "time_zone")
OPTIONS = {
    "zones": "--zone",
    "kinds": "--kind",
    "order": "--order",
    "verification": "--verification",
    "canary_items": "--canary-items",
    "concurrency": "--concurrency",
    "bandwidth": "--bandwidth",
    "window": "--window",
    "time_zone": "--time-zone",
}
DEFAULT = Rules()
_DEFAULTS = DEFAULT.as_json()


def checked(given: Mapping[str, Any]) -> dict[str, Any]:
    """What was given, each rule in its one form; raises Invalid or Missing with the name of the rule as its field."""
    return {name: _CHECKS[name](value) for name, value in given.items()}


def rules_from(given: Mapping[str, Any]) -> Rules:
    """The rules that a face was given; raises Invalid or Missing with the name of the rule as its field."""
    return Rules(**checked(given))


def of(kept: Mapping[str, Any]) -> Rules:
    """Rules as JSON kept them; what it lacks is as by default."""
    known: dict[str, Any] = {field.name: kept[field.name] for field in fields(Rules) if field.name in kept}
    known |= {name: tuple(value) for name, value in known.items() if isinstance(value, list)}
    return Rules(**known)


def of_drain(drain: Drain) -> Rules:
    """The rules of a drain, with its limits as they are now."""
    return of(drain.rules | {name: getattr(drain.batch, name) for name in LIMITS})


def _zones(given: Sequence[str]) -> tuple[str, ...]:
    try:
        return tuple(dict.fromkeys(find_zone(name).name for name in given))
    except Missing as error:
        raise Missing(error.message, remedy=error.remedy, field="zones") from error


def _kinds(given: Sequence[str]) -> tuple[str, ...]:
    if unknown := [kind for kind in given if kind not in set(Kind)]:
        raise Invalid(f"{unknown[0]!r} is no kind of item.", remedy=f"Kinds are {', '.join(Kind)}.", field="kinds")
    return tuple(str(kind) for kind in Kind if kind in given)


def _one_of(field: str, known: Sequence[str]) -> Callable[[str], str]:
    def check(given: str) -> str:
        if given not in known:
            raise Invalid(f"{given!r} is not known here.", remedy=f"Choose one of {', '.join(known)}.", field=field)
        return str(given)

    return check


def _between(field: str, low: int, high: int, message: str) -> Callable[[int], int]:
    def check(given: int) -> int:
        if not low <= given <= high:
            raise Invalid(message, remedy=f"Give a number from {low} to {high}.", field=field)
        return given

    return check


def _time_zone(given: str) -> str:
    return windows.zone_of(given).key if given else ""


_CHECKS: dict[str, Callable[[Any], Any]] = {
    "zones": _zones,
    "kinds": _kinds,
    "order": _one_of("order", list(Order)),
    "verification": _one_of("verification", list(VERIFICATIONS)),
    "canary_items": _between("canary_items", 0, 1_000_000, "Canary items are counted from 0, which is none."),
    "concurrency": _between("concurrency", 1, MAX_CONCURRENCY, "Concurrency is the number of items under way at once, 1 to 256."),
    "bandwidth": lambda given: check_rate(given, "bandwidth"),
    "window": windows.canonical,
    "time_zone": _time_zone,
}
