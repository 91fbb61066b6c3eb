"""`manage.py user_change`: give a user other roles, or keep them out."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Mapping
from typing import Any

from django.contrib.auth import get_user_model

from cloudstorage.actors import Actor, ActorRole
from cloudstorage.commands import ServiceCommand
from cloudstorage.errors import Missing
from cloudstorage.people import change_user


class Command(ServiceCommand):
    help = (
        "Change what a user may do. Whoever is disabled is signed out at once, and their tokens are refused. A superuser"
        " becomes an ordinary user."
    )

    def add_own_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("name")
        choices = [role.value for role in ActorRole]
        parser.add_argument("--role", action="append", choices=choices, help="in the place of all roles so far; may be repeated")
        access = parser.add_mutually_exclusive_group()
        access.add_argument("--disable", dest="active", action="store_false", default=None, help="keep the user out")
        access.add_argument("--enable", dest="active", action="store_true", default=None, help="let the user in again")

    def run(self, actor: Actor, options: Mapping[str, Any]) -> int | None:
        user = get_user_model().objects.filter(username=options["name"]).first()
        if user is None:
            raise Missing(f"There is no user {options['name']!r}.", remedy="Look at the list of users in the console.")
        roles = options["role"] or sorted(user.groups.values_list("name", flat=True))
        active = user.is_active if options["active"] is None else options["active"]
        change_user(actor=actor, name=options["name"], roles=roles, active=active)
        told = {"name": options["name"], "roles": roles, "active": active}
        self.say(f"user {options['name']}: {', '.join(roles)}{'' if active else ', disabled'}", told)
        return None
