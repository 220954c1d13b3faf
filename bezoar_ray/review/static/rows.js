"use strict";

const TEXTS = ["instruction", "input", "response"];
let row = null;
let shownAt = 0;

function show(state) {
  row = state.row;
  mode = "decide";
  shownAt = performance.now();
  at("progress").textContent = `${state.done} of ${state.total} decided`;
  at("row").hidden = !row;
  at("end").hidden = Boolean(row);
  at("reasons").hidden = true;
  at("edit-help").hidden = true;
  if (!row) return;
  at("scheme").textContent = row.scheme;
  at("id").textContent = row.id;
  at("rubric").textContent = row.rubric;
  const context = row.system ? [{ role: "system", content: row.system }, ...row.history] : row.history;
  at("context").replaceChildren(
    ...context.flatMap((turn) => [element("h2", turn.role), element("pre", turn.content)]),
  );
  restoreTexts();
  at("reason-list").replaceChildren(...row.reasons.map((reason) => element("li", reason)));
  window.scrollTo(0, 0);
}

// The texts as they are, in place of the fields of an edit.
function restoreTexts() {
  for (const name of TEXTS) {
    const text = element("pre", row[name]);
    text.id = name;
    at(name).replaceWith(text);
  }
  at("input-part").hidden = !row.input;
}

function showVerdict(decision, verdict) {
  at("last").hidden = false;
  at("yours").textContent = `You: ${decision}. Filter: ${verdict.status}${verdict.reason ? ` (${verdict.reason})` : ""}.`;
  const lines = verdict.verdicts.map((one) =>
    element("li", `${one.judge}: ${one.status}${one.rating === null ? "" : `, ${one.rating}`}. ${one.reason}`),
  );
  at("verdicts").replaceChildren(...lines);
}

function decide(decision, more = {}) {
  const seconds = Math.round(performance.now() - shownAt) / 1000;
  const body = { id: row.id, decision, reviewer: at("reviewer").value.trim(), seconds, ...more };
  attempt(async () => {
    const state = await call("decisions", body);
    showVerdict(decision, state.verdict);
    return state;
  });
}

function reject(reason) {
  decide("reject", { reason });
}

function startReject() {
  mode = "reject";
  at("reason").value = "";
  at("reasons").hidden = false;
  at("reason").focus();
}

function startEdit() {
  mode = "edit";
  at("input-part").hidden = false;
  at("edit-help").hidden = false;
  for (const name of TEXTS) {
    const field = element("textarea", row[name]);
    field.id = name;
    at(name).replaceWith(field);
  }
  at("response").focus();
}

function saveEdit() {
  const texts = {};
  for (const name of TEXTS) texts[name] = at(name).value;
  decide("accept", texts);
}

function goBack() {
  mode = "decide";
  at("reasons").hidden = true;
  at("edit-help").hidden = true;
  restoreTexts();
  document.activeElement.blur();
}

KEYS = {
  a: () => row && decide("accept"),
  r: () => row && startReject(),
  e: () => row && startEdit(),
  s: () => row && decide("skip"),
  u: undo,
};

document.addEventListener("keydown", (event) => {
  if (leaveReviewer(event)) return;
  if (event.key === "Escape" && (mode === "reject" || mode === "edit")) {
    goBack();
  } else if (mode === "edit" && event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    saveEdit();
  } else if (mode === "reject" && at("reason").value === "" && row.reasons[event.key - 1]) {
    reject(`fails: ${row.reasons[event.key - 1]}`);
  } else if (isCommand(event)) {
    KEYS[event.key]();
  } else {
    return;
  }
  event.preventDefault();
});

at("reasons").addEventListener("submit", (event) => {
  event.preventDefault();
  if (mode === "reject") reject(at("reason").value.trim());
});
at("reason-list").addEventListener("click", (event) => {
  if (mode === "reject" && event.target.tagName === "LI") reject(`fails: ${event.target.textContent}`);
});
begin();
