"""docs/operations.md is carried out: every block of commands as the document has it, on one region and on real servers.

One story, for each day leaves the region as the next finds it. What stands for the document's names is in `Site.words`; a unit is
started by its own command line. Not carried out: nginx's TLS (the requests come as it would hand them on) and the making of `.venv`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import uuid
from pathlib import Path

import pytest

from tests.drivers.s3_cases import error
from tests.runbook.site import Site
from tests.servers.http_messages import HttpRequest
from tests.servers.proxy import Hold, LoggingHttpProxy

pytestmark = [pytest.mark.live, pytest.mark.crash]

CANARY = 5
ITEMS = CANARY + 4


def write_volume(export: Path, number: int) -> str:
    """A volume as CloudStack writes one; its SHA-256."""
    path = export / "volumes" / "2" / str(number) / f"{uuid.uuid4()}.raw"
    path.parent.mkdir(parents=True)
    content = os.urandom(100_000 + number)
    path.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def writes_item(request: HttpRequest) -> bool:
    return request.method == "PUT" and "/volumes/" in request.target


def by_key(request: HttpRequest, access_key: str) -> bool:
    return f"Credential={access_key}/" in request.headers.get("authorization", "")


class Revoked:
    """The server refuses a key once so many items were written with it."""

    def __init__(self, access_key: str, after: int) -> None:
        self._key, self._left = access_key, after

    def __call__(self, request: HttpRequest) -> bool:
        if by_key(request, self._key) and writes_item(request):
            self._left -= 1
        return by_key(request, self._key) and self._left < 0


@pytest.fixture
def site(server_directory, postgres_server, swift_server):
    with (
        LoggingHttpProxy(swift_server.s3_url) as proxy,
        Site(server_directory / "runbook", postgres_server, swift_server, proxy) as made,
    ):
        yield made


def test_every_block_of_the_runbook_does_what_it_says(site):
    region = Region(site)
    region.set_up()
    region.convert()
    region.survive_a_drain_full_of_trouble()
    region.go_back_and_forth()
    region.lose_an_item()
    region.retire()
    region.lose_the_database_with_a_backup()
    region.lose_the_database_without_one()
    region.lose_the_key_ring()
    assert site.left == [], "blocks that nobody carries out"


class Region:
    """What the story knows of its items: SHA-256 of each, taken before the product saw it."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.known: set[str] = set()
        self.token = ""

    # --- the plain days ----------------------------------------------------------------------------------------------------

    def set_up(self) -> None:
        self.site.follow("Set up a production instance", typed="the database's\n" * 2)
        _, deploy, user, *_ = self.site.follow("Set up a production instance", 2, typed="a long pass-phrase 4711\n")
        assert "no issues" in deploy.said
        assert "alice" in user.said
        page = self.site.ask("/login/", token="").read().decode()
        (style, *_) = re.findall(r'href="(/static/[^"]+\.css)"', page)
        assert self.site.ask(style, token="").status == 200
        self.site.follow("Set up a production instance", 3)
        self.token = self._token()

    def _token(self) -> str:
        return str(self.site.manage("token_create alice --role storage-admin")["token"])

    def convert(self) -> None:
        self.known |= {write_volume(self.site.export, number) for number in range(1, ITEMS)}
        self.site.follow("Convert")
        self._reached(1)
        self.site.follow("Convert", 2)
        self.known.add(write_volume(self.site.export, ITEMS))
        found, adopted = self.site.follow("Who is master of what", codes={"migration_verify": 10})
        assert "foreign write" in found.said
        assert "1" in adopted.said

    def _reached(self, stores: int) -> None:
        reached = "SELECT count(*) FROM stores_workerreach WHERE ok"
        self.site.wait(lambda: self.site.query(reached) == [(stores,)], "a worker to reach every store")

    def survive_a_drain_full_of_trouble(self) -> None:
        site = self.site
        site.window(opened=False)
        site.follow("Convert", 3)
        self._reached(2)
        full = site.proxy.add_rule(writes_item, error(403, "QuotaExceeded"))
        status, _ = site.follow("The drain does not move")
        assert "window" in status.said
        site.follow("The drain does not move", 2)
        paused = [("Paused",)]
        site.wait(
            lambda: self._causes() == {"full"} and site.query("SELECT state FROM migration_drain") == paused, "a full bucket"
        )
        assert full.hits
        assert site.in_bucket() == set()

        site.proxy.clear_rules()
        site.proxy.add_rule(Revoked(site.swift.access_key, after=CANARY + 2), error(403, "InvalidAccessKeyId"))
        site.follow("The bucket is full")
        site.follow("The drain does not move", 3)
        proven = "SELECT count(*) FROM stores_transfer WHERE state = 'Proven'"
        site.wait(lambda: site.query(proven) == [(CANARY + 2,)] and "locked-out" in self._causes(), "the key to be refused")
        assert site.query("SELECT 1 FROM stores_transfer WHERE state = 'Failed'") == []

        site.proxy.clear_rules()
        hold = Hold()
        site.proxy.add_rule(writes_item, hold, times=1)
        site.follow("Credentials expired or were revoked")
        assert hold.arrived.wait(30), "nobody copied on with the new key"
        site.lose_worker()
        hold.release.set()
        site.change("UPDATE stores_worker SET heartbeat = now() - interval '5 minutes'")  # an operator comes as late as that
        doctor, _ = site.follow("A worker is lost", codes={"doctor": 6})
        assert "No worker is running, and transfers wait" in doctor.said
        self._drained()

    def _causes(self) -> set[str]:
        return {cause for (cause,) in self.site.query("SELECT error_cause FROM stores_transfer WHERE error_cause <> ''")}

    def _drained(self) -> None:
        status, verified = self.site.follow("Convert", 4)
        assert "Finished" in status.said
        assert "no difference" in verified.said
        assert self.site.in_bucket() == self.known

    def go_back_and_forth(self) -> None:
        site = self.site
        self._upload("born")
        plan, done = site.follow("Commit, or roll back")
        assert "to bring home: 1 volume" in plan.said
        assert "RolledBack" in done.said
        assert site.on_export() == self.known
        site.follow("Convert", 2)
        site.window(opened=True)
        site.follow("Convert", 3)
        self._drained()

    def _upload(self, name: str) -> str:
        content = os.urandom(50_000)
        account = json.load(self.site.ask("/api/v1/accounts", token=self.token))["results"][0]["id"]
        path = f"/api/v1/volumes?name={name}&filename={name}.raw&account={account}"
        answer = self.site.ask(path, token=self.token, method="POST", body=content)
        assert answer.status == 201
        self.known.add(hashlib.sha256(content).hexdigest())
        return str(json.load(answer)["id"])

    def lose_an_item(self) -> None:
        site = self.site
        volume = json.load(site.ask("/api/v1/volumes?name=born", token=self.token))["results"][0]["id"]
        assert site.ask(f"/api/v1/volumes/{volume}", token=self.token, method="DELETE").status == 204
        site.wait(lambda: site.query("SELECT 1 FROM volumes WHERE name = 'born' AND removed IS NOT NULL"), "it to be gone")
        assert len(site.on_export()) == len(site.in_bucket()) == ITEMS
        listed, *_ = site.follow("Something was deleted by mistake", codes={"undelete volume 6f0c1f0e": 3})
        assert volume in listed.said
        site.words["6f0c1f0e-6c1b-4c36-9c53-0a7a3a0b8d52"] = volume
        site.follow("Something was deleted by mistake")
        assert site.on_export() == self.known
        site.follow("Convert", 3)
        self._drained()

    def retire(self) -> None:
        site = self.site
        site.follow("Commit, or roll back", 2)
        stray = site.export / "volumes" / "notes.txt"
        stray.write_text("of somebody")
        _, asked = site.follow("Retire an export", codes={"store_decommission nfs1 --yes": 4})
        assert "volumes/notes.txt" in asked.said
        (spelled,) = re.findall(r"--acknowledge (\S+)", asked.said)
        site.words["1:0123456789abcdef"] = spelled
        (retired,) = site.follow("Retire an export", 2)
        assert "Retired" in retired.said
        _, checked = site.follow("Retire an export", 3)
        assert f"{len(self.known)} files of the report read" in checked.said
        assert "no difference" in checked.said
        site.follow("Retire an export", 4)
        site.wait(lambda: stray.parent.exists() and len(site.on_export()) == 1, "its files to be in the trash")
        assert stray.exists(), "what no item was is nobody's to delete"
        assert site.in_bucket() == self.known

    # --- the bad days ------------------------------------------------------------------------------------------------------

    def lose_the_database_with_a_backup(self) -> None:
        site = self.site
        site.follow("Set up a production instance", 3)
        site.words["/backup/cloudstorage-20261121T030000.zip"] = str(max((site.folder / "backup").iterdir()))
        late = self._upload("late")
        site.lose_database()
        _, _, restored, reconciled, _ = site.follow("The database is lost")
        assert "read-only" in restored.said
        assert "open" in reconciled.said
        known = json.load(site.ask("/api/v1/volumes", token=self.token))["results"]
        assert late in {item["id"] for item in known}
        assert site.in_bucket() == self.known

    def lose_the_database_without_one(self) -> None:
        site = self.site
        site.do("systemctl stop cloudstorage-web cloudstorage-worker")
        site.lose_database()
        *_, refused = site.follow("The database is lost", 2, codes={"store_add": 4})
        assert "--take-over" in refused.said
        (cloud,) = set(re.findall(r"belongs to another cloud \(([0-9a-f-]{36})\)", refused.said))
        site.words["6f0c1f0e-6c1b-4c36-9c53-0a7a3a0b8d52"] = cloud
        *_, verified = site.follow("The database is lost", 3)
        assert "no difference" in verified.said
        assert [store["name"] for store in site.manage("store_list")] == ["objects"]
        site.do("systemctl start cloudstorage-web cloudstorage-worker")

    def lose_the_key_ring(self) -> None:
        site = self.site
        (site.folder / "data" / "secret-keys").unlink()
        site.follow("The key ring is lost", codes={"doctor": None})
        site.wait(lambda: site.do("manage.py doctor").code == 0, "all to be well again")
        assert "opens 1 secrets" in site.do("manage.py doctor").said
