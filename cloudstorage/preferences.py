"""What people keep for themselves in the console: a time zone and named filters. Nothing of it concerns others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any
from urllib.parse import urlencode
from zoneinfo import ZoneInfo, available_timezones

from django.contrib.auth import get_user_model
from django.contrib.auth.backends import ModelBackend
from django.db import transaction

from cloudstorage.errors import Conflict, Invalid, Missing
from cloudstorage.models import Preferences, SavedFilter

MAX_FILTERS = 20
"""That one person may keep for one list."""
MAX_VALUE = 255


@cache
def time_zones() -> tuple[str, ...]:
    """Names of the zones that people live in: a continent or ocean and a place, and UTC."""
    return tuple(sorted(name for name in available_timezones() if name == "UTC" or ("/" in name and not name.startswith("Etc/"))))


def known_zone(name: str) -> ZoneInfo | None:
    """The zone of that name; None where there is none."""
    return ZoneInfo(name) if name in time_zones() else None


class WithPreferences(ModelBackend):
    """Signs people in as Django does, and fetches them with their preferences, which every page asks for."""

    def get_user(self, user_id: Any) -> Any:
        """The person of a session; None where they may not come in any more."""
        user = get_user_model().objects.select_related("preferences").filter(pk=user_id).first()
        return user if user is not None and self.user_can_authenticate(user) else None


def time_zone_of(user: Any) -> str:
    """The zone that a person has chosen; empty: none."""
    own: Preferences | None = getattr(user, "preferences", None)
    return own.time_zone if own is not None else ""


def choose_time_zone(*, user: Any, time_zone: str) -> None:
    """Show this person all times in a zone; empty for the browser's. Raises Invalid."""
    if time_zone and known_zone(time_zone) is None:
        remedy = "Choose one of the list, as Europe/Berlin or America/New_York; empty for the browser's own."
        raise Invalid(f"There is no time zone {time_zone!r}.", remedy=remedy, field="time_zone")
    Preferences.objects.update_or_create(user=user, defaults={"time_zone": time_zone})


def saved_filters(user: Any, page: str) -> Sequence[SavedFilter]:
    """A person's filters of a list, by name."""
    return list(SavedFilter.objects.filter(user=user, page=page).order_by("name")[:MAX_FILTERS])


def save_filter(*, user: Any, page: str, name: str, values: Mapping[str, str]) -> SavedFilter:
    """Keep what a list is narrowed to under a name, in the place of what had that name. Raises Invalid, Conflict."""
    name = " ".join(name.split())
    if not 1 <= len(name) <= 60:
        raise Invalid("A filter's name has 1 to 60 characters.", remedy="Say in a word or two what it shows.", field="name")
    query = urlencode({key: value[:MAX_VALUE] for key, value in values.items() if value})
    if not query:
        raise Invalid("The list is not filtered, so there is nothing to keep.", remedy="Filter it first, then save that.")
    with transaction.atomic():
        get_user_model().objects.select_for_update().get(pk=user.pk)  # so that two windows cannot pass the limit together
        others = SavedFilter.objects.filter(user=user, page=page).exclude(name=name)
        if others.count() >= MAX_FILTERS:
            raise Conflict(f"You keep {MAX_FILTERS} filters of this list already.", remedy="Delete one of them first.")
        return SavedFilter.objects.update_or_create(user=user, page=page, name=name, defaults={"query": query})[0]


def delete_filter(*, user: Any, pk: int) -> str:
    """Forget one of one's own filters, and return its name. Raises Missing."""
    found = SavedFilter.objects.filter(user=user, pk=pk).first()
    if found is None:
        raise Missing("You have no such filter.", remedy="It may have been deleted in another window; reload the list.")
    found.delete()
    return found.name
