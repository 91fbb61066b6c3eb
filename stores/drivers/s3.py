"""Keeps images in a bucket of any S3-compatible server, and claims as proven only what the server's probe showed it to check.

What a server verifies, refuses and supports is read from `StoreConfig.facts`; without facts the driver promises the least.
A store is described by its details alone; a url is only another way to write endpoint, bucket and prefix.
"""

from __future__ import annotations

import contextlib
import json
import re
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, ClassVar, Literal
from urllib.parse import quote, unquote

from stores.drivers import s3_wire as wire
from stores.drivers.base import (
    MARKER_KEY,
    MARKER_LIMIT,
    Capabilities,
    Digest,
    ObjectInfo,
    Option,
    Part,
    PartData,
    PartSource,
    PendingUpload,
    ProbeStep,
    Reader,
    StoreConfig,
    Stored,
    StoreDriver,
    Upload,
)
from stores.drivers.errors import (
    AlreadyExists,
    Corrupt,
    Foreign,
    Misconfigured,
    NotFound,
    Unavailable,
    UnsafeName,
    UploadGone,
)
from stores.drivers.probe import PROBE_FOLDER
from stores.drivers.s3_names import Pruning, escape, escaped_prefix, is_safe, shown, unescape
from stores.drivers.s3_options import OPTIONS, Settings, check_details, merged
from stores.drivers.s3_reader import S3Reader
from stores.drivers.s3_wire import Wire, etag_of, load_descriptions
from stores.states import Proof

TOKEN = "cs-token"  # noqa: S105 - the name of a metadata field
MAX_KEY = 1024
HEADER_SAFE = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) != "%")
MAX_PRESIGN = 7 * 24 * 3600


_TOLD: Mapping[str, tuple[str, ...]] = {
    "head_object": ("ContentLength", "LastModified"),
    "create_multipart_upload": ("UploadId",),
    "list_objects_v2": ("IsTruncated",),
    "list_parts": ("IsTruncated",),
    "list_multipart_uploads": ("IsTruncated",),
}
"""What every S3 answers to an operation."""
_TOLD_OF_EACH: Mapping[str, tuple[str, ...]] = {
    "Contents": ("Key", "Size", "LastModified"),
    "Parts": ("PartNumber", "Size"),
    "Uploads": ("Key", "UploadId", "Initiated"),
}
"""The same of each entry of a listing."""

Parts = list[Part]  # inside the class, `list` is the method


class S3Driver(StoreDriver):
    """A bucket, or a prefix in one."""

    name: ClassVar[str] = "S3"
    label: ClassVar[str] = "S3-compatible object store"
    scope: ClassVar[Literal["ZONE", "REGION"]] = "REGION"
    url_help: ClassVar[str] = "Leave empty and fill in the fields, or write https://endpoint/bucket/prefix."
    options: ClassVar[tuple[Option, ...]] = OPTIONS

    # --- configuration ---------------------------------------------------------------------------------------------------

    def __init__(self, config: StoreConfig) -> None:
        super().__init__(config)
        _, details = self.clean(config.url, config.details)
        self.settings = Settings.parse(details)
        self.page_size = 1000
        self.wire = Wire(self.settings, config.environment.check_url)

    @classmethod
    def prepare(cls) -> None:
        load_descriptions()

    @classmethod
    def clean(cls, url: str, details: Mapping[str, str]) -> tuple[str, dict[str, str]]:
        """The url comes back empty, as CloudStack keeps it for S3: the details alone are the truth."""
        _, clean = super().clean(url, merged(url, details))
        clean["prefix"] = clean["prefix"].strip("/")
        check_details(clean)
        return "", clean

    @property
    def capabilities(self) -> Capabilities:
        facts = self.config.facts
        return Capabilities(
            max_parts=int(str(facts.get("max_parts", 10_000))),
            presign=True,
            metadata=True,
            conditional_put=facts.get("conditional_put") is True,
            verifies_writes=bool(self._checksum("put") and self._checksum("part")),
            etag_is_md5=facts.get("etag_md5") is True and self.settings.sse != "aws:kms",
        )

    @property
    def protocol(self) -> str:
        return self.settings.scheme

    @property
    def display_url(self) -> str:
        settings = self.settings
        return "/".join(filter(None, (settings.endpoint, settings.bucket, settings.prefix)))

    # --- facts -----------------------------------------------------------------------------------------------------------

    def check(self) -> None:
        marker = self.read_marker()
        if marker is None:
            raise Unavailable(f"{self.display_url} answers but carries no ownership marker; nothing is done there without it.")
        if (marker.get("cloud"), marker.get("store")) != (self.config.cloud_uuid, self.config.store_uuid):
            owner = f"cloud {marker.get('cloud', 'unreadable')}, store {marker.get('store', 'unreadable')}"
            raise Foreign(f"{self.display_url} belongs to another: {owner}.")

    def probe(self) -> Iterator[ProbeStep]:
        from stores.drivers.s3_probe import probe

        return probe(self)

    def read_marker(self) -> Mapping[str, str] | None:
        doing = "read the ownership marker"
        try:
            answer = self.call("get_object", doing, Key=self.full_key(MARKER_KEY), Range=f"bytes=0-{MARKER_LIMIT - 1}")
        except NotFound:
            self.require_bucket()
            return None
        try:
            found = json.loads(self.body(answer, doing))
        except (ValueError, RecursionError):
            return {}
        return {str(name): str(value) for name, value in found.items()} if isinstance(found, dict) else {}

    def write_marker(self, marker: Mapping[str, str]) -> None:
        found = self.read_marker()
        if found is None:
            content = json.dumps(dict(marker), sort_keys=True).encode()
            with contextlib.suppress(AlreadyExists):
                self.put(MARKER_KEY, content, metadata={}, token=marker.get("store", ""), if_absent=True)
            found = self.read_marker()
        if found != dict(marker):
            raise Foreign(
                f"{self.display_url} carries another ownership marker (cloud {(found or {}).get('cloud', 'unreadable')})."
            )

    def stat(self, key: str) -> ObjectInfo:
        try:
            answer = self.call("head_object", f"look at {shown(key)}", Key=self.full_key(key))
        except NotFound:
            # A HEAD has no body that would tell a missing object from a missing bucket.
            self.require_bucket()
            raise
        return ObjectInfo(
            key=key,
            size=answer["ContentLength"],
            modified=answer["LastModified"],
            version=_version(answer, answer["ContentLength"], answer["LastModified"]),
            etag=etag_of(answer),
            metadata={name: unquote(value, errors="surrogateescape") for name, value in answer.get("Metadata", {}).items()},
        )

    def list(self, prefix: str = "", *, after: str = "", prune: Callable[[str], bool] | None = None) -> Iterator[ObjectInfo]:
        root = self._root
        hidden = () if prefix.startswith(PROBE_FOLDER) else (MARKER_KEY, f"{PROBE_FOLDER}/")
        params: dict[str, Any] = {"Prefix": root + escaped_prefix(prefix), "MaxKeys": self.page_size}
        if after:
            params["StartAfter"] = root + escape(after)
        pruning = Pruning(prune, prefix) if prune else None
        while True:
            page = self.call("list_objects_v2", "list the bucket", **params)
            for entry in page.get("Contents", ()):
                key = unescape(entry["Key"][len(root) :])
                if not key.startswith(prefix or key[:1]) or key.startswith(hidden) or (pruning and pruning.hides(key)):
                    continue
                yield ObjectInfo(
                    key=key,
                    size=entry["Size"],
                    modified=entry["LastModified"],
                    version=_version(entry, entry["Size"], entry["LastModified"]),
                    etag=etag_of(entry),
                    kind="file" if is_safe(key) else "special" if key.endswith("/") else "unreadable",
                )
            following = page.get("NextContinuationToken")
            if not page.get("IsTruncated"):
                return
            if not following or following == params.get("ContinuationToken"):
                raise Unavailable("The server's listing does not advance, so what it holds cannot be told.")
            params.pop("StartAfter", None)
            params["ContinuationToken"] = following

    # --- reading ---------------------------------------------------------------------------------------------------------

    def open(self, key: str) -> Reader:
        return S3Reader(self, self.stat(key))

    def presign(self, key: str, *, expires: int, filename: str = "") -> str | None:
        params = {"Bucket": self.settings.bucket, "Key": self.full_key(key)}
        if filename:
            plain = re.sub(r'[^\x20-\x7e]|["\\]', "_", filename)
            encoded = quote(filename, safe="", errors="surrogateescape")
            params["ResponseContentDisposition"] = f"attachment; filename=\"{plain}\"; filename*=UTF-8''{encoded}"
        url = self.wire.client.generate_presigned_url("get_object", Params=params, ExpiresIn=min(expires, MAX_PRESIGN))
        return str(url)

    # --- writing ---------------------------------------------------------------------------------------------------------

    def put(
        self, key: str, data: bytes | memoryview, *, metadata: Mapping[str, str], token: str, if_absent: bool = False
    ) -> Stored:
        header, digest, verified = self._sealed("put", data)
        conditional = if_absent and self.capabilities.conditional_put
        try:
            answer = self.call(
                "put_object",
                f"write {shown(key)}",
                Key=self.full_key(key),
                Body=data,
                Metadata=_headers(metadata, token),
                **header,
                **self._encryption,
                **({"IfNoneMatch": "*"} if conditional else {}),
            )
        except AlreadyExists:
            # A repeated request whose first answer was lost meets its own object.
            found = self._own(key, token) if conditional else None
            if found is None or found["ContentLength"] != len(data):
                raise
            answer = found
        proof = Proof.VERIFIED if verified else self._attested("etag_md5", etag_of(answer), digest, answer)
        if etag_of(answer) is None:  # what says yes without one may be something before the store, that kept nothing
            proof = None
        return self._stored(key, len(data), answer, proof)

    def begin_upload(self, key: str, *, size: int | None, part_size: int, metadata: Mapping[str, str], token: str) -> Upload:
        declared = {"ChecksumAlgorithm": "CRC32C"} if self._declares_checksum else {}
        answer = self.call(
            "create_multipart_upload",
            f"begin an upload of {shown(key)}",
            Key=self.full_key(key),
            Metadata=_headers(metadata, token),
            **declared,
            **self._encryption,
        )
        return Upload(key, answer["UploadId"], size, part_size, token)

    def part_digest(self) -> Digest:
        return wire.new_digest(self._checksum("part"))

    def put_part(self, upload: Upload, number: int, offset: int, data: PartData) -> Part:
        header, digest, verified = self._sealed("part", data)
        answer = self.call(
            "upload_part",
            f"write part {number} of {shown(upload.key)}",
            Key=self.full_key(upload.key),
            UploadId=upload.upload_id,
            PartNumber=number,
            Body=data,
            **header,
        )
        etag = etag_of(answer) or ""
        if not verified:
            self._attested("etag_md5_part", etag, digest, answer)
        return Part(number, offset, len(data), etag, digest, verified)

    def list_parts(self, upload: Upload) -> Sequence[Part]:
        parts: Parts = []
        marker = 0
        while True:
            page = self.call(
                "list_parts",
                f"list the parts of {shown(upload.key)}",
                Key=self.full_key(upload.key),
                UploadId=upload.upload_id,
                PartNumberMarker=marker,
            )
            for entry in page.get("Parts", ()):
                number = entry["PartNumber"]
                offset = (number - 1) * upload.part_size
                parts.append(Part(number, offset, entry["Size"], etag_of(entry) or "", self._digest_of(entry), verified=False))
            if not page.get("IsTruncated") or not page.get("Parts"):
                return parts
            if parts[-1].number <= marker:
                raise Unavailable("The server's listing of parts does not advance, so what it has cannot be told.")
            marker = parts[-1].number

    def complete_upload(self, upload: Upload, parts: Sequence[Part], *, if_absent: bool = False) -> Stored:
        parts = parts or [self.put_part(upload, 1, 0, b"")]  # S3 completes nothing without a part
        size = sum(part.size for part in parts)
        if upload.size not in {None, size}:
            raise Corrupt(f"The parts of {shown(upload.key)} add up to {size} bytes, not to {upload.size}.")
        found = self._completed_earlier(upload, parts, size) or self._complete(upload, parts, if_absent=if_absent)
        if found["ContentLength"] != size:
            message = f"{shown(upload.key)} was completed with {found['ContentLength']} bytes instead of {size}."
            raise Corrupt(message)
        if parts and all(part.verified for part in parts):
            proof: Proof | None = Proof.VERIFIED
        else:
            proof = self._attested("etag_md5_multipart", etag_of(found), wire.joined_md5([part.digest for part in parts]), found)
        return self._stored(upload.key, size, found, proof)

    def _completed_earlier(self, upload: Upload, parts: Sequence[Part], size: int) -> dict[str, Any] | None:
        """What an earlier call published, if it tells by its ETag that it consists of these parts."""
        # Asked before completing: some servers answer a repeated completion with success, and publish the object anew.
        try:
            found = self.call("head_object", f"look at {shown(upload.key)}", Key=self.full_key(upload.key))
        except NotFound:
            return None
        same = found["ContentLength"] == size and etag_of(found) == wire.joined_md5([part.etag for part in parts])
        return found if same and _carries(found, upload.token) else None

    def _complete(self, upload: Upload, parts: Sequence[Part], *, if_absent: bool) -> dict[str, Any]:
        conditional = if_absent and self.config.facts.get("conditional_complete") is True
        try:
            self.call(
                "complete_multipart_upload",
                f"complete the upload of {shown(upload.key)}",
                Key=self.full_key(upload.key),
                UploadId=upload.upload_id,
                MultipartUpload={"Parts": [self._completed(part) for part in parts]},
                **({"IfNoneMatch": "*"} if conditional else {}),
            )
        except (UploadGone, AlreadyExists, NotFound):
            # Completed before, and only the answer was lost?
            own = self._own(upload.key, upload.token)
            if own is None:
                raise
            return own
        return self.call("head_object", f"look at {shown(upload.key)}", Key=self.full_key(upload.key))

    def abort_upload(self, upload: Upload) -> None:
        try:
            self.call(
                "abort_multipart_upload",
                f"abort the upload of {shown(upload.key)}",
                Key=self.full_key(upload.key),
                UploadId=upload.upload_id,
            )
        except (UploadGone, NotFound):
            self.require_bucket()

    def pending_uploads(self) -> Iterator[PendingUpload]:
        """Every unfinished upload below our prefix, whoever began it.

        S3 tells no metadata of them: the upload id is what identifies one, and `token` is empty.
        """
        root = self._root
        params: dict[str, Any] = {"Prefix": root, "MaxUploads": self.page_size}
        while True:
            page = self.call("list_multipart_uploads", "list unfinished uploads", **params)
            for entry in page.get("Uploads", ()):
                key = unescape(entry["Key"][len(root) :])
                yield PendingUpload(key, entry["UploadId"], "", entry["Initiated"])
            markers = {"KeyMarker": page.get("NextKeyMarker", ""), "UploadIdMarker": page.get("NextUploadIdMarker", "")}
            if not page.get("IsTruncated") or markers.items() <= params.items():
                return
            params.update(markers)

    def delete(self, key: str) -> bool:
        try:
            self.stat(key)
        except NotFound:
            return False
        self.call("delete_object", f"delete {shown(key)}", Key=self.full_key(key))
        return True

    def close(self) -> None:
        self.wire.close()

    # --- inside ----------------------------------------------------------------------------------------------------------

    def full_key(self, key: str) -> str:
        """The key as the server sees it. Raises UnsafeName for one that no server would keep as it is."""
        if not is_safe(key):
            raise UnsafeName(f"{shown(key)} is no key that can be kept: empty, . and .. folders are refused.")
        full = self._root + escape(key)
        if len(full.encode(errors="replace")) > MAX_KEY:
            raise UnsafeName(f"{shown(key)} is longer than the {MAX_KEY} bytes that S3 allows for a key.")
        return full

    @property
    def _root(self) -> str:
        return f"{escape(self.settings.prefix)}/" if self.settings.prefix else ""

    def call(self, operation: str, doing: str, **params: Any) -> dict[str, Any]:
        """One request about our bucket; `doing` completes "Could not ..."."""
        answer = self.wire.call(operation, doing=doing, **params)
        lacking = [name for name in _TOLD.get(operation, ()) if name not in answer]
        for entries, names in _TOLD_OF_EACH.items():
            lacking += [name for entry in answer.get(entries, ()) for name in names if name not in entry][:1]
        if lacking:  # what is no listing must not pass for an empty one
            message = f"Could not {doing}: what {self.settings.host} answered is not S3's: it lacks {lacking[0]}."
            raise Misconfigured(message, field="endpoint")
        return answer

    def body(self, answer: Mapping[str, Any], doing: str) -> bytes:
        """The whole body of a GET. Raises Interrupted when the connection ends too early."""
        # Not `with answer["Body"]`: that would give the stream below the SDK's own checks.
        with contextlib.closing(answer["Body"]) as stream:
            try:
                content: bytes = stream.read()
            except wire.SDK_ERRORS as error:
                raise wire.Interrupted(f"Could not {doing}: the connection ended too early ({type(error).__name__}).") from error
        return content

    def require_bucket(self) -> None:
        """Tell a missing object from a missing bucket."""
        try:
            self.call("head_bucket", "look at the bucket")
        except NotFound:
            message = f"There is no bucket {self.settings.bucket!r} at {self.settings.endpoint}."
            raise Misconfigured(message, field="bucket") from None

    def _checksum(self, where: Literal["put", "part"]) -> str:
        """The checksum to send: the cheapest that the probe saw verified there, else none."""
        verifies = self.config.facts.get("verifies", ())
        for name in ("crc32c", "md5"):
            if isinstance(verifies, Sequence) and f"{where}:{name}" in verifies:
                return name
        return ""

    @property
    def _declares_checksum(self) -> bool:
        return self._checksum("part") == "crc32c" and self.config.facts.get("declares_checksum") is True

    def _sealed(self, where: Literal["put", "part"], data: PartData) -> tuple[dict[str, str], str, bool]:
        """(request parameters, our digest in hex, whether the server verifies it)."""
        kind = self._checksum(where)
        digest = data.digest if isinstance(data, PartSource) else (wire.crc32c if kind == "crc32c" else wire.md5)(data).hex()
        header = {"crc32c": "ChecksumCRC32C", "md5": "ContentMD5"}.get(kind)
        return ({header: b64encode(bytes.fromhex(digest)).decode()} if header else {}), digest, bool(kind)

    def _completed(self, part: Part) -> dict[str, object]:
        completed: dict[str, object] = {"PartNumber": part.number, "ETag": f'"{part.etag}"'}
        if self._declares_checksum and len(part.digest) == 8:
            completed["ChecksumCRC32C"] = b64encode(bytes.fromhex(part.digest)).decode()
        return completed

    def _own(self, key: str, token: str) -> dict[str, Any] | None:
        """The object at `key` if a write with this token made it."""
        try:
            found = self.call("head_object", f"look at {shown(key)}", Key=self.full_key(key))
        except NotFound:
            self.require_bucket()
            return None
        return found if _carries(found, token) else None

    def _attested(self, fact: str, etag: str | None, digest: str, answer: Mapping[str, Any]) -> Proof | None:
        """ATTESTED if the server's ETag is what we computed; a server known to answer so and that does not has other bytes."""
        if not digest or answer.get("ServerSideEncryption") == "aws:kms" or self.settings.sse == "aws:kms":
            return None
        if etag == digest:
            return Proof.ATTESTED
        if self.config.facts.get(fact) is True:
            raise Corrupt(f"The server's ETag {etag} is not that of the bytes sent ({digest}).")
        return None

    def _digest_of(self, entry: Mapping[str, Any]) -> str:
        if checksum := entry.get("ChecksumCRC32C"):
            return wire.from_base64(checksum).hex()
        etag = etag_of(entry) or ""
        return etag if self.config.facts.get("etag_md5_part") is True and self._checksum("part") != "crc32c" else ""

    def _stored(self, key: str, size: int, answer: Mapping[str, Any], proof: Proof | None) -> Stored:
        etag = etag_of(answer)
        if etag is None:
            info = self.stat(key)
            return Stored(info.size, info.etag or "", info.version, proof)
        return Stored(size, etag, etag, proof)

    @property
    def _encryption(self) -> dict[str, str]:
        encryption = {"ServerSideEncryption": self.settings.sse} if self.settings.sse else {}
        return encryption | ({"SSEKMSKeyId": self.settings.kms_key} if self.settings.kms_key else {})


# --- answers and digests ----------------------------------------------------------------------------------------------


def _headers(metadata: Mapping[str, str], token: str) -> dict[str, str]:
    own = dict(metadata) | ({TOKEN: token} if token else {})
    return {name.lower(): quote(value, safe=HEADER_SAFE, errors="surrogateescape") for name, value in own.items()}


def _version(answer: Mapping[str, Any], size: int, modified: datetime) -> str:
    # The ETag alone: a finished write learns no time, and the same ETag is the same content.
    return etag_of(answer) or f"{size}-{modified.astimezone(UTC).timestamp():.0f}"


def _carries(answer: Mapping[str, Any], token: str) -> bool:
    """Whether the object was made by a write with this token."""
    return bool(token) and unquote(answer.get("Metadata", {}).get(TOKEN, "")) == token
