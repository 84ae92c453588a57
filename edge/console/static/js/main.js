/** Starts the page: its views, the dialog for the key, and what the header says about edge and cloud. */

import { apiKey, getJson } from "./api.js";
import { Chat } from "./chat.js";
import { Compare } from "./compare.js";
import { byId } from "./dom.js";
import { Live } from "./live.js";
import { Settings } from "./settings.js";

const VIEWS = ["chat", "compare", "live"];
const settings = new Settings(byId("settings-form"));
const live = new Live();
new Chat(settings, refresh);
new Compare(settings, refresh);

/** Shows the view that the address names. */
function route() {
  const wanted = location.hash.slice(1);
  const view = VIEWS.includes(wanted) ? wanted : "chat";
  for (const name of VIEWS) {
    byId(name).hidden = name !== view;
    byId(`to-${name}`).setAttribute("aria-current", name === view ? "page" : "false");
  }
  document.body.dataset.view = view;
  live.show(view === "live");
}

/** Asks the edge once what it has: its model, defaults and clouds. @param {boolean} [lost] no cloud could be used just now */
async function refresh(lost = false) {
  try {
    const [models, stats] = await Promise.all([getJson("v1/models"), getJson("stats")]);
    settings.learn(stats);
    const clouds = /** @type {any[]} */ (Object.values(stats.clouds?.endpoints ?? {}));
    const unused = clouds.length > 0 && clouds.every((cloud) => cloud.breaker.state !== "closed");
    describe(models.data[0]?.id ?? "", lost || unused ? "lost" : "on");
  } catch (error) {
    describe("", "off", error instanceof Error ? error.message : "");
  }
}

/** @param {string} model @param {"on" | "lost" | "off"} state @param {string} [fault] */
function describe(model, state, fault = "") {
  const box = byId("state");
  box.dataset.state = state;
  box.textContent = { on: model, lost: `${model} · cloud not reached`, off: "Not connected" }[state];
  box.title = fault;
}

const keyDialog = byId("key-dialog");

/** @param {string} reason */
function askForKey(reason) {
  byId("key-reason").textContent = reason;
  byId("key").value = "";
  byId("forget-key").hidden = !apiKey.get();
  if (!keyDialog.open) keyDialog.showModal();
}

document.addEventListener("key-needed", () => {
  askForKey(apiKey.get() ? "The edge does not accept this key." : "This edge asks for an API key.");
});
byId("open-key").addEventListener("click", () =>
  askForKey(apiKey.get() ? "A key is set in this tab." : "No key is set."),
);
byId("key-form").addEventListener("submit", (/** @type {Event} */ event) => {
  event.preventDefault();
  keyDialog.close();
  if (byId("key").value) apiKey.set(byId("key").value.trim());
  refresh();
});
byId("forget-key").addEventListener("click", () => {
  apiKey.set("");
  keyDialog.close();
  refresh();
});
byId("cancel-key").addEventListener("click", () => keyDialog.close());
for (const button of document.querySelectorAll(".toggle-settings"))
  button.addEventListener("click", () => toggleSettings());

/** @param {boolean} [open] */
function toggleSettings(open = byId("settings").hidden) {
  byId("settings").hidden = !open;
  byId("open-settings").setAttribute("aria-expanded", String(open));
  if (open) byId("setting-mode").focus({ preventScroll: true });
  else byId("open-settings").focus();
}

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !byId("settings").hidden && matchMedia("(max-width: 60rem)").matches)
    toggleSettings(false);
});
byId("settings").hidden = matchMedia("(max-width: 60rem)").matches;
byId("open-settings").setAttribute("aria-expanded", String(!byId("settings").hidden));
addEventListener("hashchange", route);
route();
refresh();
