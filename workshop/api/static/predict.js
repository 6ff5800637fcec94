/** The classifier's form: a field for each feature, a verdict, and what is wrong where it is wrong. */

import { bar, element, find, percent, say } from "./dom.js";
import { EXAMPLES } from "./examples.js";
import { get, inWords, post, untilItAnswers } from "./service.js";

const STATISTICS = ["mean", "error", "worst"];

const panel = find("#predict");
const form = find("form", panel);
const verdict = find(".verdict", panel);
const alert = find("[role=alert]", panel);
const fields = new Map(); // by the name of a feature: {feature, input, range, mistake}

export async function startPredict() {
  const features = await untilItAnswers(
    () => get("v1/model/features"),
    (error) => say(alert, `The form cannot be filled yet: ${inWords(error)}`),
  );
  find(".features", form).append(headings(), ...rows(features));
  const fill = (values) => {
    features.forEach(({ name }, index) => {
      fields.get(name).input.value = values[index];
    });
    forget();
  };
  fill(EXAMPLES.malignant);
  form.addEventListener("submit", predict);
  form.addEventListener("input", forget);
  for (const button of form.querySelectorAll("[data-example]")) {
    button.addEventListener("click", () => {
      fill(EXAMPLES[button.dataset.example]);
      form.requestSubmit();
    });
  }
  find("fieldset", form).disabled = false;
}

function headings() {
  const names = ["", ...STATISTICS].map((name) => element("span", {}, name));
  return element("div", { class: "feature headings", "aria-hidden": "true" }, ...names);
}

/** A row for each measurement, with its mean, error and worst value: the name of a feature tells which it is. */
function rows(features) {
  const measurements = new Map();
  for (const feature of features) {
    const measurement = feature.name.split("_").filter((word) => !STATISTICS.includes(word)).join(" ");
    measurements.set(measurement, [...(measurements.get(measurement) ?? []), feature]);
  }
  return [...measurements].map(([measurement, members]) => {
    const title = element("span", { class: "measurement" }, measurement);
    if (members[0].unit !== "1") title.append(element("small", {}, members[0].unit));
    const mistakes = element("div", { class: "mistakes" });
    const inputs = members.map((feature) => field(feature, mistakes));
    return element("div", { class: "feature", role: "group", "aria-label": measurement }, title, ...inputs, mistakes);
  });
}

function field(feature, mistakes) {
  const { name, unit } = feature;
  const label = element("label", { for: name, class: "unseen" }, spoken(name), unit === "1" ? "" : `, in ${unit}`);
  const range = element("small", { id: `range-${name}` });
  const mistake = element("p", { id: `mistake-${name}`, hidden: "" });
  const input = element("input", { id: name, name, type: "number", step: "any", autocomplete: "off" });
  input.setAttribute("aria-describedby", `${range.id} ${mistake.id}`);
  mistakes.append(mistake);
  fields.set(name, { feature, input, range, mistake });
  return element("div", {}, label, input, range);
}

const spoken = (name) => name.replaceAll("_", " ");

/** What was said of other values is void. */
function forget() {
  for (const { feature, input, range } of fields.values()) {
    const outside = input.valueAsNumber < feature.minimum || input.valueAsNumber > feature.maximum;
    range.textContent = `${outside ? "not in " : ""}${brief(feature.minimum)}–${brief(feature.maximum)}`;
    range.classList.toggle("outside", outside);
  }
  verdict.replaceChildren(element("p", { class: "soft" }, "No prediction for these values yet."));
  clearMistakes();
}

const brief = (number) => String(Number(number.toPrecision(2)));

function clearMistakes() {
  say(alert);
  for (const { input, mistake } of fields.values()) {
    input.ariaInvalid = null;
    say(mistake);
  }
}

async function predict(event) {
  event.preventDefault();
  clearMistakes();
  // A field without a number is sent as null: it is the service that says what is wrong with it.
  const values = [...fields].map(([name, { input }]) => [name, input.value === "" ? null : input.valueAsNumber]);
  try {
    const response = await post("v1/predict", Object.fromEntries(values));
    show(await response.json());
  } catch (error) {
    refuse(error);
  }
}

function show({ label, confidence, probabilities, model_version: version }) {
  const shares = Object.entries(probabilities).flatMap(([name, share]) => [
    element("dt", {}, name),
    element("dd", {}, bar(share), element("span", {}, percent(share))),
  ]);
  verdict.replaceChildren(
    element("p", {}, element("strong", {}, label), ` ${percent(confidence)} sure, model ${version}`),
    element("dl", { class: "shares" }, ...shares),
  );
  verdict.scrollIntoView({ block: "nearest" });
}

function refuse({ message, details = [] }) {
  verdict.replaceChildren();
  // A field that says the same is enough.
  if (!details.some((detail) => detail.message === message)) say(alert, message);
  const wrong = details.map(({ field: where, message: rule }) => {
    const name = where.split(" ").at(-1); // a feature's name, or "row 0: worst_radius"
    const { input, mistake } = fields.get(name);
    input.ariaInvalid = "true";
    say(mistake, `${spoken(name)}: ${rule}`);
    return input;
  });
  wrong[0]?.focus();
}
