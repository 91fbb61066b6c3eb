"""`make screenshots`: does the job in a browser on throwaway servers, and photographs the console on its way."""

from __future__ import annotations

import argparse
import itertools
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

from tests.browser import test_job as job
from tests.browser.conftest import CHROMIUM, EXPORTS, FLAGS, Installation, installed
from tests.servers.process import REPOSITORY
from tests.servers.swift import SwiftServer

FOLDER = REPOSITORY / "docs" / "screenshots"
DESK, PHONE = {"width": 1440, "height": 900}, {"width": 375, "height": 812}
LINKS = "all => all.map(link => link.getAttribute('href').split('#')[0])"
PAGE = re.compile(r"/(?!api/|.*/report/)[^?]*(\?provider=\w+)?$")
NUMBER = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}|(?<=/)\d+(?=/)|(?<=^/rest/)\w+(?=/$)")
"""What tells pages of one kind apart; a hundred of them describe an operation of the REST API."""


@dataclass
class Album:
    """Where the pictures go: the chosen ones to the documents, and if asked for, one of every page to a folder of their own."""

    browser: Browser
    site: Installation
    every: Path | None

    def take(self, tab: Page, name: str, *, dark: bool = False, phone: bool = False) -> None:
        """A picture of the page as it stands, for the documents."""
        tab.emulate_media(color_scheme="dark" if dark else "light")
        tab.set_viewport_size(PHONE if phone else DESK)
        tab.evaluate("scrollTo(0, 0)")
        tab.screenshot(path=FOLDER / f"{name}.png", animations="disabled")
        tab.emulate_media(color_scheme="light")
        tab.set_viewport_size(DESK)

    def take_all(self, moment: str) -> None:
        """Every page that links lead to, whole, in both themes and two widths."""
        if self.every is None:
            return
        for user, theme, view in itertools.product(("ada", "audra"), ("light", "dark"), (DESK, PHONE)):
            folder = self.every / moment / f"{theme}-{view['width']}"
            folder.mkdir(parents=True, exist_ok=True)
            context = self.browser.new_context(color_scheme=theme, viewport=view, reduced_motion="reduce")
            tab = context.new_page()
            job.sign_in(tab, self.site, user)
            self._crawl(tab, folder)
            context.close()

    def _crawl(self, tab: Page, folder: Path) -> None:
        waiting, seen = ["/"], {"/"}
        while waiting:
            path = waiting.pop(0)
            file = folder / f"{NUMBER.sub('x', path).strip('/').replace('/', '-').replace('?', '-') or 'overview'}.png"
            if not file.exists():
                tab.goto(self.site.url + path)
                tab.screenshot(path=file, full_page=True, animations="disabled")
            for link in tab.eval_on_selector_all("a[href]", LINKS):
                kind = NUMBER.sub("x", link)
                if kind not in seen and PAGE.match(link):
                    seen.add(kind)
                    waiting.append(link)


def until(page: Page, there: Callable[[], bool]) -> None:
    """Wait for something that the page will say."""
    for _ in range(600):
        if there():
            return
        page.wait_for_timeout(200)
    raise AssertionError(page.inner_text("main"))


def proven(page: Page) -> float:
    """Percent, as the live page says."""
    found = re.search(r"proven \(([0-9.]+) %\)", page.inner_text("main"))
    return float(found[1]) if found else 0.0


def walk(page: Page, site: Installation, album: Album) -> None:
    """The job, from an empty cloud to the middle of its drain, with a file that is not to be found; for an album, to its end."""
    job.sign_in(page, site, "ada")
    album.take_all("1-empty")
    for zone in EXPORTS:
        job.add_zone_and_store(page, zone)
    page.get_by_role("link", name="Workers").first.click()
    until(page, lambda: bool(page.reload()) and page.get_by_text("reached").count() == len(EXPORTS))
    job.choose_object_store(page, site)
    job.read_preflight(page)
    album.take(page, "preflight")
    album.take_all("2-preflight")
    page.get_by_role("link", name="Go on to the review").click()
    album.take(page, "review")
    page.get_by_label("To go on, type").fill("objects")
    page.get_by_role("button", name="Switch the region to objects").click()
    page.get_by_role("link", name="Plan the drain").click()
    page.get_by_label("Bandwidth").fill("1MiB")
    page.get_by_label("Canary items").fill("0")
    page.get_by_role("button", name="Plan only").click()
    lost = min(site.exports["zone1"].glob("volumes/**/*.qcow2"))
    away = lost.rename(site.exports["zone1"].parent / "away")
    page.get_by_role("button", name="Start", exact=True).click()
    page.get_by_text("Started.").wait_for()
    here = page.url
    page.get_by_text("Failures by cause").wait_for(timeout=120_000)
    until(page, lambda: bool(page.reload()) and proven(page) > 45 and page.get_by_text("at the earliest").count() > 0)
    page.goto(here)
    album.take(page, "drain")
    album.take(page, "drain-dark", dark=True)
    album.take(page, "drain-phone", dark=True, phone=True)
    page.goto(site.url)
    album.take(page, "overview")
    album.take_all("3-drain")
    if album.every is not None:
        page.goto(here)
        if page.get_by_label("Bandwidth").count():
            page.get_by_label("Bandwidth").fill("")
            page.get_by_role("button", name="Change the limits").click()
        job.await_text(page, "Finished, not complete")
        album.take_all("4-finished")
        away.rename(lost)
        page.goto(site.url + "/staging/")
        page.get_by_role("link", name="nfs-zone1").click()
        page.get_by_role("button", name="Scan now").click()
        job.await_text(page, "What it found")
        page.goto(here)
        page.get_by_role("button", name="Retry what failed").click()
        job.await_text(page, "Every item is proven.")
        end(page, site, album)


def end(page: Page, site: Installation, album: Album) -> None:
    """From every item proven to an export that is retired, as the console names the steps."""
    page.goto(site.url)
    page.get_by_role("link", name="Read objects back").click()
    page.get_by_role("button", name="Start").click()
    job.await_text(page, "No difference")
    page.goto(site.url)
    page.get_by_role("link", name="Commit the conversion").click()
    album.take_all("5-committing")
    page.get_by_label("To go on, type").fill("objects")
    page.get_by_role("button", name="Commit: end the way back").click()
    page.get_by_text("Committed. The originals").wait_for()
    (site.exports["zone2"] / "notes.txt").write_text("of nobody")
    page.goto(site.url)
    page.get_by_role("link", name="Retire nfs-zone2").click()
    page.get_by_label("To go on, type").fill("nfs-zone2")
    page.get_by_role("button", name="Read everything again, then retire it").click()
    job.await_text(page, "Somebody must answer for unknown files")
    album.take_all("6-unknown-files")
    page.get_by_role("button", name="I answer for this file").click()
    job.await_text(page, "The signed report")
    album.take_all("7-retired")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=Path, help="folder for one picture of every page, in both themes and two widths")
    every = parser.parse_args().every
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        folder = Path(name)
        with SwiftServer(folder / "swift") as swift, installed(folder / "site", swift, "demo") as site:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
            page = browser.new_page(viewport=DESK, reduced_motion="reduce")
            page.set_default_timeout(60_000)
            walk(page, site, Album(browser, site, every))
            browser.close()


if __name__ == "__main__":
    main()
