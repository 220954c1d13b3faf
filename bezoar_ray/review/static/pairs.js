"use strict";

let pair = null;
let shownAt = 0;

function show(state) {
  pair = state.pair;
  mode = "decide";
  shownAt = performance.now();
  at("progress").textContent = `${state.done} of ${state.total} compared`;
  at("pair").hidden = !pair;
  at("end").hidden = Boolean(pair);
  if (!pair) return;
  at("id").textContent = pair.id;
  at("turns").replaceChildren(...pair.user.flatMap((text, turn) => turnElements(text, turn)));
  window.scrollTo(0, 0);
}

function turnElements(text, turn) {
  const sides = document.createElement("div");
  sides.className = "sides";
  for (const side of ["left", "right"]) {
    const part = document.createElement("div");
    part.append(element("h2", side), element("pre", pair[side][turn]));
    sides.append(part);
  }
  return [element("h2", "user"), element("pre", text), sides];
}

function vote(choice) {
  if (!pair) return;
  const seconds = Math.round(performance.now() - shownAt) / 1000;
  const body = { id: pair.id, choice, reviewer: at("reviewer").value.trim(), seconds };
  attempt(async () => {
    const state = await call("votes", body);
    at("last").hidden = false;
    at("models").textContent = `Left was ${state.left}, right was ${state.right}.`;
    return state;
  });
}

KEYS = {
  ArrowLeft: () => vote("left"),
  ArrowRight: () => vote("right"),
  g: () => vote("both_good"),
  b: () => vote("both_bad"),
  s: () => vote("skip"),
  u: undo,
};

document.addEventListener("keydown", (event) => {
  if (!leaveReviewer(event) && isCommand(event)) {
    KEYS[event.key]();
    event.preventDefault();
  }
});
begin();
