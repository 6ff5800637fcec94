/** Asks the cascade, and shows its events: the draft, possibly a switch, and the result. */

import { dollars, duration, element, enterPresses, find, showMessage, swapButtons } from "./dom.js";
import { readEvents } from "./events.js";
import { call, connectionLost, errorText, key, toServiceError } from "./service.js";

const panel = find("#cascade");
const form = find("form", panel);
const { question, direct, start, stop } = form.elements;
const answers = find(".answer", panel);
const outcome = find(".outcome", panel);
const alert = find("[role=alert]", panel);

export function startCascade() {
  form.addEventListener("submit", ask);
  enterPresses(start, question);
}

function ask(event) {
  event.preventDefault();
  swapButtons(start, stop);
  showMessage(alert);
  answers.replaceChildren();
  outcome.replaceChildren();
  answers.ariaBusy = "true"; // screen readers wait for the complete answer

  const controller = new AbortController();
  const finish = (...content) => {
    controller.abort(); // or an EventSource would reconnect and ask again
    outcome.append(...content);
    answers.ariaBusy = "false";
    swapButtons(stop, start);
  };
  stop.onclick = () => finish(element("p", { class: "soft" }, "Stopped."));

  let attempt; // the answer in progress
  const handlers = {
    chunk({ model, text }) {
      attempt ??= addAttempt(model);
      attempt.text.appendData(text);
    },
    switch({ from_model: from, to_model: to, quality, threshold }) {
      rejectDraft(attempt ?? addAttempt(from), quality, threshold);
      attempt = addAttempt(to);
    },
    complete(answer) {
      finish(...summary(answer));
    },
    error(problem) {
      finish();
      showMessage(alert, errorText(toServiceError(problem)));
    },
  };
  const address = `v1/query/stream?${new URLSearchParams({ query: question.value, force_direct: direct.checked })}`;
  // EventSource cannot send a key.
  if (key()) readByFetch(address, handlers, controller.signal);
  else listen(address, handlers, controller.signal);
}

/** Read the stream with an EventSource, and pass each event to the handler of its type. */
function listen(address, handlers, signal) {
  const source = new EventSource(address);
  signal.addEventListener("abort", () => source.close());
  let receivedEvent = false;
  for (const [type, handle] of Object.entries(handlers)) {
    source.addEventListener(type, ({ data }) => {
      // The browser also fires `error`, without data, when the connection is lost.
      if (!data) return;
      receivedEvent = true;
      handle(JSON.parse(data));
    });
  }
  source.onerror = ({ data }) => {
    if (data) return;
    source.close();
    if (receivedEvent) handlers.error({ detail: connectionLost().message });
    else readByFetch(address, handlers, signal); // EventSource does not report the response's error
  };
}

/** The same with fetch. */
async function readByFetch(address, handlers, signal) {
  try {
    const response = await call(address, { signal });
    for await (const { type, data } of readEvents(response.body)) handlers[type](JSON.parse(data));
    if (!signal.aborted) throw connectionLost();
  } catch (error) {
    if (error.name !== "AbortError") handlers.error({ detail: error.message, details: error.details });
  }
}

function addAttempt(model) {
  const text = new Text();
  const who = element("p", { class: "who" }, model);
  const body = element("p", {}, text);
  const block = element("div", { class: "attempt" }, who, body);
  answers.append(block);
  return { block, who, body, text };
}

/** Strike the draft through. It stays readable. */
function rejectDraft({ block, who, body, text }, quality, threshold) {
  block.classList.add("void");
  who.append(element("span", {}, `not good enough: quality ${quality.toFixed(2)}, wanted ${threshold.toFixed(2)}`));
  body.replaceChildren(element("del", {}, text));
}

function summary({ model_used: model, quality, cost, latency_ms: latency, draft_accepted: accepted }) {
  let result = "The larger model was asked at once.";
  const facts = [["Answered by", model], ["Cost", dollars(cost)], ["Time", duration(latency)]];
  if (quality !== null) {
    result = accepted ? "The draft was good enough." : "The larger model answered instead of the draft.";
    facts.splice(1, 0, ["Quality of the draft", quality.toFixed(2)]);
  }
  const pairs = facts.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value)));
  return [element("p", {}, result), element("dl", { class: "facts" }, ...pairs)];
}
