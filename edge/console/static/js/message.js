/** Shows one answer while it grows: thoughts, tool calls, text with provenance, then how it came about. */

import { count, duration, element, percent, size } from "./dom.js";
import { MarkdownView } from "./markdown.js";
import { cloudTokens, legend } from "./provenance.js";
import { explainTokens } from "./tokencard.js";

/** @typedef {import("./answer.js").Answer} Answer */

const SLOWDOWN = 4; // a growing answer is drawn for at most one part in so many of the time, however long it is

export class AnswerView {
  /** The timer of the next drawing; 0: none is due. */
  #waiting = 0;
  /** Milliseconds. */
  #lastDrawing = 0;
  #thoughts = element("details", { class: "thoughts", hidden: true }, element("summary", {}, "Thoughts"), element("p"));
  #calls = element("div", { class: "calls" });
  #body = element("div", { class: "answer prose" });
  #notice = element("p", { class: "notice", role: "alert", hidden: true });
  #foot = element("div", { class: "foot" });
  #markdown = new MarkdownView(this.#body);

  /** @param {Answer} answer @param {() => void} [drawn] called after each change of what is shown */
  constructor(answer, drawn = () => {}) {
    this.answer = answer;
    this.drawn = drawn;
    this.element = element(
      "div",
      { class: "reply" },
      this.#thoughts,
      this.#calls,
      this.#body,
      this.#notice,
      this.#foot,
    );
    explainTokens(this.#body, answer);
    this.draw();
  }

  /** Draws soon; many calls amount to one drawing. */
  changed() {
    if (this.answer.state !== "running") {
      clearTimeout(this.#waiting);
      this.draw();
    } else if (!this.#waiting) {
      this.#waiting = setTimeout(() => this.draw(), Math.max(30, SLOWDOWN * this.#lastDrawing));
    }
  }

  /** Marks these ranges of the complete answer's text, in order. @param {[number, number][]} ranges */
  mark(ranges) {
    const { tokens } = this.answer;
    let at = 0;
    for (const part of this.#body.querySelectorAll(".token")) {
      const { start, end } = tokens[Number(/** @type {HTMLElement} */ (part).dataset.index)];
      while (at < ranges.length && ranges[at][1] <= start) at++;
      part.classList.toggle("differs", at < ranges.length && ranges[at][0] < end);
    }
  }

  draw() {
    const began = performance.now();
    this.#waiting = 0;
    const { answer } = this;
    this.element.dataset.state = answer.state;
    this.#markdown.update(answer.text, answer.tokens);
    this.#thoughts.hidden = !answer.thoughts;
    if (answer.thoughts) /** @type {HTMLElement} */ (this.#thoughts.lastElementChild).textContent = answer.thoughts;
    this.#calls.replaceChildren(...answer.toolCalls.map(toolCall));
    this.#foot.replaceChildren(legend(answer.counts, this.#body), figures(answer));
    const notice = noticeOf(answer);
    this.#notice.hidden = !notice;
    this.#notice.textContent = notice;
    this.drawn();
    this.#lastDrawing = performance.now() - began;
  }
}

/** @param {{name: string, arguments: string}} call */
function toolCall(call) {
  const code = element("pre", {}, element("code", {}, call.arguments));
  return element("details", { class: "call" }, element("summary", {}, `Tool call: ${call.name}`), code);
}

/** What went wrong, in a line; empty if nothing did. @param {Answer} answer */
function noticeOf(answer) {
  if (answer.error) return answer.error;
  if (answer.report?.degraded) return `The edge went on alone: ${answer.report.degraded}`;
  return answer.stopped
    ? "Stopped."
    : answer.finishReason === "length" && !answer.text.trim()
      ? "No room for an answer."
      : "";
}

/** Time, speed and the cloud's part of an answer, one line. @param {Answer} answer */
export function figures(answer) {
  const parts = [];
  const tokens = Object.values(answer.counts).reduce((sum, part) => sum + part, 0);
  if (answer.state !== "running" && tokens) {
    const writing = (answer.endedAt ?? 0) - (answer.firstAt ?? 0);
    parts.push(duration(answer.elapsed));
    if (answer.firstAt) parts.push(`first token ${duration(answer.firstAt - answer.startedAt)}`);
    if (tokens > 1 && writing > 0) parts.push(`${count(Math.round((tokens * 1000) / Math.max(writing, 1)))} tokens/s`);
    parts.push(`${count(cloudTokens(answer.counts))} of ${count(tokens)} tokens by the cloud`);
    const { report } = answer;
    if (report?.drafted) parts.push(`${percent(report.acceptance_rate)} of the drafts accepted`);
    if (report) parts.push(`${size(report.bytes_up)} up, ${size(report.bytes_down)} down`);
    if (report?.routed_to) parts.push(`routed to the ${report.routed_to}`);
    if (report) parts.push(report.lossless ? "lossless" : "lossy");
  }
  return element("p", { class: "figures" }, parts.join(" · "));
}
