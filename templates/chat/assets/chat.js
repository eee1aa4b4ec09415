// The chat page: who is there, which conversation is open, and what happens to a question.
import { byId, el, icon, stored } from "./dom.js";
import { Attachments, dataUrl, kept } from "./images.js";
import { Messages } from "./messages.js";
import { Refused, Session } from "./session.js";
import { follow } from "./stream.js";

const config = JSON.parse(byId("config").textContent);
const root = document.documentElement;
const embedded = "embedded" in root.dataset;
const session = new Session(config.slug, embedded);
const t = (key, values = {}) => (config.texts[key] ?? key).replace(/\{(\w+)\}/g, (_, name) => values[name] ?? "");
const messages = new Messages(byId("log"), config, t);
/** How dates and numbers are written: the tenant's tag, where the browser can make something of it. */
const locale = (() => {
  try { return Intl.getCanonicalLocales(config.language)[0]; } catch { return root.lang; }
})();
const OPEN = `freehold:${config.slug}:open`;

const state = {
  conversation: null,
  /** Ends listening to the answer that is under way; the answer itself goes on unless it is stopped. */
  listening: null,
  answerId: null,
  asking: false,
  stopWanted: false,
  cursor: null,
  mayStay: config.visitors,
  noQuota: false,
  /** Which conversation is being loaded: one that comes too late is not shown any more. */
  loading: null,
};

const announce = (text) => { byId("announce").textContent = ""; setTimeout(() => { byId("announce").textContent = text; }, 50); };

session.onlost = (kind) => {
  if (kind === "user" || !config.visitors) leave(t("signed_out"));
};

// --- What is shown -------------------------------------------------------------------------------------------------

function show(view) {
  const signingIn = view === "sign-in";
  byId("sign-in").hidden = !signingIn;
  byId("chat").hidden = signingIn;
  root.toggleAttribute("data-signing-in", signingIn);
  byId("stay-visitor").hidden = !state.mayStay;
  if (signingIn) byId(byId("email").value ? "password" : "email").focus();
}

function showAccount() {
  const kind = session.kind;
  byId("sign-out").hidden = kind !== "user";
  byId("open-sign-in").hidden = kind === "user";
  byId("who").textContent = kind === "user" ? (stored.get("sessionStorage", `freehold:${config.slug}:name`) ?? "") : t("visitor");
}

const scroll = byId("scroll");
let pinned = true;
const atBottom = () => scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < 60;
const toBottom = () => { scroll.scrollTop = scroll.scrollHeight; };
scroll.addEventListener("scroll", () => { pinned = atBottom(); byId("latest").hidden = pinned; }, { passive: true });
new ResizeObserver(() => { if (pinned) toBottom(); }).observe(byId("log"));
new ResizeObserver(() => { if (pinned) toBottom(); }).observe(scroll);
byId("latest").addEventListener("click", () => { pinned = true; toBottom(); byId("question").focus(); });

function busy(on) {
  state.asking = on;
  byId("send").hidden = on;
  byId("stop").hidden = !on;
  byId("stop").disabled = false;
  byId("log").setAttribute("aria-busy", String(on));
  sizeQuestion();
}

// --- The field -----------------------------------------------------------------------------------------------------

const field = byId("question");
const attachments = new Attachments({
  button: byId("attach"), input: byId("files"), list: byId("attachments"), problem: byId("attach-problem"), field, area: byId("chat"),
}, t, announce, sizeQuestion);

function sizeQuestion() {
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight}px`;
  const length = [...field.value].length;
  const left = config.max_message_length - length;
  byId("count").hidden = left > 50;
  byId("count").textContent = String(left);
  byId("send").disabled = field.value.trim() === "" || left < 0 || attachments.preparing;
}

field.addEventListener("input", sizeQuestion);
field.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    byId("composer").requestSubmit();
  }
});
byId("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = field.value.trim();
  if (text === "" || state.asking || byId("send").disabled) return;
  field.value = "";
  const images = attachments.take();
  sizeQuestion();
  ask(text, images);
});
byId("stop").addEventListener("click", stop);
for (const button of document.querySelectorAll(".suggestion")) button.addEventListener("click", () => { if (!state.asking && !attachments.preparing) ask(button.textContent, attachments.take()); });

// --- Whom to ask -------------------------------------------------------------------------------------------------------

/** Where there are several to choose from. */
const choice = byId("assistant");
const CHOSEN = `freehold:${config.slug}:assistants`;
const titles = new Map();
/** The names of those that accept images. */
let accepting = new Set();

async function loadAssistants() {
  if (!choice && !config.images) return;
  if (!session.kind) {
    if (choice) byId("choice").hidden = true;
    // Whoever has asked nothing yet is nobody's visitor yet: the settings say that it may be possible, the first answer whether it is.
    attachments.offer(config.images && config.visitors);
    return;
  }
  try {
    const { items } = await session.json("/api/v1/assistants");
    accepting = new Set(items.filter((one) => one.accepts_images).map((one) => one.name));
    if (!choice) { offerImages(); return; }
    titles.clear();
    for (const one of items) titles.set(one.name, one.title);
    const before = choice.value;
    choice.replaceChildren(el("option", { value: "" }, t("automatic")), ...items.map((one) => el("option", { value: one.name, title: one.description }, one.title)));
    choice.value = titles.has(before) ? before : "";
    byId("choice").hidden = items.length < 2;
    offerImages();
  } catch { /* Without a choice the service chooses. */ }
}

/** Images are for those who accept them. */
function offerImages() {
  attachments.offer(choice?.value ? accepting.has(choice.value) : accepting.size > 0);
}

/** A conversation goes on with whom its reader chose for it. */
function showChoice() {
  if (!choice) return;
  const chosen = stored.get("sessionStorage", CHOSEN)?.[state.conversation];
  choice.value = titles.has(chosen) ? chosen : "";
  offerImages();
}

function keepChoice() {
  if (!choice || !state.conversation) return;
  const { [state.conversation]: _, ...others } = stored.get("sessionStorage", CHOSEN) ?? {};
  const all = choice.value ? { ...others, [state.conversation]: choice.value } : others;
  stored.set("sessionStorage", CHOSEN, Object.fromEntries(Object.entries(all).slice(-50)));
}

choice?.addEventListener("change", () => { keepChoice(); offerImages(); });

// --- A question and its answer ---------------------------------------------------------------------------------------

async function ask(text, images = []) {
  state.loading = null;
  busy(true);
  root.toggleAttribute("data-talking", true);
  messages.question(text, images);
  pinned = true;
  const answer = messages.answer();
  toBottom();
  field.focus();
  const conversation = state.conversation;
  const assistant = choice?.value;
  await listen(answer, null, () => ask(text, images), async (signal) => {
    if (!(await session.token())) {
      if (!config.visitors) throw new Refused(401, { code: "unauthenticated" }, 0);
      await session.visit();
      showAccount();
      loadAssistants();
    }
    const urls = await Promise.all(images.map(async (image) => dataUrl(await image.blob())));
    return session.request("/api/v1/chat", {
      method: "POST", signal, headers: { "content-type": "application/json" },
      body: JSON.stringify({
        message: text, stream: true, ...(conversation ? { session_id: conversation } : {}), ...(assistant ? { assistant } : {}),
        ...(urls.length > 0 ? { images: urls } : {}),
      }),
    });
  });
}

/** Listens to an answer until it is over, and shows how it ended. `retry` asks its question once more. */
async function listen(answer, messageId, retry, open) {
  busy(true);
  const listening = new AbortController();
  state.listening = listening;
  state.answerId = messageId;
  state.stopWanted = false;
  answer.id = messageId;
  const again = () => { if (!state.asking) retry(); };
  const finish = (how) => answer.finish({ again, rate, ...how });
  const fresh = messageId === null && state.conversation === null;
  try {
    await follow(session, messageId, open, {
      started(event) {
        answer.id = event.message_id;
        state.answerId = event.message_id;
        openConversation(event.session_id);
        keepChoice();
        if (state.stopWanted) stop();
      },
      delta(text) {
        if (answer.reconnected) { answer.reconnected = false; answer.note(""); }
        answer.add(text);
      },
      reconnecting() { answer.reconnected = true; answer.note(t("reconnecting")); },
      done(event) {
        finish({ state: event.stopped ? "stopped" : "complete", degraded: event.degraded, by: titles.get(event.assistant) });
        announce(event.stopped ? t("stopped") : answer.node.querySelector(".prose").textContent);
        if (typeof event.queries_remaining === "number") showQuota();
      },
      error(event) {
        finish({ state: answer.text === "" ? "failed" : "interrupted", message: event.message });
        announce(event.message || t("failed"));
      },
    }, listening.signal);
  } catch (error) {
    if (!listening.signal.aborted) refused(error, answer, finish);
  } finally {
    if (state.listening === listening) {
      state.listening = null;
      state.answerId = null;
      busy(false);
      if (fresh) loadSessions();
      showQuota();
    }
  }
}

function refused(error, answer, finish) {
  const text = explain(error);
  // What is used up for today or this month is not there with the next press either.
  const hopeless = ["visitor_limit_reached", "visitors_not_allowed", "quota_exceeded", "feature_not_in_plan"].includes(error.code);
  finish({ state: answer.text === "" ? "failed" : "interrupted", message: text, ...(hopeless ? { again: null } : {}) });
  announce(text);
  if (error instanceof Refused && (error.status === 401 || error.code === "visitors_not_allowed")) {
    if (error.code === "visitors_not_allowed") state.mayStay = false;
    leave(error.status === 401 ? t("signed_out") : text);
  }
}

/** A failure in the words of the page. */
function explain(error) {
  if (!(error instanceof Refused)) return navigator.onLine === false || error instanceof TypeError ? t("offline") : t("server");
  const seconds = Math.max(1, error.retryAfter);
  switch (error.code) {
    case "visitor_limit_reached": return t(config.sign_in ? "visitor_limit" : "visitor_limit_plain");
    case "visitors_not_allowed": return t("visitors_not_allowed");
    case "quota_exceeded": return t("quota");
    case "feature_not_in_plan": return t("feature_missing");
    case "images_not_accepted": return t("images_not_accepted");
    case "assistant_unknown": loadAssistants(); return t("assistant_gone");
    case "model_missing": case "ai_key_missing": case "ai_key_unusable": return t("model_missing");
    case "unauthenticated": return t("signed_out");
    default:
  }
  if (error.status === 413) return t("images_too_large");
  if (error.status === 422 && error.field.startsWith("images")) return t("image_refused");
  if (error.status === 422) return t("too_long", { limit: config.max_message_length });
  if (error.status === 429) return t("too_many", { seconds });
  if (error.status === 403 || error.status === 503) return t("unavailable");
  if (error.status === 404) return t("gone");
  return error.status === 502 && error.detail ? error.detail : t("server");
}

/** Stops the answer itself, wherever it is made; the stream then ends by itself and says so. */
async function stop() {
  if (!state.answerId) { state.stopWanted = true; byId("stop").disabled = true; return; }
  byId("stop").disabled = true;
  try {
    await session.request(`/api/v1/chat/${state.answerId}/stop`, { method: "POST" });
  } catch {
    byId("stop").disabled = false;
  }
}

async function rate(id, feedback) {
  try {
    if (feedback === null) await session.json(`/api/v1/messages/${id}/feedback`, "DELETE");
    else await session.json(`/api/v1/messages/${id}/feedback`, "PUT", feedback);
    if (feedback) announce(t("feedback_thanks"));
    return true;
  } catch {
    announce(t("feedback_failed"));
    return false;
  }
}

// --- Conversations -----------------------------------------------------------------------------------------------------

function openConversation(id) {
  state.conversation = id;
  stored.set("sessionStorage", OPEN, id);
  for (const item of document.querySelectorAll(".session")) markCurrent(item);
}

function markCurrent(item) {
  const current = item.dataset.id === state.conversation;
  item.toggleAttribute("data-current", current);
  item.querySelector(".open").toggleAttribute("aria-current", current);
  if (current) item.querySelector(".open").setAttribute("aria-current", "true");
}

function newConversation() {
  state.loading = null;
  state.listening?.abort();
  state.listening = null;
  openConversation(null);
  showChoice();
  messages.clear();
  busy(false);
  root.removeAttribute("data-talking");
  drawer(false);
  show("chat");
  field.focus();
}

async function loadConversation(id) {
  const loading = (state.loading = {});
  state.listening?.abort();
  state.listening = null;
  busy(false);
  const found = [];
  try {
    let cursor = "";
    do {
      const page = await session.json(`/api/v1/sessions/${id}/messages?limit=100${cursor}`);
      found.push(...page.items);
      cursor = page.next_cursor ? `&cursor=${page.next_cursor}` : null;
    } while (cursor !== null);
  } catch (error) {
    if (error instanceof Refused && error.status === 401) return leave(t("signed_out"));
    if (state.loading !== loading) return undefined;
    openConversation(null);
    announce(error instanceof Refused && error.status === 404 ? t("gone") : explain(error));
    return undefined;
  }
  if (state.loading !== loading) return undefined;
  openConversation(id);
  showChoice();
  messages.clear();
  root.toggleAttribute("data-talking", found.length > 0);
  pinned = true;
  let question = () => {};
  let resumed = null;
  for (const message of found) {
    if (message.role === "user") {
      const images = (message.images ?? []).map((image) => kept(session, image.id));
      question = () => ask(message.content, images);
      messages.question(message.content, images);
      continue;
    }
    const answer = messages.answer();
    answer.id = message.id;
    const retry = question;
    if (message.state === "generating") { resumed = [answer, message.id, retry]; continue; }
    answer.finish({
      text: message.content, state: message.state, degraded: message.degraded, feedback: message.feedback, by: titles.get(message.assistant),
      again: () => { if (!state.asking) retry(); }, rate,
    });
  }
  toBottom();
  if (resumed) {
    const [answer, answerId, retry] = resumed;
    listen(answer, answerId, retry, (signal) => session.request(`/api/v1/chat/${answerId}/events`, { signal }));
  }
  return undefined;
}

function dayOf(date) {
  const today = new Date();
  const days = Math.round((new Date(today.toDateString()) - new Date(date.toDateString())) / 86_400_000);
  if (days < 7) return capital(new Intl.RelativeTimeFormat(locale, { numeric: "auto" }).format(-days, "day"));
  return new Intl.DateTimeFormat(locale, { month: "long", year: "numeric" }).format(date);
}

const capital = (text) => text.charAt(0).toLocaleUpperCase(locale) + text.slice(1);
let lastDay = "";

async function loadSessions(more = false) {
  if (!session.kind) return showSessions([], false);
  try {
    const page = await session.json(`/api/v1/sessions?limit=30${more && state.cursor ? `&cursor=${state.cursor}` : ""}`);
    state.cursor = page.next_cursor ?? null;
    showSessions(page.items, more);
  } catch { /* The list is an aid: the chat goes on without it, and the next answer asks for it again. */ }
  return undefined;
}

function showSessions(items, more) {
  const list = byId("sessions");
  if (!more) { list.replaceChildren(); lastDay = ""; }
  for (const found of items) {
    const day = dayOf(new Date(found.created_at));
    if (day !== lastDay) { list.append(el("li", { class: "day" }, day)); lastDay = day; }
    list.append(sessionItem(found));
  }
  byId("no-sessions").hidden = list.childNodes.length > 0;
  byId("more-sessions").hidden = !state.cursor;
}

function sessionItem(found) {
  const open = el("button", { class: "open", type: "button", title: found.title, onclick: () => { drawer(false); show("chat"); loadConversation(found.id); } }, found.title);
  const remove = el("button", { class: "remove", type: "button", "aria-label": `${t("delete")}: ${found.title}` }, icon("trash"));
  const item = el("li", { class: "session", "data-id": found.id }, open, remove);
  const calm = () => { delete remove.dataset.sure; remove.setAttribute("aria-label", `${t("delete")}: ${found.title}`); };
  remove.addEventListener("blur", calm);
  remove.addEventListener("click", async () => {
    // What is deleted does not come back, so it takes two.
    if (!("sure" in remove.dataset)) { remove.dataset.sure = ""; remove.setAttribute("aria-label", t("delete_again")); announce(t("delete_again")); return; }
    try {
      await session.json(`/api/v1/sessions/${found.id}`, "DELETE");
    } catch (error) {
      if (!(error instanceof Refused && error.status === 404)) return calm();
    }
    announce(t("deleted"));
    if (state.conversation === found.id) newConversation();
    await loadSessions();
    byId("new-chat").focus();
    return undefined;
  });
  markCurrent(item);
  return item;
}

byId("more-sessions").addEventListener("click", () => loadSessions(true));
byId("new-chat").addEventListener("click", newConversation);
byId("new-chat-bar").addEventListener("click", newConversation);

// --- The drawer, on small screens ----------------------------------------------------------------------------------------

function drawer(open) {
  const was = root.hasAttribute("data-drawer");
  if (open === was) return;
  root.toggleAttribute("data-drawer", open);
  byId("shade").hidden = !open;
  byId("main").inert = open;
  byId("open-history").setAttribute("aria-expanded", String(open));
  if (open) byId("close-history").focus();
  else byId("open-history").focus();
}

byId("open-history").addEventListener("click", () => drawer(true));
byId("close-history").addEventListener("click", () => drawer(false));
byId("shade").addEventListener("click", () => drawer(false));
window.matchMedia("(min-width: 801px)").addEventListener("change", () => drawer(false));
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  if (root.hasAttribute("data-drawer")) drawer(false);
  else if (state.asking) stop();
  else if (parent.origin) tell("freehold:close");
});

// --- The account -----------------------------------------------------------------------------------------------------------

/** Back to the door, with a word on why. */
function leave(text = "") {
  stored.set("sessionStorage", OPEN, null);
  byId("sign-in-problem").textContent = text;
  byId("sign-in-problem").hidden = text === "";
  showAccount();
  show("sign-in");
}

byId("sign-in-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = byId("sign-in-submit");
  const problem = byId("sign-in-problem");
  problem.hidden = true;
  button.disabled = true;
  const label = button.textContent;
  button.textContent = t("signing_in");
  try {
    // A visitor who signs in leaves the visitor behind.
    if (session.kind === "visitor") await session.signOut();
    await session.signIn(byId("email").value, byId("password").value);
    byId("password").value = "";
    await enter();
  } catch (error) {
    problem.textContent = error instanceof Refused && error.status === 401 ? t("wrong_password")
      : error instanceof Refused && error.status === 429 ? t("attempts", { seconds: Math.max(1, error.retryAfter) }) : explain(error);
    problem.hidden = false;
    byId("password").select();
  } finally {
    button.disabled = false;
    button.textContent = label;
  }
});
byId("open-sign-in").addEventListener("click", () => { drawer(false); leave(); });
byId("stay-visitor").addEventListener("click", () => { show("chat"); field.focus(); });
byId("sign-out").addEventListener("click", async () => {
  await session.signOut();
  stored.set("sessionStorage", OPEN, null);
  stored.set("sessionStorage", `freehold:${config.slug}:name`, null);
  newConversation();
  attachments.take();
  showSessions([], false);
  loadAssistants();
  byId("quota").hidden = true;
  showAccount();
  if (!config.visitors) leave();
});

async function showQuota() {
  if (!session.kind || state.noQuota) return;
  try {
    const { requests_this_month: month } = await session.json("/api/v1/quota");
    if (!month) return;
    const number = new Intl.NumberFormat(locale);
    const limited = typeof month.limit === "number";
    byId("quota-text").textContent = limited
      ? t("used", { used: number.format(month.used), limit: number.format(month.limit) })
      : t("used_unlimited", { used: number.format(month.used) });
    byId("quota-bar").style.width = limited && month.limit > 0 ? `${Math.min(100, (100 * month.used) / month.limit)}%` : "0";
    byId("quota-bar").parentElement.hidden = !limited;
    byId("quota").hidden = false;
  } catch (error) {
    byId("quota").hidden = true;
    // A server that knows no quotas is not asked again.
    state.noQuota = error instanceof Refused && error.status === 404;
  }
}

async function showName() {
  if (session.kind !== "user") return;
  try {
    const me = await session.json("/api/v1/me");
    stored.set("sessionStorage", `freehold:${config.slug}:name`, me.name);
    showAccount();
  } catch { /* The name is an aid. */ }
}

async function enter() {
  show("chat");
  showAccount();
  const open = stored.get("sessionStorage", OPEN);
  // First: who gave the answers of the conversation, and whom it goes on with, is shown by their names.
  await loadAssistants();
  const opened = open ? loadConversation(open) : null;
  showName();
  loadSessions();
  showQuota();
  await opened;
  if (!byId("chat").hidden && !("ontouchstart" in window)) field.focus();
}

// --- Dark mode ---------------------------------------------------------------------------------------------------------------

const prefersDark = window.matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : prefersDark.matches);
const showDark = () => byId("dark").setAttribute("aria-pressed", String(isDark()));
byId("dark").addEventListener("click", () => {
  const theme = isDark() ? "light" : "dark";
  root.dataset.theme = theme;
  // As it is, for the script that reads it before anything is painted.
  try { localStorage.setItem("freehold:theme", theme); } catch { /* It holds for this page then. */ }
  showDark();
});
prefersDark.addEventListener("change", showDark);
showDark();

// --- The site around, if there is one ----------------------------------------------------------------------------------------

const parent = { origin: null };

/** Speaks to the site that embeds the page, once it has shown itself to be an allowed one, and to nobody else. */
function tell(type) {
  if (embedded && parent.origin) window.parent.postMessage({ type }, parent.origin);
}

if (embedded) {
  window.addEventListener("message", (event) => {
    if (event.source !== window.parent || !config.allowed_origins.includes(event.origin)) return;
    if (event.data?.type === "freehold:hello") parent.origin = event.origin;
  });
  byId("close-widget").addEventListener("click", () => tell("freehold:close"));
}

// --- The beginning -----------------------------------------------------------------------------------------------------------

async function start() {
  sizeQuestion();
  showAccount();
  byId("no-sessions").hidden = false;
  if (session.kind) {
    const token = await session.token().catch(() => session.kind);
    if (token) return enter();
  }
  if (config.visitors) { show("chat"); showAccount(); loadAssistants(); return undefined; }
  return leave();
}

start();
