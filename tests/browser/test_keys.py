"""What scripts add to a page: keys that can be turned off, and parts that stay as they are while the rest is sent anew."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from django.db.models import F
from playwright.sync_api import Browser, Page, expect

from migration.models import Drain
from migration.states import DrainState
from tests.console.conftest import before, cloud, memory_store, region, sign_in, target

__all__ = ["before", "cloud", "memory_store", "region", "sign_in", "target"]

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]


@pytest.fixture
def tab(chromium: Browser, live_server: Any, sign_in: Any) -> Iterator[Page]:
    session = sign_in("storage-admin", "auditor").cookies["sessionid"].value
    context = chromium.new_context(viewport={"width": 1440, "height": 900}, base_url=live_server.url)
    context.set_default_timeout(20_000)
    context.add_cookies([{"name": "sessionid", "value": session, "url": live_server.url}])
    complaints: list[str] = []
    page = context.new_page()
    page.on("console", lambda message: complaints.append(message.text) if message.type in {"error", "warning"} else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    yield page
    context.close()
    assert complaints == []


def test_keys_are_shown_lead_on_and_can_be_turned_off(tab: Page, live_server: Any):
    tab.goto("/items/template/")
    tab.keyboard.press("?")
    expect(tab.get_by_role("dialog", name="Keys")).to_be_visible()
    tab.keyboard.press("Escape")
    expect(tab.get_by_role("dialog")).to_have_count(0)
    tab.keyboard.press("/")
    tab.keyboard.type("g?s")
    expect(tab.get_by_label("Name contains")).to_have_value("g?s")
    tab.get_by_role("heading", level=1).click()
    tab.keyboard.press("g")
    tab.keyboard.press("s")
    expect(tab.get_by_role("heading", level=1)).to_have_text("Secondary Storage")
    tab.get_by_role("button", name="Keys").click()
    tab.get_by_label("Keys other than ? are on").uncheck()
    tab.get_by_role("button", name="Close").click()
    tab.keyboard.press("g")
    tab.keyboard.press("i")
    tab.keyboard.press("?")
    expect(tab.get_by_role("dialog", name="Keys")).to_be_visible()
    assert tab.url.endswith("/stores/")


def test_a_live_part_keeps_the_focus_and_is_left_alone_while_nothing_changes(tab: Page, cloud: Any):
    Drain.objects.update(state=DrainState.RUNNING)
    answers: list[int] = []
    tab.on("response", lambda answer: answers.append(answer.status) if "/live/" in answer.url else None)
    tab.goto(f"/migration/drains/{cloud.drain.uuid}/")
    tab.locator("#do-pause").focus()
    with tab.expect_response(lambda answer: "/live/" in answer.url and answer.status == 304):
        pass
    expect(tab.locator("#do-pause")).to_be_focused()
    assert set(answers) == {200, 304}
    Drain.objects.update(state=DrainState.PAUSED)
    with tab.expect_response(lambda answer: "/live/" in answer.url and answer.status == 286):
        pass
    expect(tab.locator("#live[hx-get]")).to_have_count(0)
    expect(tab.locator("#announcer")).to_have_text("Paused, 0 percent proven")


def test_a_live_part_that_changes_keeps_the_focus_on_a_link_and_a_table_where_it_was_scrolled(tab: Page, cloud: Any):
    Drain.objects.update(state=DrainState.RUNNING)
    tab.set_viewport_size({"width": 375, "height": 800})
    tab.goto(f"/migration/drains/{cloud.drain.uuid}/")
    zones = tab.locator("#live .scroll").first
    for stop in (tab.get_by_role("link", name="Show these items"), zones):
        stop.focus()
        zones.evaluate("table => { table.scrollLeft = 40 }")
        tab.evaluate("document.getElementById('live').dataset.old = 'yes'")
        cloud.drain.batch.transfers.update(bytes_done=F("bytes_done") + 1, bytes_total=4096)
        tab.locator("#live:not([data-old])").wait_for()
        expect(stop).to_be_focused()
        assert zones.evaluate("table => table.scrollLeft") == 40
