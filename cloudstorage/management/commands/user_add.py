"""`manage.py user_add`: add a user of the console and the REST API."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser
from collections.abc import Mapping
from typing import Any

from cloudstorage.actors import Actor, ActorRole
from cloudstorage.commands import ServiceCommand
from cloudstorage.errors import Invalid
from cloudstorage.people import add_user


class Command(ServiceCommand):
    help = "Add a user of one role. The password is read from standard input, or from an environment variable."

    def add_own_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("name")
        parser.add_argument("--role", required=True, choices=[role.value for role in ActorRole])
        parser.add_argument("--password-env", metavar="VARIABLE", help="environment variable that holds the password")

    def run(self, actor: Actor, options: Mapping[str, Any]) -> int | None:
        password = _password(options["password_env"])
        add_user(actor=actor, name=options["name"], role=options["role"], password=password)
        self.say(f"user {options['name']} with the role {options['role']}", {"name": options["name"], "role": options["role"]})
        return None


def _password(variable: str | None) -> str:
    if variable is not None:
        if variable not in os.environ:
            raise Invalid(f"The environment variable {variable} is not set.", field="password")
        return os.environ[variable]
    if sys.stdin.isatty():
        from getpass import getpass

        return getpass("Password: ")
    return sys.stdin.readline().rstrip("\n")
