/** Small plots of the last minutes, drawn by uPlot in the page's own colours. */

import UPlot from "../vendor/uPlot.esm.js";
import { element } from "./dom.js";

const HEIGHT = 120;
const SPAN = 300; // seconds
const probe = element("span", { hidden: true });
document.body.append(probe);

/** One line over the last minutes. */
export class Plot {
  /** @type {any} made once there is room for it */
  #plot = null;
  #box = element("div", { class: "plot" });
  #newest = element("span", { class: "now" });

  /**
   * @param {string} title
   * @param {string} colour the name of one of the page's colours
   * @param {(value: number) => string} format
   */
  constructor(title, colour, format) {
    this.colour = colour;
    this.format = format;
    this.element = element("figure", {}, element("figcaption", {}, title, this.#newest), this.#box);
    new ResizeObserver(() => this.#plot?.setSize({ width: this.#box.clientWidth, height: HEIGHT })).observe(this.#box);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#plot?.redraw());
  }

  /** @param {number[]} times seconds since 1970 @param {(number | null)[]} values null: a gap */
  show(times, values) {
    const newest = values.at(-1);
    this.#newest.textContent = newest == null ? "–" : this.format(newest);
    if (this.#plot) this.#plot.setData([times, values]);
    // @ts-expect-error uPlot's module has no types
    else if (this.#box.clientWidth) this.#plot = new UPlot(this.#options(), [times, values], this.#box);
  }

  #options() {
    const grid = { stroke: () => resolved("line"), width: 1 };
    const axis = { stroke: () => resolved("soft"), font: "11px system-ui", grid, ticks: { show: false } };
    return {
      width: this.#box.clientWidth,
      height: HEIGHT,
      legend: { show: false },
      cursor: { show: false },
      scales: { x: { range: lastMinutes }, y: { range: fromZero } },
      axes: [
        { ...axis, size: 24, space: 60, values: clock },
        {
          ...axis,
          size: 48,
          space: 30,
          values: (/** @type {any} */ _, /** @type {number[]} */ at) => at.map(this.format),
        },
      ],
      series: [{}, { spanGaps: true, stroke: () => resolved(this.colour), width: 2, points: { show: true, size: 4 } }],
    };
  }
}

/** @param {any} plot @param {number} low @param {number} high */
const fromZero = (plot, low, high) => [0, high > 1 ? high * 1.1 : 1];

/** @param {any} plot @param {number} first @param {number} last */
const lastMinutes = (plot, first, last) => [last - SPAN, last];

/** Times of day. @param {any} plot @param {number[]} times seconds since 1970 */
function clock(plot, times) {
  const format = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit" });
  return times.map((time) => format.format(new Date(time * 1000)));
}

/** A colour of the page as it is now, as a canvas takes it. @param {string} name */
function resolved(name) {
  probe.style.color = `var(--${name})`;
  return getComputedStyle(probe).color;
}
