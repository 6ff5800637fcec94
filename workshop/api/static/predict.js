/** The classifier's form: a field for each feature, the prediction, and errors next to their fields. */

import { bar, element, find, percent, showMessage } from "./dom.js";
import { EXAMPLES } from "./examples.js";
import { errorText, get, post, retryUntilLoaded } from "./service.js";

const STATISTICS = ["mean", "error", "worst"];

const panel = find("#predict");
const form = find("form", panel);
const verdict = find(".verdict", panel);
const alert = find("[role=alert]", panel);
const fields = new Map(); // by feature name: {feature, input, range, mistake}

export async function startPredict() {
  const features = await retryUntilLoaded(
    () => get("v1/model/features"),
    (error) => showMessage(alert, `The form is not available yet: ${errorText(error)}`),
  );
  find(".features", form).append(headings(), ...rows(features));
  const fill = (values) => {
    features.forEach(({ name }, index) => {
      fields.get(name).input.value = values[index];
    });
    onValuesChanged();
  };
  fill(EXAMPLES.malignant);
  form.addEventListener("submit", predict);
  form.addEventListener("input", onValuesChanged);
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

/** A row for each measurement, with the fields for its mean, error and worst value. */
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
  const text = unit === "1" ? readable(name) : `${readable(name)}, in ${unit}`;
  const label = element("label", { for: name, class: "visually-hidden" }, text);
  const range = element("small", { id: `range-${name}` });
  const mistake = element("p", { id: `mistake-${name}`, hidden: "" });
  const input = element("input", { id: name, name, type: "number", step: "any", autocomplete: "off" });
  input.setAttribute("aria-describedby", `${range.id} ${mistake.id}`);
  mistakes.append(mistake);
  fields.set(name, { feature, input, range, mistake });
  return element("div", {}, label, input, range);
}

const readable = (name) => name.replaceAll("_", " ");

/** Clear the prediction of earlier values, and mark values outside the training range. */
function onValuesChanged() {
  for (const { feature, input, range } of fields.values()) {
    const outside = input.valueAsNumber < feature.minimum || input.valueAsNumber > feature.maximum;
    range.textContent = `${outside ? "not in " : ""}${rounded(feature.minimum)}–${rounded(feature.maximum)}`;
    range.classList.toggle("outside", outside);
  }
  verdict.replaceChildren(element("p", { class: "soft" }, "No prediction for these values yet."));
  clearMistakes();
}

const rounded = (number) => String(Number(number.toPrecision(2)));

function clearMistakes() {
  showMessage(alert);
  for (const { input, mistake } of fields.values()) {
    input.ariaInvalid = null;
    showMessage(mistake);
  }
}

async function predict(event) {
  event.preventDefault();
  clearMistakes();
  // A field without a number is sent as null, so that the service reports the error.
  const values = [...fields].map(([name, { input }]) => [name, input.value === "" ? null : input.valueAsNumber]);
  try {
    const response = await post("v1/predict", Object.fromEntries(values));
    show(await response.json());
  } catch (error) {
    showError(error);
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

function showError({ message, details = [] }) {
  verdict.replaceChildren();
  // Do not repeat a message that is shown at a field.
  if (!details.some((detail) => detail.message === message)) showMessage(alert, message);
  const wrong = details.map(({ field: where, message: rule }) => {
    const name = where.split(" ").at(-1); // "worst_radius" or "row 0: worst_radius"
    const { input, mistake } = fields.get(name);
    input.ariaInvalid = "true";
    showMessage(mistake, `${readable(name)}: ${rule}`);
    return input;
  });
  wrong[0]?.focus();
}
