"""`make soak`: a drain with churn under random faults and random deaths, then a reckoning of every item without the product."""

from __future__ import annotations

import argparse
import secrets
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random, SystemRandom

from tests.soak.check import KINDS, Check
from tests.soak.churn import Churn
from tests.soak.faults import Faults
from tests.soak.ledger import Ledger
from tests.soak.site import Site

CALM = 300
"""Seconds in which everything must have come right once nothing more goes wrong."""
SHOWN = 20
"""Lines of each kind of damage that are printed."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=SystemRandom().randrange(10**6))
    parser.add_argument("--keep", action="store_true", help="keep the folder with logs, database and objects")
    given = parser.parse_args()
    print(f"seed {given.seed}: the same choices, though never at the same instants", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="cloudstorage-soak-"))
    folder.chmod(0o711)
    try:
        return soak(folder, given.minutes, given.seed)
    finally:
        if given.keep:
            print(f"kept: {folder}", file=sys.stderr)
        else:
            shutil.rmtree(folder, ignore_errors=True)


def soak(folder: Path, minutes: float, seed: int) -> int:
    with Site(folder, minutes, Random(f"{seed}-exports")) as site:
        ledger = prepare(site, minutes)
        churn = start_churn(site, ledger, seed)
        faults = Faults(site, Random(f"{seed}-faults"))
        rage(site, faults, minutes, Random(f"{seed}-times"))
        faults.end_all()
        churn.stop()
        calm = settle(site, churn)
        site.unmount()
        found = Check(site, ledger).run()
    print_counts("read and written by clients", churn.counts)
    print_counts("faults", faults.counts)
    print_counts("kills", faults.kills)
    found.debris += calm
    for what, lines in (("lost", found.lost), ("falsely ready", found.falsely_ready), ("debris", found.debris)):
        for line in lines[:SHOWN]:
            print(f"{what}: {line}")
        if len(lines) > SHOWN:
            print(f"{what}: and {len(lines) - SHOWN} more")
    print(
        f"kills {faults.kills.total()} faults {faults.counts.total()} items {found.items} lost {len(found.lost)}"
        f" falsely-ready {len(found.falsely_ready)} debris {len(found.debris)}",
        flush=True,
    )
    return int(bool(found.lost or found.falsely_ready or found.debris))


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def print_counts(what: str, counts: Counter[str]) -> None:
    print(f"{what}:", ", ".join(f"{name} {number}" for name, number in sorted(counts.items())) or "none")


def prepare(site: Site, minutes: float) -> Ledger:
    """Two exports scanned and converted, a drain that lasts as long as the soak, and all machines at work."""
    say("preparing the exports, Swift and PostgreSQL")
    for stage in ("migrate", "store_add", "scan", "preflight"):
        site.must(stage)
    ledger = Ledger(site.entries())
    site.must("convert")
    site.start_machines()
    bandwidth = int(site.ground.region.size / (minutes * 60 * 0.9))
    site.must("begin_drain", variables={"CRASH_BANDWIDTH": str(bandwidth)})
    say(f"{len(ledger.entries)} items, {site.ground.region.size >> 20} MiB, are drained at {bandwidth >> 10} KiB/s")
    return ledger


def start_churn(site: Site, ledger: Ledger, seed: int) -> Churn:
    site.manage("user_add", "soak", "--role", "storage-admin", given=secrets.token_urlsafe())
    token = site.manage("token_create", "soak", "--role", "storage-admin").split()[-1]
    (account,) = site.rows("SELECT uuid::text FROM account ORDER BY id LIMIT 1")[0]
    stores = [str(row[0]) for row in site.rows("SELECT uuid::text FROM image_store WHERE scope = 'ZONE'")]
    churn = Churn(lambda: f"http://127.0.0.1:{site.port}", token, ledger, account=str(account), stores=stores, seed=seed)
    churn.start()
    return churn


def rage(site: Site, faults: Faults, minutes: float, random: Random) -> None:
    end = time.monotonic() + minutes * 60
    told = 0.0
    due = time.monotonic()
    while time.monotonic() < end:
        faults.tick()
        site.restart_dead(but=faults.concerned)
        if time.monotonic() >= due:
            faults.strike()
            due = time.monotonic() + random.uniform(0.3, 2)
        if time.monotonic() > told + 30:
            told = time.monotonic()
            tell(site, faults)
        time.sleep(0.1)


def tell(site: Site, faults: Faults) -> None:
    states = dict(site.rows("SELECT state, count(*) FROM stores_transfer GROUP BY state ORDER BY state"))
    say(f"{faults.kills.total()} kills, {faults.counts.total()} faults; transfers: {states}")


def settle(site: Site, churn: Churn) -> list[str]:
    """Do what an operator does after such a night: lift the limit, try again what failed, wait; what did not come right."""
    say("nothing more goes wrong; waiting for the drain to end")
    site.change("UPDATE stores_transferbatch SET bandwidth = NULL")
    undone = wait(lambda: drained(site, churn), "the drain and all deletions to end", site)
    say("the drain has ended" if not undone else undone[0])
    for machine in site.machines.values():
        machine.process.terminate()
    for name, machine in site.machines.items():
        try:
            machine.process.wait(60)
        except Exception:
            undone.append(f"{name} did not end within a minute of being told to")
        machine.kill_all()
    site.must("a_day_passes")
    ended = site.ground.run("settle", exports=site.mounted)
    if ended.status:
        undone.append(f"the upkeep does not come to rest: {ended.log.strip().splitlines()[-1]}")
    else:
        undone += [f"count: {line}" for line in ended.told["counts"]] + [f"listing: {line}" for line in ended.told["listing"]]
    return undone


def wait(done: Callable[[], bool], what: str, site: Site) -> list[str]:
    deadline = time.monotonic() + CALM
    while not done():
        if time.monotonic() > deadline:
            return [f"waited {CALM} s in vain for {what}"]
        site.restart_dead(but=set())
        time.sleep(1)
    return []


def drained(site: Site, churn: Churn) -> bool:
    """Whether every transfer has ended well and every deletion is done, which a worker tries again after a minute; tries again
    what has failed. What a dead reader still holds goes when its hold lapses, which is after this."""
    (state,) = site.rows("SELECT state FROM migration_drain")[0]
    failed = site.number("SELECT count(*) FROM stores_transfer WHERE state = 'Failed'")
    live = site.number("SELECT count(*) FROM stores_transfer WHERE state IN ('Blocked', 'Queued', 'Running')")
    if state == "Paused":
        site.manage("migration_resume")
    elif failed and not live:
        site.manage("migration_retry")
        for (transfer,) in site.rows("SELECT uuid::text FROM stores_transfer WHERE state = 'Failed' AND batch_id IS NULL"):
            churn.ask("POST", f"/api/v1/transfers/{transfer}/retry")
    held = "SELECT FROM stores_hold h WHERE h.kind = '{kind}' AND h.ref_id = r.id AND h.expires >= now()"
    to_go = f"SELECT count(*) FROM {{kind}}_store_ref r WHERE state = 'Destroying' AND NOT EXISTS ({held})"
    going = [site.number(to_go.format(kind=kind)) for kind in KINDS]
    return state == "Finished" and not failed and not live and not any(going)


if __name__ == "__main__":
    sys.exit(main())
