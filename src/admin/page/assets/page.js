// The script of the pages, beside htmx. Without it the pages work, but don't refresh.
"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const live = () => byId("live");

  // A hidden page makes no requests.
  document.addEventListener("htmx:beforeRequest", (event) => {
    if (event.target === live() && document.hidden) event.preventDefault();
  });

  // Nothing is replaced while a reference is being copied or the table of the chart is open.
  document.addEventListener("htmx:beforeSwap", (event) => {
    const region = live();
    if (!region || event.detail.target !== region) return;
    const selection = document.getSelection();
    const selecting = selection && !selection.isCollapsed && region.contains(selection.anchorNode);
    if (selecting || region.querySelector("details[open]")) event.detail.shouldSwap = false;
  });

  // A screen reader announces the change once, and not every figure that moved.
  const announce = () => {
    const source = document.querySelector("[data-announce]");
    const announcement = byId("announcement");
    if (source && announcement && announcement.textContent !== source.dataset.announce) announcement.textContent = source.dataset.announce;
  };
  const answered = (yes) => { byId("stale").hidden = yes; };
  document.addEventListener("htmx:afterSwap", announce);
  document.addEventListener("htmx:afterRequest", (event) => answered(event.detail.successful === true));
  document.addEventListener("htmx:sendError", () => answered(false));
  document.addEventListener("htmx:timeout", () => answered(false));

  // A form is sent once, however often its button is pressed.
  document.addEventListener("submit", (event) => {
    const form = event.target;
    if (form.method !== "post") return;
    if (form.dataset.sent) event.preventDefault();
    form.dataset.sent = "yes";
  });
  window.addEventListener("pageshow", () => {
    for (const form of document.querySelectorAll("form[data-sent]")) delete form.dataset.sent;
  });
})();
