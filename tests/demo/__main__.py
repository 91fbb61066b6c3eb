"""`make demo`: the main job on one machine. Two zones' exports with real images, a real object-store server, and the whole way
from adoption to a proof by a script that shares nothing with the product."""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
DEMO = Path(os.environ.get("CLOUDSTORAGE_DEMO_DIR", ROOT / "var" / "demo"))
EXPORTS = {"zone1": "filer1:/export/secondary", "zone2": "filer2:/export/secondary"}
BUCKET = "secondary"


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument(
        "--once", action="store_true", help="end after the report; exit status 0 only if every item was proven"
    )
    once = arguments.parse_args().once
    started = time.monotonic()
    with ExitStack() as stack:
        try:
            demo = Demo(stack)
            proven = demo.run()
            print(f"\nThe whole job took {time.monotonic() - started:.0f} s.")
            if once or not proven:
                return 0 if proven else 1
            demo.keep_running()
        except KeyboardInterrupt:
            print("\nstopping")
    return 0


class Demo:
    """One run; every process it starts ends with it."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._processes: list[subprocess.Popen[bytes]] = []
        stack.callback(self._stop_processes)

    def run(self) -> bool:
        step("Building two zones' exports with real images")
        from tests.demo.build import build_region

        region = build_region(DEMO / "exports", scale="demo")
        for export in region.zones.values():
            forget_earlier_runs(export)
        say(
            f"{len(region.items)} items in {len(region.zones)} zones, {region.size / 2**20:.0f} MiB; SHA-256 of each noted before"
        )

        step("Starting a real object store (OpenStack Swift with its S3 API) on loopback")
        from tests.servers.swift import SwiftServer

        for stale in ("swift", "data"):
            shutil.rmtree(DEMO / stale, ignore_errors=True)
        swift = self._stack.enter_context(SwiftServer(DEMO / "swift"))
        self._make_bucket(swift)
        say(f"S3 at {swift.s3_url}, its data in {DEMO / 'swift'}")

        step("Starting cloudstorage: database, web server, worker")
        self._prepare_django(region.zones)
        url, password = self._start_servers()
        say(f"console at {url}, user admin")

        from cloudstorage.actors import cli_actor

        actor = cli_actor()
        self._adopt(actor)
        conversion = self._convert(actor, swift)
        drain = self._drain(actor, conversion)
        proven = self._verify(actor, conversion, swift, region)
        self._report(conversion, drain, proven)
        proven = proven and self._retire(actor, conversion, swift)
        self._url, self._password = url, password
        return proven

    def keep_running(self) -> None:
        print(f"\nThe console keeps running:  {self._url}   user: admin   password: {self._password}\nCtrl-C ends it.")
        while True:
            for process in self._processes:
                if process.poll() is not None:
                    raise SystemExit(
                        f"{' '.join(map(str, process.args[1:4]))} ended with {process.returncode}; see {DEMO / 'data'}"
                    )
            time.sleep(1)

    # --- servers -----------------------------------------------------------------------------------------------------------

    @staticmethod
    def _make_bucket(swift: Any) -> None:
        import boto3
        from botocore.config import Config

        boto3.client(
            "s3",
            endpoint_url=swift.s3_url,
            aws_access_key_id=swift.access_key,
            aws_secret_access_key=swift.secret_key,
            region_name="us-east-1",
            config=Config(s3={"addressing_style": "path"}),
        ).create_bucket(Bucket=BUCKET)

    def _prepare_django(self, zones: dict[str, Path]) -> None:
        os.environ.update(
            DJANGO_SETTINGS_MODULE="cloudstorage.settings",
            CLOUDSTORAGE_DATA_DIR=str(DEMO / "data"),
            CLOUDSTORAGE_ALLOW_PLAIN_EXPORTS="true",
            CLOUDSTORAGE_OUTBOUND_ALLOW_LOOPBACK="true",
            # No hypervisor runs here that would need a staging store in its zone.
            CLOUDSTORAGE_DIRECT_HYPERVISORS="KVM,XenServer,VMware",
            CLOUDSTORAGE_NFS_MOUNTS=",".join(f"{EXPORTS[zone]}={path}" for zone, path in zones.items()),
        )
        for name in ("DATABASE_URL", "CLOUDSTORAGE_REDIS_URL"):
            os.environ.pop(name, None)
        import django
        from django.core.management import call_command

        django.setup()
        call_command("migrate", verbosity=0)

    def _start_servers(self) -> tuple[str, str]:
        from django.contrib.auth.models import User

        from tests.servers.process import free_ports

        password = secrets.token_urlsafe(12)
        User.objects.create_superuser("admin", password=password)
        (port,) = free_ports(1)
        self._spawn(
            "web", "-m", "gunicorn", "cloudstorage.wsgi", "--bind", f"127.0.0.1:{port}", "--threads", "4", "--workers", "1"
        )
        self._spawn("worker", "manage.py", "worker")
        url = f"http://127.0.0.1:{port}/"
        wait_for(lambda: answers(url), "the web server", DEMO / "data" / "web.log")
        return url, password

    def _spawn(self, name: str, *arguments: str) -> None:
        log = (DEMO / "data" / f"{name}.log").open("wb")
        self._processes.append(subprocess.Popen([sys.executable, *arguments], cwd=ROOT, stdout=log, stderr=log))

    def _stop_processes(self) -> None:
        for process in self._processes:
            process.send_signal(signal.SIGTERM)
        for process in self._processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()

    # --- the job -----------------------------------------------------------------------------------------------------------

    @staticmethod
    def _adopt(actor: Any) -> None:
        from stores.models import Zone
        from stores.services.image_stores import add_store
        from stores.services.scan import scan_store

        step("Adopting what is on the exports (store_add, store_scan)")
        for zone, export in EXPORTS.items():
            store = add_store(
                actor=actor,
                name=f"nfs-{zone}",
                provider="NFS",
                url="nfs://" + export.replace(":", "", 1),
                details={},
                zone=Zone.objects.create(name=zone),
            )
            report = scan_store(actor=actor, store=store).as_json()
            found = ", ".join(f"{count} {kind}s" for kind, count in report["found"].items())
            say(
                f"{store.name}: {found}; {report['unknown']['count']} not understood; skipped by rule: {sum(report['skipped'].values())}"
            )

    @staticmethod
    def _convert(actor: Any, swift: Any) -> Any:
        from migration.conversion import convert
        from migration.preflight import preflight
        from stores.models import ImageStore, WorkerReach

        step("Preflight and conversion (use_object_store)")
        stores = ImageStore.objects.count()
        reached = WorkerReach.objects.filter(ok=True).values("store").distinct()
        wait_for(lambda: reached.count() >= stores, "the worker to reach the exports", DEMO / "data" / "worker.log")
        target = {
            "name": "objects",
            "provider": "S3",
            "url": "",
            "details": {
                "accesskey": swift.access_key,
                "secretkey": swift.secret_key,
                "bucket": BUCKET,
                "endpoint": swift.s3_url.removeprefix("http://").rstrip("/"),
                "usehttps": "false",
            },
        }
        report = preflight(actor=actor, **target)
        say(f"preflight: {report.blockers} blockers, {report.warnings} warnings")
        for finding in report.report["findings"]:
            if finding["severity"] != "info":
                say(f"  {finding['severity']}: {finding['message']}")
        began = time.monotonic()
        conversion = convert(actor=actor, preflight=report, **target)
        promised = ", ".join(f"{count} {kind}s" for kind, count in conversion.counts["promised"].items())
        seconds = conversion.counts["seconds"]
        say(f"converted in {time.monotonic() - began:.1f} s with all checks, {seconds:.2f} s of it the switch itself")
        say(f"the NFS stores are staging stores now; promised on the object store: {promised}")
        return conversion

    @staticmethod
    def _drain(actor: Any, conversion: Any) -> Any:
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

        from migration import drain
        from migration.states import DrainState

        step("Draining: canary first, then the rest (migration_plan, migration_start)")
        row = drain.plan(actor=actor, conversion=conversion)
        drain.start(actor=actor, drain=row)
        columns = (TextColumn("   {task.description:<10}"), BarColumn(40), DownloadColumn(), TransferSpeedColumn())
        with Progress(*columns) as bar:
            task = bar.add_task("proven", total=None)
            deadline = time.monotonic() + 600
            while time.monotonic() < deadline:
                now = drain.progress(row)
                bar.update(task, total=now.bytes["total"], completed=now.bytes["proven"], description=now.state.lower())
                if now.state in {DrainState.FINISHED, DrainState.PAUSED, DrainState.CANCELLED}:
                    break
                time.sleep(0.5)
        row.refresh_from_db()
        say(row.note)
        return row

    @staticmethod
    def _verify(actor: Any, conversion: Any, swift: Any, region: Any) -> bool:
        from migration import verify
        from migration.states import VerificationState

        step("Verifying: our own re-read, then a script that imports nothing of ours")
        run = verify.verify(actor=actor, store=conversion.object_store)
        wait_for(
            lambda: type(run).objects.get(pk=run.pk).state == VerificationState.FINISHED,
            "the re-read",
            DEMO / "data" / "worker.log",
        )
        run.refresh_from_db()
        say(f"re-read {run.items_checked} items, {run.bytes_checked / 2**20:.0f} MiB: {run.findings_count} findings")
        whole, told = check_independently("verify.py", DEMO / "exports" / "region.json", swift)
        if not told:
            return False
        say(f"{told['proven']} of {told['files']} files of {told['items']} items equal the SHA-256 taken before adoption")
        for line in [*told["missing"][:5], *told["wrong"][:5]]:
            say(f"  ! {line}")
        return whole and run.findings_count == 0

    @staticmethod
    def _report(conversion: Any, row: Any, proven: bool) -> None:
        from migration import drain
        from stores.models import KINDS
        from stores.states import RefState

        step("Report")
        now = drain.progress(row)
        for kind, models in KINDS.items():
            refs = models.ref.objects.filter(store=conversion.object_store)
            say(
                f"{kind:9} {refs.filter(state=RefState.READY).count():3} Ready of {refs.count():3} on {conversion.object_store.name}"
            )
        say(f"bytes: {now.bytes['proven']} proven, {now.bytes['copied']} copied, {now.bytes['remaining']} remaining")
        say("EVERY ITEM IS PROVEN" if proven else "NOT EVERY ITEM IS PROVEN")

    @staticmethod
    def _retire(actor: Any, conversion: Any, swift: Any) -> bool:
        from migration import decommission, report
        from migration.commit import commit
        from migration.states import DecommissionState
        from stores.models import ImageStore

        step("Committing, then retiring the export of zone2 on evidence (migration_commit, store_decommission)")
        commit(actor=actor, conversion=conversion)
        say("committed: the originals on NFS are no longer pinned, and there is no roll-back any more")
        store = ImageStore.objects.get(name="nfs-zone2")
        row = decommission.begin(actor=actor, store=store)

        def settled() -> bool:
            row.refresh_from_db()
            return row.state != DecommissionState.CHECKING

        log = DEMO / "data" / "worker.log"
        wait_for(settled, "every original and its copy to be read again", log)
        if row.state == DecommissionState.WAITING:
            say(f"{row.unknown_count} files on {store.name} belong to no item; given up by name:")
            for unknown in row.unknown.order_by("path")[:5]:
                say(f"  {unknown.path}")
            decommission.acknowledge(actor=actor, row=row, count=row.unknown_count, digest=row.unknown_digest)
            wait_for(settled, "the retirement", log)
        if row.state != DecommissionState.RETIRED:
            say(f"! not retired: {row.state}; {row.note}")
            return False
        folder = DEMO / "report"
        folder.mkdir(exist_ok=True)
        for form in report.FORMS:
            (folder / report.name_of(row, form)).write_text("".join(report.stream(row, form)))
        signed = folder / report.name_of(row, "json")
        say(f"{store.name} is retired, its files untouched. Its report, in {folder}:")
        show_report(json.loads(signed.read_text()))
        whole, told = check_independently("verify_report.py", signed, swift)
        if told:
            say(f"{told['files'] - len(told['wrong'])} of {told['files']} files of the report are in the bucket, byte for byte")
        return whole


def show_report(report: dict[str, Any]) -> None:
    """What was signed, file by file."""
    for file in report["items"]:
        say(f"  {file['sha256'][:16]}… {file['size']:>10}  {file['proof']:<9} {file['key']}")
    for exception in report["exceptions"]:
        say(f"  exception: {exception['what']} ({exception['files']}), accepted by {exception['accepted_by']}")
    end = report["end"]
    say(f"  {end['items']} items, {end['files']} files, {end['bytes']} bytes; {end['not_read_again']} of them not read again")
    say(f"  signed {report['signed_at']}, asked for by {report['asked_by']}; SHA-256 of SHA256SUMS: {end['sha256sums_sha256']}")


def forget_earlier_runs(export: Path) -> None:
    """An export of an earlier run carries its marker and folders; the demo starts with a clean cloud."""
    for own in export.glob(".c[ls]*"):
        if own.is_dir():
            shutil.rmtree(own)
        else:
            own.unlink()


def check_independently(script: str, facts: Path, swift: Any) -> tuple[bool, dict[str, Any]]:
    """(all is well, what it told) of a script that imports nothing of ours."""
    environment = {
        "PATH": os.environ["PATH"],
        "S3_ENDPOINT": swift.s3_url,
        "S3_BUCKET": BUCKET,
        "S3_ACCESS_KEY": swift.access_key,
        "S3_SECRET_KEY": swift.secret_key,
    }
    command = [sys.executable, "-I", str(Path(__file__).with_name(script)), str(facts)]
    checked = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if not checked.stdout:
        say(checked.stderr)
        return False, {}
    return checked.returncode == 0, json.loads(checked.stdout)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return bool(response.status < 500)
    except urllib.error.HTTPError as error:
        return error.code < 500
    except OSError:
        return False


def wait_for(condition: Any, what: str, log: Path, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            tail = log.read_text(errors="replace")[-2000:] if log.exists() else ""
            raise SystemExit(f"waited {seconds:.0f} s for {what}; the end of {log}:\n{tail}")
        time.sleep(0.2)


def step(text: str) -> None:
    print(f"\n== {text}", flush=True)


def say(text: str) -> None:
    print(f"   {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
