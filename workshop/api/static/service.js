/** Requests to the service. All URLs are relative to the page, because a proxy may add any prefix. */

/** An error reported by the service. `details` lists the invalid fields as `{field, message}`. */
export class ServiceError extends Error {
  constructor(message, status, details = []) {
    super(message);
    this.status = status;
    this.details = details;
  }
}

/** The error of a stream that ends early. */
export const connectionLost = () => new ServiceError("The connection was lost: the answer is incomplete.", 0);

/** The caller's key, or "" for none. */
export const key = () => document.querySelector("#key").value.trim();

/** Return a successful response. Throws ServiceError, or AbortError when `options.signal` aborts. */
export async function call(path, options = {}) {
  const headers = new Headers(options.headers);
  if (key()) headers.set("Authorization", `Bearer ${key()}`);
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    throw error.name === "AbortError" ? error : new ServiceError("The service does not answer.", 0);
  }
  if (response.ok) return response;
  if (response.status === 401) keyField.dispatchEvent(new Event(REFUSED));
  throw toServiceError(await response.json().catch(() => null), response.status);
}

/** The JSON body of a GET request. */
export async function get(path) {
  return (await call(path)).json();
}

/** The response to a POST request with a JSON body. */
export function post(path, body, options = {}) {
  const headers = { "Content-Type": "application/json" };
  return call(path, { ...options, method: "POST", headers, body: JSON.stringify(body) });
}

/** Convert the body of an error response, a problem document or OpenAI's format, to a ServiceError. */
export function toServiceError(body, status) {
  const message = body?.detail ?? body?.error?.message ?? `The service responded with status ${status}.`;
  return new ServiceError(message, status, body?.details);
}

/** An error with its details in one text, for panels that do not show the details next to fields. */
export function errorText({ message, details = [] }) {
  return details.map((detail) => `${detail.field}: ${detail.message}`).join("; ") || message;
}

/** Call `load` until it succeeds: every two seconds, or when the credentials change. `onFailure` gets each error. */
export async function retryUntilLoaded(load, onFailure) {
  for (;;) {
    try {
      return await load();
    } catch (error) {
      onFailure(error);
      await (error.status === 401 ? nextCredentials() : new Promise((resume) => setTimeout(resume, 2000)));
    }
  }
}

const keyField = document.querySelector("#key");
const CHANGED = "change";
const REFUSED = "unauthenticated";

/** Tell the panels that the caller has other credentials: the user has logged in or out. */
export const credentialsChanged = () => keyField.dispatchEvent(new Event(CHANGED));

/** Call `handle` when the service refuses the caller's credentials, or the lack of any. */
export const onUnauthenticated = (handle) => keyField.addEventListener(REFUSED, handle);

function nextCredentials() {
  return new Promise((resume) => {
    keyField.addEventListener(CHANGED, resume, { once: true });
  });
}
