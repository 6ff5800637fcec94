/** Asks one model by OpenAI's protocol, and shows the answer while it is streamed. */

import { duration, element, enterPresses, find, showMessage, swapButtons } from "./dom.js";
import { readEvents } from "./events.js";
import { connectionLost, errorText, post, toServiceError } from "./service.js";

const panel = find("#ask");
const form = find("form", panel);
const { model, question, maxTokens, temperature, start, stop } = form.elements;
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
  swapButtons(start, stop);
  showMessage(alert);
  answer.textContent = "";
  answer.ariaBusy = "true"; // screen readers wait for the complete answer
  for (const each of panel.querySelectorAll("[data-fact]")) each.textContent = "–";
  try {
    await stream(controller.signal);
  } catch (error) {
    if (error.name === "AbortError") fact("end").textContent = "stopped";
    else showMessage(alert, errorText(error));
  } finally {
    answer.ariaBusy = "false";
    swapButtons(stop, start);
  }
}

async function stream(signal) {
  const startTime = performance.now();
  const body = {
    model: model.value,
    messages: [{ role: "user", content: question.value }],
    stream: true,
    stream_options: { include_usage: true },
    temperature: temperature.valueAsNumber || 0,
    ...(maxTokens.value && { max_tokens: maxTokens.valueAsNumber }),
  };
  const response = await post("v1/chat/completions", body, { signal });
  const text = answer.appendChild(new Text());
  let first = 0;
  let latest = 0;
  let pieces = 0;
  for await (const { data } of readEvents(response.body)) {
    if (data === "[DONE]") return;
    const { error, choices, usage } = JSON.parse(data);
    if (error) throw toServiceError({ error });
    const [choice] = choices;
    if (choice?.delta.content) {
      text.appendData(choice.delta.content);
      latest = performance.now();
      first ||= latest;
      pieces += 1;
      fact("first").textContent = duration(first - startTime);
      // Most pieces are one token; the exact number is known only at the end.
      showSpeed(pieces, latest - first, "≈ ");
    }
    if (choice?.finish_reason) fact("end").textContent = choice.finish_reason;
    if (usage) {
      fact("tokens").textContent = `${usage.prompt_tokens} + ${usage.completion_tokens}`;
      showSpeed(usage.completion_tokens, latest - first);
    }
  }
  throw connectionLost();
}

/** The speed of the tokens after the first. */
function showSpeed(tokens, ms, about = "") {
  if (tokens > 1 && ms > 0) fact("speed").textContent = `${about}${Math.round((1000 * (tokens - 1)) / ms)} tokens/s`;
}
