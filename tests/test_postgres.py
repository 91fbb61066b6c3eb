"""What the tests show on SQLite holds on PostgreSQL too: the same tests of the database, on a real server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.servers.process import REPOSITORY, Guard

pytestmark = [pytest.mark.live, pytest.mark.longest]

SELECTED = "db and not sqlite and not live and not crash and not browser"
"""Tests with servers of their own run on both databases by themselves."""
SECONDS = 900


def test_tests_of_the_database_pass_when_it_is_postgresql(postgres_server, capsys):
    database = postgres_server.create_database("suite")
    command = [sys.executable, "-m", "pytest", "-m", SELECTED, "-q", "-p", "no:cacheprovider", "-o", "faulthandler_timeout=300"]
    command += ["-n", "2", "--dist", "loadfile", "--no-loadscope-reorder"]  # each process in a database of its own
    ours = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST_")}
    started = time.monotonic()
    with subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env=ours | {"DATABASE_URL": database},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as suite:
        guard = Guard(suite.pid)
        try:
            told, _ = suite.communicate(timeout=SECONDS)
        finally:
            # Whatever it started goes with it, also when it was stopped in the middle.
            if suite.poll() is None:
                os.killpg(suite.pid, signal.SIGKILL)
            guard.dismiss()
    with capsys.disabled():
        print(f"\n  on PostgreSQL in {time.monotonic() - started:.0f} s: {told.strip().splitlines()[-1]}")
    assert suite.returncode == 0, told[-8000:]
    assert " passed" in told
