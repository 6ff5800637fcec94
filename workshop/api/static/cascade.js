/** A question to the cascade: typed events tell of the draft, perhaps of a switch, and of the end. */

import { dollars, duration, element, enterPresses, find, say, swap } from "./dom.js";
import { readEvents } from "./events.js";
import { broken, call, inWords, key, refusal } from "./service.js";

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
  swap(start, stop);
  say(alert);
  answers.replaceChildren();
  outcome.replaceChildren();
  answers.ariaBusy = "true"; // a screen reader waits for the whole answer

  const controller = new AbortController();
  const end = (...news) => {
    controller.abort(); // else an EventSource would connect again, and ask again
    outcome.append(...news);
    answers.ariaBusy = "false";
    swap(stop, start);
  };
  stop.onclick = () => end(element("p", { class: "soft" }, "Stopped."));

  let attempt; // the answer that is being given
  const act = {
    chunk({ model, text }) {
      attempt ??= begin(model);
      attempt.text.appendData(text);
    },
    switch({ from_model: from, to_model: to, quality, threshold }) {
      strike(attempt ?? begin(from), quality, threshold);
      attempt = begin(to);
    },
    complete(answer) {
      end(...conclusion(answer));
    },
    error(problem) {
      end();
      say(alert, inWords(refusal(problem)));
    },
  };
  const address = `v1/query/stream?${new URLSearchParams({ query: question.value, force_direct: direct.checked })}`;
  // EventSource sends no key.
  if (key()) read(address, act, controller.signal);
  else listen(address, act, controller.signal);
}

/** The events of a stream, each to the function of its type. */
function listen(address, act, signal) {
  const source = new EventSource(address);
  signal.addEventListener("abort", () => source.close());
  let begun = false;
  for (const [type, take] of Object.entries(act)) {
    source.addEventListener(type, ({ data }) => {
      // The browser has an `error` of its own, for a connection that broke. It bears no data.
      if (!data) return;
      begun = true;
      take(JSON.parse(data));
    });
  }
  source.onerror = ({ data }) => {
    if (data) return;
    source.close();
    if (begun) act.error({ detail: broken().message });
    else read(address, act, signal); // EventSource does not tell why there is no stream
  };
}

/** The same by fetch. */
async function read(address, act, signal) {
  try {
    const response = await call(address, { signal });
    for await (const { type, data } of readEvents(response.body)) act[type](JSON.parse(data));
    if (!signal.aborted) throw broken();
  } catch (error) {
    if (error.name !== "AbortError") act.error({ detail: error.message, details: error.details });
  }
}

function begin(model) {
  const text = new Text();
  const who = element("p", { class: "who" }, model);
  const body = element("p", {}, text);
  const block = element("div", { class: "attempt" }, who, body);
  answers.append(block);
  return { block, who, body, text };
}

/** The draft stays to be read, but it is no answer. */
function strike({ block, who, body, text }, quality, threshold) {
  block.classList.add("void");
  who.append(element("span", {}, `not good enough: quality ${quality.toFixed(2)}, wanted ${threshold.toFixed(2)}`));
  body.replaceChildren(element("del", {}, text));
}

function conclusion({ model_used: model, quality, cost, latency_ms: latency, draft_accepted: accepted }) {
  let story = "The larger model was asked at once.";
  const facts = [["Answered by", model], ["Cost", dollars(cost)], ["Time", duration(latency)]];
  if (quality !== null) {
    story = accepted ? "The draft was good enough." : "The larger model answered in place of the draft.";
    facts.splice(1, 0, ["Quality of the draft", quality.toFixed(2)]);
  }
  const pairs = facts.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value)));
  return [element("p", {}, story), element("dl", { class: "facts" }, ...pairs)];
}
