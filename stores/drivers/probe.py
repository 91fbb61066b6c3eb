"""Tries out a store before anybody relies on it: the steps that all drivers share, and the engine that runs them.

A driver's `probe` hands its own `Check`s and those of `generic_checks` to `run`. Everything is tried below
`.cs-probe/<random>/` and removed in every outcome, also when the caller stops listening half-way.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice

from stores.drivers.base import MiB, ProbeStep, Status, Stored, StoreDriver, Upload
from stores.drivers.errors import AccessDenied, AlreadyExists, Foreign, NotFound, StoreError, Unavailable

PROBE_FOLDER = ".cs-probe"
"""Everything below it belongs to a probe: listings show it only when asked for by prefix, and deletes are final."""

SEVERITY: tuple[Status, ...] = ("ok", "info", "unknown", "warning", "blocker")
PART_SIZE = 5 * MiB
"""The smallest part that every S3 server accepts when it is not the last."""
SEEN_UPLOADS = 10_000
"""How many pending uploads are looked through for an aborted one, so that a neglected bucket cannot hang the probe."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found; becomes a `ProbeStep`."""

    status: Status
    message: str
    remedy: str = ""
    facts: Mapping[str, object] = field(default_factory=dict)
    field: str | None = None


@dataclass(frozen=True, slots=True)
class Check:
    """One thing to try. Left out when a check that it `needs` was a blocker or left out itself."""

    name: str
    run: Callable[[], Finding]
    needs: tuple[str, ...] = ()
    optional: bool = False
    """The product works without the answer: being denied is `unknown`, not a blocker."""


class Sandbox:
    """The keys and uploads that a probe makes, so that all of them can be removed again."""

    def __init__(self, driver: StoreDriver, *, scrub: Callable[[str], None] | None = None) -> None:
        """`scrub` removes what a delete leaves behind at a key, such as old versions."""
        self.driver = driver
        self.token = secrets.token_hex(8)
        self.root = f"{PROBE_FOLDER}/{self.token}/"
        self._scrub = scrub
        self._keys: dict[str, None] = {}
        self._uploads: list[Upload] = []

    def key(self, name: str) -> str:
        """A key for one trial; whatever comes to lie there is removed at the end."""
        key = self.root + name
        self._keys[key] = None
        return key

    def put(self, name: str, data: bytes) -> Stored:
        return self.driver.put(self.key(name), data, metadata={"cs-probe": self.token}, token=self.token)

    def begin(self, name: str, *, size: int | None, part_size: int) -> Upload:
        """Begin an upload that is aborted at the end if nobody completes it."""
        metadata = {"cs-probe": self.token}
        upload = self.driver.begin_upload(self.key(name), size=size, part_size=part_size, metadata=metadata, token=self.token)
        self._uploads.append(upload)
        return upload

    def clean(self) -> list[str]:
        """Remove everything; returns what could not be removed, with the reason."""
        left: list[str] = []
        for upload in self._uploads:
            try:
                self.driver.abort_upload(upload)
            except StoreError as error:
                left.append(f"the upload {upload.upload_id} of {upload.key} ({error})")
        for key in self._keys:
            try:
                self._remove(key)
            except StoreError as error:
                left.append(f"{key} ({error})")
        self._keys, self._uploads = {}, []
        return left

    def _remove(self, key: str) -> None:
        try:
            self.driver.delete(key)
        except AccessDenied:
            # Credentials that may not write may not delete either, and then there is mostly nothing to delete.
            with contextlib.suppress(NotFound):
                self.driver.stat(key)
                raise
        if self._scrub is not None:
            self._scrub(key)


def run(checks: Iterable[Check], sandbox: Sandbox) -> Iterator[ProbeStep]:
    """Run the checks in order, yield each as a step when it ends, and clean up whatever happens."""
    failed: set[str] = set()
    try:
        for check in checks:
            if failed.intersection(check.needs):
                failed.add(check.name)
                continue
            step = _run_one(check)
            if step.status == "blocker":
                failed.add(check.name)
            yield step
    except BaseException:  # GeneratorExit among them: the caller stopped listening
        sandbox.clean()
        raise
    yield _clean_up(sandbox)


def _run_one(check: Check) -> ProbeStep:
    started = time.monotonic()
    try:
        finding = check.run()
    except AccessDenied as error:
        if check.optional:
            remedy = "Grant these credentials the right to read it, or look it up yourself."
            finding = Finding("unknown", f"Not allowed to find out: {error}", remedy)
        else:
            finding = blocker(error)
    except StoreError as error:
        if check.optional:
            finding = Finding("unknown", f"Could not find out: {error}", error.remedy, field=error.field)
        else:
            finding = blocker(error)
    return _step(check.name, finding, started)


def _clean_up(sandbox: Sandbox) -> ProbeStep:
    started = time.monotonic()
    left = sandbox.clean()
    if left:
        remedy = f"Remove everything below {PROBE_FOLDER}/ by hand and grant the right to delete."
        finding = Finding("warning", f"The probe could not remove what it wrote: {'; '.join(left)}", remedy)
    else:
        finding = Finding("ok", "Everything that the probe wrote is removed.")
    return _step("clean up", finding, started)


def _step(name: str, finding: Finding, started: float) -> ProbeStep:
    return ProbeStep(
        name=name,
        status=finding.status,
        message=finding.message,
        remedy=finding.remedy,
        facts=finding.facts,
        field=finding.field,
        seconds=time.monotonic() - started,
    )


def ok(message: str, **facts: object) -> Finding:
    """It works."""
    return Finding("ok", message, facts=facts)


def blocker(error: StoreError) -> Finding:
    """The finding for a store error that must not happen."""
    return Finding("blocker", str(error), error.remedy, field=error.field)


def facts_of(steps: Iterable[ProbeStep]) -> dict[str, object]:
    """All facts of a probe in one mapping, as `StoreConfig.facts` takes them."""
    return {name: value for step in steps for name, value in step.facts.items()}


def worst(steps: Iterable[ProbeStep]) -> Status:
    """The most serious status among the steps; `ok` for none."""
    return max((step.status for step in steps), key=SEVERITY.index, default="ok")


# --- the steps that every store goes through ----------------------------------------------------------------------------


def generic_checks(sandbox: Sandbox) -> list[Check]:
    """The checks that need nothing but the contract: reach, ownership, write, read, range, list, multipart, abort, delete."""
    steps = _Generic(sandbox)
    checks = [
        Check("reach", steps.reach),
        Check("ownership", steps.ownership, needs=("reach",)),
        Check("write", steps.write, needs=("ownership",)),
        Check("read back", steps.read_back, needs=("write",)),
        Check("range", steps.range, needs=("read back",)),
        Check("list", steps.list, needs=("write",)),
        Check("multipart", steps.multipart, needs=("write",)),
        Check("abort", steps.abort, needs=("multipart",)),
        Check("delete", steps.delete, needs=("write",)),
    ]
    if sandbox.driver.capabilities.metadata:
        checks.insert(4, Check("metadata", steps.metadata, needs=("write",)))
    return checks


class _Generic:
    """What the generic checks hand on to each other."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self.driver = sandbox.driver
        self.data = os.urandom(4096)
        self.marker: Mapping[str, str] | None = None

    def reach(self) -> Finding:
        self.marker = self.driver.read_marker()
        return ok(f"{self.driver.display_url} answers and accepts the credentials.")

    def ownership(self) -> Finding:
        config = self.driver.config
        if self.marker is None:
            message = "The store carries no ownership marker yet; adding the store writes one."
            return Finding("info", message, facts={"marker": "none"})
        if self.marker.get("cloud") != config.cloud_uuid:
            owner = self.marker.get("cloud", "unreadable marker")
            return Finding(
                "blocker", f"The store belongs to another cloud ({owner}).", Foreign.remedy, facts={"marker": "foreign"}
            )
        if self.marker.get("store") != config.store_uuid:
            message = f"The store is already the store {self.marker.get('store')} of this cloud."
            return Finding("blocker", message, Foreign.remedy, facts={"marker": "foreign"})
        return ok("The store carries our ownership marker.", marker="ours")

    def write(self) -> Finding:
        stored = self.sandbox.put("object", self.data)
        if stored.size != len(self.data):
            return Finding("blocker", f"Wrote {len(self.data)} bytes, the store says {stored.size}.", "Do not use this store.")
        return ok("An object can be written.")

    def read_back(self) -> Finding:
        with self.driver.open(self.sandbox.key("object")) as reader:
            found = reader.pread(0, len(self.data))
        if found != self.data:
            return Finding("blocker", "What was read is not what was written.", "Check the store's disks before using it.")
        return ok("It reads back as it was written.")

    def range(self) -> Finding:
        with self.driver.open(self.sandbox.key("object")) as reader:
            found = reader.pread(1000, 100)
        if found != self.data[1000:1100]:
            remedy = "A proxy or gateway before the store drops the Range header; reach the store without it."
            return Finding("blocker", "Asked for 100 bytes in the middle, got others.", remedy)
        return ok("Ranges are honoured.")

    def metadata(self) -> Finding:
        found = self.driver.stat(self.sandbox.key("object")).metadata
        if found.get("cs-probe") != self.sandbox.token:
            remedy = "A gateway before the store drops metadata headers; without them objects do not tell what they are."
            return Finding("blocker", "Metadata sent with the object is lost.", remedy)
        return ok("Metadata is kept with the object.")

    def list(self) -> Finding:
        keys = [info.key for info in self.driver.list(self.sandbox.root)]
        if self.sandbox.key("object") not in keys:
            remedy = "Grant the right to list; if it is granted, the listing lags and scans would miss what is there."
            return Finding("blocker", "The listing does not show an object that was just written.", remedy)
        return ok("Listing shows what was written.")

    def multipart(self) -> Finding:
        part_size = min(PART_SIZE, self.driver.capabilities.min_part_size)
        first, last = os.urandom(part_size), os.urandom(1024)
        upload = self.sandbox.begin("multipart", size=part_size + len(last), part_size=part_size)
        parts = [self.driver.put_part(upload, 1, 0, first), self.driver.put_part(upload, 2, part_size, last)]
        listed = [(part.number, part.size) for part in self.driver.list_parts(upload)]
        if listed != [(1, len(first)), (2, len(last))]:
            remedy = "Interrupted copies could not be resumed on this store; update the server."
            return Finding("blocker", f"Of two parts that were sent the store lists {listed}.", remedy)
        stored = self.driver.complete_upload(upload, parts)
        with self.driver.open(upload.key) as reader:
            seam = reader.pread(part_size - 100, 200)
        if stored.size != part_size + len(last) or seam != first[-100:] + last[:100]:
            return Finding("blocker", "Parts were joined wrongly.", "Do not use this store before its server is mended.")
        return ok("An upload in parts works.")

    def abort(self) -> Finding:
        upload = self.sandbox.begin("aborted", size=1024, part_size=PART_SIZE)
        self.driver.put_part(upload, 1, 0, self.data[:1024])
        self.driver.abort_upload(upload)
        if self.driver.exists(upload.key):
            return Finding("blocker", "An aborted upload left an object.", "Do not use this store before its server is mended.")
        try:
            left = any(pending.upload_id == upload.upload_id for pending in islice(self.driver.pending_uploads(), SEEN_UPLOADS))
        except AccessDenied as error:
            remedy = "Grant the right to list uploads, or remove unfinished uploads by a rule of the store."
            return Finding("unknown", f"Unfinished uploads cannot be listed, so debris cannot be found: {error}", remedy)
        if left:
            remedy = "Set a rule on the store that removes unfinished uploads after some days."
            return Finding("warning", "An aborted upload is still listed by the store.", remedy)
        return ok("An aborted upload leaves nothing.")

    def delete(self) -> Finding:
        key = self.sandbox.key("object")
        if not self.driver.delete(key):
            return Finding("blocker", "The store says that what was just written is not there.", "Check the store's consistency.")
        if self.driver.exists(key):
            return Finding("blocker", "A deleted object is still there.", "Grant the right to delete; check object lock.")
        return ok("An object can be deleted.")


# --- what the server verifies --------------------------------------------------------------------------------------------


def conditional_put(sandbox: Sandbox, put_if_absent: Callable[[str, bytes], object]) -> Finding:
    """Whether a second conditional write of the same key is refused.

    `put_if_absent` sends the condition whatever the facts say. Fact `conditional_put`: bool.
    """
    key = sandbox.key("conditional")
    try:
        put_if_absent(key, b"first")
    except Unavailable:
        raise
    except StoreError as error:
        return Finding("info", f"The server has no conditional writes: {error}", facts={"conditional_put": False})
    try:
        put_if_absent(key, b"second")
    except AlreadyExists:
        return ok("A conditional write of a key that is taken is refused.", conditional_put=True)
    remedy = "Nothing to do: duplicates are then caught by leases and by looking before writing."
    return Finding("info", "The server ignores the condition of a conditional write.", remedy, {"conditional_put": False})


def wrong_checksums(sandbox: Sandbox, attempts: Mapping[str, Callable[[str, bool], object]], *, nothing: str) -> Finding:
    """Send right and then wrong checksums, and tell which the server verifies.

    `attempts[name](key, wrong)` sends data with a checksum that does not fit it when `wrong`. A checksum counts only when the
    right one is accepted and the wrong one refused. Facts: `verifies`, `ignores` and `refuses`, lists of names. `nothing` says
    what it means when the list is empty.
    """
    verdicts: dict[str, list[str]] = {"verifies": [], "ignores": [], "refuses": []}
    for number, (name, send) in enumerate(attempts.items()):
        verdicts[_verdict(sandbox.key(f"checksum-{number}"), send)].append(name)
    if verdicts["verifies"]:
        return ok(f"The server refuses wrong checksums: {', '.join(verdicts['verifies'])}.", **verdicts)
    remedy = "Nothing to do; prefer a server that verifies checksums."
    return Finding("warning", f"The server verifies no checksum that was tried. {nothing}", remedy, verdicts)


def _verdict(key: str, send: Callable[[str, bool], object]) -> str:
    try:
        send(key, False)
    except Unavailable:
        raise
    except StoreError:
        return "refuses"
    try:
        send(key, True)
    except Unavailable:
        raise
    except (StoreError, ValueError):
        return "verifies"
    return "ignores"


def clock_skew(skew: float, *, tolerated: float = 300.0) -> Finding:
    """Judge the difference (server minus us, seconds). Fact `clock_skew`: float."""
    facts = {"clock_skew": round(skew, 1)}
    if abs(skew) > tolerated:
        remedy = "Synchronise the clocks (NTP): S3 refuses requests that are more than 15 minutes off, links expire early."
        return Finding("warning", f"The store's clock differs from ours by {skew:+.0f} s.", remedy, facts)
    return Finding("ok", f"The clocks agree within {abs(skew):.0f} s.", facts=facts)
