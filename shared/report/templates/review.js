"use strict";
// Each choice is sent when it is made, one after the other; "saved" stands only for what the server has confirmed.

const FIELDS = ["better", "grade_1", "grade_2"];
const RETRY = 2000; // milliseconds
const TIMEOUT = 8000;
const DOUBLE = 300; // the same key pressed again within this time is one press
const PAUSE = 800; // after typing in the comment

const byId = (id) => document.getElementById(id);
const rows = new Map(FIELDS.map((field) => [field, document.querySelector(`[data-field="${field}"]`)]));
const comment = byId("comment");
let kept = JSON.parse(byId("case").dataset.said); // what the server has
const wanted = { ...kept }; // what this page shows
const waiting = new Map(); // fields to send, with their values
let sending = false;
let confirmed = FIELDS.some((field) => kept[field]) || kept.comment !== "";
let alarm = "";
let destination = "";
let active = FIELDS.find((field) => !kept[field]) ?? "better";
let pressed = { key: "", time: 0 };
let typing = 0;

function draw() {
  for (const [field, row] of rows) {
    row.classList.toggle("active", field === active);
    for (const button of row.querySelectorAll("button")) {
      const chosen = button.dataset.value === wanted[field];
      button.setAttribute("aria-pressed", String(chosen));
      button.classList.toggle("waiting", chosen && waiting.has(field));
    }
  }
  const status = byId("status");
  const state = alarm ? "failed" : waiting.size ? "waiting" : confirmed ? "saved" : "";
  status.className = state;
  status.textContent = { failed: "NOT SAVED", waiting: "saving…", saved: "saved" }[state] ?? "";
  byId("alarm").hidden = !alarm;
  byId("alarm").textContent = alarm;
  byId("next").classList.toggle("main", FIELDS.every((field) => kept[field]));
}

async function post(field, value) {
  const reply = await fetch(location.pathname, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ field, value }),
    signal: AbortSignal.timeout(TIMEOUT),
  });
  if (reply.status >= 500) throw new Error(`the server answers with error ${reply.status}`);
  if (!reply.ok) return { refused: (await reply.json()).error };
  return reply.json();
}

async function send() {
  if (sending) return;
  sending = true;
  while (waiting.size) {
    const [field, value] = waiting.entries().next().value;
    try {
      const reply = await post(field, value);
      if (waiting.get(field) === value) waiting.delete(field);
      if (reply.refused) {
        alarm = `NOT SAVED: ${reply.refused}`;
        destination = "";
        if (!waiting.has(field)) wanted[field] = kept[field];
      } else {
        kept = reply.said;
        confirmed = true;
        alarm = "";
        byId("rated").textContent = reply.rated;
        byId("progress").value = reply.rated;
      }
      draw();
    } catch {
      alarm = "NOT SAVED: the server does not answer. Leave this page open, it tries again. If this stays, tell whoever sent you the link.";
      draw();
      await new Promise((resolve) => setTimeout(resolve, RETRY));
    }
  }
  sending = false;
  if (destination) location.assign(destination);
}

function choose(field, value) {
  if (wanted[field] === value) return; // a second click of a double click
  wanted[field] = value;
  waiting.set(field, value);
  draw();
  send();
}

function chooseInRow(field, value) {
  choose(field, value);
  const later = FIELDS.slice(FIELDS.indexOf(field) + 1);
  active = later.find((name) => !wanted[name]) ?? later[0] ?? field;
  draw();
}

function keepComment() {
  clearTimeout(typing);
  choose("comment", comment.value);
}

function go(link) {
  if (!link.href) return;
  keepComment();
  if (waiting.size) destination = link.href;
  else location.assign(link.href);
}

function onKey(event) {
  if (event.ctrlKey || event.altKey || event.metaKey || event.target === comment) return;
  const digit = /^[0-9]$/.test(event.key) ? event.key : /^Digit([0-9])$/.exec(event.code)?.[1];
  if (digit) {
    const again = digit === pressed.key && event.timeStamp - pressed.time < DOUBLE;
    pressed = { key: digit, time: event.timeStamp };
    const button = rows.get(active).querySelector(`[data-key="${digit}"]`);
    if (button && !again && !event.repeat) chooseInRow(active, button.dataset.value);
  } else if (event.key === "ArrowRight" || event.key === "ArrowLeft") {
    go(byId(event.key === "ArrowRight" ? "next" : "previous"));
  } else if (event.key === "Backspace") {
    active = FIELDS[Math.max(0, FIELDS.indexOf(active) - 1)];
    draw();
  } else if (event.key === "Enter" && event.target === document.body) {
    const place = FIELDS.indexOf(active);
    if (place < FIELDS.length - 1 && !wanted[active]) active = FIELDS[place + 1];
    else go(byId("next"));
    draw();
  } else {
    return;
  }
  event.preventDefault();
}

for (const [field, row] of rows) {
  row.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button) chooseInRow(field, button.dataset.value);
  });
}
for (const id of ["previous", "next"]) {
  byId(id).addEventListener("click", (event) => {
    event.preventDefault();
    go(byId(id));
  });
}
byId("clear").addEventListener("click", () => {
  for (const field of FIELDS) choose(field, "");
  active = "better";
  draw();
});
comment.addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(keepComment, PAUSE);
});
comment.addEventListener("change", keepComment);
byId("rating").addEventListener("submit", (event) => event.preventDefault());
document.addEventListener("keydown", onKey);
window.addEventListener("pageshow", (event) => {
  if (event.persisted) location.reload(); // come back to: what the server has may have changed
});
window.addEventListener("beforeunload", (event) => {
  if (waiting.size || comment.value !== wanted.comment) event.preventDefault();
});
draw();
