/** The settings of questions: controls with a line of explanation each, and the request that they amount to. */

import { byId, element } from "./dom.js";
import { MODES } from "./modes.js";

const KEPT = "edgecloud-settings";

/**
 * @typedef {object} Control
 * @property {string} name a field of the request, or `system`
 * @property {string} label
 * @property {string} help its effect, in a line
 * @property {Record<string, unknown>} [input] attributes of a number field
 * @property {[string, string][]} [options] values and labels of a choice
 * @property {boolean} [area]
 * @property {Record<string, unknown>} [on] of a check box: the fields of the request if it is ticked
 * @property {string[]} [modes] where it has an effect; everywhere without
 */

/** @type {Control[]} */
const CONTROLS = [
  {
    name: "mode",
    label: "Who answers",
    help: "",
    options: Object.entries(MODES).map(([name, { label }]) => [name, label]),
  },
  {
    name: "confidence_threshold",
    label: "Confidence threshold",
    input: { min: 0, max: 1, step: 0.05 },
    modes: ["gated", "split"],
    help: "The cloud is asked from the first token that the edge is less sure of. Higher: better answers, more work for the cloud.",
  },
  {
    name: "product_threshold",
    label: "Product threshold",
    input: { min: 0, max: 1, step: 0.05 },
    modes: ["gated"],
    help: "Also asked once the confidences of a draft, multiplied, fall below this.",
  },
  {
    name: "route_threshold",
    label: "Router's threshold",
    input: { min: 0, max: 1, step: 0.05 },
    modes: ["route"],
    help: "The cloud answers from this chance on that the edge's answer is the worse one. Lower: more questions to the cloud.",
  },
  {
    name: "max_draft_tokens",
    label: "Draft length",
    input: { min: 1, max: 128, step: 1 },
    modes: ["gated", "lossless"],
    help: "Most tokens that the edge writes ahead before the cloud looks at them.",
  },
  {
    name: "objective",
    label: "Objective",
    modes: ["lossless"],
    options: [
      ["", "As configured"],
      ["latency", "Latency"],
      ["cost", "Cost"],
    ],
    help: "Latency: most tokens a second. Cost: most tokens for each step of the cloud.",
  },
  {
    name: "privacy",
    label: "Private",
    on: { privacy: "edge_only" },
    modes: ["gated", "lossless", "edge", "route"],
    help: "Nothing of the conversation leaves the edge, whatever is chosen above.",
  },
  {
    name: "alternatives",
    label: "Alternatives",
    on: { logprobs: true, top_logprobs: 5 },
    modes: ["edge"],
    help: "Pointing at a token also shows the likeliest tokens at its place.",
  },
  {
    name: "temperature",
    label: "Temperature",
    input: { min: 0, max: 2, step: 0.1 },
    help: "0: always the likeliest token. Higher: more variety.",
  },
  {
    name: "seed",
    label: "Seed",
    input: { min: 0, step: 1 },
    help: "The same number repeats an answer; empty: another one each time.",
  },
  {
    name: "max_tokens",
    label: "Longest answer",
    input: { min: 1, step: 1 },
    help: "In tokens; empty: as many as the context holds.",
  },
  { name: "system", label: "System prompt", area: true, help: "What the model is told before the conversation." },
];
const DEFAULTS = { mode: "gated", temperature: "0.7" };

export class Settings {
  /** @type {Record<string, any>} */
  #values = { ...DEFAULTS, ...JSON.parse(sessionStorage.getItem(KEPT) ?? "{}") };
  /** @type {Map<string, HTMLElement>} */
  #rows = new Map();

  /** @param {HTMLElement} form */
  constructor(form) {
    for (const control of CONTROLS) {
      const row = this.#row(control);
      this.#rows.set(control.name, row);
      form.append(row);
    }
    this.#changed();
  }

  /** What the edge offers: its defaults as placeholders, and modes route and split if it has a router and a split model. @param {any} stats of GET /stats */
  learn(stats) {
    const { threshold, product_threshold: product } = stats.confidence ?? {};
    const configured = {
      confidence_threshold: threshold,
      product_threshold: product,
      route_threshold: stats.router?.threshold,
    };
    for (const [name, value] of Object.entries(configured)) {
      const input = this.#rows.get(name)?.querySelector("input");
      if (input && value != null) input.placeholder = `${value} (configured)`;
    }
    const split = this.#rows.get("mode")?.querySelector('option[value="split"]');
    if (split && !stats.segments) split.remove();
    if (!stats.router) this.#rows.get("mode")?.querySelector('option[value="route"]')?.remove();
  }

  get mode() {
    return this.#values.mode in MODES ? this.#values.mode : "gated";
  }

  /** The fields of a request in this mode, without messages. @param {string} [mode] @returns {Record<string, unknown>} */
  fields(mode = this.mode) {
    /** @type {Record<string, unknown>} */
    const fields = { ...MODES[mode].fields };
    for (const control of CONTROLS.slice(1)) {
      const value = this.#values[control.name];
      if (control.name === "system" || value == null || value === "" || value === false) continue;
      if (control.modes && !control.modes.includes(mode)) continue;
      Object.assign(fields, control.on ?? { [control.name]: control.input ? Number(value) : value });
    }
    return fields;
  }

  /** The system prompt as messages: one, or none. */
  get system() {
    return this.#values.system?.trim() ? [{ role: "system", content: this.#values.system }] : [];
  }

  /** @param {Control} control */
  #row({ name, label, help, input, options, area, on }) {
    const id = `setting-${name}`;
    const attributes = { id, name, "aria-describedby": `${id}-help` };
    const field = options
      ? element("select", attributes, ...options.map(([value, text]) => element("option", { value }, text)))
      : area
        ? element("textarea", { ...attributes, rows: 3 })
        : element("input", {
            ...attributes,
            type: on ? "checkbox" : "number",
            ...input,
            placeholder: input && "as configured",
          });
    const value = this.#values[name];
    const box = /** @type {HTMLInputElement} */ (field);
    if (on) box.checked = Boolean(value);
    else box.value = value ?? "";
    field.addEventListener("input", () => {
      this.#values[name] = on ? box.checked : box.validity.valid ? box.value : "";
      this.#changed();
    });
    const title = element("label", { for: id }, label);
    return element(
      "div",
      { class: on ? "setting check" : "setting", "data-name": name },
      title,
      field,
      element("p", { id: `${id}-help` }, help),
    );
  }

  /** Keeps the values for this tab, explains the mode and dims what it does not use. */
  #changed() {
    sessionStorage.setItem(KEPT, JSON.stringify(this.#values));
    byId("setting-mode-help").textContent = MODES[this.mode].help;
    for (const { name, modes } of CONTROLS)
      this.#rows.get(name)?.classList.toggle("unused", Boolean(modes && !modes.includes(this.mode)));
  }
}
