/** What the service has done so far, asked every two seconds while somebody looks. */

import { bar, dollars, element, find, percent } from "./dom.js";
import { get } from "./service.js";

const PERIOD_MS = 2000;
const panel = find("#stats");
const state = find("[role=status]", panel);
let timer;

export function startStats() {
  document.addEventListener("visibilitychange", poll);
  poll();
}

async function poll() {
  clearTimeout(timer);
  if (document.hidden) return;
  try {
    show(await get("v1/stats"));
    tell("Live", true);
  } catch {
    tell("No answer", false);
  }
  clearTimeout(timer); // the page may have been hidden and shown meanwhile
  timer = setTimeout(poll, PERIOD_MS);
}

/** Only what is new is written: a screen reader reads every change of a status aloud. */
function tell(word, well) {
  if (state.textContent !== word) state.textContent = word;
  state.classList.toggle("well", well);
  panel.classList.toggle("stale", !well);
}

function show(stats) {
  const values = {
    total_queries: String(stats.total_queries),
    total_cost: dollars(stats.total_cost),
    average_cost: stats.average_cost === null ? "–" : dollars(stats.average_cost),
    acceptance_rate: stats.acceptance_rate === null ? "–" : percent(stats.acceptance_rate),
    uptime_seconds: clock(stats.uptime_seconds),
  };
  for (const [name, value] of Object.entries(values)) find(`[data-stat=${name}]`, panel).textContent = value;
  const models = Object.entries(stats.queries_by_model).flatMap(([model, answers]) => [
    element("dt", {}, model),
    element("dd", {}, bar(answers / stats.total_queries), element("span", {}, String(answers))),
  ]);
  find("[data-stat=queries_by_model]", panel).replaceChildren(...(models.length ? models : ["–"]));
}

/** 3 d 04:05:06. */
function clock(seconds) {
  const two = (number) => String(Math.floor(number)).padStart(2, "0");
  const time = [(seconds / 3600) % 24, (seconds / 60) % 60, seconds % 60].map(two).join(":");
  return seconds < 86400 ? time : `${Math.floor(seconds / 86400)} d ${time}`;
}
