"""The whole job with nothing but a keyboard, from an empty cloud to a retired store, with a failure in the middle of it."""

from __future__ import annotations

import re
import time

import pytest
from playwright.sync_api import Page

from tests.browser.conftest import EXPORTS, PASSWORD, Installation
from tests.browser.keys import Keys
from tests.browser.test_job import await_text

pytestmark = [pytest.mark.browser, pytest.mark.live]


def sign_in(page: Page, keys: Keys, installation: Installation) -> None:
    page.goto(installation.url)
    page.keyboard.type("ada")  # the focus is there already
    page.keyboard.press("Tab")
    page.keyboard.type(PASSWORD)
    keys.send()
    page.get_by_role("heading", name="Overview", level=1).wait_for()


def skip_the_menu(page: Page, keys: Keys) -> None:
    stop = keys.next()
    assert stop is not None
    assert stop["name"] == "Skip to main content"
    page.keyboard.press("Enter")
    stop = keys.next()
    assert stop is not None
    assert page.evaluate("document.querySelector('main').contains(document.activeElement)"), stop["what"]


def add_zone_and_store(page: Page, keys: Keys, zone: str) -> None:
    keys.press("Secondary Storage")
    keys.press("Add a zone")
    keys.fill("Name", zone)
    keys.send()
    keys.press("Add a store")
    keys.press("Choose NFS")
    keys.fill("Name", f"nfs-{zone}")
    keys.fill("URL", "nfs://" + EXPORTS[zone].replace(":", "", 1))
    keys.choose("Zone", zone)
    keys.press("Add the store", "Space")
    page.get_by_text(f"nfs-{zone} was added.").wait_for()
    keys.press("Scan now")
    await_text(page, "What it found")


def convert(page: Page, keys: Keys, installation: Installation) -> None:
    swift = installation.swift
    keys.press("Migration")
    keys.press("Move to an object store")
    keys.press("Choose S3")
    keys.fill("Name", "objects")
    keys.fill("Access key", swift.access_key)
    keys.fill("Secret key", swift.secret_key)
    keys.fill("Bucket", installation.bucket)
    keys.fill("Endpoint", swift.s3_url.removeprefix("http://").rstrip("/"))
    keys.tick("Use HTTPS", wanted=False)
    keys.press("Run the preflight")
    page.get_by_role("heading", name="Scope and rules").wait_for()
    keys.press("Go on to the report")
    page.get_by_role("link", name="Read the report").or_(page.get_by_text("Nothing stands against")).first.wait_for()
    page.reload()
    await_text(page, "Nothing stands against the conversion.")
    keys.press("Go on to the review")
    page.get_by_role("heading", name="What users notice").wait_for()
    keys.fill("To go on, type.*", "objects")
    keys.press("Switch the region to objects", "Space")
    page.get_by_text("The region uses objects now.").wait_for()


def pause_and_go_on(page: Page, keys: Keys) -> None:
    """The focus stays where it is while the page renews itself around it."""
    keys.to("Pause")
    page.evaluate("document.getElementById('live').dataset.old = 'yes'")
    page.locator("#live:not([data-old])").wait_for()
    assert page.evaluate("document.activeElement.id") == "do-pause"
    keys.send("Space")
    page.get_by_text("Paused. What is under way").wait_for()
    keys.fill("Bandwidth", "")
    keys.press("Change the limits")
    page.get_by_text("The limits were changed").wait_for()
    keys.press("Resume")


@pytest.mark.parametrize("page", [True], ids=["script"], indirect=True)
def test_the_whole_job_with_a_failure_on_the_way_is_done_by_keyboard(page: Page, installation: Installation):
    keys = Keys(page)
    sign_in(page, keys, installation)
    skip_the_menu(page, keys)
    for zone in EXPORTS:
        add_zone_and_store(page, keys, zone)
    keys.press("Workers")
    deadline = time.monotonic() + 60
    while page.get_by_text("reached").count() < len(EXPORTS):
        assert time.monotonic() < deadline, page.inner_text("main")
        page.wait_for_timeout(250)
        page.reload()
    convert(page, keys, installation)

    export = installation.exports["zone1"]
    lost = min(export.glob("volumes/**/*.qcow2"))
    away = lost.rename(export.parent / "away")
    keys.press("Plan the drain")
    keys.fill("Bandwidth", "64KiB")
    keys.fill("Canary items", "0")
    keys.press("Plan only")
    keys.press("Start")
    page.get_by_text("Started.").wait_for()
    pause_and_go_on(page, keys)

    await_text(page, "Finished, not complete")
    told = page.inner_text("main")
    assert "1 × not-found" in told
    named = re.search(r"(volumes/\S+): there is no such file", told)
    assert named is not None, told
    assert "Run a scan of the store" in told
    away.rename(export / named[1])  # nothing but the page said which one
    keys.around()
    keys.press("Staging Store")
    keys.press("nfs-zone1")
    keys.press("Scan now")
    await_text(page, "What it found")
    keys.press("Migration")
    keys.press("drain to objects")
    keys.press("Retry what failed")
    await_text(page, "Every item is proven.")
    assert page.locator("[hx-trigger]").count() == 0, "the page still polls after the end"

    keys.press("Verifications")
    keys.press("Verify a store")
    keys.choose("Store", "objects")
    keys.press("Start")
    await_text(page, "No difference")
    keys.press("Migration")
    keys.press("objects")
    keys.press("Commit…")
    keys.fill("To go on, type.*", "objects")
    keys.send()  # goes back: what ends something is never what Enter does
    page.get_by_role("heading", name="Conversion to objects").wait_for()
    keys.press("Commit…")
    keys.fill("To go on, type.*", "objects")
    keys.press("Commit: end the way back")
    page.get_by_text("Committed. The originals").wait_for()

    (installation.exports["zone2"] / "notes.txt").write_text("of nobody")
    keys.press("Staging Store")
    keys.press("nfs-zone2")
    keys.press("Retire…")
    keys.fill("To go on, type.*", "nfs-zone2")
    keys.press("Read everything again, then retire it")
    await_text(page, "Somebody must answer for unknown files")
    keys.press("I answer for this file")
    await_text(page, "The signed report")
    keys.press("Delete the files…")
    keys.fill("To go on, type.*", "nfs-zone2")
    keys.press("Move them to the trash")
    await_text(page, "in the trash folder of the export since")
    assert not list(installation.exports["zone2"].glob("volumes/**/*.qcow2"))
