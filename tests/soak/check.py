"""The reckoning after a soak: every item read with boto3 and hashlib only, and whatever lies about that nothing needs."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import dataclass, field
from urllib.parse import quote

from tests.crash.ground import BUCKET
from tests.crash.stage import MiB
from tests.demo.build import hash_file
from tests.soak.ledger import Entry, Ledger
from tests.soak.site import Site

KINDS = ("template", "snapshot", "volume")


@dataclass
class Reckoning:
    """A line for everything that is not as it must be."""

    items: int = 0
    lost: list[str] = field(default_factory=list)
    falsely_ready: list[str] = field(default_factory=list)
    debris: list[str] = field(default_factory=list)


class Check:
    """Looks at database, bucket and exports once nothing runs any more."""

    def __init__(self, site: Site, ledger: Ledger) -> None:
        self._site, self._ledger = site, ledger
        self._read: dict[tuple[str, str], str] = {}
        """(store, path) -> SHA-256, of what was read."""
        self.found = Reckoning()

    def run(self) -> Reckoning:
        # Counted now: an item of the region may lie in both zones, and a birth without an answer may never have been.
        self.found.items = sum(entry.fate in {"there", "going"} for entry in self._ledger.entries)
        self.found.falsely_ready += self._ledger.lies
        self._items()
        self._originals()
        self._objects()
        self._rows()
        return self.found

    # --- items ---------------------------------------------------------------------------------------------------------------

    def _items(self) -> None:
        """What is shown as Ready is compared with what was sent; and what must be there is there."""
        for kind in KINDS:
            shown: dict[str, dict[tuple[str, str], dict[str, str]]] = defaultdict(lambda: defaultdict(dict))
            for item, store, _, name, path, ref in self._site.files(kind):
                shown[item][store, ref][name] = path
            table = {"template": "vm_template", "snapshot": "snapshots", "volume": "volumes"}[kind]
            rows = self._site.rows(f"SELECT uuid::text, name, removed IS NOT NULL FROM {table}")
            present = {str(found): (str(name), bool(removed)) for found, name, removed in rows}
            by_uuid = {entry.uuid: entry for entry in self._ledger.entries if entry.kind == kind and entry.uuid}
            by_name = {entry.name: entry for entry in self._ledger.entries if entry.kind == kind}
            for item in shown.keys() - by_uuid.keys():
                name = present[item][0]
                if name not in by_name:
                    self.found.debris.append(f"{kind} {name} is shown, and nobody made it")
                    continue
                by_uuid[item] = by_name[name]
            for item, entry in by_uuid.items():
                self._item(entry, shown.get(item, {}), removed=present.get(item, ("", True))[1])

    def _item(self, entry: Entry, shown: dict[tuple[str, str], dict[str, str]], *, removed: bool) -> None:
        good = []
        for (store, ref), files in shown.items():
            wrong = {
                name for name in files.keys() | entry.hashes.keys() if not self._is_right(entry, name, store, files.get(name))
            }
            if wrong:
                self.found.falsely_ready.append(f"{entry.name} on {store} (ref {ref}): {', '.join(sorted(wrong))}")
            else:
                good.append(store)
        if entry.fate == "there" and (removed or not good):
            self.found.lost.append(f"{entry.name} ({entry.uuid}): {'removed' if removed else 'no copy is whole'}")
        elif entry.fate == "gone" and shown:
            self.found.debris.append(f"{entry.name} was deleted and is still shown on {', '.join(store for store, _ in shown)}")
        elif not removed and good and "objects" not in good:
            self.found.debris.append(f"{entry.name} is not on the object store, though the drain has ended")

    def _is_right(self, entry: Entry, name: str, store: str, path: str | None) -> bool:
        return path is not None and name in entry.hashes and self._hash(store, path) == entry.hashes[name]

    def _hash(self, store: str, path: str) -> str:
        if (store, path) not in self._read:
            self._read[store, path] = self._hash_object(path) if store == "objects" else self._hash_file(store, path)
        return self._read[store, path]

    def _hash_object(self, path: str) -> str:
        ground, digest = self._site.ground, hashlib.sha256()
        try:
            answer = ground.s3.get_object(Bucket=BUCKET, Key=ground.prefix + path)
        except ground.s3.exceptions.NoSuchKey:
            return "nothing lies there"
        for block in answer["Body"].iter_chunks(MiB):
            digest.update(block)
        return digest.hexdigest()

    def _hash_file(self, store: str, path: str) -> str:
        file = self._site.ground.region.zones[store.removeprefix("nfs-")] / path
        return hash_file(file) if file.is_file() else "nothing lies there"

    def _originals(self) -> None:
        """No copy deletes or changes its source: before the commit every original of what was not deleted lies where it lay."""
        for entry in self._ledger.entries:
            for place, sha256 in entry.originals.items():
                file = self._site.ground.region.root / place
                if entry.fate == "there" and (not file.is_file() or hash_file(file) != sha256):
                    self.found.lost.append(f"the original {place} of {entry.name} is gone or changed")
                if entry.fate == "gone" and file.exists():
                    self.found.debris.append(f"the original {place} of {entry.name}, which was deleted")

    # --- debris --------------------------------------------------------------------------------------------------------------

    def _objects(self) -> None:
        ground, debris = self._site.ground, self.found.debris
        debris += [f"unfinished upload {upload} of {key}" for key, upload in ground.pending_uploads()]
        known = {path for kind in KINDS for _, store, _, _, path, _ in self._site.files(kind) if store == "objects"}
        keys = {key.removeprefix(ground.prefix) for key in ground.keys()}  # noqa: SIM118 - no mapping
        own = {key for key in keys if key == ".cloudstorage.json" or key.startswith(".cs-journal/")}
        debris += [f"object {key}, which no copy has" for key in sorted(keys - known - own)]
        debris += [f"segment {name}" for name in self._stray_segments(keys)]
        for zone, export in ground.region.zones.items():
            names = {path for kind in KINDS for _, store, _, _, path, _ in self._site.files(kind) if store == f"nfs-{zone}"}
            lies = {str(path.relative_to(export)) for path in export.rglob("*") if path.is_file()}
            passed_over = {path.partition("/")[2] for path in (*ground.region.skipped, *ground.region.foreign)}
            ours = {path for path in lies if path == ".cloudstorage.json" or path.startswith(".cs-trash/")}
            gone = {path.partition("/")[2] for entry in self._ledger.entries for path in entry.originals}
            debris += [f"file {zone}/{path}, which no copy has" for path in sorted(lies - names - ours - passed_over - gone)]
            below = self._site.mounted[zone]
            debris += [f"file {path} below the mount" for path in below.rglob("*") if path.is_file()]

    def _stray_segments(self, keys: set[str]) -> list[str]:
        """Segments that no object's manifest names."""
        swift, prefix = self._site.swift, self._site.ground.prefix
        container = f"{BUCKET}+segments"
        answer = swift.request("GET", f"/{container}?format=json&prefix={prefix}")
        names = {f"/{container}/{entry['name']}" for entry in answer.json()} if answer.status == 200 else set()
        for key in keys:
            manifest = swift.request("GET", f"/{BUCKET}/{quote(prefix + key)}?multipart-manifest=get&format=json")
            if manifest.headers.get("x-static-large-object"):
                names -= {segment["name"] for segment in manifest.json()}
        return sorted(names)

    def _rows(self) -> None:
        site, debris = self._site, self.found.debris
        for kind in KINDS:
            for state, number in site.rows(
                f"SELECT state, count(*) FROM {kind}_store_ref WHERE state NOT IN ('Ready', 'Hidden', 'Destroyed') GROUP BY state"
            ):
                debris.append(f"{number} {kind} refs are {state}")
            wrong = f"""
                SELECT count(*) FROM {kind}_store_ref r JOIN image_store s ON s.id = r.store_id WHERE r.state <> 'Destroyed'
                AND r.ref_cnt <> (SELECT count(*) FROM stores_hold h WHERE h.kind = '{kind}' AND h.ref_id = r.id)"""
            if number := site.number(wrong):
                debris.append(f"{number} {kind} refs whose count is not that of their holds")
        for what, query in {
            "holds": "SELECT count(*) FROM stores_hold",
            "leases": "SELECT count(*) FROM stores_transfer WHERE state = 'Running' OR lease_until > now()",
            "transfers that have not ended": "SELECT count(*) FROM stores_transfer WHERE state IN ('Blocked', 'Queued', 'Failed')",
            "transfers whose target was not swept": "SELECT count(*) FROM stores_transfer WHERE NOT swept",
            "recorded uploads": "SELECT count(*) FROM stores_transferupload",
        }.items():
            if number := site.number(query):
                debris.append(f"{number} {what}")
