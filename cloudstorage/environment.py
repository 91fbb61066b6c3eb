"""Reads settings from the environment and remembers of each where it came from, so that the console can tell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import environ


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting as it was read. `value` is fit to be shown: of a secret it says only whether there is one."""

    name: str
    value: str
    source: str
    """default, environment, or file where a value was made once and kept."""


class NotedEnvironment(environ.Env):  # type: ignore[misc] # the package has no types
    """An environment that notes what was asked of it."""

    def __init__(self) -> None:
        super().__init__()
        self.noted: dict[str, Setting] = {}

    def get_value(self, var: str, *args: Any, **kwargs: Any) -> Any:
        """The value, as django-environ has it."""
        found = super().get_value(var, *args, **kwargs)
        given = bool(self.ENVIRON.get(var))
        kept = var.endswith("SECRET_KEY") and not given
        source = "environment" if given else "file" if kept else "default"
        self.noted[var] = Setting(var, "set, never shown" if var.endswith("SECRET_KEY") else _shown(found), source)
        return found


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}={content}" for name, content in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return without_password(str(value))


def without_password(text: str) -> str:
    """An address as it is, but for the password in it."""
    if "://" not in text:
        return text
    try:
        parts = urlsplit(text)
        if parts.password is None and not parts.query:
            return text
        host = parts.netloc.rpartition("@")[2]
    except ValueError:
        return "an address that cannot be read"
    user = "" if parts.username is None else f"{parts.username}:…@"
    return urlunsplit(parts._replace(netloc=f"{user}{host}", query="…" if parts.query else ""))
