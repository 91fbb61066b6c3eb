"""Why an item is on a store, and why it is not on another, in sentences that a person can act on."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from stores.models import KINDS, ImageStore, Item, Kind, TemplateZoneRef, Transfer, heavy
from stores.services.proofs import DAMAGED
from stores.services.windows import hours
from stores.states import LIVE_REF_STATES, READABLE, Proof, RefState, Role, TransferState

STORES_SHOWN = 40

_PROVEN_BY = {
    Proof.ADOPTED: "A scan found it there. Nobody has hashed it yet, so nothing proves its bytes but their place.",
    Proof.VERIFIED: "It was copied there, and the store checked every part against our checksum.",
    Proof.ATTESTED: "It was copied there, and the store's own checksum of the whole is ours.",
    Proof.READ_BACK: "It was read back from there and hashed: every byte is what it should be.",
}
_STATES = {
    RefState.ALLOCATED: "It is about to be written there.",
    RefState.CREATING: "It is being written there.",
    RefState.DESTROYING: "It is deleted, and a worker removes its bytes.",
    RefState.FAILED: "Writing it there failed.",
}
_DAMAGED = (
    "What lies there is kept, and served to nobody, for it is not what was proven. Put the right content back and verify the"
    " store: then it is served again. Found:"
)

_COPYING = {
    TransferState.BLOCKED: "Its copy waits for its parent in the chain.",
    TransferState.QUEUED: "Its copy waits for a worker.",
    TransferState.RUNNING: "It is being copied at this moment.",
    TransferState.PROVEN: "A copy that was proven there is there no more: verify the store.",
    TransferState.CANCELLED: "Its copy was cancelled: plan another drain, or bring it now.",
}


@dataclass(frozen=True, slots=True)
class Reason:
    """One store, whether the item can be read there, and why."""

    store: ImageStore
    here: bool
    words: str


def reasons(kind: Kind, item: Item) -> list[Reason]:
    """For each store in use; a fixed number of queries."""
    stores = ImageStore.objects.attached().select_related("zone").defer(*heavy())
    refs = {ref.store_id: ref for ref in KINDS[kind].ref.objects.filter(item_id=item.pk, state__in=LIVE_REF_STATES)}
    copying: dict[int, Transfer] = {}
    for row in Transfer.objects.filter(kind=kind, item_id=item.pk).select_related("batch").order_by("-pk")[:STORES_SHOWN]:
        copying.setdefault(row.target_id, row)
    zones = _zones_of(kind, item)
    return [_of(store, refs, copying.get(store.pk), zones) for store in stores.order_by("role", "name")[:STORES_SHOWN]]


def _zones_of(kind: Kind, item: Any) -> set[str]:
    if kind is Kind.TEMPLATE:
        shown = TemplateZoneRef.objects.filter(template_id=item.pk, removed=None)
        return set(shown.values_list("zone__name", flat=True)[:STORES_SHOWN])
    return {item.zone.name} if item.zone is not None else set()


def _of(store: ImageStore, refs: Mapping[int, Any], copy: Transfer | None, zones: Collection[str]) -> Reason:
    ref = refs.get(store.pk)
    if ref is None:
        return Reason(store, here=False, words=_absent(store, copy, zones))
    if ref.state == RefState.PROMISED:
        withdrawn = f"A copy there was withdrawn ({ref.error_str})." if ref.error_str else "Its bytes are not there yet."
        return Reason(store, here=False, words=f"It is promised there. {withdrawn} {_under_way(copy)}")
    if ref.state in READABLE:
        promised = any(other.state == RefState.PROMISED for other in refs.values())
        return Reason(store, here=True, words=_present(store, ref, promised=promised))
    words = _DAMAGED if ref.state == RefState.FAILED and ref.install_path else _STATES[RefState(ref.state)]
    return Reason(store, here=False, words=f"{words} {ref.error_str}".strip())


def _present(store: ImageStore, ref: Any, *, promised: bool) -> str:
    told = []
    if ref.error_str.startswith(DAMAGED):
        told.append(f"What lies there is not what was proven of it, {ref.error_str}.")
    else:
        told.append(_PROVEN_BY[Proof(ref.proof)])
        told += [f"But something was found: {ref.error_str}."] if ref.error_str else []
    if ref.state == RefState.HIDDEN:
        told.append("It was deleted, but others build on it; it goes with the last of them.")
    if promised and store.role == Role.IMAGE_CACHE:
        told.append("It cannot be removed there, for the object store has no more than the promise yet.")
    elif ref.ref_cnt:
        told.append("It is in use at this moment, and cannot be removed before that ends.")
    return " ".join(told)


def _under_way(copy: Transfer | None) -> str:
    if copy is None:
        return "No drain has taken it up: plan one, or bring it now."
    if copy.state == TransferState.FAILED:
        return f"Its copy failed: {copy.error} {copy.remedy}".strip()
    if copy.state == TransferState.QUEUED and copy.batch is not None and not copy.batch.open:
        return f"Its copy waits, for {copy.batch.name} is not running."
    window = hours(copy.batch.window, copy.batch.time_zone) if copy.batch is not None else None
    if copy.state == TransferState.QUEUED and window is not None and window.opens:
        return f"Its copy waits for the time window {window.words}, which opens {window.when}."
    return _COPYING[TransferState(copy.state)]


def _absent(store: ImageStore, copy: Transfer | None, zones: Collection[str]) -> str:
    if copy is not None and copy.state == TransferState.FAILED:
        return f"Copying it there failed: {copy.error} {copy.remedy}".strip()
    if store.zone is not None and store.zone.name not in zones:
        known = f"the item is known in {', '.join(sorted(zones))}" if zones else "the item is of no zone"
        return f"The store serves zone {store.zone.name}, and {known}."
    if store.role == Role.IMAGE_CACHE:
        return (
            "A staging store keeps what was there before the conversion and what its zone asked for since; nobody asked for this."
        )
    if store.zone is not None:
        return "The zone knows it, but no scan has found it there. If it should be there, scan the store."
    return "Nothing has promised it there. Bring it, or plan a drain."
