/** Live statistics, polled every two seconds while the page is visible. */

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
    setState("Live", true);
  } catch {
    setState("No answer", false);
  }
  clearTimeout(timer); // the page may have been hidden and shown again meanwhile
  timer = setTimeout(poll, PERIOD_MS);
}

/** Writes the status only if it has changed, because screen readers announce every write. */
function setState(label, isLive) {
  if (state.textContent !== label) state.textContent = label;
  state.classList.toggle("ok", isLive);
  panel.classList.toggle("stale", !isLive);
}

function show(stats) {
  const values = {
    total_queries: String(stats.total_queries),
    total_cost: dollars(stats.total_cost),
    average_cost: stats.average_cost === null ? "–" : dollars(stats.average_cost),
    acceptance_rate: stats.acceptance_rate === null ? "–" : percent(stats.acceptance_rate),
    uptime_seconds: uptime(stats.uptime_seconds),
  };
  for (const [name, value] of Object.entries(values)) find(`[data-stat=${name}]`, panel).textContent = value;
  const models = Object.entries(stats.queries_by_model).flatMap(([model, answers]) => [
    element("dt", {}, model),
    element("dd", {}, bar(answers / stats.total_queries), element("span", {}, String(answers))),
  ]);
  find("[data-stat=queries_by_model]", panel).replaceChildren(...(models.length ? models : ["–"]));
}

/** Format seconds, such as 3 d 04:05:06. */
function uptime(seconds) {
  const twoDigits = (number) => String(Math.floor(number)).padStart(2, "0");
  const time = [(seconds / 3600) % 24, (seconds / 60) % 60, seconds % 60].map(twoDigits).join(":");
  return seconds < 86400 ? time : `${Math.floor(seconds / 86400)} d ${time}`;
}
