"""A worker that is stopped in the middle of a transaction does not keep its row locks for ever."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator

import psycopg
import pytest
from django.db.utils import ConnectionHandler
from environ import Env

from cloudstorage.sessions import SESSION_LOST, end_idle_transactions, let_transactions_idle
from tests.servers.process import REPOSITORY

pytestmark = pytest.mark.live

SECONDS = 0.2
ASK = "SHOW idle_in_transaction_session_timeout"


@pytest.fixture
def limited() -> Iterator[None]:
    end_idle_transactions(SECONDS)
    yield
    let_transactions_idle()


@pytest.fixture(scope="module")
def url(postgres_server) -> str:
    return postgres_server.create_database("stopped")


def test_row_that_a_silent_transaction_has_locked_is_free_again(url, limited, django_db_blocker):
    with psycopg.connect(url, autocommit=True) as other, django_db_blocker.unblock():
        other.execute("CREATE TABLE rows AS SELECT 1 AS id")
        stopped = ConnectionHandler({"default": Env.db_url_config(url)})["default"]
        stopped.set_autocommit(False)
        with stopped.cursor() as cursor:
            cursor.execute("SELECT id FROM rows FOR UPDATE")
        other.execute("SET lock_timeout = '60s'")
        assert other.execute("SELECT id FROM rows FOR UPDATE").fetchone() == (1,)
        with pytest.raises(SESSION_LOST), stopped.cursor() as cursor:
            cursor.execute("SELECT 1")
        stopped.close()


@pytest.mark.parametrize(("command", "expected"), [("worker", "7s"), ("use_object_store", "0")])
def test_limit_is_the_workers_alone(url, command, expected):
    """A conversion's one transaction takes what time it needs."""
    program = (
        f"import sys, json, django; sys.argv = ['manage.py', {command!r}]; django.setup();"
        f" from django.db import connection; cursor = connection.cursor(); cursor.execute({ASK!r});"
        " print(json.dumps(cursor.fetchone()))"
    )
    environment = {"DATABASE_URL": url, "DJANGO_SETTINGS_MODULE": "cloudstorage.settings", "CLOUDSTORAGE_LEASE_SECONDS": "7"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, env=os.environ | environment, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == [expected]


def test_database_host_that_lost_its_power_is_not_waited_for_for_hours(url):
    """It closes no connection: only the kernel finds out, and by itself after two hours."""
    program = (
        "import json, socket, django; django.setup(); from django.db import connection; connection.ensure_connection();"
        " sock = socket.socket(fileno=connection.connection.fileno()); tcp = socket.IPPROTO_TCP;"
        " names = ['TCP_KEEPIDLE', 'TCP_KEEPINTVL', 'TCP_KEEPCNT', 'TCP_USER_TIMEOUT'];"
        " print(json.dumps([sock.getsockopt(tcp, getattr(socket, name)) for name in names])); sock.detach()"
    )
    for query, expected in (("", [30, 10, 3, 60_000]), ("?keepalives_idle=5", [5, 10, 3, 60_000])):
        environment = {"DATABASE_URL": url + query, "DJANGO_SETTINGS_MODULE": "cloudstorage.settings"}
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=REPOSITORY,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert json.loads(done.stdout) == expected
