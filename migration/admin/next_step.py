"""The next step of the whole job, from an empty console to exports that are retired: always the first that is not done."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from django.http import HttpRequest
from django.template.defaultfilters import pluralize
from django.urls import reverse

from cloudstorage.actors import Actor, ActorRole
from cloudstorage.commands import human_bytes
from cloudstorage.console.pages import actor_of
from migration import commit, decommission
from migration import drain as drains
from migration.admin.wizard import where_to_go_on
from migration.conversion import OPEN_STATES
from migration.findings import Finding
from migration.models import Conversion, Decommission, Drain, Verification
from migration.states import ENDED_DRAINS, LIVE_VERIFICATION_STATES, ConversionState, DecommissionState, DrainState
from stores.models import ImageStore, ScanRun, Transfer, Worker, Zone
from stores.services import transfers
from stores.states import LIVE_SCAN_STATES, LIVE_TRANSFER_STATES, Role, StoreState, TransferState

EVERYBODY, OPERATOR, ADMIN = ActorRole.VIEWER, ActorRole.OPERATOR, ActorRole.STORAGE_ADMIN
EXPORTS_LOOKED_AT = 200


@dataclass(frozen=True, slots=True)
class Step:
    """What to do, why, and the page where it is done."""

    title: str
    text: str
    url: str
    who: ActorRole = EVERYBODY
    """Whose page that is."""
    over: bool = False
    """Nothing is left to do: the title says what is reached."""


def shown(
    request: HttpRequest, conversion: Conversion | None, drain: Drain | None, progress: drains.Progress | None
) -> dict[str, Any]:
    """What `step.html` shows of it; `drain` is the conversion's last."""
    actor = actor_of(request)
    step = next_step(actor, conversion, drain, progress)
    return {"step": step, "step_is_mine": step is not None and actor.may(step.who)}


def next_step(actor: Actor, conversion: Conversion | None, drain: Drain | None, progress: drains.Progress | None) -> Step | None:
    """None where there is no job: nothing on NFS, and nothing that was ever moved off it. A fixed number of queries."""
    step = _prepare(conversion) or _choose(actor, conversion)
    if step is not None or conversion is None:
        return step
    if conversion.state == ConversionState.ROLLING_BACK:
        text = "The region is on its way back to NFS. Every item stays readable; its page says how far it is."
        return _step("Follow the roll-back", text, "rollback", conversion.uuid)
    return _under_way(drain, progress) or _left(conversion, drain, progress) or _end(conversion)


def _step(title: str, text: str, target: str, *arguments: Any, who: ActorRole = EVERYBODY, query: str = "") -> Step:
    return Step(title, text, reverse(f"console:{target}", args=arguments) + query, who)


# --- before the switch -----------------------------------------------------------------------------------------------------


def _prepare(conversion: Conversion | None) -> Step | None:
    if conversion is None and not Zone.objects.exists():
        text = "NFS stores belong to a zone of the cloud, so the first thing it needs is a zone."
        return _step("Add a zone", text, "zone_add", who=ADMIN)
    if conversion is None and not ImageStore.objects.filter(removed=None).exists():
        text = "Add the NFS export that the cloud uses today. It is tested before it is saved, and nothing on it is changed."
        return _step("Add the NFS store", text, "store_add", who=ADMIN)
    if not Worker.objects.living().exists():
        text = "Nothing is scanned, copied or verified without one. On a host that mounts the exports, run: manage.py worker"
        return _step("Start a worker", text, "worker_list")
    unscanned = ImageStore.objects.attached().filter(scope="ZONE", scanned_at=None).only("uuid", "name").order_by("name").first()
    return _scan(unscanned) if unscanned is not None else None


def _scan(store: ImageStore) -> Step:
    run = ScanRun.objects.filter(store=store, state__in=LIVE_SCAN_STATES).only("uuid").first()
    if run is not None:
        text = f"What lies on {store.name} is being read, and nothing on it is changed. The page says how far it is."
        return _step("Follow the scan", text, "scan", run.uuid)
    text = f"{store.name} was never scanned: cloudstorage does not know yet what lies on it."
    return _step(f"Scan {store.name}", text, "store", store.uuid)


def _choose(actor: Actor, conversion: Conversion | None) -> Step | None:
    if conversion is not None and conversion.state in OPEN_STATES:
        return None
    if draft := where_to_go_on(actor):
        text = "What you entered on the way to an object store is kept. Nothing was changed yet."
        return Step("Go on with your draft", text, draft[1])
    if conversion is None and ImageStore.objects.attached().filter(scope="ZONE", role=Role.IMAGE).exists():
        text = "Choose an object store, read the preflight's report, then switch in seconds. Every item stays readable."
        return _step("Move to an object store", text, "wizard", who=ADMIN)
    return None


# --- the drain -------------------------------------------------------------------------------------------------------------


def _under_way(drain: Drain | None, progress: drains.Progress | None) -> Step | None:
    """The drain that has not ended."""
    if drain is None or progress is None or drain.state in ENDED_DRAINS:
        return None
    if drain.state == DrainState.PLANNED:
        return _step("Start the drain", "It is planned; nothing moves before it is started.", "drain", drain.uuid)
    if drain.state == DrainState.PAUSED:
        text = "It is paused, so nothing moves; every item stays readable. Its page says why, and goes on from there."
        return _step("Look at the paused drain", text, "drain", drain.uuid)
    failed = progress.items["failed"]
    if failed:
        text = f"{failed} item{pluralize(failed)} failed while the others go on. The page says why, and can try again."
        return _step("See what failed", text, "drain", drain.uuid)
    text = "It goes on by itself, and nothing needs to be done. Every item stays readable meanwhile."
    return _step("Follow the drain", text, "drain", drain.uuid)


def _left(conversion: Conversion, drain: Drain | None, progress: drains.Progress | None) -> Step | None:
    """What is on NFS only after the drain has ended, or before there was one."""
    target = conversion.object_store
    left = drains.promised(target)
    if not left["items"]:
        return None
    there = f"{left['items']} item{pluralize(left['items'])}, {human_bytes(left['bytes'])}"
    if drain is None or progress is None:
        text = f"The region writes to {target.name} already. Plan the drain that moves what is still on NFS only: {there}."
        return _step("Plan the drain", text, "drain_plan", conversion.uuid, who=OPERATOR)
    failed = progress.items["failed"]
    if transfers.outside(drain.batch, target):
        again = f" It takes up what failed, too: {failed}." if failed else ""
        text = f"The last drain has ended, and this is still on NFS only: {there}.{again}"
        return _step("Plan the rest", text, "drain_plan", conversion.uuid, who=OPERATOR)
    if failed:
        text = f"{failed} item{pluralize(failed)} failed; still on NFS only: {there}. The page says why, and can try again."
        return _step("See what failed", text, "drain", drain.uuid)
    if Transfer.objects.filter(target=target, state__in=LIVE_TRANSFER_STATES).exists():
        text = f"Asked for at once, so on the way without a drain: {there}."
        return _step("Follow the copies", text, "transfer_list")
    text = (
        f"No attached store has a readable copy of what {target.name} was promised: {there}. Scan the exports that should have"
        " it, or delete the items."
    )
    return _step("Find what is missing", text, "staging_list")


# --- the end ---------------------------------------------------------------------------------------------------------------


def _end(conversion: Conversion) -> Step | None:
    return _retire(conversion) if conversion.state == ConversionState.COMMITTED else _prove(conversion) or _commit(conversion)


def _prove(conversion: Conversion) -> Step | None:
    """What stands against the commit though every item is there."""
    found = (against_commit(conversion, finding) for finding in commit.findings(conversion, promised=0))
    return next((step for step in found if step is not None), None)


def against_commit(conversion: Conversion, finding: Finding) -> Step | None:
    """Where that is done which takes back what stands against a commit."""
    store = conversion.object_store
    match finding.code:
        case "not-proven" | "drain-paused":
            return _drain_of(conversion, finding.message)
        case "failed-copies":
            return _step("See what failed", finding.message, "transfer_list", query=f"?state={TransferState.FAILED}")
        case "not-verified":
            return _verify(store, f"Read {store.name} back", finding.message)
        case "reused-not-checked":
            return _verify(store, f"Compare what {store.name} lists", finding.message)
        case "reused-differs" | "differences":
            return _step("Look at what differs", f"{finding.message} {finding.remedy}", "verification_list")
    return None


def _drain_of(conversion: Conversion, told: str) -> Step:
    drain = Drain.objects.filter(conversion=conversion).only("uuid").first()
    if drain is None:
        return _step("Plan the drain", told, "drain_plan", conversion.uuid, who=OPERATOR)
    return _step("Look at the drain", told, "drain", drain.uuid)


def _verify(store: ImageStore, title: str, told: str) -> Step:
    check = Verification.objects.filter(store=store, state__in=LIVE_VERIFICATION_STATES).only("uuid").first()
    if check is not None:
        text = f"Every item is on {store.name}, and what is there is being proven once more."
        return _step("Follow the verification", text, "verification", check.uuid)
    return _step(title, f"Every item is there. {told}", "verify", who=OPERATOR, query=f"?store={store.uuid}")


def _commit(conversion: Conversion) -> Step:
    text = (
        f"Every item is proven on {conversion.object_store.name}. The commit ends the way back to NFS and deletes nothing; until"
        " then the region can be rolled back."
    )
    return _step("Commit the conversion", text, "commit", conversion.uuid)


def _retire(conversion: Conversion) -> Step:
    exports = list(
        ImageStore.objects.filter(conversion_stores__conversion=conversion, state=StoreState.ATTACHED, role=Role.IMAGE_CACHE)
        .only("uuid", "name", "zone_id")
        .order_by("name")[:EXPORTS_LOOKED_AT]
    )
    asked = _last_retirements(exports)
    for store in exports:
        if store.pk in asked and (step := _answer(store, asked[store.pk])):
            return step
    kept = decommission.last_of_their_zones(exports)
    busy = {pk for pk, row in asked.items() if row.state == DecommissionState.CHECKING}
    for store in exports:
        if store.pk not in {*kept, *busy}:
            text = (
                f"The conversion is committed, so {store.name} is a cache now. All on it is read again and"
                " compared; then it leaves the cloud with a signed report. Its files stay."
            )
            return _step(f"Retire {store.name}", text, "retire", store.uuid, who=ADMIN)
    for store in exports:
        if store.pk in busy:
            text = f"Workers read all on {store.name} and its proven copies again. Nothing on it is changed."
            return _step("Follow the retirement", text, "retirement", asked[store.pk].uuid)
    return _over(conversion, [store.name for store in exports], kept.values())


def _last_retirements(exports: list[ImageStore]) -> dict[int, Decommission]:
    rows = Decommission.objects.filter(store__in=exports).order_by("pk").only("uuid", "state", "store_id", "note")
    return {row.store_id: row for row in rows}


def _answer(store: ImageStore, row: Decommission) -> Step | None:
    if row.state == DecommissionState.WAITING:
        text = f"{store.name} has files that no item knows. Save what is needed; then somebody answers for the rest by name."
        return _step("Answer for unknown files", text, "retirement", row.uuid)
    if row.state == DecommissionState.REFUSED:
        text = f"{store.name} was not retired and is as it was. {row.note}"
        return _step("Look at what differs", text, "retirement", row.uuid)
    return None


def _over(conversion: Conversion, names: list[str], hypervisors: Iterable[Iterable[str]]) -> Step:
    text = f"Everything is on {conversion.object_store.name}, proven and committed; nothing is left to do."
    if names:
        readers = ", ".join(sorted({name for zone in hypervisors for name in zone}))
        text += f" {', '.join(names)} stay{pluralize(len(names), 's,')}: {readers} reads from a staging store of its zone."
    else:
        text += " The exports of before are retired, and their reports are kept."
    return Step("The move is done", text, reverse("console:conversion", args=[conversion.uuid]), over=True)
