"""The stages of the job as a program that a checkpoint may kill, and what a worker does afterwards.

`python -m tests.crash.stage NAME` runs one and prints a line of JSON; without a name it serves requests from standard input, each
in a fork of its own: importing everything once saves most of the time. CLOUDSTORAGE_* say where everything is.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import os
import random
import sys
import tempfile
import time
import traceback
from contextlib import suppress
from datetime import timedelta
from typing import Any

import django

from stores.states import Proof

MiB = 1 << 20
ZONES = ("zone1", "zone2")
UPLOADED = random.Random("uploaded").randbytes(17 * MiB)
"""Two parts."""
LATE = b"written while the region went home"


def url_of(zone: str) -> str:
    return f"nfs://{zone}.example/export"


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "cloudstorage.settings")
    django.setup()
    quicken()
    if len(sys.argv) > 1:
        print(json.dumps(STAGES[sys.argv[1]]()), flush=True)
        return
    for module in (
        "boto3",
        "botocore.session",
        "migration.conversion",
        "migration.tasks",
        "stores.tasks",
        "stores.services.scan",
    ):
        importlib.import_module(module)
    for line in sys.stdin:
        print(json.dumps(serve(json.loads(line))), flush=True)


def quicken() -> None:
    """Pumps that find nothing end at once, and a preflight writes little."""
    from migration import sampling
    from stores import worker

    worker._IDLE_SECONDS = 0.0
    sampling.WRITE_SIZE = MiB


def serve(request: dict[str, Any]) -> dict[str, Any]:
    """Run `request["stage"]` in a fork with `request["environment"]`; tells its wait status and what it said."""
    with tempfile.TemporaryFile("w+") as told, tempfile.TemporaryFile("w+") as log:
        child = os.fork()
        if not child:
            run_forked(request, told.fileno(), log.fileno())
        _, status = os.waitpid(child, 0)
        for file in (told, log):
            file.seek(0)
        text = told.read()
        return {
            "status": os.waitstatus_to_exitcode(status),
            "told": json.loads(text) if text else None,
            "log": log.read()[-6000:],
        }


def run_forked(request: dict[str, Any], told: int, log: int) -> None:
    code = 1
    try:
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ.update(request["environment"])
        from django.conf import settings

        from cloudstorage import checkpoints

        importlib.reload(checkpoints)  # reads the environment again; `reach` looks its variables up in the module
        settings.NFS_MOUNTS = dict(pair.split("=", 1) for pair in os.environ["CLOUDSTORAGE_NFS_MOUNTS"].split(","))
        os.write(told, json.dumps(STAGES[request["stage"]]()).encode())
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


# --- what is there ---------------------------------------------------------------------------------------------------------


def actor() -> Any:
    from cloudstorage.actors import cli_actor

    return cli_actor()


def target() -> dict[str, Any]:
    return {"name": "objects", "provider": "S3", "url": "", "details": json.loads(os.environ["CRASH_TARGET"])}


def exports() -> list[Any]:
    from stores.models import ImageStore

    return list(ImageStore.objects.filter(scope="ZONE").order_by("pk"))


def object_store() -> Any:
    from stores.models import ImageStore

    return ImageStore.objects.get(scope="REGION")


def the_drain() -> Any:
    from migration.models import Drain

    return Drain.objects.get()


def worker_id() -> int:
    """A worker row that reaches every store, new for every process."""
    from django.utils import timezone

    from stores.models import ImageStore, Worker, WorkerReach
    from stores.tasks import register_worker

    Worker.objects.filter(stopped=None).update(stopped=timezone.now())
    row = register_worker()
    for store in ImageStore.objects.all():
        WorkerReach.objects.create(worker=row, store=store, ok=True)
    return row.pk


# --- stages ----------------------------------------------------------------------------------------------------------------


def migrate() -> None:
    from django.core.management import call_command

    from cloudstorage.models import Installation

    call_command("migrate", verbosity=0)
    Installation.get()  # the cloud's identity, which markers on the exports name


def store_add() -> None:
    """Add both exports; those that are there already are left."""
    from stores.models import ImageStore, Zone
    from stores.services.image_stores import add_store

    for name in ZONES:
        zone, _ = Zone.objects.get_or_create(name=name)
        if not ImageStore.objects.filter(zone=zone).exists():
            add_store(actor=actor(), name=f"nfs-{name}", provider="NFS", url=url_of(name), details={}, zone=zone)


def scan() -> dict[str, Any]:
    """Scan both exports, waiting for the lease of a scan that died."""
    from cloudstorage.errors import Busy
    from stores.services.scan import scan_store

    told = {}
    for store in exports():
        deadline = time.monotonic() + 20
        while True:
            try:
                told[store.name] = scan_store(actor=actor(), store=store).as_json()
                break
            except Busy:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
    return told


def preflight() -> None:
    from migration.preflight import preflight as look

    worker_id()
    report = look(actor=actor(), **target())
    assert report.blockers == 0, report.report["findings"]


def convert() -> None:
    """Convert, unless that has happened."""
    from migration.conversion import convert as switch
    from migration.conversion import open_conversion

    if open_conversion() is None:
        switch(actor=actor(), **target())


def begin_drain() -> None:
    """Plan and start; CRASH_BANDWIDTH (bytes per second), CRASH_CANARY and CRASH_CONCURRENCY (items) where it matters."""
    from migration import drain
    from migration.conversion import open_conversion

    conversion = open_conversion()
    assert conversion is not None
    bandwidth = int(os.environ.get("CRASH_BANDWIDTH", "0")) or None
    canary = int(os.environ.get("CRASH_CANARY", "2"))
    concurrency = int(os.environ.get("CRASH_CONCURRENCY", "8"))
    row = drain.plan(actor=actor(), conversion=conversion, bandwidth=bandwidth, canary_items=canary, concurrency=concurrency)
    drain.start(actor=actor(), drain=row)


def run_drain() -> None:
    """Pump and advance until the drain has ended, as the worker and its clock do."""
    from migration import drain
    from migration.states import DrainState
    from stores import tasks
    from stores.worker import Pump

    worker = worker_id()
    deadline = time.monotonic() + 60
    row = the_drain()
    while row.state in {DrainState.CANARY, DrainState.RUNNING}:
        assert time.monotonic() < deadline, drain.progress(row)
        tasks.keep_house()
        if not Pump(worker, slots=8).run():
            time.sleep(0.05)
        drain.advance(row)
        row.refresh_from_db()


def commit() -> None:
    """End the way back, unless that has happened."""
    from migration.commit import commit as end
    from migration.conversion import open_conversion

    if (conversion := open_conversion()) is not None:
        end(actor=actor(), conversion=conversion)


def roll_back() -> None:
    """Begin, unless that has happened; then pump and advance until the region is on NFS, while an item is still being written."""
    from migration import rollback
    from migration.models import Conversion, Rollback
    from stores import tasks
    from stores.worker import Pump

    worker = worker_id()
    conversion = Conversion.objects.get()
    if conversion.state == "Converted":
        begin_late()
        rollback.start(actor=actor(), conversion=conversion)
    deadline = time.monotonic() + 60
    while row := Rollback.objects.filter(ended_at=None).first():
        assert time.monotonic() < deadline, rollback.progress(row)
        tasks.keep_house()
        if not Pump(worker, slots=8).run():
            time.sleep(0.05)
        if row.closing:
            finish_late()
        rollback.advance(row)


def begin_late() -> None:
    """An item that the switch has to wait for."""
    from stores.models import Account, Kind, Volume, Zone
    from stores.services import items

    if not Volume.objects.filter(name="late").exists():
        zone, account = Zone.objects.get(name="zone1"), Account.objects.get(pk=2)
        items.begin_item(actor=actor(), kind=Kind.VOLUME, zone=zone, account=account, name="late")


def finish_late() -> None:
    from stores.models import KINDS, Kind
    from stores.services import items
    from stores.services.image_stores import driver_for

    ref = KINDS[Kind.VOLUME].ref.objects.filter(item__name="late", state="Creating", store=object_store()).first()
    if ref is not None:
        key = f"{ref.install_path}/late.raw"
        stored = driver_for(ref.store).put(key, LATE, metadata={}, token="late-1")
        digest = hashlib.sha256(LATE).hexdigest()
        file = items.WrittenFile(key, len(LATE), digest, Proof.READ_BACK, stored.version)
        items.finish_item(actor=actor(), kind=Kind.VOLUME, ref=ref, files=[file])


def abandon() -> None:
    """Begin to roll back and think better of it, unless that has happened."""
    from migration import rollback
    from migration.models import Conversion, Rollback

    conversion = Conversion.objects.get()
    if not Rollback.objects.exists():
        rollback.start(actor=actor(), conversion=conversion)
    if Rollback.objects.filter(ended_at=None).exists():
        rollback.abandon(actor=actor(), conversion=conversion)


def pump() -> None:
    """One queue message."""
    from stores.worker import Pump

    Pump(worker_id(), slots=8).run()


def cancel() -> dict[str, int]:
    """Cancel a drain whose worker died in the middle; the debris stays."""
    from migration import drain
    from stores.models import Transfer, TransferUpload

    drain.cancel(actor=actor(), drain=the_drain())
    return {"unswept": Transfer.objects.filter(swept=False).count(), "uploads": TransferUpload.objects.count()}


def clean_up() -> None:
    from stores import tasks

    tasks.clean_up()


def delete() -> None:
    """Delete the template that both zones and the object store have, bytes and all."""
    from stores.models import Kind, Template
    from stores.services import items

    items.delete_item(actor=actor(), kind=Kind.TEMPLATE, item=Template.objects.get(upstream_id=201))
    items.finish_deletes()


def undelete() -> list[str]:
    """Delete that template and bring it back, from wherever somebody died."""
    from stores.models import Kind, Template
    from stores.services.items import finish_deletes
    from stores.services.undelete import undelete_item

    template = Template.objects.get(upstream_id=201)
    if not template.refs.filter(state="Destroyed").exists():
        delete()
        finish_deletes()
        template.refresh_from_db()
    return undelete_item(actor=actor(), kind=Kind.TEMPLATE, item=template)


def upload() -> None:
    from stores.models import Kind, Zone
    from stores.services.uploads import register_upload

    register_upload(
        actor=actor(),
        kind=Kind.VOLUME,
        zone=Zone.objects.get(name="zone1"),
        account_id=2,
        name="uploaded",
        filename="uploaded.raw",
        stream=io.BytesIO(UPLOADED),
        size=len(UPLOADED),
    )


def journal() -> None:
    from stores import tasks

    tasks.write_journals()


def reader_token() -> str:
    """A bearer token that may read items."""
    from django.contrib.auth.models import User

    from cloudstorage.people import create_token

    User.objects.create_superuser("reader")
    _, secret = create_token(actor=actor(), username="reader", name="test", role="viewer", days=1)
    return secret


def check() -> int:
    """Read everything on the object store again; returns the number of findings."""
    from migration import verify
    from migration.models import Verification

    row = Verification.objects.first() or verify.verify(actor=actor(), store=object_store())
    return verified(row)


def retire() -> dict[str, Any]:
    """Retire the second zone's export, then let its files go; taken up where somebody died."""
    from django.conf import settings

    from migration import decommission, tasks
    from migration.models import Decommission
    from migration.states import DecommissionState

    settings.DIRECT_HYPERVISORS = ["KVM", "XenServer", "VMware", "Hyperv", "Ovm"]
    store = exports()[1]
    row = Decommission.objects.first() or decommission.begin(actor=actor(), store=store)
    deadline = time.monotonic() + 30
    while row.state != DecommissionState.IN_TRASH:
        assert time.monotonic() < deadline, f"the retirement is still {row.state}: {row.note}"
        if row.state == DecommissionState.CHECKING:
            tasks.run_verification(row.verification_id)
        elif row.state == DecommissionState.WAITING:
            decommission.acknowledge(actor=actor(), row=row, count=row.unknown_count, digest=row.unknown_digest)
        elif row.state == DecommissionState.RETIRED:
            decommission.delete_files(actor=actor(), row=row, confirm=store.name)
        else:
            tasks.delete_retired_files(row.pk)
        row = Decommission.objects.select_related("store", "verification").get()
    return {
        "totals": row.totals,
        "lines": {file.path: file.sha256 for file in row.files.all()},
        "unread": row.files.filter(original_read_at=None).count(),
        "deleted": [row.files_deleted, row.files_left],
        "unknown": row.unknown_count,
    }


def report() -> str:
    """The signed report as JSON."""
    from migration import report
    from migration.models import Decommission

    return "".join(report.stream(Decommission.objects.get(), "json"))


def verified(row: Any) -> int:
    from migration import verify
    from migration.states import VerificationState

    deadline = time.monotonic() + 30
    while row.state != VerificationState.FINISHED:
        assert time.monotonic() < deadline, f"the verification is still {row.state}"
        verify.run(row)
        row.refresh_from_db()
    return int(row.findings_count)


# --- afterwards ------------------------------------------------------------------------------------------------------------


def leases_lapse() -> None:
    """Of the dead, who hold theirs for a while yet; that leases lapse by themselves is shown where workers are killed."""
    from django.apps import apps
    from django.utils import timezone

    past = timezone.now() - timedelta(seconds=1)
    for model in apps.get_models():
        if any(field.name == "lease_until" for field in model._meta.fields):
            model._base_manager.exclude(lease_until=None).update(lease_until=past)


def a_day_passes() -> None:
    """For what is given up only after a day of silence."""
    from django.utils import timezone

    from stores.models import KINDS, Hold

    past = timezone.now() - timedelta(days=2)
    Hold.objects.update(expires=past)
    for models in KINDS.values():
        models.ref.objects.filter(state="Creating").update(updated=past)


def settle() -> dict[str, Any]:
    """Let the worker's clock run until nothing changes any more; tells what is then true."""
    from django.conf import settings

    from migration import verify
    from migration.models import Conversion, Verification
    from stores import tasks
    from stores.models import KINDS, ImageStore, Transfer
    from stores.services import holds
    from stores.services.image_stores import driver_for

    settings.LEASE_SECONDS = 0.5  # nobody works any more: what is older than two leases is debris
    deadline = time.monotonic() + 20
    while True:
        tasks.keep_house()
        tasks.clean_up()
        tasks.reap()
        drivers = [driver_for(store) for store in ImageStore.objects.all()]
        pending = [found.key for driver in drivers for found in (*driver.pending_uploads(), *driver.list(".cs-probe/"))]
        going = [models.ref.objects.filter(state__in=["Creating", "Destroying"]).count() for models in KINDS.values()]
        if not pending and not any(going) and not Transfer.objects.filter(swept=False).exists():
            break
        assert time.monotonic() < deadline, f"not quiet: debris {pending}, refs on their way {going}"
        time.sleep(0.1)
    told: dict[str, Any] = {
        "counts": [str(wrong) for wrong in holds.recount()],
        "stores": ImageStore.objects.filter(scope="ZONE").count(),
        "object stores": ImageStore.objects.filter(scope="REGION").count(),
        "conversions": Conversion.objects.count(),
        "items": sum(models.item.objects.filter(removed=None).count() for models in KINDS.values()),
        "listing": [],
        "refs": {},
    }
    if told["object stores"]:
        row = Verification.objects.create(store=object_store(), actor="test", mode=Verification.LISTING)
        verify.run(row)
        row.refresh_from_db()
        told["listing"] = row.findings
        for models in KINDS.values():
            for state in models.ref.objects.filter(store=object_store()).values_list("state", flat=True):
                told["refs"][state] = told["refs"].get(state, 0) + 1
    return told


def after_store_add() -> dict[str, Any]:
    store_add()
    return settle()


def after_scan() -> dict[str, Any]:
    leases_lapse()
    scan()
    again = scan()
    assert not any(report["adopted"] for report in again.values()), again
    return settle()


def after_convert() -> dict[str, Any]:
    convert()
    return settle()


def after_drain() -> dict[str, Any]:
    leases_lapse()
    run_drain()
    return settle() | {"drain": the_drain().note}


def after_clean_up() -> dict[str, Any]:
    leases_lapse()
    return settle()


def after_commit() -> dict[str, Any]:
    from cloudstorage.models import AuditEvent
    from migration.models import Conversion

    commit()
    audited = AuditEvent.objects.filter(action="conversion.commit", outcome="done").count()
    return settle() | {"state": Conversion.objects.get().state, "audited": audited}


def after_roll_back() -> dict[str, Any]:
    from cloudstorage.models import AuditEvent
    from migration.models import Conversion
    from stores.models import ImageStore

    leases_lapse()
    roll_back()
    audited = AuditEvent.objects.filter(action="conversion.rollback.finish").count()
    stores = sorted(set(ImageStore.objects.values_list("scope", "role", "state")))
    return settle() | {"state": Conversion.objects.get().state, "audited": audited, "roles": stores}


def after_abandon() -> dict[str, Any]:
    from migration.models import Conversion
    from stores.models import ImageStore

    leases_lapse()
    abandon()
    told = settle() | {"state": Conversion.objects.get().state}
    return told | {"roles": sorted(set(ImageStore.objects.values_list("scope", "role", "state")))}


def after_fail() -> dict[str, Any]:
    """The exports are themselves again, and the pauses before the next attempts are over."""
    from django.utils import timezone

    from stores.models import Transfer

    Transfer.objects.update(next_attempt_at=timezone.now())
    return after_drain()


def after_delete() -> dict[str, Any]:
    return settle()


def after_upload() -> dict[str, Any]:
    a_day_passes()
    return settle()


def after_journal() -> dict[str, Any]:
    journal()
    return settle()


def after_undelete() -> dict[str, Any]:
    """What was not brought back on both exports is, by asking once more; then it is moved again."""
    from cloudstorage.errors import Conflict
    from stores.models import Kind, Template
    from stores.services import transfers

    with suppress(Conflict):  # it was all back
        undelete()
    template = Template.objects.get(upstream_id=201)
    transfers.ensure(actor=actor(), kind=Kind.TEMPLATE, item=template)
    pump()
    return {"back on": sorted(template.refs.filter(state="Ready").values_list("store__name", flat=True))} | settle()


def after_retire() -> dict[str, Any]:
    leases_lapse()
    return {"retired": retire()} | settle()


def after_check() -> dict[str, Any]:
    leases_lapse()
    return {"findings": check()} | settle()


STAGES = {
    function.__name__: function
    for function in (
        migrate,
        store_add,
        scan,
        preflight,
        convert,
        begin_drain,
        run_drain,
        commit,
        roll_back,
        abandon,
        pump,
        cancel,
        clean_up,
        delete,
        undelete,
        upload,
        journal,
        check,
        retire,
        report,
        reader_token,
        a_day_passes,
        settle,
        after_store_add,
        after_scan,
        after_convert,
        after_drain,
        after_clean_up,
        after_commit,
        after_roll_back,
        after_abandon,
        after_fail,
        after_delete,
        after_upload,
        after_journal,
        after_check,
        after_retire,
        after_undelete,
    )
}

if __name__ == "__main__":
    main()
