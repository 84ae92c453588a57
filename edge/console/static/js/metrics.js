/** Reads Prometheus' text format: what GET /metrics answers. */

/**
 * @typedef {object} Sample
 * @property {string} name
 * @property {Record<string, string>} labels
 * @property {number} value
 */

const LINE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)$/;
const LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g;

/** @param {string} text @returns {Metrics} */
export function parseMetrics(text) {
  const samples = text.split("\n").flatMap((line) => {
    const [, name, labels = "", value] = LINE.exec(line) ?? [];
    if (!name) return [];
    const pairs = [...labels.matchAll(LABEL)].map(([, key, quoted]) => [key, quoted.replaceAll(/\\(.)/g, "$1")]);
    return [{ name, labels: Object.fromEntries(pairs), value: Number(value) }];
  });
  return new Metrics(samples);
}

export class Metrics {
  /** @param {Sample[]} samples */
  constructor(samples) {
    this.samples = samples;
  }

  /** The sum over all samples of this name that have these labels. @param {string} name @param {Record<string, string>} [labels] */
  sum(name, labels = {}) {
    const wanted = Object.entries(labels);
    return this.samples
      .filter((sample) => sample.name === name && wanted.every(([key, value]) => sample.labels[key] === value))
      .reduce((sum, { value }) => sum + value, 0);
  }
}
