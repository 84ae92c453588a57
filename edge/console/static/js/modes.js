/** The ways to answer that a visitor chooses between, as fields of a request. */

/** @type {Record<string, {label: string, help: string, fields: Record<string, unknown>}>} */
export const MODES = {
  gated: {
    label: "Gated",
    help: "The edge keeps what it is confident of and asks the cloud for the rest. Cheap, but not exactly the cloud's answer.",
    fields: { mode: "collaborative", use_confidence_check: true },
  },
  lossless: {
    label: "Lossless",
    help: "The cloud verifies every token that the edge drafts: the answer is the cloud's own, usually sooner.",
    fields: { mode: "collaborative", use_confidence_check: false },
  },
  edge: {
    label: "Edge only",
    help: "The small model answers alone. Nothing leaves the edge.",
    fields: { mode: "edge_only" },
  },
  cloud: {
    label: "Cloud only",
    help: "The large model answers alone. The edge only passes its answer on.",
    fields: { mode: "cloud_only" },
  },
  route: {
    label: "Routed",
    help: "A small router looks at the question and the edge's first tokens, then the edge or the cloud gives the whole answer.",
    fields: { mode: "route" },
  },
  split: {
    label: "Split model",
    help: "One model, its first layers on the edge, the others in the cloud.",
    fields: { mode: "split" },
  },
};
