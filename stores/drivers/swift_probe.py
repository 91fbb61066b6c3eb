"""Tries out a Swift account before anybody relies on it: what the generic probe cannot know of containers, quotas and links."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from stores.drivers.base import ProbeStep
from stores.drivers.errors import StoreError
from stores.drivers.probe import (
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
from stores.drivers.swift_http import md5
from stores.drivers.swift_segments import require_container

if TYPE_CHECKING:
    from stores.drivers.swift import SwiftDriver

FEWEST_SEGMENTS = 100
"""Below this many a large volume would need parts that no worker can hold in memory."""


def probe(driver: SwiftDriver) -> Iterator[ProbeStep]:
    """Every step of `StoreDriver.probe` for Swift; containers made for it are removed again."""
    steps = _Steps(driver)
    generic = [replace(check, needs=(*check.needs, "container")) for check in generic_checks(steps.sandbox)]
    checks = [
        Check("sign in", steps.sign_in),
        Check("limits", steps.limits, needs=("sign in",), optional=True),
        Check("container", steps.container, needs=("sign in",)),
        *generic,
        Check("checksums", steps.checksums, needs=("multipart",)),
        Check("conditional put", steps.conditional, needs=("write",)),
        Check("expiry", steps.expiry, needs=("write",)),
        Check("public access", steps.public_access, needs=("container",), optional=True),
        Check("versioning", steps.versioning, needs=("container",), optional=True),
        Check("container quota", steps.container_quota, needs=("container",), optional=True),
        Check("account quota", steps.account_quota, needs=("sign in",), optional=True),
        Check("clock", steps.clock, needs=("container",), optional=True),
    ]
    try:
        yield from run(checks, steps.sandbox)
    finally:
        steps.remove_containers()


class _Steps:
    """What the checks hand on to each other."""

    def __init__(self, driver: SwiftDriver) -> None:
        self.driver = driver
        self.sandbox = Sandbox(driver)
        self.made: Sequence[str] = ()
        self.info: Mapping[str, Any] = {}

    def sign_in(self) -> Finding:
        version = self.driver.session.credentials.version
        how = "Keystone v3" if version == "3" else "auth v1"
        url = self.driver.session.storage_url
        return ok(f"Signed in by {how}; the account is {url}.", auth_version=version, storage_url=url)

    def limits(self) -> Finding:
        answer = self.driver.session.info()
        with contextlib.suppress(ValueError):
            self.info = json.loads(answer.body) if answer.status == 200 else {}
        if not isinstance(self.info, dict) or "swift" not in self.info:
            self.info = {}
            remedy = "Nothing to do if the next steps pass: the usual limits are assumed (1,000 segments). No links are made."
            return Finding("unknown", f"The cluster does not tell its limits (/info answered {answer.status}).", remedy)
        large = self.info.get("slo")
        if not isinstance(large, dict):
            remedy = "Enable the slo middleware in the cluster's proxy."
            return Finding("blocker", "The cluster has no static large objects.", remedy)
        links = self.info.get("tempurl")
        digests = links.get("allowed_digests", ["sha1"]) if isinstance(links, dict) else []
        most = int(large.get("max_manifest_segments", 1000))
        facts: dict[str, object] = {
            "max_parts": most,
            "min_segment_size": int(large.get("min_segment_size", 1)),
            "max_part_size": int(self.info["swift"].get("max_file_size", 5 * 1024**3)),
            "tempurl_digests": [str(digest) for digest in digests],
        }
        if most < FEWEST_SEGMENTS:
            remedy = "Raise max_manifest_segments of the cluster's slo middleware."
            message = f"A large object may have only {most} segments."
            return Finding("warning", message, remedy, facts)
        told = f"Up to {most} segments; links signed with {', '.join(digests) or 'nothing: there are none'}."
        return ok(told, **facts)

    def container(self) -> Finding:
        driver = self.driver
        policies = [str(policy.get("name")) for policy in self.info.get("swift", {}).get("policies", [])]
        if driver.policy and policies and driver.policy.lower() not in {policy.lower() for policy in policies}:
            remedy = f"Choose one of: {', '.join(policies)}."
            return Finding("blocker", f"The cluster has no storage policy {driver.policy!r}.", remedy, field="storagepolicy")
        self.made = driver.ensure_containers()
        found = require_container(driver.session, driver.container).headers.get("x-storage-policy", "")
        facts = {"storage_policy": found}
        if driver.policy and found and found.lower() != driver.policy.lower():
            message = f"The container {driver.container!r} has the storage policy {found!r}, not {driver.policy!r}."
            remedy = "A container's policy cannot be changed: name another container, or correct the option."
            return Finding("blocker", message, remedy, facts, field="storagepolicy")
        if driver.container in self.made:
            return Finding("info", f"The container {driver.container!r} is not there yet and can be made.", facts=facts)
        return ok(f"The container {driver.container!r} is there.", **facts)

    def checksums(self) -> Finding:
        nothing = "What is written must be read back to be proven, which doubles the traffic."
        attempts = {"etag": self._put_with_etag, "segment etag": self._manifest_with_segment_etag}
        return wrong_checksums(self.sandbox, attempts, nothing=nothing)

    def _put_with_etag(self, key: str, wrong: bool) -> None:
        etag = md5(b"other" if wrong else b"data")
        name = self.driver.object_name(key)
        self.driver.session.request("PUT", self.driver.container, name, headers={"ETag": etag}, body=b"data")

    def _manifest_with_segment_etag(self, key: str, wrong: bool) -> None:
        # Without an ETag for the whole, so that nothing but the segment's can be what is refused.
        driver = self.driver
        upload = driver.begin_upload(key, size=4, part_size=4, metadata={}, token=self.sandbox.token)
        try:
            driver.put_part(upload, 1, 0, b"data")
            segment = {
                "path": driver.segments.path(upload, 1),
                "etag": md5(b"other" if wrong else b"data"),
                "size_bytes": 4,
            }
            query, body = {"multipart-manifest": "put"}, json.dumps([segment]).encode()
            driver.session.request("PUT", driver.container, driver.object_name(key), query=query, body=body)
        finally:
            driver.abort_upload(upload)

    def conditional(self) -> Finding:
        def put_if_absent(key: str, data: bytes) -> None:
            name = self.driver.object_name(key)
            self.driver.session.request("PUT", self.driver.container, name, headers={"If-None-Match": "*"}, body=data)

        return conditional_put(self.sandbox, put_if_absent)

    def expiry(self) -> Finding:
        self.sandbox.put("expiry", b"data")
        name = self.driver.object_name(self.sandbox.key("expiry"))
        headers = self.driver.session.request("HEAD", self.driver.container, name).headers
        if "x-delete-at" in headers:
            remedy = "Switch off the rule that expires objects in this container, or use another one."
            return Finding("blocker", "What is written here is deleted again by the cluster after a time.", remedy)
        return ok("Nothing expires by itself.")

    def public_access(self) -> Finding:
        for container in (self.driver.container, self.driver.segments.container):
            headers = self.driver.session.request("HEAD", container).headers
            if ".r:" in headers.get("x-container-read", ""):
                message = f"The container {container!r} can be read by anybody: its read ACL names referrers."
                return Finding("warning", message, "Remove .r: from the container's X-Container-Read.")
        return ok("No container is public.")

    def versioning(self) -> Finding:
        headers = self.driver.session.request("HEAD", self.driver.container).headers
        enabled = headers.get("x-versions-enabled", "").lower() == "true"
        if enabled or "x-versions-location" in headers or "x-history-location" in headers:
            remedy = "Switch versioning off if deleted items shall free their space."
            return Finding("info", "The container keeps old versions of objects.", remedy, {"versioning": True})
        return ok("The container keeps no old versions.", versioning=False)

    def container_quota(self) -> Finding:
        headers = self.driver.session.request("HEAD", self.driver.container).headers
        used = int(headers.get("x-container-bytes-used", "0"))
        return _quota("container", used, headers.get("x-container-meta-quota-bytes", ""))

    def account_quota(self) -> Finding:
        headers = self.driver.session.request("HEAD").headers
        used = int(headers.get("x-account-bytes-used", "0"))
        quota = headers.get("x-account-meta-quota-bytes") or headers.get("x-account-quota-bytes", "")
        return _quota("account", used, quota)

    def clock(self) -> Finding:
        before = time.time()
        date = self.driver.session.request("HEAD", self.driver.container).headers.get("date", "")
        try:
            # Date is cut to the second.
            skew = parsedate_to_datetime(date).timestamp() + 0.5 - before
        except ValueError:
            return Finding("unknown", "The server does not tell its time.", "Check its clock by hand.")
        return clock_skew(skew)

    def remove_containers(self) -> None:
        for container in self.made:
            # Not empty means that somebody else uses it already: then it stays.
            with contextlib.suppress(StoreError):
                self.driver.session.request("DELETE", container, allow=(404, 409))
        self.driver.segments.forget()


def _quota(whose: str, used: int, quota: str) -> Finding:
    if not (quota.isascii() and quota.isdigit()):
        return ok(f"The {whose} has no quota.")
    left = int(quota) - used
    facts = {f"{whose}_quota_left": left}
    if left <= 0:
        return Finding("blocker", f"The quota of the {whose} is used up.", "Raise it, or remove what is not needed.", facts)
    return Finding("info", f"The {whose} has a quota: {left} bytes are left.", facts=facts)
