"""Reads a page as a strict browser would: what a content security policy would forbid, and where the page leads."""

from __future__ import annotations

from html.parser import HTMLParser
from urllib.parse import urlsplit


class Strict(HTMLParser):
    """Collects what is inline, what leads elsewhere, and what a reader of the page would miss."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.faults: list[str] = []
        self.ids: list[str] = []
        self._labels: set[str] = set()
        self._fields: list[str] = []
        self._script = ""
        self._typed, self._enter = False, None
        self.feed(page)
        self.faults += [f"id {found} twice" for found in {one for one in self.ids if self.ids.count(one) > 1}]
        self.faults += [f"field {found} without a label" for found in self._fields if found not in self._labels]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        for name in given:
            if name == "style" or name.startswith(("on", "hx-on")):
                self.faults.append(f"{name} on <{tag}>")
        if tag == "style":
            self.faults.append("<style>")
        self._script = tag if tag == "script" and "src" not in given else ""
        for name in ("src", "href", "action"):
            if given.get(name, "").startswith(("http:", "https:", "//", "javascript:", "data:")):
                self.faults.append(f"{name}={given[name]}")
        if "id" in given:
            self.ids.append(given["id"])
        if tag == "label":
            self._labels.add(given.get("for", ""))
        self._see_in_form(tag, given)
        if tag == "th" and "scope" not in given and "class" not in given:
            self.faults.append("<th> without scope")
        if tag in {"input", "select"} and given.get("type") not in {"hidden", "submit"} and given.get("id", "").startswith("f-"):
            self._fields.append(given["id"])

    def _see_in_form(self, tag: str, given: dict[str, str]) -> None:
        """What Enter does in a field: it presses the form's first button."""
        if tag == "form":
            self._typed, self._enter = False, None
        elif tag == "input" and given.get("type", "text") in {"text", "password", "search"}:
            self._typed = True
        elif tag == "button" and self._enter is None and given.get("type", "submit") == "submit":
            self._enter = given.get("class", "")

    def handle_data(self, data: str) -> None:
        if self._script and data.strip():
            self.faults.append("inline <script>")

    def handle_endtag(self, tag: str) -> None:
        self._script = ""
        if tag == "form" and self._typed and "danger" in (self._enter or ""):
            self.faults.append("Enter in a field presses what destroys")


class Offers(HTMLParser):
    """Collects where a page leads: the paths of its links, and of the forms that it sends."""

    def __init__(self, page: str, at: str) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.forms: set[str] = set()
        self._at = at
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag == "a" and given.get("href", "").startswith("/"):
            self.links.add(urlsplit(given["href"]).path)
        if tag == "form" and given.get("method") == "post":
            self.forms.add(urlsplit(given.get("action") or self._at).path)
