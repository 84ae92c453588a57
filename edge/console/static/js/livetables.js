/** The tables of the live view: what was saved, what the policy would do and why, and the clouds. */

import { byId, count, duration, element, percent, size } from "./dom.js";

/** @param {(string | Node)[]} cells @param {Record<string, string>} [attributes] of the row; the first cell is its head */
function row([head, ...cells], attributes = {}) {
  return element(
    "tr",
    attributes,
    element("th", { scope: "row" }, head),
    ...cells.map((cell) => element("td", {}, cell)),
  );
}

/** Money in whatever currency the prices are: three digits that count. @param {number} amount */
const money = (amount) =>
  amount.toLocaleString("en", Math.abs(amount) < 1 ? { maximumSignificantDigits: 3 } : { maximumFractionDigits: 2 });

/** @param {any} savings of GET /stats; undefined for a key that sees its own figures only */
export function drawSavings(savings) {
  byId("savings-section").hidden = !savings;
  if (!savings) return;
  const priced = savings.since_start.money !== null;
  for (const cell of document.querySelectorAll(".priced")) /** @type {HTMLElement} */ (cell).hidden = !priced;
  byId("no-prices").hidden = priced;
  const rows = [
    ["Since midnight", savings.today],
    ["Since the start", savings.since_start],
  ].map(([title, work]) =>
    row([
      title,
      count(work.answers),
      count(work.answer_tokens),
      `${count(work.steps_saved)} · ${percent(work.steps_saved / work.answer_tokens)}`,
      count(work.drawn_tokens),
      count(work.read_tokens),
      ...(priced ? [`${money(work.money)} of ${money(work.money_alone)}`] : []),
    ]),
  );
  byId("savings").replaceChildren(...rows);
}

/**
 * @param {any} policy of GET /stats; undefined for a key that sees its own figures only
 * @param {Record<string, number>} ways answers by verification mode
 */
export function drawPolicy(policy, ways) {
  byId("policy-section").hidden = !policy;
  if (!policy) return;
  const rows = [
    ["As this server is set", policy.default],
    ["Lossless", policy.lossless],
  ].map(([title, plan]) =>
    row([
      title,
      element("strong", {}, WAYS[plan.way ?? "none"]),
      `${plan.because}${speeds(plan.tokens_per_second)}`,
      plan.draft_tokens ? `up to ${plan.draft_tokens} tokens${above(plan.draft_above)}` : "none",
    ]),
  );
  byId("policy").replaceChildren(...rows);
  const figures = [
    ["Round trip", policy.round_trip_ms],
    ["a step of the cloud", policy.step_ms],
    ["drafting a token", policy.draft_token_ms],
  ].map(([name, ms]) => `${name} ${ms === null ? "not measured" : short(ms)}`);
  const chosen = Object.entries(ways).map(([way, answers]) => `${count(answers)} ${ANSWERED[way]}`);
  byId("policy-figures").textContent = `${figures.join(" · ")}. Answers so far: ${chosen.join(", ")}.`;
  drawAcceptance(policy.acceptance);
}

/** @type {Record<string, string>} */
const WAYS = { rounds: "Rounds", continuous: "Continuous", none: "Edge alone" };
/** @type {Record<string, string>} */
const ANSWERED = { rounds: "in rounds", continuous: "continuous", none: "by the edge alone" };

/** @param {number} ms */
const short = (ms) => (ms < 10 ? `${ms.toFixed(1)} ms` : duration(ms));

/** @param {number} chance */
const above = (chance) => (chance > 0 ? `, while the chance of all is above ${percent(chance)}` : "");

/** @param {Record<string, number>} expected */
function speeds(expected) {
  const parts = Object.entries(expected).map(([way, speed]) => `${way} ${speed.toFixed(speed < 10 ? 1 : 0)}`);
  return parts.length ? ` (expected tokens per second: ${parts.join(", ")})` : "";
}

/** A bar for each place in a draft. @param {(number | null)[]} chances null: not measured */
function drawAcceptance(chances) {
  const bars = chances.map((chance, place) => {
    const said = chance === null ? "not measured" : percent(chance);
    const bar = element("span", { class: "bar-of-share" });
    bar.style.height = `${(chance ?? 0) * 100}%`;
    const label = element("span", { class: "place" }, place + 1 === chances.length ? `${place + 1}+` : `${place + 1}`);
    const text = element("span", { class: "unseen" }, `place ${place + 1}: ${said}`);
    return element("li", { title: said }, element("span", { class: "bar-room" }, bar), label, text);
  });
  byId("acceptance").replaceChildren(...bars);
}

/** @param {any} clouds the `clouds` of GET /stats; undefined for a key that sees its own figures only */
export function drawClouds(clouds) {
  const rows = Object.entries(clouds?.endpoints ?? {}).map(([url, cloud]) => {
    const { calls, breaker } = cloud;
    const state =
      { closed: "in use", open: "lost", half_open: "being tried" }[/** @type {string} */ (breaker.state)] ??
      breaker.state;
    const cells = [
      state,
      duration(cloud.avg_latency_ms),
      count(calls.ok),
      count(calls.failed),
      count(breaker.openings),
      count(cloud.in_flight),
      `${size(cloud.bytes_up)} / ${size(cloud.bytes_down)}`,
      cloud.last_error || "–",
    ];
    return row([url, ...cells], { class: breaker.state });
  });
  byId("clouds").replaceChildren(...rows);
  byId("no-clouds").hidden = rows.length > 0;
}
