/** Starts the panels: the classifier's always, the language models' where the service has any. */

import { startAsk } from "./ask.js";
import { startCascade } from "./cascade.js";
import { startChat } from "./chat.js";
import { find, say } from "./dom.js";
import { startPredict } from "./predict.js";
import { get, inWords, untilItAnswers } from "./service.js";
import { startStats } from "./stats.js";

const notice = find("#language-notice");

async function startLanguage() {
  const models = await untilItAnswers(generators, (error) => {
    say(notice, `No language model answers yet: ${inWords(error)}`);
  });
  if (models === null) {
    say(notice, "This service runs without language models, so there is nothing here to ask or to chat with.");
    return;
  }
  say(notice);
  for (const part of document.querySelectorAll("[data-language]")) part.hidden = false;
  startAsk(models);
  startCascade();
  startChat();
  startStats();
}

/** The models that answer in words, the embedding not among them; null when the service has none. */
async function generators() {
  try {
    return (await get("v1/models")).data.filter((model) => model.context_length);
  } catch (error) {
    if (error.status === 404) return null;
    throw error;
  }
}

startPredict();
startLanguage();
