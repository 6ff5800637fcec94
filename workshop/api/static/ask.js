/** One question to one model, by OpenAI's protocol. The answer is read from the response while it comes. */

import { duration, element, enterPresses, find, say, swap } from "./dom.js";
import { readEvents } from "./events.js";
import { broken, inWords, post, refusal } from "./service.js";

const panel = find("#ask");
const form = find("form", panel);
const { model, question, longest, temperature, start, stop } = form.elements;
const answer = find(".answer", panel);
const alert = find("[role=alert]", panel);
const fact = (name) => find(`[data-fact=${name}]`, panel);

export function startAsk(models) {
  model.append(...models.map(({ id }) => element("option", { value: id }, id)));
  form.addEventListener("submit", ask);
  enterPresses(start, question);
}

async function ask(event) {
  event.preventDefault();
  const controller = new AbortController();
  stop.onclick = () => controller.abort();
  swap(start, stop);
  say(alert);
  answer.textContent = "";
  answer.ariaBusy = "true"; // a screen reader waits for the whole answer
  for (const each of panel.querySelectorAll("[data-fact]")) each.textContent = "–";
  try {
    await stream(controller.signal);
  } catch (error) {
    if (error.name === "AbortError") fact("end").textContent = "stopped";
    else say(alert, inWords(error));
  } finally {
    answer.ariaBusy = "false";
    swap(stop, start);
  }
}

async function stream(signal) {
  const asked = performance.now();
  const body = {
    model: model.value,
    messages: [{ role: "user", content: question.value }],
    stream: true,
    stream_options: { include_usage: true },
    temperature: temperature.valueAsNumber || 0,
    ...(longest.value && { max_tokens: longest.valueAsNumber }),
  };
  const response = await post("v1/chat/completions", body, { signal });
  const text = answer.appendChild(new Text());
  let first = 0;
  let latest = 0;
  let pieces = 0;
  for await (const { data } of readEvents(response.body)) {
    if (data === "[DONE]") return;
    const { error, choices, usage } = JSON.parse(data);
    if (error) throw refusal({ error });
    const [choice] = choices;
    if (choice?.delta.content) {
      text.appendData(choice.delta.content);
      latest = performance.now();
      first ||= latest;
      pieces += 1;
      fact("first").textContent = duration(first - asked);
      // Mostly a piece is a token; how many tokens there were is only known at the end.
      speed(pieces, latest - first, "≈ ");
    }
    if (choice?.finish_reason) fact("end").textContent = choice.finish_reason;
    if (usage) {
      fact("tokens").textContent = `${usage.prompt_tokens} + ${usage.completion_tokens}`;
      speed(usage.completion_tokens, latest - first);
    }
  }
  throw broken();
}

/** The first token ends the wait; the speed is of those that follow it. */
function speed(tokens, ms, about = "") {
  if (tokens > 1 && ms > 0) fact("speed").textContent = `${about}${Math.round((1000 * (tokens - 1)) / ms)} tokens/s`;
}
