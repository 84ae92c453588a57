/** The five places that a token can come from: names, meanings, legends, and how many of an answer's tokens are whose. */

import { count, element } from "./dom.js";

/** @type {Record<string, string>} in the order of the legend */
export const MEANINGS = {
  edge: "kept by the edge, the cloud was not asked",
  accepted: "drafted by the edge, accepted by the cloud",
  recovered: "the cloud's own, in place of a rejected draft token",
  bonus: "the cloud's own, after a draft that it accepted whole",
  cloud: "written by the cloud alone",
};

/** @param {Record<string, number>} counts tokens by provenance @returns {number} those that the cloud drew */
export const cloudTokens = (counts) => (counts.recovered ?? 0) + (counts.bonus ?? 0) + (counts.cloud ?? 0);

/**
 * A legend with the number of tokens of each kind that occurs; pointing at an entry fades the others in `target`.
 * @param {Record<string, number>} counts
 * @param {HTMLElement} target the element with the tokens
 */
export function legend(counts, target) {
  const entries = Object.keys(MEANINGS).filter((source) => counts[source] > 0);
  const items = entries.map((source) => {
    const show = () => (target.dataset.only = source);
    const hide = () => delete target.dataset.only;
    const listeners = { onpointerenter: show, onpointerleave: hide, onfocus: show, onblur: hide };
    const swatch = element("span", { class: `token ${source}` }, source);
    const entry = element("button", { type: "button", ...listeners }, swatch, ` ${count(counts[source])}`);
    entry.title = MEANINGS[source];
    entry.setAttribute("aria-label", `${counts[source]} tokens ${source}: ${MEANINGS[source]}`);
    return element("li", {}, entry);
  });
  return element("ul", { class: "legend", "aria-label": "Tokens by provenance" }, ...items);
}
