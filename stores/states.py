"""State machines of stores, refs, transfers and scans as tables: `(state, event) -> state`, in plain Python.

The tables drive the compare-and-set in `stores.services`, the buttons that faces enable, the diagrams in
docs/architecture.md and the property tests. The ref machine is CloudStack's ObjectInDataStoreStateMachine plus `Promised`.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import TypeVar


class Kind(StrEnum):
    """What an item is; an ISO is a template of format ISO, as in CloudStack's tables."""

    TEMPLATE = "template"
    SNAPSHOT = "snapshot"
    VOLUME = "volume"


class Role(StrEnum):
    """Image: store of record. ImageCache: staging store."""

    IMAGE = "Image"
    IMAGE_CACHE = "ImageCache"


class Proof(StrEnum):
    """How we know that the bytes on a store are the item's."""

    ADOPTED = "adopted"
    VERIFIED = "verified"
    ATTESTED = "attested"
    READ_BACK = "read-back"


PROVEN = frozenset({Proof.VERIFIED, Proof.ATTESTED, Proof.READ_BACK})


class RefState(StrEnum):
    """A ref is Ready only with a path and a proof; Promised is on the object store by right, not yet in bytes. Failed: what
    lies there is not what was proven; it is kept, and nobody is served it."""

    ALLOCATED = "Allocated"
    CREATING = "Creating"
    PROMISED = "Promised"
    READY = "Ready"
    HIDDEN = "Hidden"
    DESTROYING = "Destroying"
    DESTROYED = "Destroyed"
    FAILED = "Failed"


READABLE = (RefState.READY, RefState.HIDDEN)
"""There are bytes, and they are served."""


class RefEvent(StrEnum):
    CREATE_ONLY_REQUESTED = "CreateOnlyRequested"
    OPERATION_SUCCEEDED = "OperationSucceeded"
    OPERATION_FAILED = "OperationFailed"
    PROMISE_KEPT = "PromiseKept"
    PROOF_WITHDRAWN = "ProofWithdrawn"
    DAMAGE_FOUND = "DamageFound"
    DAMAGE_MENDED = "DamageMended"
    HIDE_REQUESTED = "HideRequested"
    DESTROY_REQUESTED = "DestroyRequested"


REF_TRANSITIONS: Mapping[tuple[RefState, RefEvent], RefState] = {
    (RefState.ALLOCATED, RefEvent.CREATE_ONLY_REQUESTED): RefState.CREATING,
    (RefState.ALLOCATED, RefEvent.OPERATION_FAILED): RefState.FAILED,
    (RefState.ALLOCATED, RefEvent.DESTROY_REQUESTED): RefState.DESTROYING,
    (RefState.CREATING, RefEvent.OPERATION_SUCCEEDED): RefState.READY,
    (RefState.CREATING, RefEvent.OPERATION_FAILED): RefState.ALLOCATED,
    (RefState.CREATING, RefEvent.DESTROY_REQUESTED): RefState.DESTROYING,
    (RefState.PROMISED, RefEvent.PROMISE_KEPT): RefState.READY,
    (RefState.PROMISED, RefEvent.DESTROY_REQUESTED): RefState.DESTROYING,
    (RefState.READY, RefEvent.PROOF_WITHDRAWN): RefState.PROMISED,
    (RefState.READY, RefEvent.DAMAGE_FOUND): RefState.FAILED,
    (RefState.READY, RefEvent.HIDE_REQUESTED): RefState.HIDDEN,
    (RefState.READY, RefEvent.DESTROY_REQUESTED): RefState.DESTROYING,
    (RefState.HIDDEN, RefEvent.PROOF_WITHDRAWN): RefState.PROMISED,
    (RefState.HIDDEN, RefEvent.DAMAGE_FOUND): RefState.FAILED,
    (RefState.HIDDEN, RefEvent.DESTROY_REQUESTED): RefState.DESTROYING,
    (RefState.DESTROYING, RefEvent.DESTROY_REQUESTED): RefState.DESTROYING,
    (RefState.DESTROYING, RefEvent.OPERATION_FAILED): RefState.DESTROYING,
    (RefState.DESTROYING, RefEvent.OPERATION_SUCCEEDED): RefState.DESTROYED,
    (RefState.FAILED, RefEvent.DESTROY_REQUESTED): RefState.DESTROYING,
    (RefState.FAILED, RefEvent.CREATE_ONLY_REQUESTED): RefState.CREATING,
    (RefState.FAILED, RefEvent.HIDE_REQUESTED): RefState.HIDDEN,
    (RefState.FAILED, RefEvent.PROOF_WITHDRAWN): RefState.PROMISED,
    (RefState.FAILED, RefEvent.DAMAGE_MENDED): RefState.READY,
}

LIVE_REF_STATES = frozenset(RefState) - {RefState.DESTROYED}


class StoreState(StrEnum):
    """Attached: in use. Detached: kept, not used (after a rollback). Removed: gone from the cloud."""

    ATTACHED = "Attached"
    DETACHED = "Detached"
    REMOVED = "Removed"


class StoreEvent(StrEnum):
    DETACH = "Detach"
    ATTACH = "Attach"
    REMOVE = "Remove"


STORE_TRANSITIONS: Mapping[tuple[StoreState, StoreEvent], StoreState] = {
    (StoreState.ATTACHED, StoreEvent.DETACH): StoreState.DETACHED,
    (StoreState.DETACHED, StoreEvent.ATTACH): StoreState.ATTACHED,
    (StoreState.ATTACHED, StoreEvent.REMOVE): StoreState.REMOVED,
    (StoreState.DETACHED, StoreEvent.REMOVE): StoreState.REMOVED,
}


class TransferState(StrEnum):
    """Blocked waits for the parent in its chain; Queued can be claimed; Running has a lease; Proven is done for good."""

    BLOCKED = "Blocked"
    QUEUED = "Queued"
    RUNNING = "Running"
    PROVEN = "Proven"
    FAILED = "Failed"
    CANCELLED = "Cancelled"


class TransferEvent(StrEnum):
    UNBLOCK = "Unblock"
    CLAIM = "Claim"
    RELEASE = "Release"
    PROVE = "Prove"
    FAIL = "Fail"
    CANCEL = "Cancel"
    RETRY = "Retry"
    RETRY_BEHIND_PARENT = "RetryBehindParent"


TRANSFER_TRANSITIONS: Mapping[tuple[TransferState, TransferEvent], TransferState] = {
    (TransferState.BLOCKED, TransferEvent.UNBLOCK): TransferState.QUEUED,
    (TransferState.BLOCKED, TransferEvent.CANCEL): TransferState.CANCELLED,
    (TransferState.BLOCKED, TransferEvent.FAIL): TransferState.FAILED,
    (TransferState.QUEUED, TransferEvent.CLAIM): TransferState.RUNNING,
    (TransferState.QUEUED, TransferEvent.CANCEL): TransferState.CANCELLED,
    (TransferState.RUNNING, TransferEvent.RELEASE): TransferState.QUEUED,
    (TransferState.RUNNING, TransferEvent.PROVE): TransferState.PROVEN,
    (TransferState.RUNNING, TransferEvent.FAIL): TransferState.FAILED,
    (TransferState.RUNNING, TransferEvent.CANCEL): TransferState.CANCELLED,
    (TransferState.FAILED, TransferEvent.RETRY): TransferState.QUEUED,
    (TransferState.FAILED, TransferEvent.RETRY_BEHIND_PARENT): TransferState.BLOCKED,
    (TransferState.FAILED, TransferEvent.CANCEL): TransferState.CANCELLED,
}

LIVE_TRANSFER_STATES = frozenset({TransferState.BLOCKED, TransferState.QUEUED, TransferState.RUNNING})


class ScanState(StrEnum):
    """A scan of a store: waits for a worker, runs under a lease, ends in one of three ways."""

    QUEUED = "Queued"
    RUNNING = "Running"
    FINISHED = "Finished"
    FAILED = "Failed"
    CANCELLED = "Cancelled"


class ScanEvent(StrEnum):
    START = "Start"
    RELEASE = "Release"
    FINISH = "Finish"
    FAIL = "Fail"
    CANCEL = "Cancel"


SCAN_TRANSITIONS: Mapping[tuple[ScanState, ScanEvent], ScanState] = {
    (ScanState.QUEUED, ScanEvent.START): ScanState.RUNNING,
    (ScanState.QUEUED, ScanEvent.FAIL): ScanState.FAILED,
    (ScanState.QUEUED, ScanEvent.CANCEL): ScanState.CANCELLED,
    (ScanState.RUNNING, ScanEvent.RELEASE): ScanState.QUEUED,
    (ScanState.RUNNING, ScanEvent.FINISH): ScanState.FINISHED,
    (ScanState.RUNNING, ScanEvent.FAIL): ScanState.FAILED,
    (ScanState.RUNNING, ScanEvent.CANCEL): ScanState.CANCELLED,
}

LIVE_SCAN_STATES = frozenset({ScanState.QUEUED, ScanState.RUNNING})

S = TypeVar("S", bound=StrEnum)
E = TypeVar("E", bound=StrEnum)


class IllegalTransition(Exception):
    """The event is not allowed in this state; `allowed` lists the events that are."""

    def __init__(self, state: StrEnum, event: StrEnum, allowed: tuple[str, ...]) -> None:
        super().__init__(f"{event} is not possible in state {state}; possible: {', '.join(allowed) or 'nothing'}.")
        self.state = state
        self.event = event
        self.allowed = allowed


def next_state(table: Mapping[tuple[S, E], S], state: S, event: E) -> S:
    """The state that `event` leads to; raises IllegalTransition."""
    try:
        return table[state, event]
    except KeyError:
        raise IllegalTransition(state, event, allowed_events(table, state)) from None


def sources(table: Mapping[tuple[S, E], S], event: E) -> tuple[S, ...]:
    """Every state from which `event` is possible, in table order."""
    return tuple(state for (state, of), _ in table.items() if of == event)


def allowed_events(table: Mapping[tuple[S, E], S], state: S) -> tuple[str, ...]:
    """Every event possible in `state`, in table order: what a face may offer."""
    return tuple(str(event) for (of, event), _ in table.items() if of == state)


def mermaid(table: Mapping[tuple[S, E], S]) -> str:
    """The machine as a Mermaid state diagram, for docs/architecture.md."""
    lines = ["stateDiagram-v2"]
    lines += [f"    {state} --> {target}: {event}" for (state, event), target in table.items()]
    return "\n".join(lines)
