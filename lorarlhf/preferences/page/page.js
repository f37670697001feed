"use strict";

const KEYS = { ArrowLeft: "left", ArrowRight: "right", t: "tie", b: "both_bad", s: "skip" };
const SPOKEN = {
  left: "left is better", right: "right is better", tie: "tie", both_bad: "both bad", skip: "skipped",
};
const STRENGTHS = { 1: "slightly", 2: "clearly", 3: "far" };

const byId = (id) => document.getElementById(id);

let annotator = sessionStorage.getItem("annotator"); // of this tab: people may take turns
let task = null;
let strength = null;
let criteria = {}; // sides by the scales that do not decide
let marking = false; // whether differences are marked; for the next pairs too
let raw = false; // whether texts are shown as they stand, without Markdown; likewise
let busy = false;

// Seconds that a pair was in view

let seconds = 0;
let since = performance.now();

function secondsInView() {
  if (since !== null) {
    seconds += (performance.now() - since) / 1000;
    since = performance.now();
  }
  return seconds;
}

document.addEventListener("visibilitychange", () => {
  secondsInView();
  since = document.hidden ? null : performance.now();
});

// Talking to the server

class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function request(path, body) {
  const options = body && {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  };
  let response;
  let text;
  try {
    response = await fetch(path, options);
    text = await response.text(); // may break off too
  } catch {
    throw new Refused(0, "The server does not answer, so this is not known to be saved. Start it again and open the link it prints.");
  }
  if (!response.ok) {
    throw new Refused(response.status, text);
  }
  return JSON.parse(text);
}

/** Do one thing at a time: what is pressed meanwhile is ignored, so that no key answers a pair not yet seen. */
async function alone(action) {
  if (busy) {
    return;
  }
  busy = true;
  document.body.setAttribute("aria-busy", "true");
  try {
    say("", "");
    await action();
  } catch (error) {
    if (!(error instanceof Refused)) {
      throw error;
    }
    say("", error.message);
  } finally {
    busy = false;
    document.body.removeAttribute("aria-busy");
  }
}

function next() {
  const query = annotator === null ? "" : `?${new URLSearchParams({ annotator })}`;
  return request(`api/next${query}`);
}

function answer(choice) {
  return alone(async () => {
    if (!task) {
      return;
    }
    const label = {
      annotator, choice, strength, criteria,
      task: task.id,
      pair_id: task.pair_id,
      seconds: secondsInView(),
      comment: byId("comment").value || null,
    };
    try {
      const reply = await request("api/label", label);
      show(reply, `Saved: ${inFull(choice, reply.saved)}.`);
    } catch (error) {
      if (error.status !== 409) {
        throw error;
      }
      show(await next(), "");
      say("", `${error.message} Here is the next one.`);
    }
  });
}

function undo() {
  return alone(async () => askAgain(await request("api/undo", { annotator }), "Undone."));
}

/** The pair of a label that was taken back, with what else was said of it, if the label was this person's. */
function askAgain(reply, news) {
  show(reply, news);
  if (reply.undone) {
    pickStrength(reply.undone.strength);
    pickCriteria(reply.undone.criteria);
    byId("comment").value = reply.undone.comment || "";
  }
}

/** A label as it was saved, which may be less than was picked: a tie has no strength. */
function inFull(choice, { strength: much, criteria: scales, comment }) {
  const sides = Object.entries(scales).map(([name, side]) => `${name}: ${side}`);
  return [SPOKEN[choice], much && STRENGTHS[much], ...sides, comment && `“${comment}”`].filter(Boolean).join(", ");
}

// Showing things

function responses() {
  const { left, right } = task;
  const turns = Array.from({ length: Math.max(left.length, right.length) }, (_, i) => [left[i], right[i]]);
  const pairs = marking ? turns.map(([one, other]) => difference(one?.content ?? "", other?.content ?? "")) : [null];
  const shown = !pairs.includes(null);
  messages(byId("left"), left, raw, shown && pairs.map((pair) => pair[0]));
  messages(byId("right"), right, raw, shown && pairs.map((pair) => pair[1]));
  byId("differences").setAttribute("aria-pressed", String(marking));
  if (marking && !shown) {
    say("", "These responses are too long to mark where they differ.");
  }
}

function texts() {
  messages(byId("prompt"), task.prompt, raw);
  responses();
  byId("raw").setAttribute("aria-pressed", String(raw));
}

function toggleRaw() {
  raw = !raw;
  texts();
}

function toggleDifferences() {
  marking = !marking;
  say("", "");
  responses();
}

function show(reply, news) {
  annotator = reply.annotator;
  byId("ask").hidden = annotator !== null;
  byId("figures").hidden = byId("choices").hidden = annotator === null;
  byId("who").hidden = annotator === null;
  if (annotator === null) {
    task = null;
    byId("task").hidden = byId("finished").hidden = true;
    byId("annotator").value = reply.suggestion;
    byId("annotator").select();
    return;
  }
  sessionStorage.setItem("annotator", annotator);
  byId("name").textContent = annotator;
  byId("change").hidden = !reply.asks;
  task = reply.task;
  byId("task").hidden = !task;
  byId("answers").hidden = byId("differences").hidden = !task;
  byId("raw").hidden = true;
  byId("finished").hidden = Boolean(task);
  if (task) {
    byId("raw").hidden = ![...task.prompt, ...task.left, ...task.right].some(({ markdown }) => markdown);
    byId("responses").scrollLeft = 0;
    // Once what is in it has changed, a browser goes back to the side that it had snapped to.
    requestAnimationFrame(() => { byId("responses").scrollLeft = 0; });
    pickStrength(null);
    pickCriteria({});
    byId("comment").value = "";
    seconds = 0;
    since = document.hidden ? null : performance.now();
  }
  showProgress(reply.progress);
  say(`${news} ${task ? byId("done").textContent : "All pairs are labelled"}.`.trim(), "");
  if (task) {
    texts(); // after what is said: they may have something to add
  }
  window.scrollTo(0, 0);
  byId(task ? "prompt-title" : "finished-title").focus({ preventScroll: true });
}

function brief({ guide, commands, criteria: [decides, ...others] }) {
  if (decides) {
    byId("question").textContent = `Which response is better (${decides})?`;
  }
  byId("criteria").replaceChildren(...others.map(scale));
  byId("guide-open").hidden = guide === null;
  messages(byId("guide-text"), guide ? [guide] : [], false);
  byId("commands").textContent = commands.join("\n");
}

function toggleGuide() {
  if (byId("guide").open) {
    byId("guide").close();
  } else if (!byId("guide-open").hidden) {
    byId("guide").showModal();
    byId("guide").scrollTop = 0;
  }
}

function toggleDisputed() {
  if (byId("disputed").open) {
    byId("disputed").close();
  } else if (!byId("disputed-open").hidden) {
    alone(async () => {
      listDisputes(byId("disputes"), await request(`api/disputed?${new URLSearchParams({ annotator })}`), reopen);
      byId("disputed").showModal();
      byId("disputed").scrollTop = 0;
    });
  }
}

function reopen(pair) {
  byId("disputed").close();
  return alone(async () => {
    askAgain(await request("api/reopen", { annotator, pair_id: pair }), "Opened again.");
  });
}

function showProgress({ done, total, seconds: each, repeats, consistent, can_undo: canUndo, disputed, elsewhere }) {
  byId("bar").max = total;
  byId("bar").value = done;
  byId("done").textContent = `${done.toLocaleString("en")} of ${total.toLocaleString("en")}`;
  byId("pace").textContent = each === null ? "" : `${inWords(each)} a pair, ${inWords(each * (total - done))} left`;
  byId("agreement").textContent = repeats ? `repeats: ${consistent} of ${repeats} the same` : "";
  byId("undo").hidden = !canUndo;
  byId("disputed-open").hidden = !disputed;
  byId("elsewhere").hidden = !elsewhere;
}

function inWords(time) {
  if (time < 100) {
    return `${time < 10 ? time.toFixed(1) : Math.round(time)} s`;
  }
  const minutes = Math.round(time / 60);
  return minutes < 100 ? `${minutes} min` : `${(minutes / 60).toFixed(1)} h`;
}

function pickStrength(value) {
  strength = value;
  for (const button of document.querySelectorAll("[data-strength]")) {
    button.setAttribute("aria-pressed", String(Number(button.dataset.strength) === value));
  }
}

/** Buttons of a scale that does not decide: which side is better by it, if either. */
function scale(name) {
  const row = document.createElement("div");
  row.className = "row";
  row.setAttribute("role", "group");
  row.setAttribute("aria-label", name);
  row.append(name);
  for (const side of ["left", "tie", "right"]) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = side;
    Object.assign(button.dataset, { criterion: name, verdict: side });
    button.addEventListener("click", () => {
      const { [name]: before, ...rest } = criteria;
      pickCriteria(before === side ? rest : { ...rest, [name]: side });
    });
    row.append(button);
  }
  return row;
}

function pickCriteria(sides) {
  criteria = sides;
  for (const button of document.querySelectorAll("[data-criterion]")) {
    const { criterion, verdict } = button.dataset;
    button.setAttribute("aria-pressed", String(criteria[criterion] === verdict));
  }
}

function say(news, problem) {
  byId("status").textContent = news;
  byId("alert").textContent = problem;
}

// Clicks and keys

for (const button of document.querySelectorAll("[data-choice]")) {
  button.addEventListener("click", () => answer(button.dataset.choice));
}
for (const button of document.querySelectorAll("[data-strength]")) {
  button.addEventListener("click", () => toggleStrength(Number(button.dataset.strength)));
}
for (const button of document.querySelectorAll("[data-side]")) {
  button.addEventListener("click", () => {
    byId("responses").scrollLeft = button.dataset.side === "left" ? 0 : byId("responses").scrollWidth;
  });
}
byId("responses").addEventListener("scroll", () => { // on a narrow screen, where it shows one side at a time
  const { scrollLeft, scrollWidth, clientWidth } = byId("responses");
  const side = scrollLeft > (scrollWidth - clientWidth) / 2 ? "right" : "left";
  for (const button of document.querySelectorAll("[data-side]")) {
    button.setAttribute("aria-pressed", String(button.dataset.side === side));
  }
});
byId("differences").addEventListener("click", toggleDifferences);
byId("raw").addEventListener("click", toggleRaw);
byId("disputed-open").addEventListener("click", toggleDisputed);
byId("disputed-close").addEventListener("click", toggleDisputed);
byId("guide-open").addEventListener("click", toggleGuide);
byId("guide-close").addEventListener("click", toggleGuide);
byId("undo").addEventListener("click", undo);
byId("change").addEventListener("click", () => alone(async () => {
  sessionStorage.removeItem("annotator");
  annotator = null;
  show(await next(), "");
}));
byId("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  alone(async () => {
    const query = new URLSearchParams({ annotator: byId("annotator").value });
    show(await request(`api/next?${query}`), "");
  });
});

function toggleStrength(value) {
  pickStrength(strength === value ? null : value);
}

document.addEventListener("keydown", (event) => {
  if (event.repeat && event.target.matches("button")) {
    event.preventDefault(); // a held Enter would press the button again and again
  }
  if (event.target.matches("textarea, input:not([type='checkbox'])")) {
    if (event.key === "Escape" && !event.isComposing && task) {
      byId("prompt-title").focus({ preventScroll: true });
    }
    return;
  }
  if (event.repeat || event.ctrlKey || event.altKey || event.metaKey || event.shiftKey || event.isComposing) {
    return;
  }
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (annotator === null || !byId("keys").checked) {
    return;
  }
  if (key === "g" && !byId("disputed").open) {
    toggleGuide();
  } else if (key === "m" && !byId("guide").open) {
    toggleDisputed();
  } else if (document.querySelector("dialog[open]")) {
    return; // nobody answers a pair that is covered
  } else if (key === "u") {
    undo();
  } else if (task && key in KEYS) {
    answer(KEYS[key]);
  } else if (task && ["1", "2", "3"].includes(key)) {
    toggleStrength(Number(key));
  } else if (task && key === "d") {
    toggleDifferences();
  } else if (task && key === "r" && !byId("raw").hidden) {
    toggleRaw();
  } else if (task && key === "c") {
    byId("comment").focus();
  } else {
    return;
  }
  event.preventDefault();
});

alone(async () => {
  brief(await request("api/briefing"));
  show(await next(), "");
});
