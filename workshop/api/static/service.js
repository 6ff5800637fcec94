/** The service as the panels ask it. Every address is relative to the page: a proxy may add any prefix. */

/** An error that the service explains. `details` names the fields that are wrong: `{field, message}`. */
export class Refusal extends Error {
  constructor(message, status, details = []) {
    super(message);
    this.status = status;
    this.details = details;
  }
}

/** What a stream that ends too early raises. */
export const broken = () => new Refusal("The connection broke: the answer is not whole.", 0);

/** The caller's key, or "" for none. */
export const key = () => document.querySelector("#key").value.trim();

/** A response, if its status is good. Raises Refusal, or AbortError when `options.signal` aborts. */
export async function call(path, options = {}) {
  const headers = new Headers(options.headers);
  if (key()) headers.set("Authorization", `Bearer ${key()}`);
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    throw error.name === "AbortError" ? error : new Refusal("The service does not answer.", 0);
  }
  if (response.ok) return response;
  throw refusal(await response.json().catch(() => null), response.status);
}

/** The JSON that a path answers. */
export async function get(path) {
  return (await call(path)).json();
}

/** The response to a body that is sent as JSON. */
export function post(path, body, options = {}) {
  const headers = { "Content-Type": "application/json" };
  return call(path, { ...options, method: "POST", headers, body: JSON.stringify(body) });
}

/** An error's body, a problem document or OpenAI's envelope, as what `call` raises. */
export function refusal(body, status) {
  const message = body?.detail ?? body?.error?.message ?? `The service answered with the status ${status}.`;
  return new Refusal(message, status, body?.details);
}

/** An error in one sentence, for a panel that has no fields to put the details next to. */
export function inWords({ message, details = [] }) {
  return details.map((detail) => `${detail.field}: ${detail.message}`).join("; ") || message;
}

/** What `load` gives, tried again until it does: with another key, or every two seconds. `onFailure` learns why not. */
export async function untilItAnswers(load, onFailure) {
  for (;;) {
    try {
      return await load();
    } catch (error) {
      onFailure(error);
      await (error.status === 401 ? anotherKey() : new Promise((resume) => setTimeout(resume, 2000)));
    }
  }
}

function anotherKey() {
  return new Promise((resume) => {
    document.querySelector("#key").addEventListener("change", resume, { once: true });
  });
}
