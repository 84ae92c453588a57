/** Compares: one prompt answered in four modes at once, and the words marked in which an answer differs from the cloud's. */

import { Answer } from "./answer.js";
import { differing } from "./diff.js";
import { byId, duration, element, size } from "./dom.js";
import { AnswerView } from "./message.js";
import { MODES } from "./modes.js";
import { cloudTokens } from "./provenance.js";

/** @typedef {import("./settings.js").Settings} Settings */

const COMPARED = ["edge", "gated", "lossless", "cloud"];
const REFERENCE = "cloud";

export class Compare {
  /** @type {AbortController | null} */
  #running = null;

  /** @param {Settings} settings @param {(lost: boolean) => void} answered */
  constructor(settings, answered) {
    this.settings = settings;
    this.answered = answered;
    byId("compare-form").addEventListener("submit", (/** @type {Event} */ event) => {
      event.preventDefault();
      const prompt = byId("compare-prompt").value.trim();
      if (prompt && !this.#running) this.#ask(prompt);
    });
    byId("compare-stop").addEventListener("click", () => this.#running?.abort());
  }

  /** @param {string} prompt */
  async #ask(prompt) {
    const running = (this.#running = new AbortController());
    this.#showState();
    const columns = COMPARED.map((mode) => new Column(mode));
    byId("columns").replaceChildren(...columns.map((column) => column.element));
    const messages = [...this.settings.system, { role: "user", content: prompt }];
    const mark = () => markDifferences(columns);
    await Promise.all(
      columns.map((column) => column.ask(this.#body(column.mode, messages), running.signal).then(mark)),
    );
    this.#running = null;
    this.#showState();
    this.answered(columns.some(({ answer }) => answer.report?.degraded));
  }

  /** Greedy, so that what differs comes from the modes and not from chance. @param {string} mode @param {object[]} messages */
  #body(mode, messages) {
    const { privacy, ...fields } = this.settings.fields(mode);
    return { ...fields, temperature: 0, messages, stream: true, collaboration: { tokens: true } };
  }

  #showState() {
    byId("compare-stop").hidden = !this.#running;
    byId("compare-send").hidden = Boolean(this.#running);
  }
}

class Column {
  /** @param {string} mode */
  constructor(mode) {
    this.mode = mode;
    this.answer = new Answer();
    this.view = new AnswerView(this.answer);
    this.figures = element("dl", { class: "compared" });
    this.difference = element("p", { class: "difference" });
    const { label, help } = MODES[mode];
    const title = element("h2", { title: help }, label);
    this.element = element(
      "section",
      { class: "column", "aria-label": label },
      title,
      this.view.element,
      this.difference,
      this.figures,
    );
  }

  /** @param {object} body @param {AbortSignal} signal */
  async ask(body, signal) {
    await this.answer.read(body, signal, () => this.view.changed());
    const { answer } = this;
    const { report } = answer;
    const total = Object.values(answer.counts).reduce((sum, part) => sum + part, 0);
    const rows = [
      ["Time", duration(answer.elapsed)],
      ["First token", answer.firstAt ? duration(answer.firstAt - answer.startedAt) : "–"],
      ["Cloud tokens", `${cloudTokens(answer.counts)} of ${total}`],
      ["Bytes", report ? `${size(report.bytes_up)} up, ${size(report.bytes_down)} down` : "–"],
    ];
    this.figures.replaceChildren(
      ...rows.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value))),
    );
  }
}

/** Marks what differs from the cloud's own answer, once that is complete. @param {Column[]} columns */
function markDifferences(columns) {
  const reference = columns.find(({ mode }) => mode === REFERENCE)?.answer;
  if (reference?.state !== "done" || reference.report?.degraded) return;
  for (const { mode, answer, view, difference } of columns) {
    if (mode === REFERENCE || answer.state !== "done") continue;
    const ranges = differing(answer.text, reference.text);
    view.mark(ranges);
    const words = ranges.length === 1 ? "1 word differs" : `${ranges.length} words differ`;
    const same = answer.text === reference.text ? "The cloud's answer, word for word." : "The cloud's answer goes on.";
    difference.textContent = ranges.length ? `${words} from the cloud's answer.` : same;
  }
}
