"""Each setting is told with where it came from, and never with a secret."""

from __future__ import annotations

import pytest

from cloudstorage.environment import NotedEnvironment, without_password

pytestmark = pytest.mark.unit


@pytest.fixture
def env(monkeypatch) -> NotedEnvironment:
    monkeypatch.setenv("CLOUDSTORAGE_LEASE_SECONDS", "60")
    monkeypatch.setenv("DATABASE_URL", "postgres://cloud:hunter2@db:5432/cloud?sslpassword=hunter3")
    monkeypatch.setenv("SECRET_KEY", "hunter4")
    monkeypatch.setenv("CLOUDSTORAGE_NFS_MOUNTS", "filer:/a=/mnt/a,filer:/b=/mnt/b")
    monkeypatch.delenv("CLOUDSTORAGE_TIME_ZONE", raising=False)
    return NotedEnvironment()


def test_values_are_read_as_ever_and_noted_with_their_source(env):
    assert env.int("CLOUDSTORAGE_LEASE_SECONDS", default=120) == 60
    assert env("CLOUDSTORAGE_TIME_ZONE", default="UTC") == "UTC"
    assert env.dict("CLOUDSTORAGE_NFS_MOUNTS", default={}) == {"filer:/a": "/mnt/a", "filer:/b": "/mnt/b"}
    assert env.list("CLOUDSTORAGE_OUTBOUND_CIDRS", default=[]) == []
    told = {name: (setting.value, setting.source) for name, setting in env.noted.items()}
    assert told == {
        "CLOUDSTORAGE_LEASE_SECONDS": ("60", "environment"),
        "CLOUDSTORAGE_TIME_ZONE": ("UTC", "default"),
        "CLOUDSTORAGE_NFS_MOUNTS": ("filer:/a=/mnt/a, filer:/b=/mnt/b", "environment"),
        "CLOUDSTORAGE_OUTBOUND_CIDRS": ("", "default"),
    }


def test_no_secret_is_noted(env):
    assert env.db_url("DATABASE_URL")["PASSWORD"] == "hunter2"
    assert env("SECRET_KEY", default="") == "hunter4"
    assert env("CLOUDSTORAGE_QUEUE_SECRET_KEY", default="") == ""
    assert "hunter" not in str(env.noted)
    assert env.noted["DATABASE_URL"].value == "postgres://cloud:…@db:5432/cloud?…"
    assert (env.noted["SECRET_KEY"].source, env.noted["CLOUDSTORAGE_QUEUE_SECRET_KEY"].source) == ("environment", "file")


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("redis://:hunter2@cache:6379/0", "redis://:…@cache:6379/0"),
        ("sqlite:////var/lib/cloud.sqlite3", "sqlite:////var/lib/cloud.sqlite3"),
        ("postgres://cloud@db/cloud", "postgres://cloud@db/cloud"),
        ("postgres://cloud:hunter2@[db/cloud", "an address that cannot be read"),
        ("Europe/Berlin", "Europe/Berlin"),
    ],
)
def test_an_address_is_shown_without_its_password(address, shown):
    assert without_password(address) == shown
