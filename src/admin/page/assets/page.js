// What htmx leaves to the page. Everything works without this file, only not by itself.
"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const live = () => byId("live");

  // Nobody looks: nobody asks.
  document.addEventListener("htmx:beforeRequest", (event) => {
    if (event.target === live() && document.hidden) event.preventDefault();
  });

  // Whoever is copying a reference, or reads the figures behind the chart, keeps what is there until they are done.
  document.addEventListener("htmx:beforeSwap", (event) => {
    const region = live();
    if (!region || event.detail.target !== region) return;
    const selection = document.getSelection();
    const selecting = selection && !selection.isCollapsed && region.contains(selection.anchorNode);
    if (selecting || region.querySelector("details[open]")) event.detail.shouldSwap = false;
  });

  // A screen reader is told what changed, once, and not every figure that moved.
  const tell = () => {
    const source = document.querySelector("[data-say]");
    const said = byId("said");
    if (source && said && said.textContent !== source.dataset.say) said.textContent = source.dataset.say;
  };
  const answered = (yes) => { byId("stale").hidden = yes; };
  document.addEventListener("htmx:afterSwap", tell);
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
