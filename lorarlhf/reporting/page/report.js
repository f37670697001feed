"use strict";

// Samples: their order, those with certain words, and no more at first than one reads.
const AT_FIRST = 12;
const orders = {
  order: (a, b) => a.dataset.order - b.dataset.order,
  best: (a, b) => reward(b, -Infinity) - reward(a, -Infinity) || orders.order(a, b),
  worst: (a, b) => reward(a, Infinity) - reward(b, Infinity) || orders.order(a, b),
  changed: (a, b) => b.dataset.changed - a.dataset.changed || orders.order(a, b),
  longest: (a, b) => b.dataset.words - a.dataset.words || orders.order(a, b),
};

function reward(sample, otherwise) {
  return sample.dataset.reward === "" ? otherwise : Number(sample.dataset.reward);
}

for (const section of document.querySelectorAll(".samples")) {
  const list = section.querySelector("ol");
  const order = section.querySelector("select");
  const words = section.querySelector("input");
  const more = section.querySelector(".more");
  const show = () => {
    const wanted = words.value.toLowerCase();
    const all = [...list.children].sort(orders[order.value] ?? orders.order);
    const found = all.filter((sample) => sample.textContent.toLowerCase().includes(wanted));
    const shown = section.dataset.all ? found : found.slice(0, AT_FIRST);
    for (const sample of all) sample.hidden = !shown.includes(sample);
    list.append(...all);
    section.querySelector(".count").textContent = `${shown.length} of ${found.length}`;
    more.hidden = shown.length === found.length;
  };
  order.addEventListener("change", show);
  words.addEventListener("input", show);
  more.addEventListener("click", () => { section.dataset.all = "yes"; show(); });
  section.addEventListener("restored", show);
  section.querySelector(".tools").hidden = false;
  show();
}

// Live: when the run has gone on, the page loads anew, and looks as the reader left it.
const KEPT = "lorarlhf-report";

function keep() {
  const fields = [...document.querySelectorAll("select, input")].map((field) => [field.id, field.value]);
  const open = [...document.querySelectorAll("details[open]")].map((details) => details.id);
  const all = [...document.querySelectorAll(".samples[data-all]")].map((section) => section.id);
  sessionStorage.setItem(KEPT, JSON.stringify({ fields, open, all, top: scrollY }));
}

function restore() {
  const kept = JSON.parse(sessionStorage.getItem(KEPT) ?? "null");
  sessionStorage.removeItem(KEPT);
  if (kept === null) return;
  const named = (id) => document.getElementById(id);
  for (const [id, value] of kept.fields) if (named(id)) named(id).value = value;
  for (const id of kept.open) if (named(id)) named(id).open = true;
  for (const id of kept.all) if (named(id)) named(id).dataset.all = "yes";
  for (const section of document.querySelectorAll(".samples")) section.dispatchEvent(new Event("restored"));
  scrollTo(0, kept.top);
}

// Not under the reader's hands: who types or has marked a text is left alone until they have done.
function busy() {
  return document.hidden || document.activeElement?.matches("select, input") || !getSelection().isCollapsed;
}

async function follow() {
  const note = document.getElementById("live");
  for (;;) {
    try {
      const reply = await fetch("state");
      if (!reply.ok) throw new Error(reply.statusText);
      const state = await reply.text();
      note.textContent = "follows the run";
      if (state !== document.body.dataset.live && !busy()) {
        keep();
        location.reload();
        return;
      }
    } catch {
      note.textContent = "lorarlhf report has ended; this is the last it showed";
    }
    await new Promise((done) => setTimeout(done, 2000));
  }
}

if (document.body.dataset.live !== undefined) {
  history.scrollRestoration = "manual";
  restore();
  follow();
}
