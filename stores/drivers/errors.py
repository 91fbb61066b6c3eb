"""What can go wrong at a store, in the operator's words: each error carries its cause, whether waiting helps, and the remedy."""

from __future__ import annotations

from typing import ClassVar


class StoreError(Exception):
    """Base of all store errors.

    `cause` is a stable word to group failures by; `retryable` says whether the same call may succeed later without anybody
    acting on the item; `outage` that the store as a whole is in trouble, so that it says nothing about an item; `field` names the
    option or parameter at fault, if one is.
    """

    cause: ClassVar[str] = "store-error"
    retryable: ClassVar[bool] = False
    outage: ClassVar[bool] = False
    remedy: ClassVar[str] = "Read the message, mend the store, then retry."

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class NotFound(StoreError):
    """The object is not on the store, and the store itself is known to be there."""

    cause = "not-found"
    remedy = "Run a scan of the store: the item was deleted or moved behind our back."


class AccessDenied(StoreError):
    """The store refused the credentials or the right to do this."""

    cause = "access-denied"
    remedy = "Check the credentials and the rights of their user on the store, then retry."


class LockedOut(AccessDenied):
    """An object store refuses us where all is ours: keys were revoked, have expired, or lost a right."""

    cause = "locked-out"
    retryable = True
    outage = True
    remedy = (
        "Enter credentials that may read and write there. A store that was added already gets them by store_update, or on its"
        " page; work resumes by itself once it lets us in."
    )


class WrongClock(LockedOut):
    """The store takes no request of a host whose clock differs so much from its own."""

    cause = "wrong-clock"
    remedy = "Synchronise the clock of the worker's host (NTP); it goes on by itself, and other workers do meanwhile."


class Unavailable(StoreError):
    """The store does not answer, or a mount or its marker is missing; nothing can be said of what it holds."""

    cause = "unavailable"
    retryable = True
    outage = True
    remedy = "Check the server, the network and the mount; work resumes by itself when the store answers."


class Throttled(Unavailable):
    """The store asks for less; `retry_after` is in seconds when it said so."""

    cause = "throttled"
    remedy = "Nothing to do: the transfer backs off by itself. Lower concurrency or bandwidth if it persists."

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Corrupt(StoreError):
    """What was stored or read is not what was sent: a checksum or a size differs."""

    cause = "corrupt"
    retryable = True
    remedy = "Retry; if it repeats, check the store's disks and the network between: bytes are being changed."


class SourceChanged(StoreError):
    """The source changed while it was copied, so the copy would be of no single moment."""

    cause = "source-changed"
    retryable = True
    remedy = "Find out who still writes to it. It is tried again by itself; once it has failed, scan its store, then retry."


class Full(StoreError):
    """No space or quota left on the store."""

    cause = "full"
    remedy = "Add space or raise the quota on the store, then retry the failed transfers."


class Misconfigured(StoreError):
    """An option is missing, malformed, or does not fit the store."""

    cause = "misconfigured"
    remedy = "Correct the named option."


class AlreadyExists(StoreError):
    """A conditional write found that the key is taken."""

    cause = "already-exists"
    remedy = "Another worker was faster, or foreign content lies at this key; a scan tells which."


class Foreign(StoreError):
    """The store carries another cloud's ownership marker, or content that is not ours lies where we would write."""

    cause = "foreign-store"
    remedy = (
        "Give cloudstorage a bucket, container or prefix of its own. If it is this cloud's own and its database was lost, a new"
        " one takes it over: store_add --take-over CLOUD."
    )


class UnsafeName(StoreError):
    """A name would lead outside the store, or through a symbolic link or a special file."""

    cause = "unsafe-name"
    remedy = "Look at the named entry on the export; cloudstorage neither follows nor touches it."


class UploadGone(StoreError):
    """The recorded upload no longer exists on the store, so its copy begins anew."""

    cause = "upload-gone"
    retryable = True
    remedy = "Nothing to do: the copy starts again by itself. If it repeats, look for a lifecycle rule that aborts uploads."
