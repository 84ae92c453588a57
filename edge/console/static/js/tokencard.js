/** A small card beside the token that is pointed at or reached with the arrow keys: where it comes from, and what else. */

import { element, percent } from "./dom.js";
import { MEANINGS } from "./provenance.js";

/** @typedef {import("./answer.js").Answer} Answer */

const card = element("div", { id: "token-card", role: "status", hidden: true });
/** @type {WeakMap<Element, Answer>} */
const answers = new WeakMap();
/** @type {Element | null} */
let shown = null;

/** Lets the card explain the tokens in `body`, one tab stop in which the arrow keys move. @param {HTMLElement} body @param {Answer} answer */
export function explainTokens(body, answer) {
  answers.set(body, answer);
  body.tabIndex = 0;
  body.setAttribute("role", "group");
  body.setAttribute("aria-label", "Answer; the arrow keys explain each token");
  body.addEventListener("keydown", (event) => step(body, event));
  body.addEventListener("blur", hide);
}

document.body.append(card);
document.addEventListener("pointerover", (event) => {
  const token = /** @type {Element} */ (event.target).closest(".answer .token");
  if (token) show(token);
  else hide();
});
document.addEventListener("scroll", hide, { capture: true, passive: true });

/** @param {HTMLElement} body @param {KeyboardEvent} event */
function step(body, event) {
  const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (event.key === "Escape") hide();
  if (!move || event.target !== body) return;
  const tokens = [...body.querySelectorAll(".token")];
  const at = shown ? tokens.indexOf(shown) : -1;
  const next = tokens[at < 0 && move < 0 ? tokens.length - 1 : at + move];
  if (!next) return;
  event.preventDefault();
  next.scrollIntoView({ block: "nearest" });
  requestAnimationFrame(() => show(next)); // scrolling hides the card
}

/** @param {Element} place */
function show(place) {
  const answer = answers.get(/** @type {Element} */ (place.closest(".answer")));
  const index = Number(/** @type {HTMLElement} */ (place).dataset.index);
  const token = answer?.tokens[index];
  if (!token) return;
  hide();
  shown = place;
  place.classList.add("current");
  const rows = [
    token.confidence == null ? null : ["confidence", percent(token.confidence)],
    token.round == null ? null : ["round", String(token.round)],
    token.drafter == null ? null : ["drafter", token.drafter],
    ...(answer.scores[index]?.top_logprobs ?? []).map(({ token: text, logprob }) => {
      return [JSON.stringify(text).slice(1, -1), percent(Math.exp(logprob))];
    }),
  ];
  const list = rows.flatMap((row) => (row ? [element("dt", {}, row[0]), element("dd", {}, row[1])] : []));
  const text = element("code", {}, JSON.stringify(token.text).slice(1, -1));
  const head = element("p", {}, element("span", { class: `token ${token.source}` }, token.source), " ", text);
  card.replaceChildren(
    head,
    element("p", { class: "meaning" }, MEANINGS[token.source] ?? ""),
    element("dl", {}, ...list),
  );
  card.hidden = false;
  const box = place.getBoundingClientRect();
  const left = Math.min(box.left, innerWidth - card.offsetWidth - 8);
  const below = box.bottom + card.offsetHeight + 10 < innerHeight;
  card.style.left = `${Math.max(8, left)}px`;
  card.style.top = `${below ? box.bottom + 6 : box.top - card.offsetHeight - 6}px`;
}

function hide() {
  shown?.classList.remove("current");
  shown = null;
  card.hidden = true;
}
