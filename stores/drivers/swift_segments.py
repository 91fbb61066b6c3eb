"""The parts of Swift's static large objects: where they lie, and the notes that let the reaper find every one left behind.

Segments are `<container>_segments/<prefix><key>/<upload id>/<number>`. A *note*, an empty object below
`<prefix>.cs-pending/`, stands for every upload and for every removal of segments, from before its first effect to after its
last. So debris is found by listing the notes alone, however much the store holds, and a killed removal is finished later.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote, unquote

from stores.drivers import swift_names as names
from stores.drivers.base import Part, PartData, PartSource, PendingUpload, Upload
from stores.drivers.errors import Corrupt, Foreign, LockedOut, Misconfigured, UploadGone
from stores.drivers.swift_http import Response, SwiftSession, listed_size, listed_time, md5

NOTES_FOLDER = ".cs-pending"
"""Where the notes lie; no key of a large object may begin with it."""
STATE_HEADER = f"{names.OBJECT_META}{names.INTERNAL_META}state"
OPEN, ABORTING, REPLACED, DELETING = "open", "aborting", "replaced", "deleting"


class Segments:
    """The segments container of one store. `verified`: the server refuses a part with a wrong checksum."""

    def __init__(self, session: SwiftSession, container: str, prefix: str, *, verified: bool) -> None:
        self.container = f"{container}_segments"
        self._main = container
        self._session = session
        self._prefix = prefix
        self._verified = verified
        self._ensured = False
        self._open: dict[str, tuple[float, dict[str, str]]] = {}

    # --- the container -------------------------------------------------------------------------------------------------

    def ensure(self) -> None:
        """Make the container if it is missing, but only beside a main container that is there."""
        if not self._ensured:
            policy = require_container(self._session, self._main).headers.get("x-storage-policy", "")
            make_container(self._session, self.container, policy)
            self._ensured = True

    def forget(self) -> None:
        """Look again whether the container is there."""
        self._ensured = False

    # --- parts ---------------------------------------------------------------------------------------------------------

    def path(self, upload: Upload, number: int) -> str:
        """The segment as a manifest names it."""
        return f"/{self.container}/{self._segment(upload, number)}"

    def put(self, upload: Upload, number: int, offset: int, data: PartData) -> Part:
        """Store a part, the first one with the upload's metadata."""
        etag = data.digest if isinstance(data, PartSource) else md5(data)
        metadata = self.metadata(upload)
        headers = {"Content-Type": "application/octet-stream", **(metadata if number == 1 else {}), "ETag": etag}
        name = self._segment(upload, number)
        response = self._session.request("PUT", self.container, name, headers=headers, body=data, allow=(404,))
        if response.status == 404:
            self.forget()
            raise UploadGone(f"The container {self.container!r} with the parts of {upload.key!r} is gone.")
        if response.etag and response.etag != etag:
            raise Corrupt(f"Swift stored part {number} of {upload.key!r} with another checksum than was sent.")
        verified = self._verified and bool(response.etag)
        size = len(data) if isinstance(data, PartSource) else memoryview(data).nbytes
        return Part(number, offset, size, etag, etag, verified)

    def parts(self, upload: Upload) -> Sequence[Part]:
        """The parts that are there, in order of their numbers."""
        found: list[Part] = []
        for entry in self._entries(upload.key, upload.upload_id):
            number, size, etag = int(str(entry["name"])[-8:]), listed_size(entry), str(entry.get("hash"))
            end = found[-1].offset + found[-1].size if found else 0
            offset = (number - 1) * upload.part_size if upload.part_size else end
            found.append(Part(number, offset, size, etag, etag, self._verified))
        return found

    def remove(self, key: str, upload_id: str) -> None:
        """Remove the upload's segments, then its note."""
        with contextlib.suppress(Misconfigured):  # no container, no segments
            for entry in self._entries(key, upload_id):
                self._session.request("DELETE", self.container, str(entry["name"]), allow=(404,))
        self.remove_note(key, upload_id)

    def _segment(self, upload: Upload, number: int) -> str:
        name = names.object_name(self._prefix, upload.key)
        return names.checked_length(f"{name}/{upload.upload_id}/{number:08d}")

    def _entries(self, key: str, upload_id: str) -> Iterator[dict[str, Any]]:
        folder, marker = f"{names.object_name(self._prefix, key)}/{upload_id}/", ""
        while page := self._session.page(self.container, prefix=folder, marker=marker):
            marker = str(page[-1]["name"])
            yield from page

    # --- notes ---------------------------------------------------------------------------------------------------------

    def begin(self, upload: Upload, metadata: Mapping[str, str]) -> None:
        """Note the upload with its metadata; raises UnsafeName or Foreign for a key that cannot have segments."""
        if upload.key.split("/", maxsplit=1)[0] == NOTES_FOLDER:
            raise Foreign(f"{upload.key!r}: names below {NOTES_FOLDER} belong to cloudstorage itself.")
        self._segment(upload, 1)
        self.ensure()
        headers = names.meta_headers(metadata)
        self.write_note(upload.key, upload.upload_id, OPEN, headers)
        self._open[upload.upload_id] = (time.monotonic(), headers)

    def metadata(self, upload: Upload, *, fresher_than: float = 0.0) -> dict[str, str]:
        """The metadata headers that the upload was begun with; raises UploadGone when it was aborted or completed.

        `fresher_than`: a monotonic time; what was seen before it is looked up again.
        """
        known = self._open.get(upload.upload_id)
        if known is not None and known[0] >= fresher_than:
            return known[1]
        looked = time.monotonic()
        note = self._session.request("HEAD", self.container, self._note(upload.key, upload.upload_id), allow=(404,))
        if note.status == 404 or note.headers.get(STATE_HEADER) != OPEN:
            self._open.pop(upload.upload_id, None)
            raise UploadGone(f"The upload of {upload.key!r} was aborted or completed.")
        headers = names.meta_headers(names.metadata_of(note.headers))
        self._open[upload.upload_id] = (looked, headers)
        return headers

    def write_note(self, key: str, upload_id: str, state: str, headers: Mapping[str, str] | None = None) -> None:
        """Say what is about to happen to the upload's segments."""
        sent = {**(headers or {}), STATE_HEADER: state}
        response = self._session.request("PUT", self.container, self._note(key, upload_id), headers=sent, allow=(404,))
        if response.status == 404:
            self.forget()
            raise Misconfigured(f"The container {self.container!r} is not in this account.", field="container")

    def mark_aborting(self, upload: Upload) -> None:
        """Let whoever still sends parts see that they are no longer wanted; nothing happens without a note."""
        self._open.pop(upload.upload_id, None)
        note = self._note(upload.key, upload.upload_id)
        self._session.request("POST", self.container, note, headers={STATE_HEADER: ABORTING}, allow=(404,))

    def remove_note(self, key: str, upload_id: str) -> None:
        """Say that nothing is left to do."""
        self._open.pop(upload_id, None)
        self._session.request("DELETE", self.container, self._note(key, upload_id), allow=(404,))

    def pending(self) -> Iterator[PendingUpload]:
        """Everything that has a note."""
        start, marker = f"{self._prefix}{NOTES_FOLDER}/", ""
        while page := self._notes(start, marker):
            marker = str(page[-1]["name"])
            for entry in page:
                escaped_key, _, upload_id = str(entry["name"])[len(start) :].rpartition("/")
                token = unquote(upload_id.rpartition(".")[0])
                yield PendingUpload(names.unescape(escaped_key), upload_id, token, listed_time(entry))

    def _notes(self, start: str, marker: str) -> Sequence[dict[str, Any]]:
        try:
            return self._session.page(self.container, prefix=start, marker=marker)
        except Misconfigured:
            require_container(self._session, self._main)
            return []

    def _note(self, key: str, upload_id: str) -> str:
        return names.checked_length(f"{self._prefix}{NOTES_FOLDER}/{names.escape(key)}/{upload_id}")


def upload_id_for(token: str, nonce: str) -> str:
    """The folder of an upload's segments; `nonce` keeps it apart from earlier ones with the same token."""
    return f"{quote(token, safe='')}.{nonce}"


def require_container(session: SwiftSession, container: str) -> Response:
    """The container's headers; raises Misconfigured when it is not there."""
    response = session.request("HEAD", container, allow=(404,))
    if response.status == 404:
        raise Misconfigured(f"The container {container!r} is not in this account.", field="container")
    return response


def make_container(session: SwiftSession, container: str, policy: str) -> bool:
    """Make the container if it is not there; true if it was made now."""
    if session.request("HEAD", container, allow=(404,)).status != 404:
        return False
    headers = {"X-Storage-Policy": policy} if policy else {}
    response = session.request("PUT", container, headers=headers, allow=(400, 401, 403, 409))
    if response.status in {401, 403}:
        raise LockedOut(f"The container {container!r} is not there and this user may not make it.", field="container")
    if response.status in {400, 409}:
        message = f"The container {container!r} cannot be made with storage policy {policy or 'default'!r}."
        raise Misconfigured(message, field="storagepolicy" if policy else "container")
    return response.status == 201
