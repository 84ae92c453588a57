/** Talks to the edge: JSON, text and event streams, with the API key; failures become ApiError. */

const KEY = "edgecloud-key";

/** A refusal or failure of the edge, in words for people. */
export class ApiError extends Error {
  /** @param {string} message @param {number} status the HTTP status; 0: the edge cannot be reached */
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/** The API key, which lives as long as this tab. */
export const apiKey = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  /** @param {string} key an empty one forgets it */
  set: (key) => (key ? sessionStorage.setItem(KEY, key) : sessionStorage.removeItem(KEY)),
};

/** @param {string} path @param {RequestInit} [options] @returns {Promise<Response>} */
async function call(path, options = {}) {
  const key = apiKey.get();
  const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store" });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new ApiError("The edge cannot be reached. Is the server still running?", 0);
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  if (response.status === 401) document.dispatchEvent(new CustomEvent("key-needed"));
  throw new ApiError(body?.error?.message ?? `The edge answered ${response.status}.`, response.status);
}

/** @param {string} path @returns {Promise<any>} */
export const getJson = async (path) => (await call(path)).json();

/** @param {string} path @returns {Promise<string>} */
export const getText = async (path) => (await call(path)).text();

/**
 * The events of a streamed answer; an error event in it is thrown.
 * @param {object} body of POST /v1/chat/completions
 * @param {AbortSignal} signal
 * @returns {AsyncGenerator<any>}
 */
export async function* chatEvents(body, signal) {
  const headers = { "Content-Type": "application/json" };
  const response = await call("v1/chat/completions", { method: "POST", headers, signal, body: JSON.stringify(body) });
  for await (const data of serverSentEvents(response)) {
    if (data === "[DONE]") return;
    const event = JSON.parse(data);
    if (event.error) throw new ApiError(event.error.message, 0);
    yield event;
  }
  throw new ApiError("The connection broke before the answer was complete.", 0);
}

/** @param {Response} response @returns {AsyncGenerator<string>} the data of each event */
async function* serverSentEvents(response) {
  const reader = /** @type {ReadableStream} */ (response.body).pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (let part; !(part = await reader.read()).done;) {
      const events = (rest + part.value).split("\n\n");
      rest = /** @type {string} */ (events.pop());
      for (const event of events) if (event.startsWith("data: ")) yield event.slice(6);
    }
  } catch (error) {
    if (error instanceof DOMException && error.name === "AbortError") throw error;
    throw new ApiError("The connection broke before the answer was complete.", 0);
  } finally {
    reader.cancel().catch(() => {}); // a reader that stops early frees the edge at once
  }
}
