"""What must be known of a bucket before images are trusted to it: what its server verifies, and which rules would undo our work.

Facts that the driver reads back: `verifies` (names such as `put:crc32c`, `part:md5`), `declares_checksum`, `etag_md5`,
`etag_md5_part`, `etag_md5_multipart`, `conditional_put`, `conditional_complete`, `max_parts`.
"""

from __future__ import annotations

import contextlib
import hashlib
import zlib
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from stores.drivers import s3_wire as wire
from stores.drivers.base import MARKER_KEY, Part, ProbeStep
from stores.drivers.errors import AlreadyExists, Foreign, NotFound, StoreError
from stores.drivers.probe import (
    PROBE_FOLDER,
    Check,
    Finding,
    Sandbox,
    clock_skew,
    conditional_put,
    generic_checks,
    ok,
    run,
    wrong_checksums,
)

if TYPE_CHECKING:
    from stores.drivers.s3 import S3Driver

ALGORITHMS: Mapping[str, tuple[str, Callable[[bytes], bytes]]] = {
    "crc32c": ("ChecksumCRC32C", wire.crc32c),
    "md5": ("ContentMD5", wire.md5),
    "crc32": ("ChecksumCRC32", lambda data: zlib.crc32(data).to_bytes(4, "big")),
    "sha256": ("ChecksumSHA256", lambda data: hashlib.sha256(data).digest()),
}
PART_NUMBERS = (10_000, 5_000, 2_000, 1_000)
COLD = ("GLACIER", "DEEP_ARCHIVE")
ASK_THE_STORE = "Ask the store's administrator; a rule that removes or moves objects would lose images."


def probe(driver: S3Driver) -> Iterator[ProbeStep]:
    """The steps of `S3Driver.probe`, made by a driver that believes nothing yet."""
    trial = type(driver)(replace(driver.config, facts={}))
    trial.wire = driver.wire
    steps = _S3Probe(trial)
    return run(steps.checks(), steps.sandbox)


class _S3Probe:
    def __init__(self, driver: S3Driver) -> None:
        self.driver = driver
        self.sandbox = Sandbox(driver, scrub=self._scrub)
        self._versioned: bool | None = None

    def checks(self) -> list[Check]:
        generic = generic_checks(self.sandbox)
        return [
            *generic[:1],
            Check("clock", self.clock, needs=("reach",), optional=True),
            Check("region", self.region, needs=("reach",), optional=True),
            *generic[1:2],
            Check("foreign content", self.foreign_content, needs=("ownership",)),
            *generic[2:],
            Check("checksums", self.checksums, needs=("multipart", "delete")),
            Check("etags", self.etags, needs=("multipart", "delete")),
            Check("conditional put", self.conditional, needs=("write", "delete")),
            Check("conditional completion", self.conditional_completion, needs=("multipart", "delete"), optional=True),
            Check("maximum of parts", self.max_parts, needs=("multipart",)),
            Check("lifecycle rules", self.lifecycle, needs=("reach",), optional=True),
            Check("versioning", self.versioning, needs=("reach",), optional=True),
            Check("object lock", self.object_lock, needs=("reach",), optional=True),
            Check("default encryption", self.encryption, needs=("reach",), optional=True),
            Check("public access", self.public_access, needs=("reach",), optional=True),
        ]

    # --- the place -------------------------------------------------------------------------------------------------------

    def clock(self) -> Finding:
        answer = self.driver.call("head_bucket", "look at the bucket")
        date = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
        if not date:
            return Finding("unknown", "The server does not tell its time.", "Check its clock by hand.")
        return clock_skew((parsedate_to_datetime(date) - datetime.now(UTC)).total_seconds())

    def region(self) -> Finding:
        ours = self.driver.settings.region
        answer = self.driver.call("head_bucket", "look at the bucket")
        theirs = answer["ResponseMetadata"]["HTTPHeaders"].get("x-amz-bucket-region")
        if theirs and theirs != ours:
            remedy = f"Set the region to {theirs}."
            return Finding("warning", f"The bucket is in region {theirs}, the store says {ours}.", remedy, field="region")
        if not theirs:
            return Finding("info", f"The server names no region and accepts {ours!r}.")
        return ok(f"The bucket is in region {theirs}.")

    def foreign_content(self) -> Finding:
        if self.driver.read_marker() is not None:
            return ok("What lies in the bucket lies below our marker.")
        for info in self.driver.list():
            if info.key != MARKER_KEY and not info.key.startswith(f"{PROBE_FOLDER}/"):
                message = f"There is content that is not ours ({info.key!a} among it), and no ownership marker."
                return Finding("blocker", message, Foreign.remedy, field="prefix")
        return ok("Nothing else lies where images will be kept.")

    # --- what the server verifies ----------------------------------------------------------------------------------------

    def checksums(self) -> Finding:
        declares = self._accepts_declared()
        attempts: dict[str, Callable[[str, bool], object]] = {}
        for name in ALGORITHMS:
            attempts[f"put:{name}"] = self._put_with(name)
            attempts[f"part:{name}"] = self._part_with(name, declared=declares and name != "md5")
        nothing = "Copies are then proven by the ETag, or by reading them back."
        found = wrong_checksums(self.sandbox, attempts, nothing=nothing)
        return replace(found, facts={**found.facts, "declares_checksum": declares})

    def _accepts_declared(self) -> bool:
        """Whether an upload may declare its checksum and name each part's on completion, as Amazon demands."""
        try:
            self._send_part(self.sandbox.key("declared"), "crc32c", wrong=False, declared=True)
        except StoreError:
            return False
        return True

    def _put_with(self, name: str) -> Callable[[str, bool], object]:
        parameter, digest = ALGORITHMS[name]

        def send(key: str, wrong: bool) -> object:
            body = b"cloudstorage" * 10
            checksum = b64encode(digest(b"other" if wrong else body)).decode()
            return self.driver.call(
                "put_object", "write with a checksum", Key=self.driver.full_key(key), Body=body, **{parameter: checksum}
            )

        return send

    def _part_with(self, name: str, *, declared: bool) -> Callable[[str, bool], object]:
        return lambda key, wrong: self._send_part(key, name, wrong=wrong, declared=declared)

    def _send_part(self, key: str, name: str, *, wrong: bool, declared: bool) -> None:
        parameter, digest = ALGORITHMS[name]
        body = b"cloudstorage" * 10
        checksum = b64encode(digest(b"other" if wrong else body)).decode()
        place = {"Key": self.driver.full_key(key)}
        begun = self.driver.call(
            "create_multipart_upload", "begin an upload", **place, **({"ChecksumAlgorithm": name.upper()} if declared else {})
        )
        place["UploadId"] = begun["UploadId"]
        try:
            answer = self.driver.call(
                "upload_part", "send a part with a checksum", **place, PartNumber=1, Body=body, **{parameter: checksum}
            )
            part = {"PartNumber": 1, "ETag": answer["ETag"], **({parameter: checksum} if declared else {})}
            self.driver.call("complete_multipart_upload", "complete an upload", **place, MultipartUpload={"Parts": [part]})
        except StoreError:
            with contextlib.suppress(StoreError):
                self.driver.call("abort_multipart_upload", "abort an upload", **place)
            raise

    def etags(self) -> Finding:
        data = b"cloudstorage" * 100
        digest = wire.md5(data).hex()
        whole = self.sandbox.put("etag", data).etag == digest
        upload = self.sandbox.begin("etag-multipart", size=len(data), part_size=len(data))
        part = self.driver.put_part(upload, 1, 0, data)
        joined = self.driver.complete_upload(upload, [part]).etag == f"{wire.md5(bytes.fromhex(digest)).hex()}-1"
        facts = {"etag_md5": whole, "etag_md5_part": part.etag == digest, "etag_md5_multipart": joined}
        if all(facts.values()):
            return Finding("ok", "ETags are the MD5 of what was stored.", facts=facts)
        remedy = "Nothing to do: where no checksum is verified either, copies are read back."
        return Finding("info", "ETags are not (all) the MD5 of what was stored, as with KMS encryption.", remedy, facts)

    def conditional(self) -> Finding:
        def put_if_absent(key: str, data: bytes) -> object:
            place = self.driver.full_key(key)
            return self.driver.call("put_object", "write conditionally", Key=place, Body=data, IfNoneMatch="*")

        return conditional_put(self.sandbox, put_if_absent)

    def conditional_completion(self) -> Finding:
        self.driver.put(self.sandbox.key("conditional-multipart"), b"first", metadata={}, token="")
        upload = self.sandbox.begin("conditional-multipart", size=6, part_size=6)
        part = self.driver.put_part(upload, 1, 0, b"second")
        believing = type(self.driver)(replace(self.driver.config, facts={"conditional_complete": True}))
        believing.wire = self.driver.wire
        try:
            believing.complete_upload(upload, [part], if_absent=True)
        except AlreadyExists:
            return ok("Completing an upload onto a taken key is refused when asked so.", conditional_complete=True)
        except StoreError as error:
            return Finding("info", f"The server has no conditional completion: {error}", facts={"conditional_complete": False})
        message = "The server ignores the condition when an upload is completed."
        return Finding("info", message, facts={"conditional_complete": False})

    def max_parts(self) -> Finding:
        upload = self.sandbox.begin("numbers", size=None, part_size=5)
        for number in PART_NUMBERS:
            if isinstance(self._try_part(upload, number), Part):
                return ok(f"An upload may have {number} parts.", max_parts=number)
        message = f"The server refuses part number {PART_NUMBERS[-1]}."
        return Finding("blocker", message, "Use another server: large images need at least that many parts.")

    def _try_part(self, upload: Any, number: int) -> Part | None:
        try:
            return self.driver.put_part(upload, number, 0, b"probe")
        except StoreError as error:
            if error.retryable:
                raise
            return None

    # --- rules of the bucket ---------------------------------------------------------------------------------------------

    def _ask(self, operation: str, about: str) -> dict[str, Any] | Finding:
        """The bucket's configuration, {} where the server says that there is none, a finding where it cannot say."""
        try:
            return self.driver.call(operation, f"ask for {about}")
        except NotFound:
            return {}
        except wire.Unsupported:
            return Finding("info", f"The server has no such feature: {about}.")

    def lifecycle(self) -> Finding:
        answer = self._ask("get_bucket_lifecycle_configuration", "lifecycle rules")
        if isinstance(answer, Finding):
            return answer
        if answer and "Rules" not in answer:
            return Finding("unknown", "The server answers the question for lifecycle rules with something else.", ASK_THE_STORE)
        rules = [rule for rule in answer.get("Rules", ()) if rule.get("Status") == "Enabled" and self._covers(rule)]
        return judge_rules(rules)

    def _covers(self, rule: Mapping[str, Any]) -> bool:
        """Whether a rule may touch our objects. They carry no tags, so a rule for a tag never does."""
        chosen = rule.get("Filter") or {}
        both = chosen.get("And", {})
        if "Tag" in chosen or both.get("Tags"):
            return False
        prefix = str(rule.get("Prefix") or chosen.get("Prefix") or both.get("Prefix") or "")
        ours = f"{self.driver.settings.prefix}/" if self.driver.settings.prefix else ""
        return prefix.startswith(ours) or ours.startswith(prefix)

    def versioning(self) -> Finding:
        answer = self._ask("get_bucket_versioning", "versioning")
        if isinstance(answer, Finding):
            return answer
        if answer.get("Status") == "Enabled":
            remedy = "Add a lifecycle rule that removes noncurrent versions, or switch versioning off."
            return Finding("warning", "Versioning is on: what is deleted or replaced still takes space.", remedy)
        return ok("Versioning is off.")

    def object_lock(self) -> Finding:
        answer = self._ask("get_object_lock_configuration", "object lock")
        if isinstance(answer, Finding):
            return answer
        lock = answer.get("ObjectLockConfiguration", {})
        if lock.get("Rule"):
            remedy = "Remove the default retention, or expect that deleted images keep their space until it ends."
            return Finding("warning", "Object lock keeps every object for a time: deletes free no space.", remedy)
        if lock.get("ObjectLockEnabled") == "Enabled":
            return Finding("info", "Object lock is possible in this bucket, without a default retention.")
        return ok("Objects are not locked.")

    def encryption(self) -> Finding:
        answer = self._ask("get_bucket_encryption", "default encryption")
        if isinstance(answer, Finding):
            return answer
        rules: Sequence[Mapping[str, Any]] = answer.get("ServerSideEncryptionConfiguration", {}).get("Rules", ())
        if answer and not rules:
            remedy = "Ask the store's administrator; where all must be encrypted, choose an encryption for the store."
            return Finding("unknown", "The server answers the question for default encryption with something else.", remedy)
        kinds = {str(rule.get("ApplyServerSideEncryptionByDefault", {}).get("SSEAlgorithm")) for rule in rules}
        if any(kind.startswith("aws:kms") for kind in kinds):
            return Finding("info", "The bucket encrypts with KMS by default: ETags tell nothing of the content.")
        return ok(f"The bucket encrypts by default ({', '.join(kinds)})." if kinds else "No default encryption.")

    def public_access(self) -> Finding:
        remedy = "Take the right to read back from everybody: images hold their owners' data."
        acl = self._ask("get_bucket_acl", "the access list")
        if isinstance(acl, Finding):
            return acl
        if any("/groups/global/AllUsers" in grant.get("Grantee", {}).get("URI", "") for grant in acl.get("Grants", ())):
            return Finding("warning", "Everybody may read the bucket by its access list.", remedy)
        policy = self._ask("get_bucket_policy_status", "the bucket policy")
        if isinstance(policy, Finding):
            return ok("The access list names no public readers; the server has no bucket policies.")
        if policy.get("PolicyStatus", {}).get("IsPublic"):
            return Finding("warning", "The bucket policy gives access to everybody.", remedy)
        return ok("The bucket is not public.")

    # --- clean-up --------------------------------------------------------------------------------------------------------

    def _scrub(self, key: str) -> None:
        """In a bucket with versions a delete only hides: remove the versions too."""
        if self._versioned is None:
            answer = self._ask("get_bucket_versioning", "versioning")
            self._versioned = isinstance(answer, dict) and bool(answer.get("Status"))
        if not self._versioned:
            return
        full = self.driver.full_key(key)
        page = self.driver.call("list_object_versions", "list versions", Prefix=full)
        for entry in [*page.get("Versions", ()), *page.get("DeleteMarkers", ())]:
            if entry["Key"] == full:
                self.driver.call("delete_object", "delete a version", Key=full, VersionId=entry["VersionId"])


def judge_rules(rules: Sequence[Mapping[str, Any]]) -> Finding:
    """What enabled lifecycle rules that cover our objects mean for them."""
    for rule in rules:
        name = str(rule.get("ID", "without a name"))[:60]
        expiry = rule.get("Expiration", {})
        if "Days" in expiry or "Date" in expiry:
            remedy = "Remove the rule, or exclude the store's prefix from it."
            return Finding("blocker", f"The lifecycle rule {name!r} deletes objects: images would be lost.", remedy)
        for transition in rule.get("Transitions", ()):
            kind = str(transition.get("StorageClass"))
            if kind in COLD:
                remedy = "Remove the rule, or exclude the store's prefix from it."
                return Finding(
                    "blocker", f"The lifecycle rule {name!r} moves objects to {kind}, where they cannot be read.", remedy
                )
    for rule in rules:
        name = str(rule.get("ID", "without a name"))[:60]
        if rule.get("Transitions"):
            remedy = "Make sure that the class can be read at once."
            return Finding("warning", f"The lifecycle rule {name!r} moves objects to another storage class.", remedy)
        days = rule.get("AbortIncompleteMultipartUpload", {}).get("DaysAfterInitiation")
        if days is not None:
            message = f"The lifecycle rule {name!r} aborts uploads after {days} days: a copy that is paused longer starts again."
            remedy = "Keep it, with more days than a copy may be paused."
            return Finding("warning", message, remedy, {"abort_uploads_after_days": days})
    return ok("No lifecycle rule removes or moves images.")
