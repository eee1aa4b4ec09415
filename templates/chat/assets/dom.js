// Elements are made here and nowhere else: by tag, with properties and text. Nothing in this page parses HTML, so nothing
// that a model, a user or a tenant wrote can become markup.

/** An element with attributes, listeners (`onclick`) and children; texts among them become text nodes. */
export function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (typeof value === "function") element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

const SVG = "http://www.w3.org/2000/svg";

/** One of the page's symbols. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

/** The element of an id, which the page's template has. */
export const byId = (id) => document.getElementById(id);

/** Reads and writes the browser's storage, which may be switched off or full. */
export const stored = {
  get(storage, key) {
    try { return JSON.parse(window[storage].getItem(key)); } catch { return null; }
  },
  set(storage, key, value) {
    try {
      if (value === null) window[storage].removeItem(key);
      else window[storage].setItem(key, JSON.stringify(value));
    } catch { /* What cannot be kept is asked for again. */ }
  },
};
