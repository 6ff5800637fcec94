/** Server-sent events, read by hand: EventSource can neither POST nor send a key. */

import { broken } from "./service.js";

// A CR at the very end may be the first half of a CR LF, so it waits for what follows.
const LINE_END = /\r\n|\n|\r(?!$)/;

/** The events of a response's body, as `{type, data}`. To leave the loop is to close the connection. */
export async function* readEvents(body) {
  const reader = body.getReader();
  const decoder = new TextDecoder(); // keeps the first bytes of a character until the rest arrives
  let unfinished = "";
  let type = "message";
  let data = [];
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return; // an event without its blank line is not whole
      const lines = (unfinished + decoder.decode(value, { stream: true })).split(LINE_END);
      unfinished = lines.pop();
      for (const line of lines) {
        const [, name, content = ""] = /^([^:]*)(?:: ?(.*))?$/s.exec(line);
        if (name === "data") data.push(content);
        else if (name === "event") type = content;
        else if (line === "") {
          if (data.length) yield { type, data: data.join("\n") };
          type = "message";
          data = [];
        } // else a comment, or a field for who wants to reconnect
      }
    }
  } catch (error) {
    throw error.name === "AbortError" ? error : broken();
  } finally {
    reader.cancel().catch(() => {}); // a connection that broke is closed already
  }
}
