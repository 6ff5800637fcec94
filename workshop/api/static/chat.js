/** A conversation over a WebSocket: several turns, cancel, and a connection that comes back when it breaks. */

import { element, enterPresses, find, say, swap } from "./dom.js";
import { inWords, key, refusal } from "./service.js";

const FIRST_WAIT_S = 0.5;
const LONGEST_WAIT_S = 15;
// Close codes after which it is no use to try again: nothing was asked for long, or the key is unknown.
const FOR_GOOD = [1000, 1008];

const panel = find("#chat");
const form = find("form", panel);
const { model, message, start, stop, fresh, connect } = form.elements;
const log = find("[role=log]", panel);
const state = find("[role=status]", panel);
const alert = find("[role=alert]", panel);

let socket;
let wait; // seconds before the next try
let timer;
let turns = 0;
let turn; // the answer that is being given: {id, text, note}

export function startChat() {
  form.addEventListener("submit", ask);
  stop.addEventListener("click", () => send({ type: "cancel", id: turn.id }));
  fresh.addEventListener("click", () => send({ type: "reset" }));
  connect.addEventListener("click", open);
  enterPresses(start, message);
  find("#key").addEventListener("change", open);
  open();
}

/** Connect at once, in the place of the connection or of the wait that there is. */
function open() {
  clearTimeout(timer);
  if (socket) {
    socket.onclose = null;
    socket.close();
    disconnected("");
  }
  wait = FIRST_WAIT_S;
  dial();
}

function dial() {
  const address = new URL("v1/chat/ws", document.baseURI);
  address.protocol = address.protocol.replace("http", "ws");
  tell("Connecting");
  // A browser sets no headers on a WebSocket: the key goes as a subprotocol.
  socket = new WebSocket(address, key() ? ["workshop.chat", `bearer.${key()}`] : []);
  socket.onmessage = ({ data }) => receive(JSON.parse(data));
  socket.onclose = ({ code, reason }) => {
    disconnected(reason);
    if (FOR_GOOD.includes(code)) {
      tell("Closed");
      return;
    }
    tell(`Not connected, next try in ${Math.ceil(wait)} s`);
    // Somewhat sooner, each by a time of its own: else all pages would come back to a new service at once.
    timer = setTimeout(dial, 1000 * wait * (0.5 + Math.random() / 2));
    wait = Math.min(2 * wait, LONGEST_WAIT_S);
  };
}

function receive(said) {
  if (said.type === "ready") connected(said);
  else if (said.type === "text" && said.id === turn?.id) write(said.text);
  else if (said.type === "done" && said.id === turn?.id) conclude(ending(said));
  else if (said.type === "ping") send({ type: "pong", id: said.id });
  else if (said.type === "error") refuse(said);
}

function refuse({ id, message: detail, details }) {
  if (id && id !== turn?.id) return; // a cancel that came after the end
  conclude("no answer");
  say(alert, inWords(refusal({ detail, details })));
}

/** Also the answer to `reset`. In either case the service knows nothing of what was said before. */
function connected({ models }) {
  wait = FIRST_WAIT_S;
  tell("Connected");
  say(alert);
  conclude("not whole");
  const chosen = model.value;
  model.replaceChildren(...models.map(({ name }) => element("option", { value: name }, name)));
  model.value = models.some(({ name }) => name === chosen) ? chosen : models.at(-1).name;
  if (log.lastElementChild?.matches(".bubble")) log.append(element("p", { class: "divider" }, "a new conversation"));
  start.disabled = false;
  fresh.disabled = false;
  if (document.activeElement === connect) message.focus();
  connect.hidden = true;
}

function disconnected(reason) {
  conclude("not whole: the connection broke");
  start.disabled = true;
  fresh.disabled = true;
  connect.hidden = false;
  if (reason) say(alert, `The service closed the connection: ${reason}`);
}

function ask(event) {
  event.preventDefault();
  turns += 1;
  log.append(element("div", { class: "bubble mine" }, element("span", { class: "unseen" }, "You: "), message.value));
  const text = new Text();
  const note = element("small");
  log.append(element("div", { class: "bubble" }, element("span", { class: "unseen" }, `${model.value}: `), text, note));
  log.ariaBusy = "true"; // a screen reader waits for the whole answer
  turn = { id: String(turns), text, note };
  fresh.disabled = true;
  send({ type: "ask", id: turn.id, content: message.value, model: model.value });
  say(alert);
  message.value = "";
  swap(start, stop);
  log.scrollTop = log.scrollHeight;
}

function write(text) {
  const atTheEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40; // else somebody reads further up
  turn.text.appendData(text);
  if (atTheEnd) log.scrollTop = log.scrollHeight;
}

function ending({ finish_reason: reason, usage }) {
  const why = { stop: "", length: ", cut off at the limit", cancelled: ", stopped" }[reason];
  return `${usage.completion_tokens} tokens${why}`;
}

/** The answer that is being given, if any, ends here. */
function conclude(note) {
  if (!turn) return;
  turn.note.textContent = note;
  turn = undefined;
  fresh.disabled = false;
  log.ariaBusy = "false";
  swap(stop, start);
}

function send(said) {
  socket.send(JSON.stringify(said));
}

function tell(word) {
  state.textContent = word;
  state.classList.toggle("well", word === "Connected");
}
