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

  const opened = new Set();
  document.addEventListener("htmx:beforeSwap", (event) => {
    opened.clear();
    event.detail.target.querySelectorAll("details[open][id]").forEach((part) => opened.add(part.id));
  });
  document.addEventListener("htmx:afterSwap", () => {
    opened.forEach((id) => { const part = document.getElementById(id); if (part) part.open = true; });
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
