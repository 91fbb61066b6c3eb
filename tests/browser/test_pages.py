"""Every page in a real browser: no barrier that axe knows of, in both themes, none wider than screen or paper, whole without scripts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import axe_playwright_python
import pytest
from django.urls import reverse
from django.utils import timezone
from playwright.sync_api import Browser, Page

from migration.models import Drain, DrainSample
from migration.preflight import preflight
from migration.states import DrainState
from stores.models import ImageStore, Transfer, WorkerReach
from stores.states import TransferState
from tests.console.access import LOOK, address
from tests.console.conftest import CANARY, before, cloud, memory_store, region, sign_in, target
from tests.factories import make_worker
from tests.fakes.memory import server_at

__all__ = ["before", "cloud", "memory_store", "region", "sign_in", "target"]

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]

AXE = Path(axe_playwright_python.__file__).with_name("axe.min.js").read_text()
RULES = {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}
DARK_RULES = {"type": "rule", "values": ["color-contrast", "link-in-text-block"]}
NARROW_RULES = {"type": "rule", "values": ["scrollable-region-focusable", "target-size", "meta-viewport"]}
"""What can differ from the light page on a wide screen; the rest of the page is the same."""
RUN = "async only => axe.run({runOnly: only, resultTypes: ['violations', 'incomplete']})"
FLATTEN = "document.querySelectorAll('.scroll').forEach(element => { element.style.background = 'none'; })"
"""Axe can judge no text over a picture: the shades at the ends of a table that scrolls are taken away."""
PRINTED = """() => {
  const found = [...document.querySelectorAll('nav, main .button, form.stack')].filter(one => one.checkVisibility());
  const faults = found.map(one => `printed: ${one.outerHTML.slice(0, 120)}`);
  for (const one of document.querySelectorAll('main .scroll'))
    if (one.scrollWidth > one.clientWidth + 1) faults.push(`printed, a table is cut off: ${one.innerText.slice(0, 120)}`);
  for (const one of document.querySelectorAll('main details:is(.more, .panel) > :not(summary)'))
    if (!one.checkVisibility({contentVisibilityAuto: true})) faults.push(`not printed: ${one.outerHTML.slice(0, 120)}`);
  return faults;
}"""
PAPER = 718
"""Pixels between the margins of an A4 sheet."""
BEFORE = {"rules", "review"}
"""What there is only before a conversion."""
NOWHERE = "/nothing/like/it/"
WIDTHS = (2560, 1440, 375, 320)


@dataclass
class Scene:
    """A console, what it shows at that moment, and the session of somebody who may see all of it."""

    url: str
    pages: list[str]
    session: str


@pytest.fixture
def empty(db: None, sign_in: Any) -> list[str]:
    """The pages of a console that nobody has told anything."""
    lists = [reverse(f"console:{name}") for name in LOOK if name.endswith(("_list", "_changelist")) and name != "item_list"]
    forms = ["/migration/new/?provider=S3", "/stores/add/?provider=NFS", "/migration/verifications/new/"]
    return ["/", "/items/template/", "/items/volume/deleted/", "/migration/new/", *forms, *lists]


@pytest.fixture
def deciding(before: Any, admin: Any, target: dict[str, Any]) -> list[str]:
    """The pages that are there only before a conversion."""
    server_at("memory://closed").password = "another"
    place = target | {"details": {"password": CANARY}}
    wrong, right = preflight(actor=admin, **place | {"url": "memory://closed"}), preflight(actor=admin, **place)
    assert (wrong.blockers > 0, right.blockers) == (True, 0)
    pages = [reverse(f"console:{name}", args=[right.uuid]) for name in ("rules", "preflight", "review")]
    refused = [reverse(f"console:{name}", args=[wrong.uuid]) for name in ("preflight", "review")]
    return ["/", *pages, *refused, "/migration/new/", *(f"/migration/new/?provider={name}" for name in ("Memory", "S3"))]


@pytest.fixture
def busy(cloud: Any) -> list[str]:
    """Every page there is, in the middle of a drain with failures, a chart, and a worker that does not reach everything."""
    worker = make_worker(*ImageStore.objects.all())
    WorkerReach.objects.filter(store=cloud.nfs).update(ok=False, error="The export is not mounted.")
    Transfer.objects.filter(kind="snapshot", parent=None).update(state=TransferState.RUNNING, worker=worker, bytes_done=5)
    Drain.objects.update(state=DrainState.RUNNING, started_at=timezone.now() - timedelta(minutes=3))
    DrainSample.objects.bulk_create(
        DrainSample(
            drain=cloud.drain, at=timezone.now() - timedelta(minutes=3 - n), items_proven=n, bytes_proven=n, bytes_copied=1
        )
        for n in range(3)
    )
    forms = ["/stores/add/?provider=NFS", "/stores/add/?provider=Swift"]
    return [
        *(address(cloud, name) for name in LOOK if name not in BEFORE),
        *forms,
        NOWHERE,
        "/items/template/?q=nothing-like-it",
        "/logout/",
    ]


@pytest.fixture(params=["empty", "deciding", "busy"])
def scene(request: Any, live_server: Any, sign_in: Any) -> Scene:
    """The pages of one moment, without downloads and parts of pages."""
    addresses = request.getfixturevalue(request.param)
    client = sign_in("storage-admin", "auditor")
    answers = {found: b"".join(client.get(found)) for found in addresses}
    pages = [found for found, answer in answers.items() if answer.lstrip()[:9].lower() == b"<!doctype"]
    hidden = {found for found in pages if b"error-page" in answers[found]} - {NOWHERE}
    assert hidden == set(), "an error page is shown instead of the page that is meant"
    return Scene(live_server.url, pages, client.cookies["sessionid"].value)


@pytest.fixture
def tab(chromium: Browser, scene: Scene, request: Any) -> Iterator[Page]:
    """A signed-in tab, with scripts unless a test wants none."""
    look: dict[str, Any] = {"viewport": {"width": 1440, "height": 900}, "color_scheme": "light", "reduced_motion": "reduce"}
    context = chromium.new_context(**look, java_script_enabled=getattr(request, "param", True))
    context.add_cookies([{"name": "sessionid", "value": scene.session, "url": scene.url}])
    yield context.new_page()
    context.close()


def barriers(tab: Page, rules: dict[str, Any]) -> list[str]:
    """What axe finds against the page as it stands, and what it cannot judge: rule, element and reason."""
    found = tab.evaluate(RUN, rules)
    return [
        f"{kind} {rule['id']}: {node['html'][:160]} {node['failureSummary'][:300]}"
        for kind in ("violations", "incomplete")
        for rule in found[kind]
        for node in rule["nodes"][:3]
    ]


def faults(tab: Page) -> list[str]:
    """What is wrong with the page for some eyes, hands or screens; leaves it light, and as wide as it was."""
    tab.evaluate(AXE)
    tab.evaluate(FLATTEN)
    found = barriers(tab, RULES)
    tab.emulate_media(color_scheme="dark")
    found += [f"dark {fault}" for fault in barriers(tab, DARK_RULES)]
    for width in WIDTHS:
        tab.set_viewport_size({"width": width, "height": 900})
        if tab.evaluate("document.documentElement.scrollWidth") > width:
            found.append(f"wider than {width} pixels")
    found += [f"narrow {fault}" for fault in barriers(tab, NARROW_RULES)]
    tab.set_viewport_size({"width": PAPER, "height": 900})
    tab.emulate_media(media="print")
    found += tab.evaluate(PRINTED)
    tab.emulate_media(media="screen", color_scheme="light")
    tab.set_viewport_size({"width": 1440, "height": 900})
    return found


def test_no_page_shuts_anybody_out_or_leaves_the_screen(tab: Page, scene: Scene):
    found: dict[str, list[str]] = {}
    for page in scene.pages:
        tab.goto(scene.url + page)
        found[page] = faults(tab)
    wrong = {page: told for page, told in found.items() if told}
    assert wrong == {}, wrong


@pytest.mark.parametrize("scene", ["empty"], indirect=True)
def test_a_form_that_was_refused_shuts_nobody_out(tab: Page, scene: Scene):
    forms = {"/zones/add/": "Add the zone", "/people/add/": "Add the user", "/migration/new/?provider=S3": "Run the preflight"}
    for page, button in forms.items():
        tab.goto(scene.url + page)
        tab.get_by_role("button", name=button).click()
        tab.locator("[aria-invalid=true]").first.wait_for()
        assert faults(tab) == [], page


@pytest.mark.parametrize("scene", ["empty"], indirect=True)
def test_the_theme_follows_the_switch(tab: Page, scene: Scene):
    tab.goto(scene.url)
    seen = set()
    for _ in range(3):
        seen.add(tab.evaluate("getComputedStyle(document.body).backgroundColor"))
        tab.locator(".theme-toggle").click()
    assert len(seen) == 2


@pytest.mark.parametrize("scene", ["empty"], indirect=True)
def test_times_are_in_the_browsers_zone_where_nobody_chose_one(chromium: Browser, scene: Scene):
    context = chromium.new_context(timezone_id="Asia/Tokyo")
    context.add_cookies([{"name": "sessionid", "value": scene.session, "url": scene.url}])
    tab = context.new_page()
    tab.goto(scene.url)
    tab.reload()
    assert "Times in Asia/Tokyo" in tab.inner_text("#footer")
    context.close()


def test_the_sign_in_shuts_nobody_out(chromium: Browser, live_server: Any):
    context = chromium.new_context(reduced_motion="reduce")
    tab = context.new_page()
    tab.goto(live_server.url)
    assert faults(tab) == []
    context.close()


@pytest.mark.parametrize("tab", [False], ids=["no-script"], indirect=True)
def test_every_page_is_whole_without_scripts(tab: Page, scene: Scene):
    for page in scene.pages:
        tab.goto(scene.url + page)
        assert tab.locator("h1:visible").count() == 1, page
        assert tab.locator("button:visible:not([type=submit]):not(form button)").count() == 0, (
            f"{page} has a button that does nothing"
        )
        if tab.locator("[hx-get]").count():
            assert tab.get_by_role("link", name="Refresh").is_visible(), f"{page} cannot be refreshed"
