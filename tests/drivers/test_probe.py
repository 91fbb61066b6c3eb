"""The shared probe on stores that lie: what it says of each, and that nothing of it stays behind."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import pytest

from stores.drivers.base import MARKER_KEY, ProbeStep, Reader, StoreConfig, Stored
from stores.drivers.errors import AccessDenied, AlreadyExists, Corrupt, Full, Misconfigured, Unavailable
from stores.drivers.probe import (
    PROBE_FOLDER,
    Check,
    Finding,
    Sandbox,
    clock_skew,
    conditional_put,
    facts_of,
    generic_checks,
    ok,
    run,
    worst,
    wrong_checksums,
)
from tests.fakes.memory import MemoryDriver, MemoryReader, MemoryServer, server_at

pytestmark = pytest.mark.unit


def new_store(kind: type[MemoryDriver] = MemoryDriver) -> tuple[MemoryDriver, MemoryServer]:
    config = StoreConfig(f"memory://{uuid.uuid4()}", {}, "our-store", "our-cloud")
    return kind(config), server_at(config.url)


def by_name(steps: list[ProbeStep]) -> dict[str, ProbeStep]:
    return {step.name: step for step in steps}


def assert_clean(server: MemoryServer) -> None:
    assert [key for key in server.objects if key != MARKER_KEY] == []
    assert server.uploads == {}


# --- stores that do what they say, and stores that do not --------------------------------------------------------------


def test_every_step_is_fine_when_the_store_is_sound() -> None:
    driver, server = new_store()
    steps = list(driver.probe())
    assert [step.name for step in steps] == [
        *("reach", "ownership", "write", "read back", "metadata", "range", "list", "multipart", "abort", "delete", "clean up")
    ]
    assert {step.name: step.status for step in steps if step.status != "ok"} == {"ownership": "info"}
    assert all(step.seconds >= 0 for step in steps)
    assert_clean(server)


class OtherBytes(MemoryDriver):
    def open(self, key: str) -> Reader:
        info, data = self._find(key)
        return MemoryReader(self, info, bytes(len(data)))


class WholeForRange(MemoryReader):
    def pread(self, offset: int, length: int) -> bytes:
        return super().pread(0, length)


class IgnoresRange(MemoryDriver):
    def open(self, key: str) -> Reader:
        return WholeForRange(self, *self._find(key))


class DropsMetadata(MemoryDriver):
    def put(self, key: str, data: Any, **more: Any) -> Stored:
        return super().put(key, data, **more | {"metadata": {}})


class ListsLate(MemoryDriver):
    def list(self, prefix: str = "", **more: Any) -> Any:
        return iter(())


class ShortWrites(MemoryDriver):
    def put(self, key: str, data: Any, **more: Any) -> Stored:
        return super().put(key, data[:-1], **more)


class ForgetsParts(MemoryDriver):
    def list_parts(self, upload: Any) -> Any:
        return super().list_parts(upload)[:1]


class MixesParts(MemoryDriver):
    def complete_upload(self, upload: Any, parts: Any, **more: Any) -> Stored:
        pending = server_at(self.config.url).uploads[upload.upload_id].parts
        pending[1] = (pending[1][0], pending[1][1][::-1])
        return super().complete_upload(upload, parts, **more)


class AbortPublishes(MemoryDriver):
    def abort_upload(self, upload: Any) -> None:
        if upload.upload_id in server_at(self.config.url).uploads:
            super().complete_upload(upload, super().list_parts(upload))


class KeepsAfterDelete(MemoryDriver):
    kept = True

    def delete(self, key: str) -> bool:
        # The clean-up at the end finds the store mended.
        if self.kept and key.endswith("/object"):
            self.kept = False
            return True
        return super().delete(key)


class NotThere(MemoryDriver):
    def delete(self, key: str) -> bool:
        super().delete(key)
        return False


@pytest.mark.parametrize(
    ("kind", "step"),
    [
        (OtherBytes, "read back"),
        (IgnoresRange, "range"),
        (DropsMetadata, "metadata"),
        (ListsLate, "list"),
        (ShortWrites, "write"),
        (ForgetsParts, "multipart"),
        (MixesParts, "multipart"),
        (AbortPublishes, "abort"),
        (KeepsAfterDelete, "delete"),
        (NotThere, "delete"),
    ],
)
def test_the_step_that_fails_is_a_blocker_with_a_remedy_when_the_store_lies(kind: type[MemoryDriver], step: str) -> None:
    driver, server = new_store(kind)
    steps = list(driver.probe())
    assert by_name(steps)[step].status == "blocker"
    assert by_name(steps)[step].remedy
    assert worst(steps) == "blocker"
    assert_clean(server)


class ReadOnly(MemoryDriver):
    def put(self, *_: Any, **__: Any) -> Stored:
        raise AccessDenied("No right to write.", field="accesskey")

    def delete(self, key: str) -> bool:
        raise AccessDenied("No right to delete.")


def test_what_needs_writing_is_left_out_when_the_store_is_read_only() -> None:
    driver, server = new_store(ReadOnly)
    steps = list(driver.probe())
    assert [step.name for step in steps] == ["reach", "ownership", "write", "clean up"]
    assert (steps[2].status, steps[2].message, steps[2].field) == ("blocker", "No right to write.", "accesskey")
    assert steps[2].remedy == AccessDenied.remedy
    assert steps[3].status == "ok"
    assert_clean(server)


class WriteOnly(MemoryDriver):
    def delete(self, key: str) -> bool:
        raise AccessDenied("No right to delete.")


def test_what_stays_behind_is_named_when_nothing_may_be_deleted() -> None:
    driver, server = new_store(WriteOnly)
    steps = by_name(list(driver.probe()))
    assert steps["delete"].status == "blocker"
    assert steps["clean up"].status == "warning"
    for key in server.objects:
        assert key in steps["clean up"].message


class NoListing(MemoryDriver):
    def pending_uploads(self) -> Any:
        raise AccessDenied("No right to list uploads.")


class ListsAborted(MemoryDriver):
    def abort_upload(self, upload: Any) -> None:
        pass


@pytest.mark.parametrize(("kind", "status"), [(NoListing, "unknown"), (ListsAborted, "warning")])
def test_debris_is_never_called_absent_when_it_cannot_be_seen_or_stays(kind: type[MemoryDriver], status: str) -> None:
    driver, _ = new_store(kind)
    assert by_name(list(driver.probe()))["abort"].status == status


@pytest.mark.parametrize("marker", [{"cloud": "other"}, {"cloud": "our-cloud", "store": "other"}, {}])
def test_nothing_is_written_when_the_store_is_anothers(marker: dict[str, str]) -> None:
    driver, server = new_store()
    server.marker = marker
    before = server.clock
    steps = list(driver.probe())
    assert [step.name for step in steps] == ["reach", "ownership", "clean up"]
    assert (steps[1].status, steps[1].facts) == ("blocker", {"marker": "foreign"})
    assert server.clock == before


def test_marker_is_reported_ours_when_it_is() -> None:
    driver, server = new_store()
    driver.claim()
    steps = list(driver.probe())
    assert facts_of(steps)["marker"] == "ours"
    assert_clean(server)


def test_only_reaching_is_tried_when_the_store_does_not_answer() -> None:
    driver, server = new_store()
    server.available = False
    steps = list(driver.probe())
    assert [(step.name, step.status) for step in steps] == [("reach", "blocker"), ("clean up", "ok")]


# --- the engine --------------------------------------------------------------------------------------------------------


def test_nothing_stays_behind_when_the_caller_stops_listening_at_any_step() -> None:
    driver, server = new_store()
    for count in range(1, 12):
        steps = driver.probe()
        for _ in range(count):
            next(steps)
        steps.close()  # type: ignore[attr-defined]
        assert_clean(server)


def test_nothing_stays_behind_when_a_check_has_a_bug() -> None:
    driver, server = new_store()
    sandbox = Sandbox(driver)

    def bug() -> Finding:
        sandbox.put("x", b"x")
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        list(run([Check("buggy", bug)], sandbox))
    assert_clean(server)


def failing(error: Exception) -> Callable[[], Finding]:
    def check() -> Finding:
        raise error

    return check


@pytest.mark.parametrize(
    ("optional", "error", "status"),
    [
        (False, AccessDenied("no"), "blocker"),
        (False, Misconfigured("no", field="bucket"), "blocker"),
        (True, AccessDenied("no"), "unknown"),
        (True, Unavailable("no"), "unknown"),
    ],
)
def test_failure_is_a_blocker_or_not_known_when_the_check_is_optional(optional: bool, error: Any, status: str) -> None:
    driver, _ = new_store()
    step, _ = run([Check("asked", failing(error), optional=optional)], Sandbox(driver))
    assert (step.status, step.field) == (status, error.field)
    assert "no" in step.message
    assert step.remedy


def test_steps_are_left_out_when_what_they_need_was_left_out() -> None:
    driver, _ = new_store()
    ran: list[str] = []

    def mark(name: str) -> Callable[[], Finding]:
        return lambda: (ran.append(name), ok("fine"))[1]

    checks = [
        Check("a", failing(Full("full"))),
        Check("b", mark("b"), needs=("a",)),
        Check("c", mark("c"), needs=("b",)),
        Check("d", mark("d")),
    ]
    assert [step.name for step in run(checks, Sandbox(driver))] == ["a", "d", "clean up"]
    assert ran == ["d"]


def test_uploads_and_leftovers_are_removed_when_the_sandbox_is_cleaned() -> None:
    scrubbed: list[str] = []
    driver, server = new_store()
    sandbox = Sandbox(driver, scrub=scrubbed.append)
    sandbox.put("x", b"x")
    driver.put_part(sandbox.begin("y", size=None, part_size=10), 1, 0, b"y")
    assert all(key.startswith(f"{PROBE_FOLDER}/") for key in server.objects)
    assert sandbox.clean() == []
    assert_clean(server)
    assert scrubbed == [f"{sandbox.root}x", f"{sandbox.root}y"]


def test_facts_and_worst_status_are_merged() -> None:
    steps = [ProbeStep("a", "ok", "", facts={"x": 1}), ProbeStep("b", "unknown", ""), ProbeStep("c", "info", "", facts={"y": 2})]
    assert facts_of(steps) == {"x": 1, "y": 2}
    assert worst(steps) == "unknown"
    assert worst([]) == "ok"
    assert worst([*steps, ProbeStep("d", "warning", "")]) == "warning"


# --- what the server verifies ------------------------------------------------------------------------------------------


def test_condition_is_a_fact_only_when_the_second_write_is_refused() -> None:
    driver, _ = new_store()

    def honours(key: str, data: bytes) -> object:
        return driver.put(key, data, metadata={}, token="", if_absent=True)

    def ignores(key: str, data: bytes) -> object:
        return driver.put(key, data, metadata={}, token="")

    def refuses(key: str, data: bytes) -> object:
        raise Misconfigured("no such header")

    found = [conditional_put(Sandbox(driver), put) for put in (honours, ignores, refuses)]
    assert [(finding.status, finding.facts["conditional_put"]) for finding in found] == [
        ("ok", True),
        ("info", False),
        ("info", False),
    ]


def test_condition_is_not_decided_when_the_store_goes_away() -> None:
    driver, _ = new_store()

    def gone(key: str, data: bytes) -> object:
        raise Unavailable("gone")

    with pytest.raises(Unavailable):
        conditional_put(Sandbox(driver), gone)


def test_checksum_counts_only_when_the_right_one_passes_and_the_wrong_one_does_not() -> None:
    driver, _ = new_store()

    def verifies(key: str, wrong: bool) -> None:
        if wrong:
            raise Corrupt("other bytes")

    def refuses(key: str, wrong: bool) -> None:
        raise Misconfigured("no such header")

    attempts = {"good": verifies, "deaf": lambda key, wrong: None, "unable": refuses}
    found = wrong_checksums(Sandbox(driver), attempts, nothing="")
    assert found.status == "ok"
    assert found.facts == {"verifies": ["good"], "ignores": ["deaf"], "refuses": ["unable"]}
    del attempts["good"]
    assert wrong_checksums(Sandbox(driver), attempts, nothing="Then read back.").status == "warning"


def test_checksum_is_not_called_verified_when_the_store_merely_went_away() -> None:
    driver, _ = new_store()

    def flaky(key: str, wrong: bool) -> None:
        if wrong:
            raise Unavailable("gone")

    with pytest.raises(Unavailable):
        wrong_checksums(Sandbox(driver), {"crc": flaky}, nothing="")


@pytest.mark.parametrize(("skew", "status"), [(0.2, "ok"), (-299, "ok"), (301, "warning"), (-4000, "warning")])
def test_clock_is_judged_by_its_distance(skew: float, status: str) -> None:
    finding = clock_skew(skew)
    assert (finding.status, finding.facts) == (status, {"clock_skew": skew})


def test_taken_key_is_no_proof_of_a_condition_when_it_was_taken_before() -> None:
    driver, _ = new_store()

    def always_taken(key: str, data: bytes) -> object:
        raise AlreadyExists("taken")

    assert conditional_put(Sandbox(driver), always_taken).facts == {"conditional_put": False}


def test_metadata_is_not_asked_for_when_the_store_has_none() -> None:
    class Plain(MemoryDriver):
        @property
        def capabilities(self) -> Any:
            from dataclasses import replace

            return replace(super().capabilities, metadata=False)

    driver, _ = new_store(Plain)
    assert "metadata" not in {check.name for check in generic_checks(Sandbox(driver))}
