"""Runs commands of `manage.py`, each in a fork of one process that has imported everything once, which saves most of their time."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from tests.servers.process import REPOSITORY

_COSTLY = ("boto3", "botocore.session", "cloudstorage.urls", "migration.tasks", "stores.tasks")

_SECONDS = 60
"""A command that takes longer hangs, and is killed."""


@dataclass(frozen=True)
class Done:
    """A command that has ended, and what it said on both streams."""

    code: int
    said: str


class Shell:
    """One host with one environment."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.runbook.shell"],
            env={name: value for name, value in os.environ.items() if name != "DJANGO_ALLOW_ASYNC_UNSAFE"} | environment,
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def manage(self, arguments: Sequence[str], *, typed: str = "") -> Done:
        """`manage.py` with these arguments; `typed` is its standard input."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"arguments": list(arguments), "typed": typed}) + "\n")
        self._process.stdin.flush()
        return Done(**json.loads(self._process.stdout.readline()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(20)
        self._process.stdout.close()


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "cloudstorage.settings")
    import django

    django.setup()
    for module in _COSTLY:
        importlib.import_module(module)
    for line in sys.stdin:
        print(json.dumps(_serve(**json.loads(line))), flush=True)


def _serve(arguments: list[str], typed: str) -> dict[str, object]:
    with tempfile.TemporaryFile("w+") as given, tempfile.TemporaryFile("w+") as said:
        given.write(typed)
        given.seek(0)
        child = os.fork()
        if not child:
            _run(arguments, given.fileno(), said.fileno())
        _, status = os.waitpid(child, 0)
        said.seek(0)
        return {"code": os.waitstatus_to_exitcode(status), "said": said.read()}


def _run(arguments: list[str], given: int, said: int) -> None:
    code = 1
    try:
        signal.alarm(_SECONDS)
        os.dup2(given, 0)
        os.dup2(said, 1)
        os.dup2(said, 2)
        from django.core.management import execute_from_command_line

        sys.argv = ["manage.py", *arguments]
        execute_from_command_line(sys.argv)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(bool(end.code))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
