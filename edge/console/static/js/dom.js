/** Makes elements and formats figures; text goes in as text, never as HTML. */

/**
 * An element with attributes, listeners (`onclick`, …) and children; null children are left out.
 * @param {string} tag
 * @param {Record<string, any>} [attributes] `false` and `null` are left out, `true` sets an empty value
 * @param {...(Node | string | null | undefined)} children
 * @returns {HTMLElement}
 */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) made.setAttribute(name, value === true ? "" : String(value));
  }
  made.append(...children.filter((child) => child != null));
  return made;
}

/** The element with this id, which the page has. @param {string} id @returns {any} */
export const byId = (id) => document.getElementById(id);

/** @param {number} ms */
export function duration(ms) {
  if (ms < 1000) return `${Math.round(ms)} ms`;
  return ms < 60_000 ? `${(ms / 1000).toFixed(1)} s` : `${Math.floor(ms / 60_000)} min ${Math.round(ms / 1000) % 60} s`;
}

/** @param {number} bytes */
export function size(bytes) {
  if (bytes < 1000) return `${bytes} B`;
  return bytes < 1e6 ? `${(bytes / 1e3).toFixed(1)} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
}

/** @param {number | null | undefined} share */
export const percent = (share) => (share == null || Number.isNaN(share) ? "–" : `${Math.round(share * 100)} %`);

/** A whole number with separators. @param {number} value */
export const count = (value) => value.toLocaleString("en");

/** Puts text on the clipboard and says so on the button for a moment. @param {HTMLElement} button @param {string} text */
export async function copy(button, text) {
  const label = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Not allowed here"; // a page over plain HTTP from another machine has no clipboard
  }
  setTimeout(() => (button.textContent = label), 1200);
}

/** Saves a value as a JSON file on the visitor's machine. @param {string} name @param {unknown} value */
export function download(name, value) {
  const url = URL.createObjectURL(new Blob([JSON.stringify(value, null, 2)], { type: "application/json" }));
  element("a", { href: url, download: name }).click();
  URL.revokeObjectURL(url);
}
