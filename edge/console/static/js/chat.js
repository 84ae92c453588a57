/** The chat: a conversation that can be stopped, edited, answered again and exported. */

import { Answer } from "./answer.js";
import { byId, copy, download, element } from "./dom.js";
import { AnswerView } from "./message.js";

/** @typedef {import("./settings.js").Settings} Settings */
/** @typedef {{role: "user", content: string} | {role: "assistant", answer: Answer}} Turn */

const NEAR_END = 80; // pixels: who reads further up is not scrolled away

export class Chat {
  /** @type {Turn[]} */
  #turns = [];
  /** @type {AbortController | null} of the answer that is running */
  #running = null;
  #log = byId("log");
  #input = byId("prompt");

  /** @param {Settings} settings @param {(lost: boolean) => void} answered called after each answer; `lost`: no cloud could be used */
  constructor(settings, answered) {
    this.settings = settings;
    this.answered = answered;
    byId("composer").addEventListener("submit", (/** @type {Event} */ event) => this.#submit(event));
    this.#input.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) this.#submit(event);
    });
    byId("stop").addEventListener("click", () => this.stop());
    byId("new-chat").addEventListener("click", () => this.#cut(0));
    byId("export").addEventListener("click", () =>
      download("chat.json", { turns: this.#turns, settings: settings.fields() }),
    );
    for (const example of document.querySelectorAll("#welcome button"))
      example.addEventListener("click", () => this.#ask(example.textContent ?? ""));
  }

  /** Ends the answer that is running; what has arrived stays. */
  stop() {
    this.#running?.abort();
  }

  /** @param {Event} event */
  #submit(event) {
    event.preventDefault();
    const text = this.#input.value.trim();
    if (!text || this.#running) return;
    this.#input.value = "";
    this.#ask(text);
  }

  /** @param {string} text */
  #ask(text) {
    this.#turns.push({ role: "user", content: text });
    this.#log.append(this.#question(text, this.#turns.length - 1));
    this.#answer();
  }

  /** Answers the conversation as it is now. */
  async #answer() {
    const answer = new Answer();
    const messages = [...this.settings.system, ...this.#turns.map(asMessage)];
    const index = this.#turns.push({ role: "assistant", answer }) - 1;
    const view = new AnswerView(answer, () => this.#follow());
    this.#log.append(this.#article("Answer", view.element, this.#answerActions(answer, index)));
    this.#running = new AbortController();
    this.#showState();
    this.#follow(true);
    const body = {
      ...this.settings.fields(),
      messages,
      stream: true,
      stream_options: { include_usage: true },
      collaboration: { tokens: true },
    };
    await answer.read(body, this.#running.signal, () => view.changed());
    this.#running = null;
    this.#showState();
    byId("announcer").textContent = answer.error ?? `Answer complete: ${answer.text.slice(0, 200)}`;
    this.answered(Boolean(answer.report?.degraded));
  }

  /** Drops all turns from `index` on. @param {number} index */
  #cut(index) {
    this.stop();
    this.#turns.splice(index);
    while (this.#log.children.length > index) this.#log.lastElementChild.remove();
    this.#showState();
  }

  /** @param {string} text @param {number} index */
  #question(text, index) {
    const copying = button("Copy", () => copy(copying, text));
    const edit = button("Edit", () => {
      this.#cut(index);
      this.#input.value = text;
      this.#input.focus();
    });
    return this.#article("You", element("p", { class: "question" }, text), [edit, copying]);
  }

  /** @param {Answer} answer @param {number} index */
  #answerActions(answer, index) {
    const copying = button("Copy", () => copy(copying, answer.text));
    const again = button("Regenerate", () => {
      this.#cut(index);
      this.#answer();
    });
    return [again, copying];
  }

  /** @param {string} name @param {HTMLElement} content @param {HTMLElement[]} actions */
  #article(name, content, actions) {
    return element(
      "article",
      { class: name === "You" ? "turn user" : "turn", "aria-label": name },
      content,
      element("div", { class: "actions" }, ...actions),
    );
  }

  #showState() {
    byId("welcome").hidden = this.#turns.length > 0;
    byId("stop").hidden = !this.#running;
    byId("send").hidden = Boolean(this.#running);
    byId("export").disabled = byId("new-chat").disabled = !this.#turns.length;
    this.#log.setAttribute("aria-busy", String(Boolean(this.#running)));
  }

  /** Keeps the end in view for who is there. @param {boolean} [always] */
  #follow(always = false) {
    const page = byId("scroller");
    if (always || page.scrollHeight - page.scrollTop - page.clientHeight < NEAR_END) page.scrollTop = page.scrollHeight;
  }
}

/** @param {Turn} turn */
function asMessage(turn) {
  return turn.role === "user" ? turn : { role: "assistant", content: turn.answer.text };
}

/** @param {string} label @param {() => void} onclick */
function button(label, onclick) {
  return element("button", { type: "button", class: "quiet", onclick }, label);
}
