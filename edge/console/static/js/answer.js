/** One answer as it grows: its text, where each token lies in it and comes from, and the report at its end. */

import { chatEvents } from "./api.js";

/**
 * @typedef {object} Token
 * @property {string} text as the edge spelled it; U+FFFD stands for a part of a character
 * @property {string} source its provenance
 * @property {number | null} confidence
 * @property {number | undefined} round
 * @property {string | undefined} drafter
 * @property {number} start where it begins in the answer's text
 * @property {number} end
 */

export class Answer {
  text = "";
  thoughts = "";
  /** @type {{name: string, arguments: string}[]} */
  toolCalls = [];
  /** @type {Token[]} those whose place in the text is known */
  tokens = [];
  /** @type {{top_logprobs: {token: string, logprob: number}[]}[]} of each token, if they were asked for */
  scores = [];
  /** @type {any} the edge's `collaboration` object, once the answer is complete */
  report = null;
  /** @type {any} */
  usage = null;
  /** @type {string | null} */
  finishReason = null;
  /** @type {string | null} what went wrong */
  error = null;
  stopped = false;
  startedAt = performance.now();
  /** @type {number | null} */
  firstAt = null;
  /** @type {number | null} */
  endedAt = null;
  /** @type {any[]} tokens that are not placed yet */
  #pending = [];
  #placed = 0;

  /** What the answer is called after: how it went. @returns {"running" | "failed" | "stopped" | "done"} */
  get state() {
    if (this.endedAt === null) return "running";
    return this.error ? "failed" : this.stopped ? "stopped" : "done";
  }

  /** Milliseconds since the question, up to the end. */
  get elapsed() {
    return (this.endedAt ?? performance.now()) - this.startedAt;
  }

  /** Tokens by provenance, of those that have arrived. @returns {Record<string, number>} */
  get counts() {
    /** @type {Record<string, number>} */
    const counts = {};
    for (const { source } of this.tokens) counts[source] = (counts[source] ?? 0) + 1;
    return this.report?.tokens ?? counts;
  }

  /**
   * Asks, and calls `changed` whenever something new has arrived, also at the end.
   * @param {object} body @param {AbortSignal} signal @param {() => void} changed
   */
  async read(body, signal, changed) {
    try {
      for await (const event of chatEvents(body, signal)) {
        this.apply(event);
        changed();
      }
    } catch (error) {
      this.stopped = signal.aborted;
      if (!this.stopped) this.error = error instanceof Error ? error.message : String(error);
    }
    this.#place(true);
    this.endedAt = performance.now();
    changed();
  }

  /** @param {any} event one chunk of the stream */
  apply(event) {
    this.report = event.collaboration ?? this.report;
    this.usage = event.usage ?? this.usage;
    const choice = event.choices?.[0];
    if (!choice) return;
    const { content, reasoning_content: thought, reasoning, tool_calls: calls } = choice.delta ?? {};
    if (content || thought || reasoning || calls) this.firstAt ??= performance.now();
    this.text += content ?? "";
    this.thoughts += thought ?? reasoning ?? "";
    for (const call of calls ?? []) this.#extendCall(call);
    this.finishReason = choice.finish_reason ?? this.finishReason;
    this.scores.push(...(choice.logprobs?.content ?? []));
    this.#pending.push(...(choice.collaboration?.tokens ?? []));
    this.#place(!content && Boolean(thought || reasoning || calls)); // tokens of thoughts and calls are not in the text
  }

  /** @param {any} call a part of one tool call */
  #extendCall(call) {
    const whole = (this.toolCalls[call.index ?? 0] ??= { name: "", arguments: "" });
    whole.name += call.function?.name ?? "";
    whole.arguments += call.function?.arguments ?? "";
  }

  /**
   * Finds the pending tokens in the text, in order. Text may arrive later than its tokens, and some tokens are not shown.
   * A character may be spread over several tokens, spelled as U+FFFD: the first of them gets what lies before the next
   * token that is whole.
   * @param {boolean} last whether no more text arrives
   */
  #place(last) {
    while (this.#pending.length) {
      const [token] = this.#pending;
      const rest = this.text.slice(this.#placed);
      let length = rest.startsWith(token.text) ? token.text.length : 0;
      if (!length && !last && (!rest || token.text.startsWith(rest))) return;
      if (!length && token.text.includes("\uFFFD")) {
        const next = this.#pending.find(({ text }) => text && !text.includes("\uFFFD"));
        if (!next && !last) return;
        length = next ? Math.max(rest.indexOf(next.text), 0) : rest.length;
      }
      this.#put(this.#pending.shift(), this.#placed + length);
    }
  }

  /** @param {any} token @param {number} end */
  #put(token, end) {
    this.tokens.push({ ...token, start: this.#placed, end });
    this.#placed = end;
  }

  /** What an export holds of this answer. */
  toJSON() {
    const { text, thoughts, toolCalls, tokens, report, usage, finishReason, error, state } = this;
    return { text, thoughts, toolCalls, tokens, report, usage, finishReason, error, state, milliseconds: this.elapsed };
  }
}
