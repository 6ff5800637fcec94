/** Small helpers for the panels. Text goes in as text, never as markup. */

/** The one element that a CSS selector names, in `within`. */
export const find = (selector, within = document) => within.querySelector(selector);

/** A new element; strings among its children become text. */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** Show a sentence in `place`, or hide it when there is none. */
export function say(place, sentence = "") {
  place.textContent = sentence;
  place.hidden = !sentence;
}

/** A bar of this share, 0 to 1. Its number stands beside it, so that it is only a picture. */
export function bar(share) {
  const filled = element("span");
  filled.style.width = `${100 * share}%`; // a property: the page's policy forbids style attributes
  return element("span", { class: "bar", "aria-hidden": "true" }, filled);
}

/** One button can be pressed instead of the other; the focus goes with it. */
export function swap(from, to) {
  to.disabled = false;
  if (document.activeElement === from) to.focus();
  from.disabled = true;
}

/** Enter in `textarea` presses the button; Shift and Enter begin a new line. */
export function enterPresses(button, textarea) {
  textarea.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    button.click();
  });
}

/** Dollars. A short answer costs millionths, so small amounts get three digits that count. */
export function dollars(amount) {
  const places = amount > 0 && amount < 1 ? 2 - Math.floor(Math.log10(amount)) : 2;
  return `$${amount.toFixed(Math.min(places, 12))}`;
}

/** A share as per cent. */
export const percent = (share) => `${(100 * share).toFixed(1)} %`;

/** Milliseconds, in seconds from one second on. */
export const duration = (ms) => (ms < 999.5 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`);
