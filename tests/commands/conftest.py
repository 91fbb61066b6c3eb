"""Runs a command as the shell would, and says what it printed and how it ended."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError

from tests.api.conftest import Cloud, cloud
from tests.fakes import memory
from tests.migration.conftest import memory_store, region, target

__all__ = ["Cloud", "cloud", "memory_store", "region", "target"]


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)

    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture(autouse=True)
def _clean_servers() -> Iterator[None]:
    yield
    memory.SERVERS.clear()


@pytest.fixture
def run(db) -> Callable[..., Ended]:
    """`run("store_add", "--name", "x")`: its exit code and its output."""

    def command(*args: str) -> Ended:
        out, err = io.StringIO(), io.StringIO()
        code: Any = 0
        try:
            call_command(*args, stdout=out, stderr=err)
        except SystemExit as ended:
            code = ended.code
        except CommandError as error:  # what the parser refuses; from a shell it is a message and exit code 2
            return Ended(2, out.getvalue(), str(error))
        return Ended(code or 0, out.getvalue(), err.getvalue())

    return command
