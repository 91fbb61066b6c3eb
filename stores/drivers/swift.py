"""Image stores on OpenStack Swift: objects of one part, and static large objects, never dynamic ones, for what is larger."""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from math import ceil
from typing import Any, ClassVar, Literal
from urllib.parse import urlsplit

from stores.drivers import swift_links as links
from stores.drivers import swift_names as names
from stores.drivers import swift_probe
from stores.drivers.base import (
    MARKER_KEY,
    MARKER_LIMIT,
    Capabilities,
    Digest,
    MiB,
    ObjectInfo,
    Option,
    Part,
    PartData,
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
    StoreError,
    Unavailable,
    UploadGone,
)
from stores.drivers.probe import PROBE_FOLDER
from stores.drivers.swift_http import Credentials, Response, SwiftSession, error_of, listed_size, listed_time, md5
from stores.drivers.swift_reader import SwiftReader
from stores.drivers.swift_segments import DELETING, REPLACED, Segments, make_container, require_container, upload_id_for
from stores.states import Proof

UPLOAD_HEADER = f"{names.OBJECT_META}{names.INTERNAL_META}upload"
"""On a manifest: the upload whose segments it names."""
MAX_CONTAINER_NAME = 256
NOTE_RECHECK = 5.0
"""Seconds after which a part upload looks again whether somebody aborted its upload."""
LAST = "\U0010ffff"


class SwiftDriver(StoreDriver):
    """OpenStack Swift and what speaks its API, by auth v1 or Keystone v3."""

    name: ClassVar[str] = "Swift"
    label: ClassVar[str] = "OpenStack Swift"
    scope: ClassVar[Literal["ZONE", "REGION"]] = "REGION"
    url_help: ClassVar[str] = "Where to sign in: https://host:port/auth/v1.0, or Keystone's https://host:port/v3"
    options: ClassVar[tuple[Option, ...]] = (
        Option("account", "Account", "Auth v1: put before the user name with a colon. Keystone: the project, if none is given."),
        Option("username", "User", "Who signs in.", required=True),
        Option("key", "Key", "The user's key or password.", required=True, secret=True),
        Option("container", "Container", "One for each store; made if it is not there. Empty: named after the store."),
        Option("prefix", "Prefix", "Put before every name, to keep what is ours apart."),
        Option("storagepolicy", "Storage policy", "For containers that are made. Empty: the cluster's default."),
        Option("authversion", "Auth version", "1 or 3 (Keystone). Empty: seen from the url.", kind="choice", choices=("1", "3")),
        Option("project", "Project", "Keystone: the project's name."),
        Option("userdomain", "User domain", "Keystone: name of the user's domain.", default="Default"),
        Option("projectdomain", "Project domain", "Keystone: name of the project's domain.", default="Default"),
        Option("region", "Region", "Keystone: the region whose object store is meant, if there are several."),
        Option("cabundle", "CA bundle", "File with the certificates to trust, if the system's do not do."),
        Option("proxy", "Proxy", "http(s)://host:port of a proxy to go through. Empty: none.", secret=True),
        Option("connectiontimeout", "Connection timeout", "Milliseconds.", kind="integer", default="10000"),
        Option("sockettimeout", "Socket timeout", "Milliseconds without a byte.", kind="integer", default="60000"),
        Option("tempurlkey", "Temporary URL key", "Signs links. Empty: the account's own, set if there is none.", secret=True),
    )

    def __init__(self, config: StoreConfig) -> None:
        super().__init__(config)
        detail = {option.name: config.details.get(option.name, "") or option.default for option in self.options}
        version = detail["authversion"] or _version_of(config.url)
        prefixed = version == "1" and detail["account"] and ":" not in detail["username"]
        self.container = detail["container"] or f"cloudstorage-{config.store_uuid}"
        self.prefix = f"{names.escape(detail['prefix'].strip('/'))}/" if detail["prefix"].strip("/") else ""
        self.policy = detail["storagepolicy"]
        self.session = SwiftSession(
            Credentials(
                url=config.url,
                version=version,
                user=f"{detail['account']}:{detail['username']}" if prefixed else detail["username"],
                key=detail["key"],
                project=detail["project"] or detail["account"],
                user_domain=detail["userdomain"],
                project_domain=detail["projectdomain"],
                region=detail["region"],
                cabundle=detail["cabundle"],
                proxy=detail["proxy"],
                connect_timeout=int(detail["connectiontimeout"]) / 1000,
                read_timeout=int(detail["sockettimeout"]) / 1000,
            ),
            config.environment.check_url,
        )
        self._temp_url_key = detail["tempurlkey"]
        self.segments = Segments(self.session, self.container, self.prefix, verified=self._verifies("etag"))

    # --- configuration -------------------------------------------------------------------------------------------------

    @classmethod
    def clean(cls, url: str, details: Mapping[str, str]) -> tuple[str, dict[str, str]]:
        url, cleaned = super().clean(url.strip().rstrip("/"), details)
        _require_plain_url(url)
        version = cleaned["authversion"] or _version_of(url)
        if not version:
            message = "The url ends neither in /v3 nor in /v1.0: say which with authversion."
            raise Misconfigured(message, field="authversion")
        if version == "3" and not url.endswith("/v3"):
            url += "/v3"
        if version == "3" and not (cleaned["project"] or cleaned["account"]):
            raise Misconfigured("Keystone needs the project to sign in to.", field="project")
        cleaned["authversion"] = version
        container = cleaned["container"]
        if "/" in container or len(names.escape(container).encode()) > MAX_CONTAINER_NAME - len("_segments"):
            raise Misconfigured("A container's name has no slash and at most 247 bytes.", field="container")
        cleaned["prefix"] = cleaned["prefix"].strip("/")
        if cleaned["prefix"] and any(part in {"", ".", ".."} for part in cleaned["prefix"].split("/")):
            raise Misconfigured("The prefix must be a plain relative path.", field="prefix")
        if cleaned["proxy"] and urlsplit(cleaned["proxy"]).scheme not in {"http", "https"}:
            raise Misconfigured("The proxy must be like http://host:port.", field="proxy")
        for timeout in ("connectiontimeout", "sockettimeout"):
            if int(cleaned[timeout]) == 0:
                raise Misconfigured(f"{timeout} must be more than 0 ms.", field=timeout)
        return url, cleaned

    @property
    def capabilities(self) -> Capabilities:
        facts = self.config.facts
        return Capabilities(
            max_parts=_number(facts, "max_parts", 1000),
            min_part_size=max(16 * MiB, _number(facts, "min_segment_size", 1)),
            max_part_size=_number(facts, "max_part_size", 5 * 1024 * MiB),
            presign=links.strongest(facts.get("tempurl_digests")) is not None,
            metadata=True,
            conditional_put=facts.get("conditional_put") is True,
            verifies_writes=self._verifies("etag") and self._verifies("segment etag"),
            etag_is_md5=self._verifies("etag"),
        )

    def _verifies(self, what: str) -> bool:
        verified = self.config.facts.get("verifies")
        return isinstance(verified, list | tuple) and what in verified

    @property
    def protocol(self) -> str:
        return urlsplit(self.config.url).scheme

    @property
    def display_url(self) -> str:
        parts = urlsplit(self.config.url)
        return f"{parts.scheme}://{parts.netloc}/{self.container}/{self.prefix}".rstrip("/")

    # --- facts ---------------------------------------------------------------------------------------------------------

    def check(self) -> None:
        marker = self.read_marker()
        if marker is None:
            require_container(self.session, self.container)
            raise Unavailable(f"{self.display_url} has lost its ownership marker {MARKER_KEY}.")
        if (marker.get("cloud"), marker.get("store")) != (self.config.cloud_uuid, self.config.store_uuid):
            raise Foreign(f"{self.display_url} carries the marker of another store ({marker.get('store', 'unreadable')}).")

    def probe(self) -> Iterator[ProbeStep]:
        return swift_probe.probe(self)

    def read_marker(self) -> Mapping[str, str] | None:
        first = {"Range": f"bytes=0-{MARKER_LIMIT - 1}"}
        response = self.session.request("GET", self.container, self.object_name(MARKER_KEY), headers=first, allow=(404, 416))
        if response.status == 404:
            return None
        if response.status == 416:  # it is empty
            return {}
        try:
            marker = json.loads(response.body)
        except (ValueError, RecursionError):
            marker = None
        if not isinstance(marker, dict):
            return {}
        return {str(name): str(value) for name, value in marker.items()}

    def write_marker(self, marker: Mapping[str, str]) -> None:
        self.ensure_containers()
        found = self.read_marker()
        if found is None:
            body = json.dumps(dict(marker), sort_keys=True).encode()
            headers = {"ETag": md5(body), "If-None-Match": "*", "Content-Type": "application/json"}
            name = self.object_name(MARKER_KEY)
            with contextlib.suppress(AlreadyExists):
                self.session.request("PUT", self.container, name, headers=headers, body=body)
            found = self.read_marker()
        if found != dict(marker):
            raise Foreign(f"{self.display_url} already carries the marker of another store.")

    def ensure_containers(self) -> Sequence[str]:
        """Make the containers that are missing; returns those made."""
        made = []
        if make_container(self.session, self.container, self.policy):
            made.append(self.container)
        policy = require_container(self.session, self.container).headers.get("x-storage-policy", self.policy)
        if make_container(self.session, self.segments.container, policy):
            made.append(self.segments.container)
        return made

    def object_name(self, key: str) -> str:
        """The object that holds `key`; raises UnsafeName."""
        return names.object_name(self.prefix, key)

    def stat(self, key: str) -> ObjectInfo:
        head = self._head(key)
        if head is None:
            require_container(self.session, self.container)
            raise NotFound(f"{key!r} is not on {self.display_url}.")
        return self._info(key, head)

    def _head(self, key: str) -> Response | None:
        response = self.session.request("HEAD", self.container, self.object_name(key), allow=(404,))
        return None if response.status == 404 else response

    def _info(self, key: str, head: Response) -> ObjectInfo:
        modified = head.modified
        return ObjectInfo(
            key=key,
            size=head.size,
            modified=modified,
            version=_version(head.etag, modified),
            etag=head.etag or None,
            metadata=names.metadata_of(head.headers),
        )

    def list(self, prefix: str = "", *, after: str = "", prune: Callable[[str], bool] | None = None) -> Iterator[ObjectInfo]:
        start = self.prefix + names.escaped_prefix(prefix)
        marker = self.prefix + names.escape(after) if after else ""
        hide_probes = not prefix.startswith(PROBE_FOLDER)
        pruned: dict[str, bool] = {f"{PROBE_FOLDER}/": hide_probes}

        def skip(folder: str) -> bool:
            if folder not in pruned:
                if len(pruned) > 1000:
                    pruned.clear()
                    pruned[f"{PROBE_FOLDER}/"] = hide_probes
                pruned[folder] = prune is not None and len(folder) > len(prefix) and prune(folder)
            return pruned[folder]

        while page := self.session.page(self.container, prefix=start, marker=marker):
            marker = str(page[-1]["name"])
            for entry in page:
                key = names.unescape(str(entry["name"])[len(self.prefix) :])
                if not key.startswith(prefix):
                    continue
                folder = next((key[: at + 1] for at, letter in enumerate(key) if letter == "/" and skip(key[: at + 1])), None)
                if folder is not None:
                    if entry is page[-1]:
                        # Whole pages of a pruned folder need not be fetched; what lies behind its last name, if anything
                        # can, is filtered like all else.
                        marker = max(marker, self.prefix + names.escape(folder) + LAST, key=str.encode)
                    continue
                if key != MARKER_KEY and (prune is None or not prune(key)):
                    yield _listed(key, entry)

    # --- reading -------------------------------------------------------------------------------------------------------

    def open(self, key: str) -> Reader:
        return SwiftReader(self, self.object_name(key), self.stat(key))

    def presign(self, key: str, *, expires: int, filename: str = "") -> str | None:
        digest = links.strongest(self.config.facts.get("tempurl_digests"))
        signing_key = links.account_key(self.session, self._temp_url_key) if digest else None
        if digest and not signing_key and not self._is_large(key):
            signing_key = links.container_key(self.session, self.container, self._temp_url_key)
        if not digest or not signing_key:
            return None
        name = self.object_name(key)
        return links.link(self.session, self.container, name, key=signing_key, digest=digest, expires=expires, filename=filename)

    def _is_large(self, key: str) -> bool:
        head = self._head(key)
        return head is not None and _says_true(head, "x-static-large-object")

    # --- writing -------------------------------------------------------------------------------------------------------

    def put(
        self, key: str, data: bytes | memoryview, *, metadata: Mapping[str, str], token: str, if_absent: bool = False
    ) -> Stored:
        return self.publish(key, data, headers=names.meta_headers(metadata), if_absent=if_absent)

    def publish(
        self,
        key: str,
        body: bytes | memoryview,
        *,
        headers: Mapping[str, str],
        if_absent: bool,
        manifest_of: Sequence[Part] = (),
    ) -> Stored:
        """Write the object or the manifest `body` at `key`, then remove the segments of what it replaced.

        Where the server honours conditions, what is new costs one request, and only what lies at a taken name is looked at.
        """
        name = self.object_name(key)
        etag = md5("".join(part.etag for part in manifest_of).encode() if manifest_of else body)
        sent = {"Content-Type": "application/octet-stream", **headers, "ETag": etag}
        query = {"multipart-manifest": "put"} if manifest_of else {}

        write = partial(self.session.request, "PUT", self.container, name, query=query, body=body, allow=(400, 404, 412))
        response, old_upload = None, ""
        if self.capabilities.conditional_put:
            # Sent again after a lost answer, it would meet what it wrote itself.
            response = write(headers={**sent, "If-None-Match": "*"}, repeatable=not if_absent)
        if response is None or (response.status == 412 and not if_absent):
            replaced = self._head(key)
            if if_absent and replaced is not None:
                raise AlreadyExists(f"{key!r} is already on {self.display_url}.")
            found = replaced.headers.get(UPLOAD_HEADER, "") if replaced else ""
            # Its own upload: a manifest whose answer was lost, or that a late worker wrote as well.
            old_upload = found if found != headers.get(UPLOAD_HEADER) else ""
            if old_upload:
                self.segments.write_note(key, old_upload, REPLACED)
            response = write(headers=sent)
        if response.status >= 300:
            raise self._refusal(key, response, manifest=bool(manifest_of))
        if response.etag and response.etag != etag:
            raise Corrupt(f"Swift stored {key!r} with another checksum than was sent.")
        if old_upload:
            # The note stays until this has worked, so the reaper finishes what fails here.
            with contextlib.suppress(StoreError):
                self.segments.remove(key, old_upload)
        size = sum(part.size for part in manifest_of) if manifest_of else len(memoryview(body).cast("B"))
        verified = self._verifies_all(manifest_of) if manifest_of else self._verifies("etag")
        proof = Proof.VERIFIED if verified and response.etag else Proof.ATTESTED if response.etag else None
        return Stored(size, etag, _version(etag, self._written(key, response)), proof)

    def _refusal(self, key: str, response: Response, *, manifest: bool) -> StoreError:
        if response.status == 404:
            require_container(self.session, self.container)
            return Unavailable(f"Swift answered 404 to writing {key!r}, although the container is there.")
        if response.status == 412:
            return AlreadyExists(f"{key!r} is already on {self.display_url}.")
        if response.status == 400 and manifest:
            return Corrupt(f"Swift refused the manifest of {key!r}: its segments are not those that were sent.")
        return error_of(response, f"PUT {key!r}")

    def _verifies_all(self, parts: Sequence[Part]) -> bool:
        return self._verifies("segment etag") and all(part.verified for part in parts)

    def _written(self, key: str, response: Response) -> datetime:
        return response.modified if "last-modified" in response.headers else self.stat(key).modified

    def begin_upload(self, key: str, *, size: int | None, part_size: int, metadata: Mapping[str, str], token: str) -> Upload:
        # Unique even when a token comes twice: the segments of what is published must never be written over.
        upload = Upload(key, upload_id_for(token, secrets.token_hex(6)), size, part_size, token)
        self.segments.begin(upload, metadata)
        return upload

    def part_digest(self) -> Digest:
        return hashlib.md5(usedforsecurity=False)

    def put_part(self, upload: Upload, number: int, offset: int, data: PartData) -> Part:
        part = self.segments.put(upload, number, offset, data)
        try:
            self.segments.metadata(upload, fresher_than=time.monotonic() - NOTE_RECHECK)
        except UploadGone:
            # Whoever aborted the upload meanwhile may not have seen this segment.
            self.abort_upload(upload)
            raise
        return part

    def list_parts(self, upload: Upload) -> Sequence[Part]:
        self.segments.metadata(upload, fresher_than=time.monotonic())
        return self.segments.parts(upload)

    def complete_upload(self, upload: Upload, parts: Sequence[Part], *, if_absent: bool = False) -> Stored:
        self._check_parts(upload, parts)
        segments = [part for part in parts if part.size]
        try:
            metadata = self.segments.metadata(upload, fresher_than=time.monotonic())
        except UploadGone:
            if (finished := self._already_complete(upload, segments)) is not None:
                return finished
            self.abort_upload(upload)
            raise
        headers = {**metadata, UPLOAD_HEADER: upload.upload_id}
        manifest = json.dumps(
            [{"path": self.segments.path(upload, part.number), "etag": part.etag, "size_bytes": part.size} for part in segments]
        ).encode()
        if (stored := self._already_complete(upload, segments)) is None:
            body = manifest if segments else b""
            stored = self.publish(upload.key, body, headers=headers, if_absent=if_absent, manifest_of=segments)
        with contextlib.suppress(StoreError):
            self.segments.remove_note(upload.key, upload.upload_id)
        return stored

    def _check_parts(self, upload: Upload, parts: Sequence[Part]) -> None:
        end = 0
        for number, part in enumerate(parts, 1):
            if part.number != number or part.offset != end:
                raise Corrupt(f"Part {number} of {upload.key!r} is missing or does not follow the one before it.")
            end += part.size
        if upload.size is not None and end != upload.size:
            raise Corrupt(f"The parts of {upload.key!r} are {end} bytes together, not {upload.size}.")

    def _already_complete(self, upload: Upload, segments: Sequence[Part]) -> Stored | None:
        head = self._head(upload.key)
        if head is None or head.headers.get(UPLOAD_HEADER) != upload.upload_id:
            return None
        etag = md5("".join(part.etag for part in segments).encode())
        if head.etag != etag:
            raise Corrupt(f"{upload.key!r} was completed from other parts than these.")
        proof = Proof.VERIFIED if self._verifies_all(segments) else Proof.ATTESTED
        return Stored(sum(part.size for part in segments), etag, _version(etag, head.modified), proof)

    def abort_upload(self, upload: Upload) -> None:
        head = self._head(upload.key)
        if head is not None and head.headers.get(UPLOAD_HEADER) == upload.upload_id:
            # It was completed, or its removal never began: the segments are the object's.
            self.segments.remove_note(upload.key, upload.upload_id)
            return
        self.segments.mark_aborting(upload)
        self.segments.remove(upload.key, upload.upload_id)

    def pending_uploads(self) -> Iterator[PendingUpload]:
        return self.segments.pending()

    def delete(self, key: str) -> bool:
        head = self._head(key)
        if head is None:
            require_container(self.session, self.container)
            return False
        upload_id = head.headers.get(UPLOAD_HEADER, "")
        if upload_id:
            self.segments.write_note(key, upload_id, DELETING)
        foreign_segments = not upload_id and _says_true(head, "x-static-large-object")
        query = {"multipart-manifest": "delete"} if foreign_segments else {}
        response = self.session.request("DELETE", self.container, self.object_name(key), query=query, allow=(404,))
        if upload_id:
            self.segments.remove(key, upload_id)
        return response.status != 404

    def close(self) -> None:
        self.session.close()


def _require_plain_url(url: str) -> None:
    parts = urlsplit(url)
    plain = parts.scheme in {"http", "https"} and parts.hostname and not (parts.username or parts.query or parts.fragment)
    if not plain:
        message = "The url must be like http(s)://host:port/auth/v1.0 or http(s)://host:port/v3, without a user or a query."
        raise Misconfigured(message, field="url")
    try:
        parts.port  # noqa: B018 - reading it is what checks it
    except ValueError:
        raise Misconfigured("The url's port is no port number.", field="url") from None


def _version_of(url: str) -> str:
    last = urlsplit(url).path.rstrip("/").rpartition("/")[2]
    return {"v3": "3", "v1.0": "1", "1.0": "1", "v1": "1"}.get(last, "")


def _says_true(response: Response, header: str) -> bool:
    return response.headers.get(header, "").lower() == "true"


def _number(facts: Mapping[str, object], name: str, default: int) -> int:
    value = facts.get(name)
    return value if isinstance(value, int) and value > 0 else default


def _version(etag: str, modified: datetime) -> str:
    # Whole seconds, rounded up as Last-Modified is: the answer to a PUT tells no more, and all ways of asking must agree.
    return f"{etag}@{ceil(modified.timestamp())}"


def _listed(key: str, entry: Mapping[str, Any]) -> ObjectInfo:
    modified = listed_time(entry)
    etag = str(entry.get("slo_etag") or entry.get("hash") or "").strip('"')
    return ObjectInfo(key, listed_size(entry), modified, _version(etag, modified), etag or None)
