"""Two lives of one cloud, each a program with a database of its own: the first drains to an object store, the second finds it.

Run as `python -m tests.lives <step> <JSON>`; DATABASE_URL and CLOUDSTORAGE_* say where. Prints one line of JSON.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import django

CATALOGUE_NAME = "naïve größe 🐧"


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "cloudstorage.settings")
    django.setup()
    print(json.dumps(STEPS[sys.argv[1]](**json.loads(sys.argv[2])), default=str), flush=True)


def when_free(scan: Callable[[], Any]) -> Any:
    """What a scan tells, once the lease of one that was killed a moment ago has lapsed."""
    from cloudstorage.errors import Busy

    patience = time.monotonic() + 30
    while True:
        try:
            return scan()
        except Busy:
            if time.monotonic() > patience:
                raise
            time.sleep(0.1)  # between two looks: nothing tells of a lease that lapses


# --- the first life --------------------------------------------------------------------------------------------------------


def first(folder: str, zones: list[str], target: dict[str, Any], numbers: dict[str, int]) -> dict[str, Any]:
    """Adopt, convert, go half-way and home again, convert once more, drain, delete, commit, retire an export, register: everything
    that a second life must find as it was."""
    from cloudstorage.actors import cli_actor
    from stores.models import KINDS, ImageStore, Kind, Snapshot, Template, Volume
    from stores.services import items, journal, uploads
    from stores.services.image_stores import add_store
    from stores.services.region import add_zone
    from stores.services.scan import scan_store

    actor = cli_actor()
    for name in zones:
        zone = add_zone(actor=actor, name=name)
        url = f"nfs://localhost{Path(folder) / name}"
        store = add_store(actor=actor, name=f"nfs-{name}", provider="NFS", url=url, details={}, zone=zone)
        scan_store(actor=actor, store=store, catalogue=None)
    template = Template.objects.get(upstream_id=numbers["template"])
    entry = {"account_id": template.account_id, "id": template.upstream_id, "name": CATALOGUE_NAME, "featured": True}
    accounts = [{"id": template.account_id, "name": "the owners"}]
    scan_store(actor=actor, store=ImageStore.objects.earliest("pk"), catalogue={"accounts": accounts, "templates": [entry]})
    home = half_way_and_home(target)
    drain(target)
    parent = Snapshot.objects.filter(children__isnull=False).earliest("pk")
    items.delete_item(actor=actor, kind=Kind.SNAPSHOT, item=parent)
    gone = Volume.objects.earliest("pk")
    items.delete_item(actor=actor, kind=Kind.VOLUME, item=gone)
    while items.finish_deletes():
        pass
    store = ImageStore.objects.get(scope="REGION")
    while journal.write(store):
        pass
    for _ in range(3):
        KINDS[Kind.SNAPSHOT].ref.objects.filter(store=store).update(journalled=False)
        assert journal.write(store)
    retired = retire(Path(folder) / zones[0])
    known = rows()
    late = uploads.register_upload(
        actor=actor,
        kind=Kind.VOLUME,
        zone=None,
        account_id=template.account_id,
        name="late",
        filename="late.raw",
        stream=io.BytesIO(b"written after the last journal" * 20),
        size=600,
    )
    from cloudstorage.models import Installation

    cloud = str(Installation.get().uuid)
    told = {"late": str(late.item.uuid), "hidden": str(parent.uuid), "gone": str(gone.uuid)}
    return {"rows": known, "cloud": cloud, "home": home, "retired": retired, **told}


def a_worker() -> int:
    """A row of one that reaches every store there is."""
    from stores.models import ImageStore, Worker, WorkerReach

    worker = Worker.objects.create(hostname="here", pid=os.getpid())
    for store in ImageStore.objects.all():
        WorkerReach.objects.create(worker=worker, store=store, ok=True)
    return int(worker.pk)


def half_way_and_home(target: dict[str, Any]) -> dict[str, Any]:
    """Convert, drain half, let one item be born and one be born and deleted, and roll back."""
    from cloudstorage.actors import cli_actor
    from migration import conversion, rollback
    from migration import drain as drains
    from stores.models import Kind, Transfer, Zone
    from stores.services import items
    from stores.worker import Pump

    actor = cli_actor()
    before = contents()
    converted = conversion.convert(actor=actor, name="objects", override=["preflight-absent"], **target)
    worker = a_worker()
    promised = sum(converted.counts["promised"].values())
    row = drains.plan(actor=actor, conversion=converted, canary_items=promised // 4, concurrency=4)
    drains.start(actor=actor, drain=row)
    Pump(worker, slots=4).run()
    proven = Transfer.objects.filter(state="Proven").count()
    zone = Zone.objects.earliest("pk")
    born, doomed = register("born", zone).item, register("doomed", zone).item
    items.delete_item(actor=actor, kind=Kind.VOLUME, item=doomed)
    meanwhile = contents()
    plan = rollback.plan_rollback(actor=actor, conversion=converted)
    going = rollback.start(actor=actor, conversion=converted)
    for _ in range(20):
        if rollback.progress(going).state != "RollingBack":
            break
        Pump(worker, slots=4).run()
        rollback.advance(going)
    converted.refresh_from_db()
    objects = converted.object_store
    after = contents()
    return {
        "share": [proven, promised],
        "home": {kind: entry["items"] for kind, entry in plan.home.items() if entry["items"]},
        "state": [converted.state, type(objects).objects.get(pk=objects.pk).state],
        "readable_throughout": before.items() <= meanwhile.items() and after == meanwhile,
        "born": [key.split()[0] == str(born.uuid) for key in after.keys() - before.keys()],
    }


def contents() -> dict[str, str]:
    """SHA-256 of what everybody is given of each file of each item."""
    from cloudstorage.actors import cli_actor
    from stores.models import KINDS
    from stores.services.inventory import open_content, relative_name

    found: dict[str, str] = {}
    for kind, models in KINDS.items():
        for ref in models.ref.objects.filter(state="Ready").select_related("item").prefetch_related("files"):
            for name in {relative_name(ref.install_path, file.path) for file in ref.files.all()}:
                digest = hashlib.sha256()
                with open_content(actor=cli_actor(), kind=kind, item=ref.item, path=name or None) as content:
                    for block in content.chunks():
                        digest.update(block)
                found[f"{ref.item.uuid} {name}"] = digest.hexdigest()
    return found


def retire(export: Path) -> dict[str, Any]:
    """Commit, and retire the export in front of a sceptic who hashes its files himself."""
    from cloudstorage.actors import cli_actor
    from migration import commit, decommission, report, tasks, verify
    from migration.models import Conversion, Verification
    from stores.models import ImageStore

    actor = cli_actor()
    for check in Verification.objects.exclude(state="Finished"):
        verify.run(check)
    commit.commit(actor=actor, conversion=Conversion.objects.latest("pk"))
    store = ImageStore.objects.get(name=f"nfs-{export.name}")
    row = decommission.begin(actor=actor, store=store)
    tasks.run_verification(row.verification_id)
    row.refresh_from_db()
    if row.state == "Waiting":
        decommission.acknowledge(actor=actor, row=row, count=row.unknown_count, digest=row.unknown_digest)
        tasks.run_verification(row.verification_id)
        row.refresh_from_db()
    state = row.state
    written = "".join(report.stream(row, "json"))
    lines = json.loads(written)["items"]
    other = written.replace(lines[-1]["sha256"], "0" * 64)
    checked = [check_report(export.parent, text) for text in (written, "".join(report.stream(row, "sha256sums")), other)]
    read = {line["original"]: hashlib.sha256((export / line["original"]).read_bytes()).hexdigest() for line in lines}
    wrong = [line["original"] for line in lines if read[line["original"]] != line["sha256"]]
    decommission.delete_files(actor=actor, row=row, confirm=store.name)
    tasks.delete_retired_files(row.pk)
    left = [path for path in read if (export / path).exists()]
    return {"state": state, "note": row.note, "files": len(lines), "wrong": wrong, "checked": checked, "left": left}


def check_report(folder: Path, text: str) -> list[Any]:
    """Files of a report that were read from the object store, and what differed."""
    from migration import report
    from stores.models import ImageStore

    path = folder / "report"
    path.write_text(text)
    found = report.check(path, ImageStore.objects.get(scope="REGION"))
    return [found.files, [finding["problem"] for finding in found.findings]]


def drain(target: dict[str, Any]) -> None:
    from cloudstorage.actors import cli_actor
    from migration import conversion, drain
    from migration.states import DrainState
    from stores.worker import Pump

    actor = cli_actor()
    converted = conversion.convert(actor=actor, name="objects", override=["preflight-absent"], **target)
    worker = a_worker()
    row = drain.start(actor=actor, drain=drain.plan(actor=actor, conversion=converted, canary_items=2, concurrency=4))
    for _ in range(100):
        Pump(worker, slots=4).run()
        drain.advance(row)
        row.refresh_from_db()
        if row.state in {DrainState.FINISHED, DrainState.PAUSED}:
            break
    assert row.state == DrainState.FINISHED, row.note


def rows() -> dict[str, dict[str, Any]]:
    """What an object store can say of itself: every row by a key that no database numbers, with the columns that are left out
    listed here.
    """
    from stores.models import KINDS, ImageStore, Kind, TemplateZoneRef, Zone

    store = ImageStore.objects.get(scope="REGION")
    found: dict[str, dict[str, Any]] = {"zones": {}, "accounts": {}, "shown": {}}
    for kind, models in KINDS.items():
        related = ["item__account", *(["item__parent"] if kind is Kind.SNAPSHOT else [])]
        refs = (
            models.ref.objects.filter(store=store).exclude(state="Destroyed").select_related(*related).prefetch_related("files")
        )
        for ref in refs:
            key = f"{kind} {ref.item.uuid}"
            found[f"{key}: item"] = columns(ref.item, without={"id", "zone_id", "parent_id", "cross_zones_by"})
            zone = getattr(ref.item, "zone", None)
            found[f"{key}: item"]["zone"] = zone and zone.name
            parent = getattr(ref.item, "parent", None)
            found[f"{key}: item"]["parent"] = parent and str(parent.uuid)
            # When and how it was proven is what a new database cannot know; the rest of these are counters and times of its own.
            own = {
                "id",
                "item_id",
                "store_id",
                "proof",
                "proven_at",
                "created",
                "updated",
                "last_used",
                "update_count",
                "journalled",
            }
            found[f"{key}: ref"] = columns(ref, without=own)
            for file in ref.files.all():
                found[f"{key}: file {file.path}"] = columns(file, without={"id", "ref_id", "proof", "version"})
            found["accounts"][str(ref.item.account_id)] = [str(ref.item.account.uuid), ref.item.account.account_name]
    for shown in TemplateZoneRef.objects.filter(removed=None).select_related("template", "zone"):
        found["shown"][f"{shown.template.uuid} in {shown.zone.uuid}"] = True
    found["zones"] = {str(zone.uuid): zone.name for zone in Zone.objects.all()}
    return found


def columns(row: Any, *, without: set[str]) -> dict[str, Any]:
    names = {field.attname for field in row._meta.concrete_fields}
    assert without <= names | {"zone_id", "parent_id", "cross_zones_by"}
    return {name: str(getattr(row, name)) for name in sorted(names - without)}


# --- the second life -------------------------------------------------------------------------------------------------------


def second(target: dict[str, Any], cloud: str) -> dict[str, Any]:
    """An empty database takes the store over and scans it, twice; then everything is read."""
    from cloudstorage.actors import cli_actor
    from cloudstorage.errors import ServiceError
    from migration import verify
    from migration.models import Verification
    from stores.models import ImageStore
    from stores.services.image_stores import add_store
    from stores.services.scan import scan_store
    from stores.services.takeover import take_over

    actor = cli_actor()
    refused = {}

    def try_out(name: str, call: Any) -> None:
        try:
            call()
        except ServiceError as error:
            refused[name] = [error.field, error.message + " " + error.remedy]

    try_out("foreign", lambda: add_store(actor=actor, name="objects", **target))
    try_out("another", lambda: take_over(actor=actor, cloud="11111111-1111-4111-8111-111111111111", **target))
    take_over(actor=actor, cloud=cloud, **target)
    store = ImageStore.objects.first() or add_store(actor=actor, name="objects", **target)
    report = when_free(lambda: scan_store(actor=actor, store=store)).as_json()
    known = rows()
    again = scan_store(actor=actor, store=store).as_json()
    unchanged = rows() == known
    states = proofs()
    checked = Verification.objects.create(store=store, actor="test")
    verify.run(checked)
    checked.refresh_from_db()
    return {
        "refused": refused,
        "report": report,
        "again": again,
        "unchanged": unchanged,
        "rows": known,
        "proofs": states,
        "verified": [checked.state, checked.findings],
        "after": proofs(),
    }


def proofs() -> dict[str, list[str]]:
    from stores.models import KINDS

    found = {}
    for models in KINDS.values():
        for ref in models.ref.objects.select_related("item").prefetch_related("files"):
            found[str(ref.item.uuid)] = [ref.state, ref.proof, *sorted({file.proof for file in ref.files.all()})]
    return found


# --- a life that is backed up and restored ---------------------------------------------------------------------------------


def before(folder: str, target: dict[str, Any], file: str) -> dict[str, Any]:
    """Half a drain and a backup in the middle of it, while somebody writes; then the life goes on: all is drained, one item is
    deleted, another is born. What a late worker holds is told.
    """
    from django.core.management import call_command

    from cloudstorage.actors import cli_actor
    from migration import conversion
    from migration import drain as drains
    from stores.models import ImageStore, Kind, Transfer, Volume, Worker, WorkerReach
    from stores.services import items, journal, transfers
    from stores.services.image_stores import add_store
    from stores.services.region import add_zone
    from stores.services.scan import scan_store
    from stores.worker import Pump, open_batches

    actor = cli_actor()
    export = Path(folder) / "export"
    for number in range(1, 7):
        place = export / "volumes" / "2" / str(number)
        place.mkdir(parents=True)
        (place / f"disk-{number}.raw").write_bytes(f"volume {number} ".encode() * 1000)
    zone = add_zone(actor=actor, name="zone")
    nfs = add_store(actor=actor, name="nfs", provider="NFS", url=f"nfs://localhost{export}", details={}, zone=zone)
    assert scan_store(actor=actor, store=nfs).adopted == 6
    converted = conversion.convert(actor=actor, name="objects", override=["preflight-absent"], **target)
    objects = converted.object_store
    worker = Worker.objects.create(hostname="here", pid=os.getpid())
    for store in ImageStore.objects.all():
        WorkerReach.objects.create(worker=worker, store=store, ok=True)
    row = drains.start(actor=actor, drain=drains.plan(actor=actor, conversion=converted, canary_items=2, concurrency=1))
    Pump(worker.pk, slots=1).run()
    drains.advance(row)
    (late,) = transfers.claim(worker.pk, limit=1, open_batches=open_batches())

    os.environ["LIVES_PASSPHRASE"] = "correct horse"
    writing = keep_writing()
    call_command("backup", file, passphrase_env="LIVES_PASSPHRASE")
    written = writing()
    transfers.release([late])
    Transfer.objects.update(next_attempt_at="2020-01-01T00:00:00Z")
    for _ in range(20):
        Pump(worker.pk, slots=4).run()
        if not Transfer.objects.exclude(state="Proven").exists():
            break
        drains.advance(row)
    assert Transfer.objects.filter(state="Proven").count() == 6
    while journal.write(objects):
        pass
    gone = Volume.objects.get(upstream_id=6)
    items.delete_item(actor=actor, kind=Kind.VOLUME, item=gone)
    while items.finish_deletes():
        pass
    born = register("born", zone=None)
    while journal.write(objects):
        pass
    return {
        "late": [late.transfer.pk, late.epoch],
        "gone": str(gone.uuid),
        "born": str(born.item.uuid),
        "written_meanwhile": written,
        "volumes": sorted(str(item.uuid) for item in Volume.objects.filter(removed=None)),
    }


def keep_writing() -> Any:
    """Write pairs of rows from another process until the answer is called, which tells how many were written."""
    import subprocess

    writer = subprocess.Popen([sys.executable, "-m", "tests.lives", "pairs", "{}"], stdout=subprocess.PIPE, stdin=subprocess.PIPE)
    assert writer.stdout is not None
    assert writer.stdin is not None
    out, into = writer.stdout, writer.stdin
    assert out.readline() == b"writing\n"

    def stop() -> int:
        into.close()
        told = json.loads(out.readline())
        writer.wait(20)
        out.close()
        return int(told["written"])

    return stop


def pairs() -> dict[str, Any]:
    """Zone and account are always written together, in one transaction: a backup has both or none."""
    import select

    from django.db import transaction

    from stores.models import Account, Zone

    print("writing", flush=True)
    written = 0
    while not select.select([sys.stdin], [], [], 0.002)[0]:
        with transaction.atomic():
            Zone.objects.create(name=f"pair {written}")
            Account.objects.create(pk=1000 + written, account_name=f"pair {written}")
        written += 1
    return {"written": written}


def restored() -> bool:
    """Whether a restore that was killed had come so far that the database is loaded."""
    from django.db import connection

    from cloudstorage.models import Installation

    return bool(connection.introspection.table_names()) and bool(Installation.why_read_only())


def compact() -> dict[str, Any]:
    from stores.models import ImageStore
    from stores.services import journal

    return {"merged": journal.compact(ImageStore.objects.get(scope="REGION"))}


def register(name: str, zone: Any) -> Any:
    from cloudstorage.actors import cli_actor
    from stores.models import Kind
    from stores.services import uploads

    content = name.encode() * 300
    return uploads.register_upload(
        actor=cli_actor(),
        kind=Kind.VOLUME,
        zone=zone,
        account_id=2,
        name=name,
        filename=f"{name}.raw",
        stream=io.BytesIO(content),
        size=len(content),
    )


def after(file: str, late: list[int]) -> dict[str, Any]:
    """Restore into another database, find out what may be done while it is read-only, reconcile, open, go on."""
    from django.core.management import call_command

    from cloudstorage.actors import cli_actor
    from cloudstorage.errors import ServiceError
    from migration import drain as drains
    from migration import recovery
    from migration.models import Drain
    from migration.states import DrainState
    from stores import tasks
    from stores.models import Account, ImageStore, Transfer, Volume, Worker, WorkerReach, Zone
    from stores.services import holds, transfers
    from stores.services.image_stores import details_of
    from stores.services.region import add_zone
    from stores.services.transfers import Lease
    from stores.worker import Pump

    os.environ["LIVES_PASSPHRASE"] = "correct horse"
    told: dict[str, Any] = {"refused": []}
    if not restored():
        call_command("restore", file, passphrase_env="LIVES_PASSPHRASE", stay_read_only=True, stdout=io.StringIO())
    zones, accounts = Zone.objects.filter(name__startswith="pair"), Account.objects.filter(account_name__startswith="pair")
    told["pairs"] = [zones.count(), accounts.count()]
    told["secret"] = bool(details_of(ImageStore.objects.get(scope="REGION"), reveal=True))
    try:
        add_zone(actor=cli_actor(), name="new")
    except ServiceError as error:
        told["refused"].append(error.message)
    os.environ["CLOUDSTORAGE_WORKER_ID"] = "1"
    told["pumped"] = tasks.pump()

    pk, epoch = late
    states = list(Transfer.objects.order_by("pk").values_list("pk", "state", "epoch"))
    told["kept"] = sorted(transfers.renew([Lease(pk, epoch, 1, True, "")]))
    told["late_changed_nothing"] = list(Transfer.objects.order_by("pk").values_list("pk", "state", "epoch")) == states

    found = recovery.reconcile(actor=cli_actor())
    told["reconciled"] = [found.opened, found.stores]
    told["volumes"] = sorted(str(item.uuid) for item in Volume.objects.filter(removed=None))
    told["states"] = {
        str(ref.item.uuid): [ref.state, ref.proof]
        for ref in Volume.refs.rel.related_model.objects.filter(store__scope="REGION").select_related("item")
        if ref.state != "Destroyed"
    }
    told["counts_wrong"] = len(holds.recount())

    worker = Worker.objects.create(hostname="new", pid=os.getpid())
    for store in ImageStore.objects.all():
        WorkerReach.objects.create(worker=worker, store=store, ok=True)
    row = Drain.objects.get()
    for _ in range(20):
        Pump(worker.pk, slots=4).run()
        drains.advance(row)
        row.refresh_from_db()
        if row.state == DrainState.FINISHED:
            break
    told["drain"] = [row.state, row.note]
    add_zone(actor=cli_actor(), name="new")
    told["first_new_id"] = Worker.objects.latest("pk").pk
    return told


STEPS = {"first": first, "second": second, "before": before, "after": after, "pairs": pairs, "compact": compact}

if __name__ == "__main__":
    main()
