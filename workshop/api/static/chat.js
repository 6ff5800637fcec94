/** A conversation over a WebSocket: several turns, cancelling, and reconnecting when the connection is lost. */

import { element, enterPresses, find, showMessage, swapButtons } from "./dom.js";
import { errorText, key, toServiceError } from "./service.js";

const FIRST_DELAY_S = 0.5;
const LONGEST_DELAY_S = 15;
// Close codes after which the page does not reconnect: the connection was idle, or the key is not valid.
const FINAL_CODES = [1000, 1008];

const panel = find("#chat");
const form = find("form", panel);
const { model, message, start, stop, restart, connect } = form.elements;
const log = find("[role=log]", panel);
const state = find("[role=status]", panel);
const alert = find("[role=alert]", panel);

let socket;
let retryDelay; // in seconds
let timer;
let turns = 0;
let turn; // the answer in progress: {id, text, note}

export function startChat() {
  form.addEventListener("submit", ask);
  stop.addEventListener("click", () => send({ type: "cancel", id: turn.id }));
  restart.addEventListener("click", () => send({ type: "reset" }));
  connect.addEventListener("click", reconnect);
  enterPresses(start, message);
  find("#key").addEventListener("change", reconnect);
  reconnect();
}

/** Connect now, and drop any connection or scheduled retry. */
function reconnect() {
  clearTimeout(timer);
  if (socket) {
    socket.onclose = null;
    socket.close();
    disconnected("");
  }
  retryDelay = FIRST_DELAY_S;
  openSocket();
}

function openSocket() {
  const address = new URL("v1/chat/ws", document.baseURI);
  address.protocol = address.protocol.replace("http", "ws");
  setState("Connecting");
  // Browsers cannot set headers on a WebSocket, so the key is sent as a subprotocol.
  socket = new WebSocket(address, key() ? ["workshop.chat", `bearer.${key()}`] : []);
  socket.onmessage = ({ data }) => receive(JSON.parse(data));
  socket.onclose = ({ code, reason }) => {
    disconnected(reason);
    if (FINAL_CODES.includes(code)) {
      setState("Closed");
      return;
    }
    setState(`Not connected, retrying in ${Math.ceil(retryDelay)} s`);
    // Random jitter, so that not all pages reconnect to a restarted service at the same time.
    timer = setTimeout(openSocket, 1000 * retryDelay * (0.5 + Math.random() / 2));
    retryDelay = Math.min(2 * retryDelay, LONGEST_DELAY_S);
  };
}

function receive(answer) {
  if (answer.type === "ready") connected(answer);
  else if (answer.type === "text" && answer.id === turn?.id) write(answer.text);
  else if (answer.type === "done" && answer.id === turn?.id) endTurn(endNote(answer));
  else if (answer.type === "ping") send({ type: "pong", id: answer.id });
  else if (answer.type === "error") showError(answer);
}

function showError({ id, message: detail, details }) {
  if (id && id !== turn?.id) return; // a cancel that arrived after the end of the answer
  endTurn("no answer");
  showMessage(alert, errorText(toServiceError({ detail, details })));
}

/** Handle `ready`, which begins a connection and confirms a `reset`. In both cases the conversation is empty. */
function connected({ models }) {
  retryDelay = FIRST_DELAY_S;
  setState("Connected");
  showMessage(alert);
  endTurn("incomplete");
  const chosen = model.value;
  model.replaceChildren(...models.map(({ name }) => element("option", { value: name }, name)));
  model.value = models.some(({ name }) => name === chosen) ? chosen : models.at(-1).name;
  if (log.lastElementChild?.matches(".bubble")) log.append(element("p", { class: "divider" }, "a new conversation"));
  start.disabled = false;
  restart.disabled = false;
  if (document.activeElement === connect) message.focus();
  connect.hidden = true;
}

function disconnected(reason) {
  endTurn("incomplete: the connection was lost");
  start.disabled = true;
  restart.disabled = true;
  connect.hidden = false;
  if (reason) showMessage(alert, `The service closed the connection: ${reason}`);
}

function ask(event) {
  event.preventDefault();
  turns += 1;
  const hidden = (name) => element("span", { class: "visually-hidden" }, `${name}: `);
  log.append(element("div", { class: "bubble mine" }, hidden("You"), message.value));
  const text = new Text();
  const note = element("small");
  log.append(element("div", { class: "bubble" }, hidden(model.value), text, note));
  log.ariaBusy = "true"; // screen readers wait for the complete answer
  turn = { id: String(turns), text, note };
  restart.disabled = true;
  send({ type: "ask", id: turn.id, content: message.value, model: model.value });
  showMessage(alert);
  message.value = "";
  swapButtons(start, stop);
  log.scrollTop = log.scrollHeight;
}

function write(text) {
  const isAtEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40; // otherwise the user is reading further up
  turn.text.appendData(text);
  if (isAtEnd) log.scrollTop = log.scrollHeight;
}

function endNote({ finish_reason: reason, usage }) {
  const why = { stop: "", length: ", cut off at the limit", cancelled: ", stopped" }[reason];
  return `${usage.completion_tokens} tokens${why}`;
}

/** End the answer in progress, if there is one. */
function endTurn(note) {
  if (!turn) return;
  turn.note.textContent = note;
  turn = undefined;
  restart.disabled = false;
  log.ariaBusy = "false";
  swapButtons(stop, start);
}

function send(fields) {
  socket.send(JSON.stringify(fields));
}

function setState(label) {
  state.textContent = label;
  state.classList.toggle("ok", label === "Connected");
}
