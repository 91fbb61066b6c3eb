"""Hands that have a keyboard and no mouse: they go from stop to stop, and at each the eye must see where they are."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from playwright.sync_api import Page

STOPS = 250
"""More than any page has; whoever tabs so often and does not arrive is in a trap, or it is not there."""
HERE = """() => {
  const at = document.activeElement;
  if (!at || at === document.body) return null;
  const label = at.labels && at.labels.length ? at.labels[0] : at;
  const style = getComputedStyle(at), box = at.getBoundingClientRect();
  return {
    name: (at.getAttribute('aria-label') || label.innerText || at.value || '').replace(/\\s+/g, ' ').trim(),
    seen: style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 1 && box.width > 0 && box.bottom > 0 && box.top < innerHeight,
    what: at.outerHTML.slice(0, 200),
    chosen: at.selectedOptions ? at.selectedOptions[0].text : '',
    ticked: at.checked === true,
  };
}"""
TABBABLE = """() => [...document.querySelectorAll('a[href], button, input, select, textarea, summary, [tabindex="0"]')].filter(
  one => one.type !== 'hidden' && !one.disabled && one.checkVisibility({visibilityProperty: true})).length"""


@dataclass
class Keys:
    """Does with Tab, Enter, Space and arrows what a mouse would do."""

    tab: Page

    def next(self) -> dict[str, Any] | None:
        """Go on by one stop; None where the page ends."""
        self.tab.keyboard.press("Tab")
        stop: dict[str, Any] | None = self.tab.evaluate(HERE)
        assert stop is None or stop["seen"], f"nobody sees that the focus is on {stop['what']}"
        return stop

    def to(self, name: str) -> dict[str, Any]:
        """Go on until the focus is on what is called so (a regular expression)."""
        wanted = re.compile(rf"{name}( \(required\))?$")
        passed = []
        for _ in range(STOPS):
            stop = self.next()
            if stop is not None and wanted.match(stop["name"]):
                return stop
            passed.append(stop["name"] if stop else "(end of the page)")
        raise AssertionError(f"no stop is called {name!r}; passed: {list(dict.fromkeys(passed))}")

    def press(self, name: str, key: str = "Enter") -> None:
        """Go to a link or button, press it, and wait for the page that it leads to."""
        self.to(name)
        self.send(key)

    def send(self, key: str = "Enter") -> None:
        """Press a key that leads to another page."""
        with self.tab.expect_navigation():
            self.tab.keyboard.press(key)

    def fill(self, name: str, text: str) -> None:
        """Go to a field and type into it, over what it has."""
        self.to(name)
        self.tab.keyboard.press("Control+A")
        self.tab.keyboard.press("Delete")
        self.tab.keyboard.type(text)

    def choose(self, name: str, option: str) -> None:
        """Go to a list and move through it with the arrows."""
        self.to(name)
        for _ in range(STOPS):
            if self.tab.evaluate(HERE)["chosen"] == option:
                return
            self.tab.keyboard.press("ArrowDown")
        raise AssertionError(f"{name} has no {option!r}")

    def tick(self, name: str, wanted: bool) -> None:
        """Go to a box and have it ticked, or not."""
        if self.to(name)["ticked"] != wanted:
            self.tab.keyboard.press("Space")

    def around(self) -> int:
        """Once through the whole page; how many stops it has. Each that a mouse could reach must be among them."""
        self.tab.evaluate("document.activeElement.blur()")
        while self.next() is not None:
            pass
        count = 0
        while self.next() is not None:
            count += 1
            assert count < STOPS, "the focus never leaves the page"
        reachable = self.tab.evaluate(TABBABLE)
        assert count == reachable, f"{count} stops, but {reachable} things to press"
        return count
