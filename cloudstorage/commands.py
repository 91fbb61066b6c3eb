"""The base of every management command: exit codes, --json, errors that say what to do, secrets never on the command line."""

from __future__ import annotations

import json
import os
import re
import sys
from abc import ABC, abstractmethod
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand
from django.db import OperationalError

from cloudstorage.actors import Actor, cli_actor
from cloudstorage.errors import UNSTORABLE, Conflict, Invalid, ServiceError, Unreachable, plain, unstorable

EXIT_CODES = {
    0: "ok",
    1: "unexpected error",
    2: "usage: a parameter is wrong",
    3: "not found",
    4: "refused by the present state or by a blocker",
    5: "temporary: try again later",
    6: "finished, but some items failed",
    10: "verification found a difference",
    130: "interrupted",
}


class ServiceCommand(BaseCommand, ABC):
    """A command that calls one service."""

    requires_system_checks: list[str] = []

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> Any:
        kwargs.setdefault("epilog", "exit codes: " + "; ".join(f"{code} {text}" for code, text in EXIT_CODES.items()))
        return super().create_parser(prog_name, subcommand, **kwargs)

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--json", action="store_true", help="print one JSON object (or one per line while following)")
        self.add_own_arguments(parser)

    def add_own_arguments(self, parser: ArgumentParser) -> None:
        """Arguments of this very command."""

    def handle(self, *args: Any, **options: Any) -> None:
        self.as_json = bool(options["json"])
        try:
            code = self.run(cli_actor(), options)
        except ServiceError as error:
            self._complain(error)
            sys.exit(error.exit_code)
        except OperationalError as error:
            self._complain(Unreachable(f"The database did not answer: {error}", remedy="See `manage.py doctor`, then try again."))
            sys.exit(Unreachable.exit_code)
        except UNSTORABLE:
            self._complain(unstorable())
            sys.exit(Invalid.exit_code)
        except ImproperlyConfigured as error:
            self._complain(Conflict(str(error), remedy="See `manage.py doctor` and docs/operations.md."))
            sys.exit(Conflict.exit_code)
        except KeyboardInterrupt:
            sys.exit(130)
        if code:
            sys.exit(code)

    @abstractmethod
    def run(self, actor: Actor, options: Mapping[str, Any]) -> int | None:
        """Do it and return an exit code (None = 0); raise ServiceError to refuse."""

    def say(self, text: str, data: Any = None) -> None:
        """One result: `text` for people, `data` for --json."""
        self.stdout.write(json.dumps(data, default=str) if self.as_json else text)

    def tell_steps(self, steps: Iterable[Any]) -> None:
        """The steps of a probe for people: what was tried, what came of it, what to do."""
        for step in map(plain, steps):
            self.stdout.write(f"{step['status']:>8}  {step['name']}: {step['message']}")
            if step["remedy"] and step["status"] != "ok":
                self.stdout.write(f"{'':>8}  -> {step['remedy']}")

    def tell_table(self, headings: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """Rows in columns as wide as they need."""
        texts = [[str(cell) for cell in row] for row in [headings, *rows]]
        widths = [max(len(row[column]) for row in texts) for column in range(len(headings))]
        for row in texts:
            self.stdout.write("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())

    def confirm(self, question: str, *, yes: bool) -> None:
        """Go on only when a person at a terminal types yes, or --yes was given; raises Invalid otherwise."""
        if yes:
            return
        if not sys.stdin.isatty():
            raise Invalid("This changes the region and nobody is there to be asked.", remedy="Add --yes.", field="yes")
        if input(f"{question} Type yes to go on: ").strip().lower() != "yes":
            raise Invalid("Not confirmed; nothing was changed.", remedy="Type yes in full, or add --yes.", field="yes")

    def _complain(self, error: ServiceError) -> None:
        if self.as_json:
            body = {"error": error.code, "message": error.message, "remedy": error.remedy, "field": error.field}
            findings = getattr(error, "findings", ())
            self.stderr.write(json.dumps({**body, "findings": [plain(finding) for finding in findings]}, default=str))
            return
        self.stderr.write(f"{error.message}" + (f" [{error.field}]" if error.field else ""))
        for finding in getattr(error, "findings", ()):
            found = plain(finding)
            self.stderr.write(f"  {found.get('severity') or found.get('status', '')}: {found.get('message', found)}")
            if found.get("remedy"):
                self.stderr.write(f"    -> {found['remedy']}")
        if error.remedy:
            self.stderr.write(f"-> {error.remedy}")


def add_details_arguments(parser: ArgumentParser) -> None:
    """`--detail name=value` for what may be seen, and two ways for secrets, which must not stand in a process list."""
    parser.add_argument("--detail", action="append", default=[], metavar="NAME=VALUE", help="a driver option that is not secret")
    parser.add_argument(
        "--secret-file", action="append", default=[], metavar="NAME=FILE", help="read a secret option from a file (- = stdin)"
    )
    parser.add_argument(
        "--secret-env",
        action="append",
        default=[],
        metavar="NAME=VARIABLE",
        help="read a secret option from an environment variable",
    )


def details_from(options: Mapping[str, Any], secret_names: set[str]) -> dict[str, str]:
    """The driver options that the arguments name; raises Invalid for a secret on the command line."""
    details = dict(_pair(text, "detail") for text in options["detail"])
    for name in details:
        if name in secret_names:
            raise Invalid(
                f"{name} is a secret and would be seen in the process list.",
                remedy=f"Give it with --secret-file {name}=FILE or --secret-env {name}=VARIABLE.",
                field=name,
            )
    for name, source in (_pair(text, "secret-file") for text in options["secret_file"]):
        try:
            details[name] = (sys.stdin.read() if source == "-" else Path(source).read_text()).strip()
        except OSError as error:
            message = f"The secret file of {name} cannot be read: {error.strerror}."
            raise Invalid(message, remedy="Name a file that you may read, or - for standard input.", field=name) from None
        except UnicodeDecodeError:
            message = f"The secret file of {name} is not text."
            raise Invalid(message, remedy="Name the file that has the secret alone.", field=name) from None
    for name, variable in (_pair(text, "secret-env") for text in options["secret_env"]):
        if variable not in os.environ:
            message = f"The environment variable {variable} for {name} is not set."
            raise Invalid(message, remedy="Set and export it, or give the secret in a file.", field=name)
        details[name] = os.environ[variable]
    return details


def passphrase_from(options: Mapping[str, Any]) -> str:
    """The passphrase that `--passphrase-file` or `--passphrase-env` names; empty where neither is given."""
    if options["passphrase_file"]:
        named = {"detail": [], "secret_env": [], "secret_file": [f"passphrase={options['passphrase_file']}"]}
        return details_from(named, set())["passphrase"]
    if options["passphrase_env"]:
        named = {"detail": [], "secret_file": [], "secret_env": [f"passphrase={options['passphrase_env']}"]}
        return details_from(named, set())["passphrase"]
    return ""


def _pair(text: str, option: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        message = f"--{option} takes NAME=VALUE, not {text!r}."
        raise Invalid(message, remedy="Put an equals sign between the two.", field=option)
    return name, value


_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
MAX_BYTES = 2**63 - 1
"""What a column holds."""
_AMOUNT = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]I?|)B?", re.IGNORECASE | re.ASCII)


def bytes_from(text: str, field: str) -> int | None:
    """`100M`, `1.5GiB` or `none` as a number of bytes; raises Invalid naming `field`."""
    if text.lower() == "none":
        return None
    match = _AMOUNT.fullmatch(text.strip())
    if match is None:
        raise Invalid(f"{text!r} is no amount of bytes.", remedy="Write it like 100M, 1.5GiB or none.", field=field)
    count = int(Decimal(match.group(1)) * _UNITS[match.group(2).upper()])
    if count > MAX_BYTES:
        raise Invalid(f"{text!r} is more than can be kept.", remedy="Give less, or none for no limit.", field=field)
    return count


def check_rate(given: int | None, field: str) -> int | None:
    """Bytes per second, or None for no limit; raises Invalid naming `field`."""
    if given is not None and not 0 < given <= MAX_BYTES:
        message = "A limit is a number of bytes per second above 0."
        raise Invalid(message, remedy="Leave it out for no limit.", field=field)
    return given


def seconds_from(text: str) -> float:
    """An interval, for argparse: above 0, up to a day."""
    with suppress(ValueError):
        if 0 < (found := float(text)) <= 86400:
            return found
    raise ArgumentTypeError(f"{text!r} is no number of seconds above 0, up to 86400")


def exact_bytes(count: int | None) -> str:
    """A number of bytes as `bytes_from` reads it, in the unit in which it is shortest; empty for none."""
    if count is None:
        return ""
    exact = (f"{count // size}{unit.replace('I', 'iB')}" for unit, size in _UNITS.items() if count % size == 0)
    return min(exact, key=len)


def human_bytes(count: float) -> str:
    """A number of bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(count) < 1024 or unit == "TiB":
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"


def human_seconds(seconds: float) -> str:
    """A duration for people."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def human_age(seconds: float) -> str:
    """A duration for people, roughly: in its largest unit."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
