"""Clients of the web server during the soak: they read and compare, upload, delete and ask for items on demand."""

from __future__ import annotations

import hashlib
import json
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Callable
from http.client import HTTPException
from random import Random

from tests.crash.stage import MiB
from tests.soak.ledger import Entry, Ledger

SMALL, TWO_PARTS = 200_000, 17 * MiB


class Churn:
    """Threads that call the REST API until they are told to stop."""

    def __init__(self, url: Callable[[], str], token: str, ledger: Ledger, *, account: str, stores: list[str], seed: int) -> None:
        self._url, self._token, self._ledger, self._account, self._stores = url, token, ledger, account, stores
        self.counts: Counter[str] = Counter()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(Random(f"{seed}-{n}"), n), daemon=True) for n in range(3)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(90)

    def _run(self, random: Random, number: int) -> None:
        acts = [(self._read, 5), (self._upload, 2), (self._delete, 1), (self._ensure, 3)]
        while not self._stop.wait(random.uniform(0.1, 0.8)):
            (act,) = random.choices([act for act, _ in acts], [weight for _, weight in acts])
            name = act.__name__.removeprefix("_")
            try:
                answered = act(random)
            except (OSError, HTTPException, ValueError):
                answered = False
            self.counts[name if answered else f"{name} failed"] += 1

    def ask(self, method: str, path: str, body: bytes | None = None, kind: str = "application/json") -> tuple[int, bytes]:
        """Status and body of an answer; OSError where there is none."""
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": kind}
        request = urllib.request.Request(self._url() + path, data=body, method=method, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()

    def _read(self, random: Random) -> bool:
        entry = self._ledger.choose(random, "there")
        if entry is None:
            return False
        name = random.choice(sorted(entry.hashes))
        which = f"?{urllib.parse.urlencode({'path': name})}" if len(entry.hashes) > 1 else ""
        status, body = self.ask("GET", f"{entry.url}/content{which}")
        if status == 200 and hashlib.sha256(body).hexdigest() != entry.hashes[name]:
            self._ledger.lie(f"{entry.name}: {name} was read as {len(body)} wrong bytes")
        if status in {404, 410} and entry.fate == "there":
            self._ledger.lie(f"{entry.name}: was answered with {status} {body[:300]!r}")
        return status == 200

    def _upload(self, random: Random) -> bool:
        size = TWO_PARTS if random.random() < 0.1 else SMALL
        body = random.randbytes(size + random.randrange(1000))
        name = f"born-{random.getrandbits(48):012x}"
        entry = Entry("volume", name, {f"{name}.raw": hashlib.sha256(body).hexdigest()}, fate="maybe born")
        self._ledger.add(entry)
        query = urllib.parse.urlencode({"name": name, "filename": f"{name}.raw", "account": self._account})
        status, answer = self.ask("POST", f"/api/v1/volumes?{query}", body, "application/octet-stream")
        if status == 201:
            entry.uuid = json.loads(answer)["id"]
            entry.fate = "there"
        return status == 201

    def _delete(self, random: Random) -> bool:
        entry = self._ledger.choose(random, "there", "going")
        if entry is None or entry.kind != "volume":
            return False
        entry.fate = "going"
        status, _ = self.ask("DELETE", entry.url)
        if status in {204, 404}:
            entry.fate = "gone"
        return status in {204, 404}

    def _ensure(self, random: Random) -> bool:
        entry = self._ledger.choose(random, "there")
        if entry is None:
            return False
        store = random.choice([None, *self._stores])
        status, _ = self.ask("POST", f"{entry.url}/ensure", json.dumps({"store": store}).encode())
        return status in {202, 204}
