/* What pages gain where scripts run: keys, announcements, and parts that stay open when they are sent anew. */
"use strict";

(() => {
  /* The server shows times in the browser's zone where nobody has chosen another; told at the sign-in, too. */
  const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;
  if (zone) document.cookie = `time-zone=${zone}; path=/; max-age=31536000; samesite=lax`;

  const KEPT = "single-keys";
  const dialog = document.getElementById("shortcuts");
  const announcer = document.getElementById("announcer");
  if (!dialog || !announcer) return;

  /* --- keys: off for whom they disturb (WCAG 2.1.4), and never while something is typed --- */

  const single = dialog.querySelector("input[type=checkbox]");
  const store = {
    get off() {
      try { return localStorage.getItem(KEPT) === "off"; } catch { return false; }
    },
    set off(value) {
      try { localStorage.setItem(KEPT, value ? "off" : "on"); } catch { /* private windows may keep nothing */ }
    },
  };
  single.checked = !store.off;
  single.addEventListener("change", () => { store.off = !single.checked; });

  const opener = document.getElementById("show-shortcuts");
  opener.hidden = false;
  opener.addEventListener("click", () => dialog.showModal());

  const follow = (element) => { if (element) element.click(); };
  const goes = Object.fromEntries([...dialog.querySelectorAll("[data-go]")].map((link) => [link.dataset.go, link]));
  let waitsForTarget = 0;

  document.addEventListener("keydown", (event) => {
    const typed = event.target.closest?.("input:not([type=checkbox]), select, textarea, [contenteditable]");
    if (typed || event.ctrlKey || event.altKey || event.metaKey || dialog.open) return;
    if (store.off && event.key !== "?") return;
    const second = Date.now() < waitsForTarget;
    waitsForTarget = 0;
    if (second && goes[event.key]) follow(goes[event.key]);
    else if (event.key === "g") waitsForTarget = Date.now() + 1500;
    else if (event.key === "?") dialog.showModal();
    else if (event.key === "/") document.querySelector("#content form.filters input:not([type=hidden]), #searchbar")?.focus();
    else if (event.key === "n") follow(document.querySelector("a[rel=next]"));
    else if (event.key === "r") location.reload();
    else return;
    event.preventDefault();
  });

  /* --- live parts --- */

  /* What is sent anew stays as the reader left it: what was open, how far a table was scrolled, and where the focus was (htmx
     finds it again only where it has an id). Known again by where a link leads, and a table by its heads. */
  const opened = new Set();
  const scrolled = new Map();
  let focused = "";
  const known = (one) => [one.tagName, one.getAttribute("href"), (one.querySelector("thead") ?? one).textContent.trim()].join(" ");

  document.addEventListener("htmx:beforeSwap", (event) => {
    const part = event.detail.target;
    opened.clear();
    scrolled.clear();
    part.querySelectorAll("details[open][id]").forEach((one) => opened.add(one.id));
    part.querySelectorAll(".scroll").forEach((one) => { if (one.scrollLeft) scrolled.set(known(one), one.scrollLeft); });
    const at = document.activeElement;
    focused = part.contains(at) && !at.id ? known(at) : "";
  });
  document.addEventListener("htmx:afterSwap", () => {
    opened.forEach((id) => { const part = document.getElementById(id); if (part) part.open = true; });
    document.querySelectorAll("main .scroll").forEach((one) => { one.scrollLeft ||= scrolled.get(known(one)) ?? 0; });
    if (focused && document.activeElement === document.body) {
      const again = [...document.querySelectorAll("main :is(a[href], button, .scroll)")].find((one) => known(one) === focused);
      again?.focus({ preventScroll: true });
    }
    announce();
  });

  /* A region that is replaced is not read out, so what it says is copied to one that stays; and only when it is news. */
  const announce = () => {
    const said = document.querySelector("[data-announce]")?.textContent.trim() ?? "";
    if (said && said !== announcer.dataset.said) {
      if (announcer.dataset.said !== undefined) announcer.textContent = said;
      announcer.dataset.said = said;
    }
  };
  announce();
})();
