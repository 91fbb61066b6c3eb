"""What only Swift has: sign-ins, static large objects and their segments, temporary URLs, quotas and ACLs, on real servers."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import ssl
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stores.drivers import swift_names, swift_segments
from stores.drivers.base import DriverEnvironment, MiB, ProbeStep, StoreConfig, Upload
from stores.drivers.errors import (
    AccessDenied,
    AlreadyExists,
    Corrupt,
    Foreign,
    Full,
    LockedOut,
    Misconfigured,
    NotFound,
    SourceChanged,
    StoreError,
    Throttled,
    Unavailable,
    UnsafeName,
    UploadGone,
)
from stores.drivers.probe import facts_of
from stores.drivers.swift import UPLOAD_HEADER, SwiftDriver
from stores.states import Proof
from tests.drivers.conftest import Streamed
from tests.drivers.http_cases import make_certificate
from tests.servers.fixtures import KeystoneSwift
from tests.servers.proxy import Cut, LoggingHttpProxy
from tests.servers.swift import SwiftServer
from tests.servers.web import request as fetch

CLOUD = "2f7b54f0-2a39-4c55-8ab1-6a7f5a3b9a11"
KEY = "template/tmpl/2/201/201-2-centos/centos.qcow2"
PART = 4096
WRITTEN = "Sat, 21 Nov 2026 01:00:00 GMT"
FACTS = {"verifies": ["etag", "segment etag"], "conditional_put": True, "tempurl_digests": ["sha1", "sha256", "sha512"]}
pytestmark = pytest.mark.live


def details_of(server: SwiftServer, **changes: str) -> dict[str, str]:
    return {"username": server.username, "key": server.key, "container": f"c-{uuid.uuid4().hex[:8]}", **changes}


def connect(
    server: SwiftServer, details: Mapping[str, str], facts: Mapping[str, object] | None = None, **environment: object
) -> SwiftDriver:
    url, cleaned = SwiftDriver.clean(server.auth_url, details)
    facts = FACTS if facts is None else facts
    return SwiftDriver(StoreConfig(url, cleaned, "store-1", CLOUD, facts, DriverEnvironment(**environment)))  # type: ignore[arg-type]


def again(driver: SwiftDriver, **changes: object) -> SwiftDriver:
    """The same store, as another process would open it."""
    return SwiftDriver(replace(driver.config, **changes))  # type: ignore[arg-type]


@pytest.fixture
def driver(swift_server: SwiftServer) -> Iterator[SwiftDriver]:
    made = connect(swift_server, details_of(swift_server))
    made.claim()
    yield made
    made.close()


@pytest.fixture
def keystone_details(keystone_swift: KeystoneSwift) -> dict[str, str]:
    keystone = keystone_swift.keystone
    return details_of(
        keystone_swift.swift,
        project=keystone.project,
        userdomain=keystone.user_domain,
        projectdomain=keystone.project_domain,
        region=keystone.region,
    )


def some_bytes(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def send(driver: SwiftDriver, data: bytes, *, key: str = KEY, token: str = "transfer-1-1", **metadata: str) -> Upload:
    """Upload and publish `data` as a large object."""
    upload = driver.begin_upload(key, size=len(data), part_size=PART, metadata=metadata, token=token)
    driver.complete_upload(upload, send_parts(driver, upload, data))
    return upload


def send_parts(driver: SwiftDriver, upload: Upload, data: bytes) -> list:
    offsets = range(0, len(data), PART)
    return [driver.put_part(upload, number, at, data[at : at + PART]) for number, at in enumerate(offsets, 1)]


def read(driver: SwiftDriver, key: str = KEY) -> bytes:
    with driver.open(key) as reader:
        return reader.pread(0, reader.size)


def in_segments(driver: SwiftDriver) -> list[str]:
    """Every object of the segments container, notes included."""
    return [str(entry["name"]) for entry in driver.session.page(driver.segments.container, prefix="", marker="")]


def step(driver: SwiftDriver, name: str) -> ProbeStep:
    return {found.name: found for found in driver.probe()}[name]


# --- signing in --------------------------------------------------------------------------------------------------------


def test_store_works_when_signed_in_by_keystone(keystone_swift: KeystoneSwift, keystone_details: dict[str, str]) -> None:
    driver = connect(keystone_swift.swift, keystone_details)
    steps = list(driver.probe())
    assert {found.status for found in steps} <= {"ok", "info"}, steps
    facts = facts_of(steps)
    assert facts["auth_version"] == "3"
    assert facts["storage_url"] == keystone_swift.swift.storage_url
    driver.claim()
    data = some_bytes(2 * PART + 5)
    send(driver, data)
    assert read(again(driver)) == data
    assert driver.delete(KEY)
    assert in_segments(driver) == []


@pytest.mark.parametrize(
    ("changes", "error", "field"),
    [
        ({"key": "wrong"}, AccessDenied, "key"),
        ({"username": "nobody"}, AccessDenied, "key"),
        ({"project": "elsewhere"}, AccessDenied, "key"),
        ({"userdomain": "Default"}, AccessDenied, "key"),
        ({"region": "no-such-region"}, Misconfigured, "region"),
    ],
)
def test_sign_in_is_refused_when_keystone_details_are_wrong(
    keystone_swift: KeystoneSwift, keystone_details: dict[str, str], changes: dict[str, str], error: type[StoreError], field: str
) -> None:
    driver = connect(keystone_swift.swift, {**keystone_details, **changes})
    with pytest.raises(error) as raised:
        driver.check()
    assert raised.value.field == field
    assert keystone_details["key"] not in str(raised.value)
    found = step(driver, "sign in")
    assert (found.status, found.field) == ("blocker", field)


def test_token_is_renewed_when_keystone_no_longer_accepts_it(
    keystone_swift: KeystoneSwift, keystone_details: dict[str, str]
) -> None:
    driver = connect(keystone_swift.swift, keystone_details)
    driver.claim()
    token = driver.session._sign_in()[1]
    revoked = fetch(
        "DELETE", f"{keystone_swift.keystone.auth_url}/auth/tokens", headers={"X-Auth-Token": token, "X-Subject-Token": token}
    )
    assert revoked.status == 204
    # Swift may still know the token from its cache, so one that nobody ever knew stands for the expired one.
    driver.session._account = (driver.session.storage_url, "expired")
    driver.check()
    assert driver.session._sign_in()[1] not in {token, "expired"}


def test_token_is_renewed_when_swift_no_longer_accepts_it(driver: SwiftDriver) -> None:
    data = some_bytes(2 * PART)
    upload = driver.begin_upload(KEY, size=len(data), part_size=PART, metadata={}, token="t")
    first = driver.put_part(upload, 1, 0, data[:PART])
    driver.session._account = (driver.session.storage_url, "AUTH_tk_expired")
    parts = [first, driver.put_part(upload, 2, PART, data[PART:])]
    driver.session._account = (driver.session.storage_url, "AUTH_tk_expired")
    driver.complete_upload(upload, parts)
    assert read(driver) == data


@pytest.mark.parametrize("changes", [{"key": "wrong"}, {"username": "test:nobody"}, {"username": "nonsense"}])
def test_access_is_denied_when_credentials_are_wrong(swift_server: SwiftServer, changes: dict[str, str]) -> None:
    driver = connect(swift_server, details_of(swift_server, **changes))
    with pytest.raises(AccessDenied) as raised:
        driver.check()
    assert raised.value.field == "key"
    assert [found.name for found in driver.probe()] == ["sign in", "clean up"]


def test_account_is_put_before_the_user_when_given_apart(swift_server: SwiftServer) -> None:
    account, _, user = swift_server.username.partition(":")
    driver = connect(swift_server, details_of(swift_server, account=account, username=user))
    driver.claim()
    driver.check()


def test_url_is_blamed_when_nobody_signs_in_there(swift_server: SwiftServer) -> None:
    url, cleaned = SwiftDriver.clean(f"{swift_server.url}/nothing/v1.0", details_of(swift_server))
    with pytest.raises(Misconfigured) as raised:
        SwiftDriver(StoreConfig(url, cleaned, "s", CLOUD)).check()
    assert raised.value.field == "url"


def test_storage_url_is_refused_when_the_outbound_policy_forbids_it(swift_server: SwiftServer) -> None:
    asked: list[str] = []

    def check_url(url: str) -> None:
        asked.append(url)
        if "/auth/" not in url:
            raise Misconfigured("not allowed", field="url")

    driver = connect(swift_server, details_of(swift_server), check_url=check_url)
    with pytest.raises(Misconfigured, match="storage URL"):
        driver.check()
    assert asked == [swift_server.auth_url, swift_server.storage_url]


def test_proxy_is_refused_when_the_outbound_policy_forbids_it(swift_server: SwiftServer) -> None:
    def check_url(url: str) -> None:
        if "inside" in url:
            raise Misconfigured(f"not allowed: {url}", field="url")

    details = details_of(swift_server, proxy="http://user:hush@inside.invalid:3128")
    with pytest.raises(Misconfigured) as raised:
        connect(swift_server, details, check_url=check_url).check()
    assert raised.value.field == "proxy"
    assert "hush" not in str(raised.value)


def test_bundle_is_blamed_when_it_is_no_file(swift_server: SwiftServer, tmp_path: Path) -> None:
    with pytest.raises(Misconfigured) as raised:
        connect(swift_server, details_of(swift_server, cabundle=str(tmp_path / "missing.pem"))).check()
    assert raised.value.field == "cabundle"


def test_secrets_stay_out_of_representations(swift_server: SwiftServer) -> None:
    driver = connect(swift_server, details_of(swift_server, key="hush-hush", proxy="http://user:hush-too@127.0.0.1:1"))
    assert "hush" not in repr(driver.session.credentials)
    with pytest.raises(Unavailable) as raised:
        driver.check()
    assert "hush" not in str(raised.value)


# --- configuration -----------------------------------------------------------------------------------------------------

GOOD = {"username": "u", "key": "k"}


@pytest.mark.parametrize(
    ("url", "details", "field"),
    [
        ("ftp://host/auth/v1.0", GOOD, "url"),
        ("https:///auth/v1.0", GOOD, "url"),
        ("https://user:secret@host/auth/v1.0", GOOD, "url"),
        ("https://host:99999/auth/v1.0", GOOD, "url"),
        ("https://host/auth/v1.0?x=y", GOOD, "url"),
        ("https://host/somewhere", GOOD, "authversion"),
        ("https://host/v3", GOOD, "project"),
        ("https://host/auth/v1.0", {"username": "u"}, "key"),
        ("https://host/auth/v1.0", {"key": "k"}, "username"),
        ("https://host/auth/v1.0", {**GOOD, "container": "a/b"}, "container"),
        ("https://host/auth/v1.0", {**GOOD, "container": "c" * 248}, "container"),
        ("https://host/auth/v1.0", {**GOOD, "prefix": "a/../b"}, "prefix"),
        ("https://host/auth/v1.0", {**GOOD, "proxy": "nonsense"}, "proxy"),
        ("https://host/auth/v1.0", {**GOOD, "sockettimeout": "0"}, "sockettimeout"),
        ("https://host/auth/v1.0", {**GOOD, "authversion": "2"}, "authversion"),
        ("https://host/auth/v1.0", {**GOOD, "bucket": "b"}, "bucket"),
    ],
)
def test_field_is_named_when_the_configuration_is_wrong(url: str, details: dict[str, str], field: str) -> None:
    with pytest.raises(Misconfigured) as raised:
        SwiftDriver.clean(url, details)
    assert raised.value.field == field
    assert "secret" not in str(raised.value)


def test_keystone_path_is_added_when_only_the_version_is_given() -> None:
    url, cleaned = SwiftDriver.clean("https://host:5000/", {**GOOD, "authversion": "3", "account": "cloud"})
    assert url == "https://host:5000/v3"
    assert (cleaned["userdomain"], cleaned["projectdomain"]) == ("Default", "Default")
    assert SwiftDriver(StoreConfig(url, cleaned, "s", CLOUD)).session.credentials.project == "cloud"


# --- names -------------------------------------------------------------------------------------------------------------

file_names = st.binary(max_size=30).map(lambda raw: raw.replace(b"\0", b"").decode("utf-8", "surrogateescape"))


@given(st.one_of(file_names, st.text("%25F8\udcff\udc80aé", max_size=12)))
def test_name_comes_back_when_escaped(text: str) -> None:
    escaped = swift_names.escape(text)
    escaped.encode()
    assert swift_names.unescape(escaped) == text
    for end in range(len(text)):
        assert escaped.startswith(swift_names.escaped_prefix(text[:end]))


@given(st.dictionaries(st.text(min_size=1, max_size=8), file_names.filter(bool), max_size=4))
def test_metadata_comes_back_when_sent_as_headers(metadata: dict[str, str]) -> None:
    metadata = {name: value for name, value in metadata.items() if not name.startswith(swift_names.INTERNAL_META)}
    headers = {name.title().lower(): value for name, value in swift_names.meta_headers(metadata).items()}
    assert all(text.isascii() and text.isprintable() for pair in headers.items() for text in pair)
    assert swift_names.metadata_of(headers) == metadata


def test_name_is_refused_when_longer_than_swift_allows(driver: SwiftDriver) -> None:
    driver.put("x" * 1024, b"fits", metadata={}, token="t")
    assert read(driver, "x" * 1024) == b"fits"
    with pytest.raises(UnsafeName):
        driver.put("x" * 1025, b"", metadata={}, token="t")
    with pytest.raises(UnsafeName):
        driver.begin_upload("x" * 1020, size=None, part_size=PART, metadata={}, token="t")
    assert in_segments(driver) == []


def test_key_is_refused_when_it_lies_among_the_notes(driver: SwiftDriver) -> None:
    with pytest.raises(Foreign):
        driver.begin_upload(f"{swift_segments.NOTES_FOLDER}/x", size=None, part_size=PART, metadata={}, token="t")


def test_store_sees_only_its_own_when_it_has_a_prefix(swift_server: SwiftServer) -> None:
    details = details_of(swift_server)
    one, two = (connect(swift_server, {**details, "prefix": prefix}) for prefix in ("cloud/one%80", "/cloud/two/"))
    for driver in (one, two):
        driver.claim()
        send(driver, some_bytes(PART + 1))
    two.begin_upload("pending", size=None, part_size=PART, metadata={}, token="t")
    assert [info.key for info in one.list()] == [info.key for info in two.list()] == [KEY]
    assert (list(one.pending_uploads()), [pending.key for pending in two.pending_uploads()]) == ([], ["pending"])
    one.delete(KEY)
    assert read(two) == some_bytes(PART + 1)


# --- large objects -----------------------------------------------------------------------------------------------------


def test_proof_depends_on_what_the_probe_saw_refused(driver: SwiftDriver) -> None:
    data = some_bytes(PART + 1)
    proofs = {}
    for name, verifies in {"both": ["etag", "segment etag"], "puts": ["etag"], "nothing": []}.items():
        teller = again(driver, facts={"verifies": verifies})
        upload = teller.begin_upload(KEY, size=len(data), part_size=PART, metadata={}, token="t")
        large = teller.complete_upload(upload, send_parts(teller, upload, data))
        small = teller.put("small", b"x", metadata={}, token="t")
        proofs[name] = (small.proof, large.proof, teller.capabilities.verifies_writes)
    assert proofs == {
        "both": (Proof.VERIFIED, Proof.VERIFIED, True),
        "puts": (Proof.VERIFIED, Proof.ATTESTED, False),
        "nothing": (Proof.ATTESTED, Proof.ATTESTED, False),
    }


def test_large_object_is_a_static_one_whose_size_listings_tell(driver: SwiftDriver, swift_server: SwiftServer) -> None:
    data = some_bytes(3 * PART + 1)
    send(driver, data, kind="template")
    headers = swift_server.request("HEAD", f"/{driver.container}/{KEY}").headers
    assert headers["x-static-large-object"] == "True"
    assert "x-object-manifest" not in headers
    (listed,) = driver.list()
    assert listed.size == len(data)
    assert listed.version == driver.stat(KEY).version
    assert listed.etag == driver.stat(KEY).etag


def test_manifest_and_first_segment_tell_the_identity(driver: SwiftDriver, swift_server: SwiftServer) -> None:
    upload = driver.begin_upload(KEY, size=None, part_size=PART, metadata={"cs-kind": "template", "cs-id": "201"}, token="t")
    other = again(driver)
    parts = send_parts(other, upload, some_bytes(PART + 1))
    first, second = (
        swift_server.request("HEAD", f"/{driver.segments.container}/{KEY}/{upload.upload_id}/{number:08d}").headers
        for number in (1, 2)
    )
    assert (first["x-object-meta-cs-kind"], first["x-object-meta-cs-id"]) == ("template", "201")
    assert "x-object-meta-cs-id" not in second
    again(driver).complete_upload(upload, parts)
    assert driver.stat(KEY).metadata == {"cs-kind": "template", "cs-id": "201"}


def test_completion_is_refused_when_a_segment_changed_behind_our_back(driver: SwiftDriver, swift_server: SwiftServer) -> None:
    data = some_bytes(2 * PART)
    upload = driver.begin_upload(KEY, size=len(data), part_size=PART, metadata={}, token="t")
    parts = send_parts(driver, upload, data)
    swift_server.request("PUT", parts_path(driver, upload, 2), body=some_bytes(PART, seed=9))
    with pytest.raises(Corrupt):
        driver.complete_upload(upload, parts)
    assert not driver.exists(KEY)
    driver.abort_upload(upload)
    assert in_segments(driver) == []


def parts_path(driver: SwiftDriver, upload: Upload, number: int) -> str:
    return f"/{driver.segments.container}/{upload.key}/{upload.upload_id}/{number:08d}"


def test_completion_is_refused_when_a_part_is_left_out(driver: SwiftDriver) -> None:
    data = some_bytes(3 * PART)
    upload = driver.begin_upload(KEY, size=len(data), part_size=PART, metadata={}, token="t")
    parts = send_parts(driver, upload, data)
    for wrong in (parts[:2], parts[1:], [parts[0], parts[2]]):
        with pytest.raises(Corrupt):
            driver.complete_upload(upload, wrong)
    assert not driver.exists(KEY)


def test_reading_fails_when_a_segment_is_lost(driver: SwiftDriver, swift_server: SwiftServer) -> None:
    upload = send(driver, some_bytes(2 * PART))
    swift_server.request("DELETE", parts_path(driver, upload, 1))
    with driver.open(KEY) as reader, pytest.raises(StoreError) as raised:
        reader.pread(0, 100)
    assert isinstance(raised.value, Corrupt | Unavailable)


@pytest.mark.parametrize("by", ["small object", "large object", "same token"])
def test_old_segments_go_when_a_large_object_is_overwritten(driver: SwiftDriver, by: str) -> None:
    send(driver, some_bytes(5 * PART))
    if by == "small object":
        driver.put(KEY, b"small", metadata={}, token="t")
        assert read(driver) == b"small"
        assert in_segments(driver) == []
    else:
        data = some_bytes(2 * PART, seed=2)
        upload = send(driver, data, token="transfer-1-1" if by == "same token" else "transfer-2-1")
        assert read(driver) == data
        assert in_segments(driver) == [f"{KEY}/{upload.upload_id}/{number:08d}" for number in (1, 2)]
    assert list(driver.pending_uploads()) == []


def test_large_object_stays_when_a_conditional_write_meets_it(driver: SwiftDriver) -> None:
    data = some_bytes(PART + 1)
    send(driver, data)
    for unconditional in (False, True):
        facts = {**FACTS, "conditional_put": not unconditional}
        writer = again(driver, facts=facts)
        with pytest.raises(AlreadyExists):
            writer.put(KEY, some_bytes(9 * 1024 * 1024), metadata={}, token="t", if_absent=True)
        upload = writer.begin_upload(KEY, size=5, part_size=PART, metadata={}, token="t")
        with pytest.raises(AlreadyExists):
            writer.complete_upload(upload, send_parts(writer, upload, b"other"), if_absent=True)
        writer.abort_upload(upload)
    assert read(driver) == data
    assert len(in_segments(driver)) == 2


def test_conditional_completion_may_be_repeated(driver: SwiftDriver) -> None:
    data = some_bytes(PART + 1)
    upload = driver.begin_upload(KEY, size=len(data), part_size=PART, metadata={}, token="t")
    parts = send_parts(driver, upload, data)
    first = driver.complete_upload(upload, parts, if_absent=True)
    assert again(driver).complete_upload(upload, parts, if_absent=True) == first


def test_completion_is_repeated_when_its_answer_was_lost_before_the_note_went(
    driver: SwiftDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = some_bytes(PART + 1)
    upload = driver.begin_upload(KEY, size=len(data), part_size=PART, metadata={}, token="t")
    parts = send_parts(driver, upload, data)
    with monkeypatch.context() as patch:
        patch.setattr(driver.segments, "remove_note", fail)
        first = driver.complete_upload(upload, parts)
    assert len(list(driver.pending_uploads())) == 1
    assert again(driver).complete_upload(upload, parts) == first
    assert list(driver.pending_uploads()) == []
    assert read(driver) == data


def fail(*_: object) -> None:
    raise Unavailable("the worker was killed here")


def test_object_stays_when_the_reaper_aborts_a_completed_upload(driver: SwiftDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    data = some_bytes(PART + 1)
    with monkeypatch.context() as patch:
        patch.setattr(driver.segments, "remove_note", fail)
        send(driver, data)
    reaper = again(driver)
    (pending,) = reaper.pending_uploads()
    reaper.abort_upload(reaper.as_upload(pending))
    assert list(reaper.pending_uploads()) == []
    assert read(reaper) == data


def test_segments_go_when_deleted(driver: SwiftDriver) -> None:
    send(driver, some_bytes(3 * PART))
    assert driver.delete(KEY) is True
    assert in_segments(driver) == []
    assert driver.delete(KEY) is False


def test_segments_of_a_foreign_large_object_go_when_deleted(driver: SwiftDriver, swift_server: SwiftServer) -> None:
    upload = driver.begin_upload("foreign", size=None, part_size=PART, metadata={}, token="t")
    parts = send_parts(driver, upload, some_bytes(2 * PART))
    manifest = [{"path": parts_path(driver, upload, part.number), "etag": part.etag, "size_bytes": part.size} for part in parts]
    path = f"/{driver.container}/foreign?multipart-manifest=put"
    assert swift_server.request("PUT", path, body=json.dumps(manifest).encode()).status == 201
    driver.segments.remove_note("foreign", upload.upload_id)
    assert driver.delete("foreign") is True
    assert in_segments(driver) == []


def test_deletion_is_finished_when_killed_after_the_manifest_went(driver: SwiftDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    send(driver, some_bytes(3 * PART))
    with monkeypatch.context() as patch:
        patch.setattr(driver.segments, "remove", fail)
        with pytest.raises(Unavailable):
            driver.delete(KEY)
    reaper = again(driver)
    assert not reaper.exists(KEY)
    (pending,) = reaper.pending_uploads()
    assert (pending.key, pending.token) == (KEY, "transfer-1-1")
    reaper.abort_upload(reaper.as_upload(pending))
    assert in_segments(driver) == []


@pytest.mark.parametrize("state", [swift_segments.DELETING, swift_segments.REPLACED])
def test_object_stays_when_killed_before_the_manifest_went(driver: SwiftDriver, state: str) -> None:
    data = some_bytes(3 * PART)
    upload = send(driver, data)
    driver.segments.write_note(KEY, upload.upload_id, state)
    reaper = again(driver)
    (pending,) = reaper.pending_uploads()
    reaper.abort_upload(reaper.as_upload(pending))
    assert list(reaper.pending_uploads()) == []
    assert read(reaper) == data


def test_abort_is_finished_when_killed_half_way(driver: SwiftDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    upload = driver.begin_upload(KEY, size=None, part_size=PART, metadata={}, token="t")
    send_parts(driver, upload, some_bytes(2 * PART))
    with monkeypatch.context() as patch:
        patch.setattr(driver.segments, "remove", fail)
        with pytest.raises(Unavailable):
            driver.abort_upload(upload)
    with pytest.raises(UploadGone):
        again(driver).put_part(upload, 3, 2 * PART, b"late")
    reaper = again(driver)
    for pending in reaper.pending_uploads():
        reaper.abort_upload(reaper.as_upload(pending))
    assert in_segments(driver) == []


def test_late_part_is_removed_when_the_upload_was_aborted_meanwhile(driver: SwiftDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stores.drivers.swift.NOTE_RECHECK", 0.0)
    upload = driver.begin_upload(KEY, size=None, part_size=PART, metadata={}, token="t")
    send_parts(driver, upload, some_bytes(2 * PART))
    again(driver).abort_upload(upload)
    with pytest.raises(UploadGone):
        driver.put_part(upload, 3, 2 * PART, b"late")
    assert in_segments(driver) == []


def test_late_parts_are_removed_when_completion_finds_the_upload_aborted(driver: SwiftDriver) -> None:
    upload = driver.begin_upload(KEY, size=None, part_size=PART, metadata={}, token="t")
    again(driver).abort_upload(upload)
    parts = send_parts(driver, upload, some_bytes(2 * PART))
    with pytest.raises(UploadGone):
        driver.complete_upload(upload, parts)
    assert in_segments(driver) == []


def behind(proxy: LoggingHttpProxy, server: SwiftServer) -> SwiftDriver:
    url, details = SwiftDriver.clean(proxy.url + urlsplit(server.auth_url).path, details_of(server))
    driver = SwiftDriver(StoreConfig(url, details, "store-1", CLOUD, FACTS))
    driver.claim()
    return driver


def test_new_object_costs_one_request(swift_server: SwiftServer, http_proxy: Callable[[str], LoggingHttpProxy]) -> None:
    proxy = http_proxy(swift_server.url)
    driver = behind(proxy, swift_server)
    proxy.clear_records()
    assert driver.put(KEY, some_bytes(PART), metadata={}, token="t").proof is Proof.VERIFIED
    assert [record.method for record in proxy.records] == ["PUT"]
    driver.put(KEY, b"newer", metadata={}, token="t")
    assert read(driver) == b"newer"
    driver.close()


@pytest.mark.parametrize("large", [False, True])
def test_object_is_complete_when_the_answer_to_its_writing_was_lost(
    swift_server: SwiftServer, http_proxy: Callable[[str], LoggingHttpProxy], large: bool
) -> None:
    proxy = http_proxy(swift_server.url)
    driver = behind(proxy, swift_server)
    data = some_bytes(2 * PART)
    lost = proxy.add_rule(lambda sent: sent.method == "PUT" and f"/{driver.container}/" in sent.target, Cut("response"), times=1)
    if large:
        send(driver, data)
    else:
        driver.put(KEY, data, metadata={}, token="t")
    assert lost.hits == 1
    assert read(driver) == data
    assert len(in_segments(driver)) == (2 if large else 0)
    assert list(driver.pending_uploads()) == []
    driver.close()


def test_part_is_read_anew_when_the_connection_broke_while_it_was_sent(
    swift_server: SwiftServer, http_proxy: Callable[[str], LoggingHttpProxy]
) -> None:
    proxy = http_proxy(swift_server.url)
    driver = behind(proxy, swift_server)
    data = some_bytes(3 * MiB)
    upload = driver.begin_upload(KEY, size=len(data), part_size=len(data), metadata={}, token="t")
    cut = proxy.add_rule(lambda sent: sent.method == "PUT", Cut("body", after_bytes=2 * MiB), times=1)
    source = Streamed(driver, data)
    part = driver.put_part(upload, 1, 0, source)
    assert (cut.hits, source.readings) == (1, 2)
    assert driver.complete_upload(upload, [part]).proof is Proof.VERIFIED
    assert driver.open(KEY).pread(0, len(data)) == data
    driver.close()


def _finish_in_child(driver: SwiftDriver, upload: Upload, data: bytes) -> None:
    parts = list(driver.list_parts(upload))
    parts.append(driver.put_part(upload, 2, PART, data[PART:]))
    driver.complete_upload(upload, parts)


def test_upload_goes_on_when_a_forked_process_takes_over(driver: SwiftDriver) -> None:
    data = some_bytes(2 * PART)
    upload = driver.begin_upload(KEY, size=len(data), part_size=PART, metadata={"cs-id": "1"}, token="t")
    driver.put_part(upload, 1, 0, data[:PART])
    child = multiprocessing.get_context("fork").Process(target=_finish_in_child, args=(driver, upload, data))
    child.start()
    # The parent goes on with the connections that the child was forked with.
    for _ in range(20):
        assert driver.read_marker() == {"cloud": CLOUD, "store": "store-1"}
    child.join(60)
    assert child.exitcode == 0
    assert read(driver) == data
    assert driver.stat(KEY).metadata == {"cs-id": "1"}


def _overwrite_and_delete(driver: SwiftDriver, kill_at: int, moment: str, changes: Any) -> None:
    """Upload NEWER over OLDER, then delete it; dies by its own hand at the given change of the store's state."""
    request = driver.session.request

    def counting(method: str, *arguments: Any, **options: Any) -> Any:
        if method in {"GET", "HEAD"}:
            return request(method, *arguments, **options)
        changes.value += 1
        if changes.value == kill_at and moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        response = request(method, *arguments, **options)
        if changes.value == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return response

    driver.session.request = counting  # type: ignore[method-assign]
    send(driver, NEWER, token="transfer-2-1")
    driver.delete(KEY)


OLDER, NEWER = some_bytes(2 * PART + 1), some_bytes(2 * PART + 2, seed=2)


@pytest.mark.crash
@pytest.mark.parametrize("moment", ["before", "after"])
def test_nothing_is_lost_or_left_when_killed_at_any_change(driver: SwiftDriver, moment: str) -> None:
    fork = multiprocessing.get_context("fork")
    seen: list[bytes | None] = []
    for kill_at in range(1, 100):
        send(driver, OLDER)
        changes = fork.Value("i", 0)
        child = fork.Process(target=_overwrite_and_delete, args=(driver, kill_at, moment, changes))
        child.start()
        child.join(60)
        if child.exitcode == 0:
            break
        assert child.exitcode == -signal.SIGKILL
        reaper = again(driver)
        for pending in reaper.pending_uploads():
            reaper.abort_upload(reaper.as_upload(pending))
        found = read(reaper) if reaper.exists(KEY) else None
        seen.append(found)
        upload_id = reaper.session.request("HEAD", driver.container, KEY).headers[UPLOAD_HEADER] if found else ""
        expected = [f"{KEY}/{upload_id}/{number:08d}" for number in (1, 2, 3)] if found else []
        assert in_segments(reaper) == expected, f"killed {moment} change {kill_at}"
    assert kill_at == changes.value + 1 > 15
    # In this order and never back: the older content, the newer one, and then nothing.
    turns = [found for at, found in enumerate(seen) if at == 0 or found != seen[at - 1]]
    assert turns == [OLDER, NEWER, None]


def test_reading_stops_when_the_object_is_replaced(driver: SwiftDriver) -> None:
    for old, new in ((b"small", b"other"), (some_bytes(PART + 1), some_bytes(PART + 1, seed=2))):
        send(driver, old)
        with driver.open(KEY) as reader:
            assert reader.pread(0, 3) == old[:3]
            send(driver, new, token="t2")
            assert reader.current_version() != reader.info.version
            with pytest.raises(SourceChanged):
                reader.pread(0, 3)
    with driver.open(KEY) as reader:
        driver.delete(KEY)
        with pytest.raises(NotFound):
            reader.pread(0, 3)


# --- links -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [KEY, "volumes/a b?c#d%41é;x=1&/\udcff.qcow2"])
def test_link_gives_the_content_to_anybody_who_has_it(driver: SwiftDriver, key: str) -> None:
    data = some_bytes(2 * PART)
    send(driver, data, key=key)
    link = driver.presign(key, expires=600, filename='my "disk" é.qcow2')
    assert link is not None
    answer = fetch("GET", link)
    assert (answer.status, answer.body) == (200, data)
    assert "%20%C3%A9.qcow2" in answer.headers["content-disposition"]
    assert fetch("GET", link, headers={"Range": "bytes=10-19"}).body == data[10:20]
    assert fetch("DELETE", link).status == 401
    assert fetch("GET", link.replace("qcow2", "qcow3", 1)).status == 401
    assert fetch("GET", driver.presign(key, expires=-1) or "").status == 401


def test_link_is_signed_with_the_strongest_digest_offered(driver: SwiftDriver) -> None:
    driver.put(KEY, b"x", metadata={}, token="t")
    for offered, length in ((["sha1", "sha512", "sha256"], 128), (["sha256", "sha1"], 64), (["sha1"], 40)):
        link = again(driver, facts={"tempurl_digests": offered}).presign(KEY, expires=60)
        assert link is not None
        assert len(link.partition("temp_url_sig=")[2].partition("&")[0]) == length
        assert fetch("GET", link).body == b"x"


def test_no_link_is_made_when_the_cluster_has_none(driver: SwiftDriver) -> None:
    for facts in ({}, {"tempurl_digests": []}, {"tempurl_digests": ["md5"]}):
        other = again(driver, facts=facts)
        assert other.presign(KEY, expires=60) is None
        assert other.capabilities.presign is False


def test_link_is_signed_with_the_configured_key_when_there_is_one(
    driver: SwiftDriver, swift_server: SwiftServer, account_keys: None
) -> None:
    send(driver, some_bytes(PART + 1))
    with_key = [again(driver, details={**driver.config.details, "tempurlkey": f"key-{number}"}) for number in range(3)]
    links = [found.presign(KEY, expires=60) for found in with_key]
    assert [link and fetch("GET", link).status for link in links] == [200, 200, None]
    # An account has two places for keys; those that are taken sign somebody's links.
    assert fetch("GET", driver.presign(KEY, expires=60) or "").status == 200
    assert fetch("GET", links[0] or "").status == 200
    # The container's own key opens what lies in the container itself, and nothing else.
    swift_server.request("POST", f"/{driver.container}", headers={"X-Container-Meta-Temp-URL-Key": "key-2"})
    driver.put("small", b"x", metadata={}, token="t")
    assert with_key[2].presign(KEY, expires=60) is None
    assert fetch("GET", with_key[2].presign("small", expires=60) or "").body == b"x"


def test_key_for_links_is_made_when_the_account_has_none(
    driver: SwiftDriver, swift_server: SwiftServer, account_keys: None
) -> None:
    send(driver, some_bytes(PART + 1))
    details = {**driver.config.details, "username": swift_server.reader_username, "key": swift_server.reader_key}
    assert again(driver, details=details).presign(KEY, expires=60) is None
    assert "x-account-meta-temp-url-key" not in swift_server.request("HEAD").headers
    link = driver.presign(KEY, expires=60)
    assert fetch("GET", link or "").body == some_bytes(PART + 1)
    made = swift_server.request("HEAD").headers["x-account-meta-temp-url-key"]
    assert len(made) == 64
    assert made not in (link or "")


@pytest.fixture
def account_keys(swift_server: SwiftServer) -> Iterator[None]:
    """An account without keys for temporary URLs, before and after."""
    empty = {"X-Account-Meta-Temp-URL-Key": "", "X-Account-Meta-Temp-URL-Key-2": ""}
    swift_server.request("POST", headers=empty)
    yield
    swift_server.request("POST", headers=empty)


# --- probe -------------------------------------------------------------------------------------------------------------


def test_probe_learns_what_the_server_does(swift_server: SwiftServer) -> None:
    driver = connect(swift_server, details_of(swift_server), {})
    steps = list(driver.probe())
    assert {found.status for found in steps} <= {"ok", "info"}, steps
    facts = facts_of(steps)
    assert facts["verifies"] == ["etag", "segment etag"]
    assert facts["conditional_put"] is True
    assert facts["max_parts"] == 1000
    assert facts["tempurl_digests"] == ["sha1", "sha256", "sha512"]
    assert json.loads(json.dumps(facts)) == facts
    capable = again(driver, facts=facts).capabilities
    assert (capable.verifies_writes, capable.conditional_put, capable.presign, capable.metadata) == (True, True, True, True)
    for container in (driver.container, driver.segments.container):
        assert swift_server.request("HEAD", f"/{container}").status == 404


def test_container_is_left_when_the_probe_is_abandoned(swift_server: SwiftServer) -> None:
    driver = connect(swift_server, details_of(swift_server), {})
    steps = driver.probe()
    for found in steps:
        if found.name == "write":
            break
    steps.close()  # type: ignore[attr-defined]
    assert swift_server.request("HEAD", f"/{driver.container}").status == 404


def test_policy_is_blamed_when_the_cluster_lacks_it(swift_server: SwiftServer) -> None:
    details = details_of(swift_server, storagepolicy="platinum")
    found = step(connect(swift_server, details), "container")
    assert (found.status, found.field) == ("blocker", "storagepolicy")
    assert "Policy-0" in found.remedy
    with pytest.raises(Misconfigured) as raised:
        connect(swift_server, details).claim()
    assert raised.value.field == "storagepolicy"
    fine = connect(swift_server, {**details, "storagepolicy": "policy-0"})
    assert step(fine, "container").status == "info"


def test_public_container_is_warned_of(driver: SwiftDriver, swift_server: SwiftServer) -> None:
    swift_server.request("POST", f"/{driver.container}", headers={"X-Container-Read": ".r:*,.rlistings"})
    assert step(driver, "public access").status == "warning"


def test_versioning_is_told(driver: SwiftDriver, swift_server: SwiftServer) -> None:
    assert swift_server.request("POST", f"/{driver.container}", headers={"X-Versions-Enabled": "true"}).status == 204
    found = step(driver, "versioning")
    assert (found.status, found.facts["versioning"]) == ("info", True)


@pytest.mark.parametrize(("quota", "status"), [("1", "blocker"), ("100000000", "info"), ("", "ok")])
def test_quota_is_told(driver: SwiftDriver, swift_server: SwiftServer, quota: str, status: str) -> None:
    driver.put("x", b"0123456789", metadata={}, token="t")
    swift_server.request("POST", f"/{driver.container}", headers={"X-Container-Meta-Quota-Bytes": quota})
    assert step(driver, "container quota").status == status


def test_writing_is_a_blocker_when_the_user_may_only_read(driver: SwiftDriver, swift_server: SwiftServer) -> None:
    data = some_bytes(PART + 1)
    send(driver, data)
    details = {**driver.config.details, "username": swift_server.reader_username, "key": swift_server.reader_key}
    reader = again(driver, details=details)
    steps = {found.name: found for found in reader.probe()}
    assert (steps["write"].status, steps["write"].field) == ("blocker", "username")
    assert "multipart" not in steps
    assert steps["clean up"].status == "ok"
    assert read(reader) == data
    assert [info.key for info in reader.list()] == [KEY]
    for use in (
        lambda: reader.put("x", b"", metadata={}, token="t"),
        lambda: reader.begin_upload("x", size=1, part_size=PART, metadata={}, token="t"),
        lambda: reader.delete(KEY),
    ):
        with pytest.raises(AccessDenied):
            use()
    assert read(driver) == data
    missing = again(driver, details={**details, "container": "not-there"})
    found = step(missing, "container")
    assert (found.status, found.field) == ("blocker", "container")


def test_container_is_blamed_when_it_is_missing(driver: SwiftDriver, swift_server: SwiftServer) -> None:
    lost = again(driver, details={**driver.config.details, "container": "lost"})
    for use in (
        lost.check,
        lambda: lost.stat(KEY),
        lambda: lost.open(KEY),
        lambda: lost.exists(KEY),
        lambda: lost.delete(KEY),
        lambda: list(lost.list()),
        lambda: list(lost.pending_uploads()),
        lambda: lost.put(KEY, b"x", metadata={}, token="t"),
        lambda: lost.put(KEY, b"x", metadata={}, token="t", if_absent=True),
        lambda: lost.begin_upload(KEY, size=1, part_size=PART, metadata={}, token="t"),
    ):
        with pytest.raises(Misconfigured) as raised:
            use()
        assert raised.value.field == "container"
    assert swift_server.request("HEAD", "/lost").status == 404


def test_upload_is_gone_when_the_segments_container_vanished(driver: SwiftDriver) -> None:
    upload = driver.begin_upload(KEY, size=None, part_size=PART, metadata={}, token="t")
    driver.segments.remove_note(KEY, upload.upload_id)
    driver.session.request("DELETE", driver.segments.container)
    with pytest.raises(UploadGone):
        driver.put_part(upload, 1, 0, b"x")
    other = again(driver)
    assert list(other.pending_uploads()) == []
    send(other, some_bytes(PART + 1))
    assert read(other) == some_bytes(PART + 1)


def test_store_is_refused_when_it_lost_its_marker(
    driver: SwiftDriver, swift_server: SwiftServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver.check()
    read: list[int] = []
    request = driver.session.request

    def note_size(*given: Any, **more: Any) -> Any:
        answer = request(*given, **more)
        read.append(len(answer.body))
        return answer

    monkeypatch.setattr(driver.session, "request", note_size)
    swift_server.request("DELETE", f"/{driver.container}/.cloudstorage.json")
    with pytest.raises(Unavailable, match="marker"):
        driver.check()
    for no_marker in (b"not json", b"", b" " * MiB):
        swift_server.request("PUT", f"/{driver.container}/.cloudstorage.json", body=no_marker)
        with pytest.raises(Foreign):
            driver.check()
        with pytest.raises(Foreign):
            driver.claim()
    assert max(read) <= 64 * 1024, "whoever put it there does not decide how much is read"


# --- servers that misbehave --------------------------------------------------------------------------------------------


@contextmanager
def lying_server(
    answers: Callable[[BaseHTTPRequestHandler], tuple[int, dict[str, str]]], context: ssl.SSLContext | None = None
) -> Iterator[str]:
    """A server that signs everybody in and then answers as told: for what a healthy Swift never says."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.path == "/auth/v1.0":
                host = self.headers["Host"]
                scheme = "https" if context else "http"
                status, headers = 200, {"X-Storage-Url": f"{scheme}://{host}/v1/AUTH_x", "X-Auth-Token": "secret-token"}
            else:
                status, headers = answers(self)
            body = b"" if self.command == "HEAD" else b"the body repeats secret-token"
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_CONNECT = do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer  # noqa: N815 - http.server's names

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            """A client that refuses our certificate is no news."""

    server = Server(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if context:
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"{'https' if context else 'http'}://127.0.0.1:{server.server_port}/auth/v1.0"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def driver_at(url: str, **details: str) -> SwiftDriver:
    url, cleaned = SwiftDriver.clean(url, {"username": "u", "key": "hush", "container": "c", **details})
    return SwiftDriver(StoreConfig(url, cleaned, "s", CLOUD, FACTS))


@pytest.mark.parametrize(
    ("status", "headers", "error"),
    [
        (403, {}, LockedOut),
        (401, {}, LockedOut),
        (408, {}, Unavailable),
        (413, {}, Full),
        (422, {}, Corrupt),
        (429, {"Retry-After": "7"}, Throttled),
        (498, {}, Throttled),
        (500, {}, Unavailable),
        (502, {}, Unavailable),
        (503, {}, Unavailable),
        (503, {"Retry-After": "7"}, Throttled),
        (507, {}, Full),
        (307, {"Location": "http://127.0.0.1:9/v1/AUTH_x/c"}, Misconfigured),
        (418, {}, StoreError),
    ],
)
def test_cause_is_told_when_the_server_refuses(status: int, headers: dict[str, str], error: type[StoreError]) -> None:
    with lying_server(lambda _: (status, headers)) as url:
        driver = driver_at(url)
        for use in (
            lambda: driver.stat(KEY),
            lambda: list(driver.list()),
            lambda: driver.put(KEY, b"x", metadata={}, token="t", if_absent=True),
            lambda: driver.delete(KEY),
        ):
            with pytest.raises(error) as raised:
                use()
            assert type(raised.value) is error
            assert str(status) in str(raised.value)
            assert "secret-token" not in str(raised.value)
            if isinstance(raised.value, Throttled) and headers:
                assert raised.value.retry_after == 7.0
        driver.close()


def test_corruption_is_noticed_when_the_server_stores_something_else() -> None:
    with lying_server(lambda got: (201 if got.command == "PUT" else 404, {"ETag": "0" * 32})) as url:
        driver = driver_at(url)
        with pytest.raises(Corrupt):
            driver.put(KEY, b"x", metadata={}, token="t", if_absent=True)
        driver.close()


def test_nothing_is_proven_when_the_server_tells_no_checksum() -> None:
    with lying_server(lambda got: (201 if got.command == "PUT" else 404, {"Last-Modified": WRITTEN})) as url:
        driver = driver_at(url)
        assert driver.put(KEY, b"x", metadata={}, token="t", if_absent=True).proof is None
        driver.close()


def test_token_stays_here_when_the_server_redirects_elsewhere() -> None:
    stolen: list[str] = []

    def thief(got: BaseHTTPRequestHandler) -> tuple[int, dict[str, str]]:
        stolen.append(got.path)
        return 200, {}

    with lying_server(thief) as elsewhere, lying_server(lambda _: (302, {"Location": f"{elsewhere}/steal"})) as url:
        driver = driver_at(url)
        with pytest.raises(Misconfigured):
            driver.stat(KEY)
        driver.close()
    assert stolen == []


def test_proxy_is_used_when_one_is_set() -> None:
    asked: list[str] = []

    def proxy(got: BaseHTTPRequestHandler) -> tuple[int, dict[str, str]]:
        asked.append(got.path)
        return 200, {"X-Storage-Url": "http://swift.invalid/v1/AUTH_x", "X-Auth-Token": "t", "Last-Modified": WRITTEN}

    with lying_server(proxy) as url:
        driver = driver_at("http://swift.invalid/auth/v1.0", proxy=url.removesuffix("/auth/v1.0"))
        driver.stat("a b")
        driver.close()
    assert asked == ["http://swift.invalid/auth/v1.0", "http://swift.invalid/v1/AUTH_x/c/a%20b"]


def test_proxy_is_used_when_the_store_speaks_https() -> None:
    with lying_server(lambda _: (403, {})) as url:
        driver = driver_at("https://swift.invalid/auth/v1.0", proxy=url.removesuffix("/auth/v1.0"))
        with pytest.raises(Unavailable) as raised:
            driver.stat(KEY)
        assert raised.value.field == "proxy"
        driver.close()


def test_certificate_is_refused_until_the_bundle_names_it(tmp_path: Path) -> None:
    certificate = tmp_path / "certificate.pem"
    key = tmp_path / "key.pem"
    make_certificate(certificate, key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with lying_server(lambda _: (200, {"Last-Modified": WRITTEN}), context) as url:
        stranger, friend = driver_at(url), driver_at(url, cabundle=str(certificate))
        with pytest.raises(Misconfigured) as raised:
            stranger.stat(KEY)
        assert raised.value.field == "cabundle"
        assert friend.stat(KEY).key == KEY
        stranger.close()
        friend.close()


def test_one_sign_in_serves_all_threads_when_the_token_expires() -> None:
    lock = threading.Lock()
    tokens: list[str] = []

    def answers(got: BaseHTTPRequestHandler) -> tuple[int, dict[str, str]]:
        with lock:
            if got.path == "/sign-in/v1.0":
                tokens.append(f"token-{len(tokens)}")
                storage = f"http://{got.headers['Host']}/v1/AUTH_x"
                return 200, {"X-Storage-Url": storage, "X-Auth-Token": tokens[-1]}
            return (200 if got.headers["X-Auth-Token"] == tokens[-1] else 401), {"Last-Modified": WRITTEN}

    with lying_server(answers) as url:
        driver = driver_at(url.replace("/auth/", "/sign-in/"))
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: driver.stat(KEY), range(32)))
            assert len(tokens) == 1
            tokens.append("the server forgot all tokens")
            list(pool.map(lambda _: driver.stat(KEY), range(32)))
            assert len(tokens) == 3
        driver.close()


def test_limits_are_unknown_when_the_cluster_does_not_tell_them() -> None:
    with lying_server(lambda got: (403 if got.path == "/info" else 500, {})) as url:
        found = step(driver_at(url), "limits")
        assert (found.status, found.facts) == ("unknown", {})


def test_store_is_unavailable_when_the_server_hangs(swift_server: SwiftServer, driver: SwiftDriver) -> None:
    hasty = again(driver, details={**driver.config.details, "sockettimeout": "300"})
    hasty.check()
    swift_server.freeze()
    try:
        with pytest.raises(Unavailable, match="in time") as raised:
            hasty.put(KEY, b"x", metadata={}, token="t")
        assert raised.value.retryable
    finally:
        swift_server.thaw()
    driver.check()
