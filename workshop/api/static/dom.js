/** Helpers for the panels. They insert strings as text, never as markup. */

/** The first element in `within` that matches a CSS selector. */
export const find = (selector, within = document) => within.querySelector(selector);

/** A new element. Strings among its children become text. */
export function element(tag, attributes = {}, ...children) {
  const created = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) created.setAttribute(name, value);
  created.append(...children);
  return created;
}

/** Show a message in `place`, or hide `place` if there is none. */
export function showMessage(place, message = "") {
  place.textContent = message;
  place.hidden = !message;
}

/** A bar that shows a share, 0 to 1. Hidden from screen readers, since the number is next to it. */
export function bar(share) {
  const filled = element("span");
  filled.style.width = `${100 * share}%`; // set as a property, since the page's policy forbids style attributes
  return element("span", { class: "bar", "aria-hidden": "true" }, filled);
}

/** Disable one button and enable the other, and move the focus along. */
export function swapButtons(from, to) {
  to.disabled = false;
  if (document.activeElement === from) to.focus();
  from.disabled = true;
}

/** Enter in `textarea` presses the button; Shift+Enter starts a new line. */
export function enterPresses(button, textarea) {
  textarea.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    button.click();
  });
}

/** Format dollars. A short answer costs millionths, so small amounts have three significant digits. */
export function dollars(amount) {
  const places = amount > 0 && amount < 1 ? 2 - Math.floor(Math.log10(amount)) : 2;
  return `$${amount.toFixed(Math.min(places, 12))}`;
}

/** Format a share as a percentage. */
export const percent = (share) => `${(100 * share).toFixed(1)} %`;

/** Format milliseconds, as seconds from one second on. */
export const duration = (ms) => (ms < 999.5 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`);
