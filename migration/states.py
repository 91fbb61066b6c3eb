"""State machines of conversions, drains, retirements and verifications as tables; see `stores.states` for how tables are used."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class ConversionState(StrEnum):
    """Converted until the operator commits (originals become cache) or rolls back."""

    CONVERTED = "Converted"
    COMMITTED = "Committed"
    ROLLING_BACK = "RollingBack"
    ROLLED_BACK = "RolledBack"


class ConversionEvent(StrEnum):
    COMMIT = "Commit"
    START_ROLLBACK = "StartRollback"
    FINISH_ROLLBACK = "FinishRollback"
    ABANDON_ROLLBACK = "AbandonRollback"


CONVERSION_TRANSITIONS: Mapping[tuple[ConversionState, ConversionEvent], ConversionState] = {
    (ConversionState.CONVERTED, ConversionEvent.COMMIT): ConversionState.COMMITTED,
    (ConversionState.CONVERTED, ConversionEvent.START_ROLLBACK): ConversionState.ROLLING_BACK,
    (ConversionState.ROLLING_BACK, ConversionEvent.FINISH_ROLLBACK): ConversionState.ROLLED_BACK,
    (ConversionState.ROLLING_BACK, ConversionEvent.ABANDON_ROLLBACK): ConversionState.CONVERTED,
}


class DrainState(StrEnum):
    """A drain: planned, then a canary read back, then the rest."""

    PLANNED = "Planned"
    CANARY = "Canary"
    RUNNING = "Running"
    PAUSED = "Paused"
    FINISHED = "Finished"
    CANCELLED = "Cancelled"


ENDED_DRAINS = (DrainState.CANCELLED, DrainState.FINISHED)


class DrainEvent(StrEnum):
    START = "Start"
    CANARY_PROVEN = "CanaryProven"
    CANARY_FAILED = "CanaryFailed"
    PAUSE = "Pause"
    RESUME = "Resume"
    FINISH = "Finish"
    CANCEL = "Cancel"
    RETRY = "Retry"


DRAIN_TRANSITIONS: Mapping[tuple[DrainState, DrainEvent], DrainState] = {
    (DrainState.PLANNED, DrainEvent.START): DrainState.CANARY,
    (DrainState.PLANNED, DrainEvent.CANCEL): DrainState.CANCELLED,
    (DrainState.CANARY, DrainEvent.CANARY_PROVEN): DrainState.RUNNING,
    (DrainState.CANARY, DrainEvent.CANARY_FAILED): DrainState.PAUSED,
    (DrainState.CANARY, DrainEvent.PAUSE): DrainState.PAUSED,
    (DrainState.CANARY, DrainEvent.CANCEL): DrainState.CANCELLED,
    (DrainState.RUNNING, DrainEvent.PAUSE): DrainState.PAUSED,
    (DrainState.RUNNING, DrainEvent.FINISH): DrainState.FINISHED,
    (DrainState.RUNNING, DrainEvent.CANCEL): DrainState.CANCELLED,
    (DrainState.RUNNING, DrainEvent.RETRY): DrainState.RUNNING,
    (DrainState.PAUSED, DrainEvent.RESUME): DrainState.CANARY,
    (DrainState.PAUSED, DrainEvent.CANCEL): DrainState.CANCELLED,
    (DrainState.PAUSED, DrainEvent.RETRY): DrainState.PAUSED,
    (DrainState.FINISHED, DrainEvent.RETRY): DrainState.RUNNING,
}


class DecommissionState(StrEnum):
    """Retiring a staging store: read everything again, sign the report, remove the store; its files go only when asked for."""

    CHECKING = "Checking"
    WAITING = "Waiting"
    REFUSED = "Refused"
    CANCELLED = "Cancelled"
    RETIRED = "Retired"
    DELETING = "Deleting"
    IN_TRASH = "InTrash"
    DELETED = "Deleted"


class DecommissionEvent(StrEnum):
    FIND_DIFFERENCE = "FindDifference"
    ASK = "Ask"
    ACKNOWLEDGE = "Acknowledge"
    LOOK_AGAIN = "LookAgain"
    RETIRE = "Retire"
    CANCEL = "Cancel"
    DELETE_FILES = "DeleteFiles"
    FILES_IN_TRASH = "FilesInTrash"
    PURGE = "Purge"


DECOMMISSION_TRANSITIONS: Mapping[tuple[DecommissionState, DecommissionEvent], DecommissionState] = {
    (DecommissionState.CHECKING, DecommissionEvent.FIND_DIFFERENCE): DecommissionState.REFUSED,
    (DecommissionState.CHECKING, DecommissionEvent.ASK): DecommissionState.WAITING,
    (DecommissionState.CHECKING, DecommissionEvent.RETIRE): DecommissionState.RETIRED,
    (DecommissionState.CHECKING, DecommissionEvent.CANCEL): DecommissionState.CANCELLED,
    (DecommissionState.WAITING, DecommissionEvent.ACKNOWLEDGE): DecommissionState.CHECKING,
    (DecommissionState.WAITING, DecommissionEvent.LOOK_AGAIN): DecommissionState.CHECKING,
    (DecommissionState.WAITING, DecommissionEvent.CANCEL): DecommissionState.CANCELLED,
    (DecommissionState.RETIRED, DecommissionEvent.DELETE_FILES): DecommissionState.DELETING,
    (DecommissionState.DELETING, DecommissionEvent.FILES_IN_TRASH): DecommissionState.IN_TRASH,
    (DecommissionState.IN_TRASH, DecommissionEvent.PURGE): DecommissionState.DELETED,
}


class VerificationState(StrEnum):
    """A re-reading of what is Ready on a store."""

    QUEUED = "Queued"
    RUNNING = "Running"
    FINISHED = "Finished"
    CANCELLED = "Cancelled"


LIVE_VERIFICATION_STATES = frozenset({VerificationState.QUEUED, VerificationState.RUNNING})
