"""`manage.py token_create`: make a bearer token of the REST API."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Mapping
from typing import Any

from cloudstorage.actors import Actor, ActorRole
from cloudstorage.commands import ServiceCommand
from cloudstorage.people import DEFAULT_TOKEN_DAYS, create_token


class Command(ServiceCommand):
    help = "Make a REST token for a user and print it, once: only its hash is kept."

    def add_own_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("user")
        parser.add_argument("--name", default="command line", help="what it is for")
        parser.add_argument("--role", required=True, choices=[role.value for role in ActorRole])
        parser.add_argument("--days", type=int, default=DEFAULT_TOKEN_DAYS, help="until it expires; 0 = never")

    def run(self, actor: Actor, options: Mapping[str, Any]) -> int | None:
        days = options["days"] or None
        given = {"username": options["user"], "name": options["name"], "role": options["role"], "days": days}
        token, secret = create_token(actor=actor, **given)
        self.say(secret, {"id": token.prefix, "token": secret, "role": token.role, "expires": token.expires})
        return None
