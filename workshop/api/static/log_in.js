/** Logs a user in with a cookie, which this page cannot read, and out again. */

import { find, showMessage } from "./dom.js";
import { call, credentialsChanged, errorText, get, key, onUnauthenticated, post } from "./service.js";

const form = find("#log-in");
const loggedIn = find("#logged-in");
const alert = find("[role=alert]", form);

export async function startLogIn() {
  form.addEventListener("submit", logIn);
  find("button", loggedIn).addEventListener("click", logOut);
  onUnauthenticated(() => {
    form.hidden = false;
    loggedIn.hidden = true;
  });
  await showCaller();
}

/** Show who is logged in. A key needs no log-in: it does not expire. */
async function showCaller() {
  const { principal, expires } = await get("v1/auth/me").catch(() => ({}));
  if (key() || !expires) return;
  find("b", loggedIn).textContent = principal;
  form.hidden = true;
  loggedIn.hidden = false;
}

async function logIn(event) {
  event.preventDefault();
  const { username, password } = form.elements;
  try {
    await post("v1/auth/login", { username: username.value, password: password.value });
  } catch (error) {
    showMessage(alert, error.status === 404 ? "This service has no users: enter an API key." : errorText(error));
    return;
  } finally {
    password.value = "";
  }
  showMessage(alert);
  await showCaller();
  credentialsChanged();
}

async function logOut() {
  await call("v1/auth/logout", { method: "POST" }).catch(() => {}); // the session may have ended already
  loggedIn.hidden = true;
  form.hidden = false;
  credentialsChanged();
}
