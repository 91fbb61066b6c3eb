"""The main job in a real browser on real servers, without JavaScript: from an empty cloud to every item proven. With it, see
test_keyboard."""

from __future__ import annotations

import time

import pytest
from playwright.sync_api import Page
from playwright.sync_api import TimeoutError as PlaywrightTimeout

from tests.browser.conftest import EXPORTS, PASSWORD, Installation

pytestmark = [pytest.mark.browser, pytest.mark.live]


def scripted(page: Page) -> bool:
    """Whether this tab runs scripts."""
    return bool(page.locator("html[data-theme]").count())


def await_text(page: Page, text: str, *, seconds: float = 120) -> None:
    """Wait until the page says so: by itself where scripts run, by the Refresh link where they do not."""
    if scripted(page):
        try:
            page.get_by_text(text).first.wait_for(timeout=seconds * 1000)
        except PlaywrightTimeout:
            raise AssertionError(f"{text!r} did not come; the page says:\n{page.inner_text('main')[:2000]}") from None
        return
    deadline = time.monotonic() + seconds
    while not page.get_by_text(text).count():
        assert time.monotonic() < deadline, f"{text!r} did not come; the page says:\n{page.inner_text('main')[:2000]}"
        page.wait_for_timeout(250)
        page.get_by_role("link", name="Refresh").click()


def sign_in(page: Page, installation: Installation, name: str) -> None:
    page.goto(installation.url)
    page.get_by_label("Username").fill(name)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Log in").click()
    page.get_by_role("heading", name="Overview").wait_for()


def add_zone_and_store(page: Page, zone: str) -> None:
    page.get_by_role("link", name="Secondary Storage").first.click()
    page.get_by_role("link", name="Add a zone").click()
    page.get_by_label("Name").fill(zone)
    page.get_by_role("button", name="Add the zone").click()
    page.get_by_role("link", name="Add a store").first.click()
    page.get_by_role("link", name="Choose NFS").click()
    page.get_by_label("Name").fill(f"nfs-{zone}")
    page.get_by_label("URL").fill("nfs://" + EXPORTS[zone].replace(":", "", 1))
    page.get_by_label("Zone").select_option(label=zone)
    page.get_by_role("button", name="Test", exact=True).click()
    page.get_by_text("It reads back as it was written.").wait_for()
    page.get_by_role("button", name="Add the store").click()
    page.get_by_text(f"nfs-{zone} was added.").wait_for()
    page.get_by_role("button", name="Scan now").click()
    await_text(page, "What it found")


def choose_object_store(page: Page, installation: Installation) -> None:
    swift = installation.swift
    page.get_by_role("link", name="Migration").first.click()
    page.get_by_role("link", name="Move to an object store").first.click()
    page.get_by_role("link", name="Choose S3").click()
    page.get_by_label("Name").fill("objects")
    page.get_by_label("Access key").fill(swift.access_key)
    page.get_by_label("Secret key").fill(swift.secret_key)
    page.get_by_label("Bucket").fill(installation.bucket)
    page.get_by_label("Endpoint").fill(swift.s3_url.removeprefix("http://").rstrip("/"))
    page.get_by_label("Use HTTPS").uncheck()
    page.get_by_role("button", name="Test", exact=True).click()
    page.get_by_text("It reads back as it was written.").wait_for()
    assert swift.secret_key not in page.content()
    assert page.get_by_label("Secret key").input_value() == ""


def read_preflight(page: Page) -> None:
    page.get_by_role("button", name="Run the preflight").click()
    page.get_by_role("button", name="Go on to the report").click()
    page.get_by_role("heading", name="Preflight of objects").wait_for()
    if scripted(page):
        # The report may have come before the page did; else the waiting part offers it by itself.
        page.get_by_role("link", name="Read the report").or_(page.get_by_text("Nothing stands against")).first.wait_for()
        page.reload()
    await_text(page, "Nothing stands against the conversion.")


@pytest.mark.parametrize("page", [False], ids=["no-script"], indirect=True)
def test_the_whole_job_is_done_without_scripts(page: Page, installation: Installation):
    sign_in(page, installation, "ada")
    assert page.get_by_role("heading", name="Next: Add a zone").count()
    for zone in EXPORTS:
        add_zone_and_store(page, zone)

    page.get_by_role("link", name="Workers").first.click()
    deadline = time.monotonic() + 60
    while page.get_by_text("reached").count() < len(EXPORTS):
        assert time.monotonic() < deadline, page.inner_text("main")
        page.wait_for_timeout(250)
        page.reload()

    choose_object_store(page, installation)
    read_preflight(page)
    page.get_by_role("link", name="Go on to the review").click()
    page.get_by_role("heading", name="What users notice").wait_for()
    page.get_by_label("To go on, type").fill("objects")
    page.get_by_role("button", name="Switch the region to objects").click()
    page.get_by_text("The region uses objects now.").wait_for()

    page.get_by_role("link", name="Templates").first.click()
    page.get_by_text("on NFS nfs-zone1").first.wait_for()

    page.get_by_role("link", name="Overview").first.click()
    page.get_by_role("link", name="Plan the drain").click()
    page.get_by_role("button", name="Plan only").click()
    page.get_by_role("button", name="Start", exact=True).click()
    await_text(page, "Every item is proven.")

    page.get_by_role("link", name="Templates").first.click()
    assert page.get_by_text("pending").count() == 0
    page.get_by_role("link", name="Sign out").or_(page.get_by_role("button", name="Sign out")).click()
    page.get_by_text("You are signed out.").wait_for()
    page.wait_for_load_state()  # the server ends with the test, and what it had not sent yet would be a complaint of the browser
