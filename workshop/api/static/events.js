/** A parser for server-sent events, because EventSource can neither POST nor send a key. */

import { connectionLost } from "./service.js";

// A CR at the very end may be the first half of a CR LF, so wait for the next character.
const LINE_END = /\r\n|\n|\r(?!$)/;

/** Yield the events of a response body as `{type, data}`. Leaving the loop closes the connection. */
export async function* readEvents(body) {
  const reader = body.getReader();
  const decoder = new TextDecoder(); // buffers incomplete characters
  let unfinished = "";
  let type = "message";
  let data = [];
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return; // an event without its blank line is incomplete
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
        } // otherwise a comment, or a field for reconnecting
      }
    }
  } catch (error) {
    throw error.name === "AbortError" ? error : connectionLost();
  } finally {
    reader.cancel().catch(() => {}); // a lost connection is already closed
  }
}
