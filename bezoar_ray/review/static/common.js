"use strict";
// What both pages share. All texts are set by textContent: a row cannot add an element or a script.
// Each page defines `show(state)` and sets KEYS.

const at = (id) => document.getElementById(id);
let mode = "decide"; // or "busy", and the modes of a page
let KEYS = {};

async function call(path, body) {
  const options = body && {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  };
  const response = await fetch(path, options || {});
  const found = await response.json();
  if (!response.ok) throw new Error(typeof found.detail === "string" ? found.detail : "The request was refused.");
  return found;
}

// Run an action. If it fails, what is shown stays, and the reviewer can decide again.
async function attempt(action) {
  const before = mode;
  mode = "busy";
  try {
    show(await action());
    at("problem").hidden = true;
  } catch (error) {
    mode = before;
    at("problem").textContent = `Not saved: ${error.message} Try again.`;
    at("problem").hidden = false;
  }
}

function element(name, text) {
  const made = document.createElement(name);
  made.textContent = text;
  return made;
}

function undo() {
  attempt(() => call("undo", { reviewer: at("reviewer").value.trim() }));
}

function load() {
  const name = at("reviewer").value.trim();
  attempt(() => call(`next?reviewer=${encodeURIComponent(name)}`));
}

// Whether a key was pressed in the field of the name, where letters are no commands.
function leaveReviewer(event) {
  if (event.target.id !== "reviewer") return false;
  if (event.key === "Enter") event.target.blur();
  return true;
}

function isCommand(event) {
  return mode === "decide" && !(event.ctrlKey || event.metaKey || event.altKey) && KEYS[event.key];
}

function begin() {
  for (const button of document.querySelectorAll("[data-key]")) {
    button.addEventListener("click", () => {
      button.blur();
      if (mode === "decide") KEYS[button.dataset.key]();
    });
  }
  at("reviewer").addEventListener("change", load);
  call("start").then((start) => {
    at("reviewer").value = start.reviewer;
    load();
  });
}
