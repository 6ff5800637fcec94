/** Starts the panels: the classifier's, and those for language models if the service has any. */

import { startAsk } from "./ask.js";
import { startCascade } from "./cascade.js";
import { startChat } from "./chat.js";
import { find, showMessage } from "./dom.js";
import { startLogIn } from "./log_in.js";
import { startPredict } from "./predict.js";
import { errorText, get, retryUntilLoaded } from "./service.js";
import { startStats } from "./stats.js";

const notice = find("#language-notice");

async function startLanguage() {
  const models = await retryUntilLoaded(generators, (error) => {
    showMessage(notice, `No language model is available yet: ${errorText(error)}`);
  });
  if (models === null) {
    showMessage(notice, "This service runs without language models, so only the classifier is available.");
    return;
  }
  showMessage(notice);
  for (const part of document.querySelectorAll("[data-language]")) part.hidden = false;
  startAsk(models);
  startCascade();
  startChat();
  startStats();
}

/** The available text models, without the embedding; null if the service has none. */
async function generators() {
  try {
    return (await get("v1/models")).data.filter((model) => model.context_length);
  } catch (error) {
    if (error.status === 404) return null;
    throw error;
  }
}

startLogIn();
startPredict();
startLanguage();
