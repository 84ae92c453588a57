/** Renders Markdown straight into elements, and each token of an answer as a span; no HTML string is ever parsed. */

import { lexer } from "../vendor/marked.esm.js";
import { copy, element } from "./dom.js";

/** @typedef {import("./answer.js").Token} Token */

/** @type {Record<string, string>} */
const INLINE = { strong: "strong", em: "em", del: "del" };
/** @type {Record<string, string>} */
const ENTITIES = { amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: "\u00A0" };
const ENTITY = /&(?:#(\d{1,7})|#x([\da-f]{1,6})|(amp|lt|gt|quot|apos|nbsp));/gi;
const SAFE_LINK = /^(https?:|mailto:)/i;

/** Renders one text that may still grow; what can change no more is rendered once. */
export class MarkdownView {
  /** Characters of the text whose elements are final. */
  #settled = 0;
  #settledNodes = 0;

  /** @param {HTMLElement} target the element that shows it, which must be empty */
  constructor(target) {
    this.target = target;
  }

  /** @param {string} text what has arrived so far @param {Token[]} [tokens] of the text, in order */
  update(text, tokens = []) {
    const { target } = this;
    while (target.childNodes.length > this.#settledNodes) target.lastChild?.remove();
    const writer = new Writer(text, tokens);
    let at = this.#settled;
    const blocks = lexer(text.slice(at));
    const last = blocks.findLastIndex((block) => block.type !== "space");
    blocks.forEach((block, index) => {
      if (index === last) {
        this.#settled = at;
        this.#settledNodes = target.childNodes.length;
      }
      writer.block(target, block, at);
      at += block.raw.length;
    });
  }
}

/** Writes marked's syntax tree into elements, and knows where in the text each piece lies. */
class Writer {
  /** @param {string} text @param {Token[]} tokens */
  constructor(text, tokens) {
    this.text = text;
    this.tokens = tokens;
  }

  /** @param {Node & ParentNode} parent @param {any[]} nodes @param {number} from where to look for the first of them */
  all(parent, nodes, from, write = this.inline) {
    for (const node of nodes) {
      const raw = node.raw ?? node.text;
      const found = this.text.indexOf(raw, from);
      const at = found < 0 ? from : found; // lines of a quotation lack their marks here, but are in order
      from = Math.max(write.call(this, parent, node, at) ?? 0, found < 0 ? from : found + raw.length);
    }
    return from;
  }

  /** @param {any} parent @param {any} node @param {number} at @returns {number | void} where it ends, if that is known */
  block(parent, node, at) {
    switch (node.type) {
      case "space":
      case "def":
        return;
      case "heading":
        return this.into(parent, `h${Math.min(node.depth + 2, 6)}`, node, at);
      case "paragraph":
        return this.into(parent, "p", node, at);
      case "blockquote":
        return this.all(append(parent, "blockquote"), node.tokens, at, this.block);
      case "list":
        return this.list(parent, node, at);
      case "table":
        return this.table(parent, node, at);
      case "code":
        return this.code(parent, node, at);
      case "hr":
        append(parent, "hr");
        return;
      case "text":
        return node.tokens ? this.all(parent, node.tokens, at) : this.leaf(parent, node.text, at);
      case "html":
        return this.leaf(append(parent, "p"), node.raw.trimEnd(), at);
      default:
        return this.inline(parent, node, at);
    }
  }

  /** @param {any} parent @param {any} node @param {number} at @returns {number | void} */
  inline(parent, node, at) {
    switch (node.type) {
      case "strong":
      case "em":
      case "del":
        return this.into(parent, INLINE[node.type], node, at);
      case "codespan":
        return this.leaf(append(parent, "code"), node.text, this.text.indexOf(node.text, at));
      case "br":
        append(parent, "br");
        return;
      case "link":
        return this.link(parent, node, at);
      case "escape":
        return this.leaf(parent, node.text, at + 1);
      case "checkbox":
        parent.append(node.checked ? "☑ " : "☐ ");
        return;
      case "text":
        return node.tokens ? this.all(parent, node.tokens, at) : this.entities(parent, node.text, at);
      default: // an image is not loaded, HTML is not interpreted: both are shown as they are written
        return this.leaf(parent, node.raw, at);
    }
  }

  /** @param {any} parent @param {string} tag @param {any} node @param {number} at */
  into(parent, tag, node, at) {
    return this.all(append(parent, tag), node.tokens, at);
  }

  /** @param {any} parent @param {any} node @param {number} at */
  link(parent, node, at) {
    if (!SAFE_LINK.test(node.href)) return this.leaf(parent, node.raw, at);
    const link = append(parent, "a", { href: node.href, target: "_blank", rel: "noopener noreferrer" });
    return this.all(link, node.tokens, at);
  }

  /** @param {any} parent @param {any} node @param {number} at */
  list(parent, node, at) {
    const list = append(parent, node.ordered ? "ol" : "ul", node.ordered ? { start: node.start } : {});
    return this.all(list, node.items, at, (_, item, from) =>
      this.all(append(list, "li"), item.tokens, from, this.block),
    );
  }

  /** @param {any} parent @param {any} node @param {number} at */
  table(parent, node, at) {
    const table = append(append(parent, "div", { class: "wide", tabindex: 0 }), "table");
    const row = (/** @type {string} */ tag, /** @type {any[]} */ cells, /** @type {number} */ from) => {
      const line = append(table, "tr");
      return this.all(line, cells, from, (_, cell, start) => {
        return this.all(append(line, tag, { class: cell.align }), cell.tokens, start);
      });
    };
    return node.rows.reduce(
      (/** @type {number} */ from, /** @type {any[]} */ cells) => row("td", cells, from),
      row("th", node.header, at),
    );
  }

  /** @param {any} parent @param {any} node @param {number} at */
  code(parent, node, at) {
    const button = element(
      "button",
      { type: "button", class: "quiet", onclick: () => copy(button, node.text) },
      "Copy",
    );
    const bar = element("div", { class: "code-bar" }, element("span", {}, node.lang || "code"), button);
    const box = append(parent, "div", { class: "code" });
    const code = element("code");
    box.append(bar, element("pre", { tabindex: 0 }, code));
    const fence = this.text.startsWith("```", at) || this.text.startsWith("~~~", at);
    return this.leaf(code, node.text, fence ? this.text.indexOf("\n", at) + 1 : at);
  }

  /** Text in which entities may stand for characters. @param {any} parent @param {string} text @param {number} at */
  entities(parent, text, at) {
    let done = 0;
    for (const match of text.matchAll(ENTITY)) {
      at = this.leaf(parent, text.slice(done, match.index), at);
      this.spans(parent, decoded(match), () => at);
      at += match[0].length;
      done = match.index + match[0].length;
    }
    return this.leaf(parent, text.slice(done), at);
  }

  /**
   * Text as it is, in one span for each of its tokens. @param {any} parent @param {string} shown
   * @param {number} at where it lies in the text; its characters are searched from there if it is not written so
   */
  leaf(parent, shown, at) {
    if (!shown) return at;
    at = Math.max(at, 0);
    if (this.text.startsWith(shown, at)) {
      this.spans(parent, shown, (index) => at + index);
      return at + shown.length;
    }
    const places = scattered(this.text, shown, at);
    this.spans(parent, shown, (index) => places[index]);
    return places[places.length - 1] + 1;
  }

  /** @param {any} parent @param {string} shown @param {(index: number) => number} place of each of its characters */
  spans(parent, shown, place) {
    if (!this.tokens.length) return parent.append(shown);
    for (let begin = 0; begin < shown.length;) {
      const index = this.tokenAt(place(begin));
      let end = begin + 1;
      while (end < shown.length && place(end) < (this.tokens[index]?.end ?? 0)) end++;
      parent.append(index < 0 ? shown.slice(begin, end) : span(this.tokens[index], index, shown.slice(begin, end)));
      begin = end;
    }
  }

  /** The token that holds a character of the text; -1: none. @param {number} place */
  tokenAt(place) {
    let low = 0;
    let high = this.tokens.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.tokens[middle].end <= place) low = middle + 1;
      else high = middle;
    }
    return low < this.tokens.length && this.tokens[low].start <= place ? low : -1;
  }
}

/** @param {Token} token @param {number} index @param {string} text */
function span(token, index, text) {
  const made = document.createElement("span");
  made.className = `token ${token.source}`;
  made.dataset.index = String(index);
  made.textContent = text;
  return made;
}

/** @param {Node & ParentNode} parent @param {string} tag @param {Record<string, any>} [attributes] */
function append(parent, tag, attributes) {
  const made = element(tag, attributes);
  parent.append(made);
  return made;
}

/** The place of each character of `shown`, in order from `at` on. @param {string} text @param {string} shown @param {number} at */
function scattered(text, shown, at) {
  return Array.from({ length: shown.length }, (_, index) => {
    const found = text.indexOf(shown[index], at);
    const place = found < 0 ? at : found;
    at = found < 0 ? at : found + 1;
    return place;
  });
}

/** @param {RegExpMatchArray} match */
function decoded([whole, decimal, hexadecimal, name]) {
  if (name) return ENTITIES[name.toLowerCase()];
  const code = decimal ? parseInt(decimal, 10) : parseInt(hexadecimal, 16);
  return code > 0 && code <= 0x10ffff ? String.fromCodePoint(code) : whole;
}
