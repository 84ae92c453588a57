/** What the edge does now: polls it slowly, only while this view is visible, and shows figures, clouds and small plots. */

import { getJson, getText } from "./api.js";
import { byId, count, duration, element, percent } from "./dom.js";
import { drawClouds, drawPolicy, drawSavings } from "./livetables.js";
import { parseMetrics } from "./metrics.js";
import { Plot } from "./plots.js";
import { MEANINGS, cloudTokens } from "./provenance.js";

const SECONDS = 5; // between two looks
const KEPT = 60; // looks: five minutes
const NAMES = [
  ...["answer_tokens", "drafted_tokens", "accepted_tokens", "answers", "answers_by_way", "rounds"].map(
    (name) => `${name}_total`,
  ),
  ...["sum", "count"].map((part) => `time_to_first_byte_seconds_${part}`),
];
const COUNTERS = `metrics?${NAMES.map((name) => `name[]=edgecloud_${name}`).join("&")}`;
const ANSWERS = ["/v1/chat/completions", "/v1/completions"];

/**
 * @typedef {object} Look the counters of one moment
 * @property {number} time seconds since 1970
 * @property {Record<string, number>} tokens by provenance
 * @property {Record<string, number>} ways answers by verification mode
 * @property {number} drafted @property {number} accepted @property {number} answers @property {number} rounds
 * @property {number} firstSum seconds, over all answers @property {number} firstCount
 */

export class Live {
  /** @type {Look[]} */
  #looks = [];
  #timer = 0;
  #visible = false;
  /** @type {Record<string, Plot>} */
  #plots = {
    speed: new Plot("Tokens per second", "accent", (value) => value.toFixed(value < 10 ? 1 : 0)),
    share: new Plot("Tokens by the cloud", "cloud", percent),
    accepted: new Plot("Drafts accepted", "accepted", percent),
    first: new Plot("Time to first token", "edge", (seconds) => duration(seconds * 1000)),
  };

  constructor() {
    byId("plots").append(...Object.values(this.#plots).map((plot) => plot.element));
    document.addEventListener("visibilitychange", () => this.#poll());
  }

  /** @param {boolean} visible */
  show(visible) {
    this.#visible = visible;
    this.#poll();
  }

  async #poll() {
    clearTimeout(this.#timer);
    if (!this.#visible || document.hidden) return;
    try {
      const [stats, text] = await Promise.all([getJson("stats"), getText(COUNTERS)]);
      this.#looks = [...this.#looks, look(parseMetrics(text))].slice(-KEPT);
      this.#draw(stats);
      byId("live-fault").textContent = "";
    } catch (error) {
      byId("live-fault").textContent = error instanceof Error ? error.message : String(error);
    }
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#poll(), SECONDS * 1000);
  }

  /** @param {any} stats */
  #draw(stats) {
    const now = /** @type {Look} */ (this.#looks.at(-1));
    byId("figures").replaceChildren(
      ...totals(now, stats).map(([name, value]) =>
        element("div", {}, element("dt", {}, name), element("dd", {}, value)),
      ),
    );
    drawSources(now.tokens);
    drawSavings(stats.savings);
    drawPolicy(stats.policy, now.ways);
    drawClouds(stats.clouds);
    const steps = this.#looks.slice(1).map((look, index) => rates(this.#looks[index], look));
    const times = this.#looks.slice(1).map(({ time }) => time);
    for (const [name, plot] of Object.entries(this.#plots))
      plot.show(
        times,
        steps.map((step) => step[name]),
      );
  }
}

/** @param {import("./metrics.js").Metrics} metrics @returns {Look} */
function look(metrics) {
  const sum = (/** @type {string} */ name, labels = {}) => metrics.sum(`edgecloud_${name}`, labels);
  const sources = Object.keys(MEANINGS).map((source) => [source, sum("answer_tokens_total", { provenance: source })]);
  const first = (/** @type {string} */ part) =>
    ANSWERS.reduce((total, route) => total + sum(`time_to_first_byte_seconds_${part}`, { route }), 0);
  const ways = ["rounds", "continuous", "none"].map((way) => [way, sum("answers_by_way_total", { way })]);
  return {
    time: Date.now() / 1000,
    tokens: Object.fromEntries(sources),
    ways: Object.fromEntries(ways),
    drafted: sum("drafted_tokens_total"),
    accepted: sum("accepted_tokens_total"),
    answers: sum("answers_total"),
    rounds: sum("rounds_total"),
    firstSum: first("sum"),
    firstCount: first("count"),
  };
}

/** @param {Record<string, number>} tokens */
const all = (tokens) => Object.values(tokens).reduce((sum, part) => sum + part, 0);

/**
 * What happened between two looks; null where nothing did.
 * @param {Look} before @param {Look} after
 * @returns {Record<string, number | null>} by the names of the plots
 */
function rates(before, after) {
  const tokens = all(after.tokens) - all(before.tokens);
  const drafted = after.drafted - before.drafted;
  const firsts = after.firstCount - before.firstCount;
  return {
    speed: tokens / (after.time - before.time),
    share: tokens > 0 ? (cloudTokens(after.tokens) - cloudTokens(before.tokens)) / tokens : null,
    accepted: drafted > 0 ? (after.accepted - before.accepted) / drafted : null,
    first: firsts > 0 ? (after.firstSum - before.firstSum) / firsts : null,
  };
}

/** @param {Look} now @param {any} stats @returns {[string, string][]} */
function totals(now, { engine, clouds }) {
  const found = engine.kv_hits ?? 0;
  return [
    ["Answers", count(now.answers)],
    ["Tokens", count(all(now.tokens))],
    ["By the cloud", percent(cloudTokens(now.tokens) / all(now.tokens))],
    ["Drafts accepted", percent(now.accepted / now.drafted)],
    ["Rounds per answer", now.answers ? (now.rounds / now.answers).toFixed(1) : "–"],
    ["First token, mean", now.firstCount ? duration((now.firstSum / now.firstCount) * 1000) : "–"],
    ["KV hits", percent(found / (found + (engine.kv_misses ?? 0)))],
    ["Sequences in use", engine.sequences == null ? "–" : `${engine.sequences_lent} of ${engine.sequences}`],
    ["Waiting", engine.waiting == null ? "–" : count(engine.waiting)],
    ["Without a cloud", clouds ? count(clouds.degraded_answers) : "–"],
  ];
}

/** A bar of the tokens since the start. @param {Record<string, number>} tokens */
function drawSources(tokens) {
  const total = all(tokens);
  const parts = Object.keys(MEANINGS).filter((source) => tokens[source] > 0);
  byId("sources-bar").replaceChildren(
    ...parts.map((source) => {
      const part = element("span", { class: `part ${source}`, title: `${source}: ${count(tokens[source])}` });
      part.style.flexGrow = String(tokens[source]);
      return part;
    }),
  );
  byId("sources-list").replaceChildren(
    ...parts.map((source) =>
      element(
        "li",
        {},
        element("span", { class: `token ${source}` }, source),
        ` ${count(tokens[source])} · ${percent(tokens[source] / total)}`,
      ),
    ),
  );
}
