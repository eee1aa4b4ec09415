// The chat page: who is there, which conversation is open, and what happens to a question.
import { byId, stored } from "./dom.js";
import { Choice } from "./choice.js";
import { Attachments, dataUrl, kept } from "./images.js";
import { List } from "./list.js";
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
/** What this tab remembers of whoever is here, and tells nobody else. */
const remembered = {
  key: (name) => `freehold:${config.slug}:${name}`,
  get(name) {
    const kept = stored.get("sessionStorage", this.key(name));
    return kept && kept.user === session.user ? kept.value : null;
  },
  set(name, value) { stored.set("sessionStorage", this.key(name), value === null ? null : { user: session.user, value }); },
};
/** Whether the keyboard is on the screen, where it would cover half of what there is to read: nobody gets it unasked. */
const touch = window.matchMedia("(pointer: coarse)").matches;

const state = {
  conversation: null,
  /** Ends listening to the answer that is under way; the answer itself goes on unless it is stopped. */
  listening: null,
  answerId: null,
  asking: false,
  /** The question that is on its way, until the server has it. */
  unsent: "",
  /** Loads again what the connection was lost over. */
  reload: null,
  /** What somebody was writing who was signed out meanwhile, for nobody but them. */
  draft: null,
  stopWanted: false,
  mayStay: config.visitors,
  noQuota: false,
  /** Which conversation is being loaded: one that comes too late is not shown any more. */
  loading: null,
};

let announcing = 0;
const announce = (text) => {
  clearTimeout(announcing);
  byId("announce").textContent = "";
  announcing = setTimeout(() => { byId("announce").textContent = text; }, 50);
};

const list = new List(session, t, locale, {
  announce,
  open(id) { drawer(false); show("chat"); loadConversation(id); },
  deleted(id) { if (state.conversation === id) newConversation(); },
});

/** Somebody else is here, or nobody: signed in or out in another tab, or not in force any more. */
session.onchange = (before) => {
  const asking = state.unsent !== "";
  // Text that nobody in particular wrote stays with whoever wrote it and became somebody.
  state.draft = { user: before ? before.user : session.user, text: state.unsent || field.value };
  if (session.user !== null) { clear(); enter(); return; }
  if (before.kind === "user" || !config.visitors) { leave(t("signed_out")); return; }
  clear();
  nobody();
  if (asking) { root.toggleAttribute("data-talking", true); messages.answer().finish({ state: "failed", message: t("gone") }); }
  announce(t("gone"));
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
  byId("who").textContent = kind === "user" ? (remembered.get("name") ?? "") : t("visitor");
}

const scroll = byId("scroll");
let pinned = true;
const atBottom = () => scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < 60;
const toBottom = () => { scroll.scrollTop = scroll.scrollHeight; };
scroll.addEventListener("scroll", () => { pinned = atBottom(); byId("latest").hidden = pinned; }, { passive: true });
new ResizeObserver(() => { if (pinned) toBottom(); }).observe(byId("log"));
new ResizeObserver(() => { if (pinned) toBottom(); }).observe(scroll);
byId("latest").addEventListener("click", () => { pinned = true; toBottom(); focusField(); });

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
const choice = new Choice(session, config, t, attachments, remembered, () => state.conversation);

function focusField() {
  if (!touch) field.focus();
}

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

// --- A question and its answer ---------------------------------------------------------------------------------------

async function ask(text, images = []) {
  state.loading = null;
  state.reload = null;
  state.unsent = text;
  busy(true);
  root.toggleAttribute("data-talking", true);
  messages.question(text, images);
  pinned = true;
  const answer = messages.answer();
  toBottom();
  focusField();
  const conversation = state.conversation;
  const assistant = choice.name;
  await listen(answer, null, () => ask(text, images), async (signal) => {
    if (!(await session.token())) {
      // Whoever asked was signed out this very moment: it is nobody else's question.
      signal.throwIfAborted();
      if (!config.visitors) throw new Refused(401, { code: "unauthenticated" }, 0);
      await session.visit();
      signal.throwIfAborted();
      showAccount();
      choice.load();
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
        state.unsent = "";
        answer.id = event.message_id;
        state.answerId = event.message_id;
        openConversation(event.session_id);
        choice.keep(state.conversation);
        if (state.stopWanted) stop();
      },
      delta(text) {
        if (answer.reconnected) { answer.reconnected = false; answer.note(""); }
        answer.add(text);
      },
      reconnecting() { answer.reconnected = true; answer.note(t("reconnecting")); },
      done(event) {
        finish({ state: event.stopped ? "stopped" : "complete", degraded: event.degraded, by: choice.title(event.assistant) });
        announce(event.stopped ? t("stopped") : answer.node.querySelector(".prose").textContent);
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
      state.unsent = "";
      busy(false);
      if (fresh) list.load();
      showQuota();
    }
  }
}

function refused(error, answer, finish) {
  const text = explain(error);
  // What is used up for today or this month is not there with the next press either.
  const hopeless = ["visitor_limit_reached", "visitors_not_allowed", "quota_exceeded", "feature_not_in_plan"].includes(error.code);
  // An answer that the server has begun is there, whole or not: it is looked for, and nothing is asked (and paid for) twice.
  const conversation = state.conversation;
  const look = answer.id && conversation ? () => loadConversation(conversation) : null;
  if (look) state.reload = look;
  finish({ state: answer.text === "" ? "failed" : "interrupted", message: text, ...(hopeless ? { again: null } : look ? { again: look } : {}) });
  announce(text);
  // Deleted elsewhere: the next question begins another one.
  if (error.status === 404) { openConversation(null); list.load(); }
  if (error instanceof Refused && (error.status === 401 || error.code === "visitors_not_allowed")) {
    if (error.code === "visitors_not_allowed") state.mayStay = false;
    leave(error.status === 401 ? t("signed_out") : text);
  }
}

/** A failure in the words of the page. */
function explain(error) {
  if (!(error instanceof Refused) || error.status === 0) return navigator.onLine === false || error instanceof TypeError ? t("offline") : t("server");
  const seconds = Math.max(1, error.retryAfter);
  switch (error.code) {
    case "visitor_limit_reached": return t(config.sign_in ? "visitor_limit" : "visitor_limit_plain");
    case "visitors_not_allowed": return t("visitors_not_allowed");
    case "quota_exceeded": return t("quota");
    case "feature_not_in_plan": return t("feature_missing");
    case "images_not_accepted": return t("images_not_accepted");
    case "assistant_unknown": choice.load(); return t("assistant_gone");
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
  remembered.set("open", id);
  list.mark(id);
}

/** Listens to nothing and loads nothing any more. */
function quiet() {
  state.loading = null;
  state.reload = null;
  state.unsent = "";
  state.listening?.abort();
  state.listening = null;
  state.answerId = null;
  busy(false);
}

/** Takes everything that is somebody's off the page: what is on it, what is under way, and what is being written. */
function clear() {
  quiet();
  state.conversation = null;
  messages.clear();
  list.mark(null);
  list.clear();
  choice.clear();
  attachments.take();
  field.value = "";
  sizeQuestion();
  byId("quota").hidden = true;
  byId("quota-text").textContent = "";
  announce("");
  root.removeAttribute("data-talking");
  drawer(false);
  showAccount();
}

function newConversation() {
  quiet();
  openConversation(null);
  choice.show(state.conversation);
  messages.clear();
  root.removeAttribute("data-talking");
  drawer(false);
  show("chat");
  focusField();
}

async function loadConversation(id) {
  quiet();
  const loading = (state.loading = {});
  const found = [];
  try {
    let cursor = "";
    do {
      const page = await session.json(`/api/v1/sessions/${id}/messages?limit=100${cursor}`);
      found.push(...page.items);
      cursor = page.next_cursor ? `&cursor=${page.next_cursor}` : null;
    } while (cursor !== null);
  } catch (error) {
    if (state.loading !== loading) return undefined;
    const lost = error instanceof Refused && error.status === 404;
    announce(lost ? t("gone") : explain(error));
    if (lost) { openConversation(null); return undefined; }
    // It is still there, and is loaded when somebody says so, or the connection is back.
    state.reload = () => loadConversation(id);
    if (state.conversation === id) return undefined;
    openConversation(id);
    messages.clear();
    root.toggleAttribute("data-talking", true);
    messages.answer().finish({ state: "failed", message: explain(error), again: state.reload });
    return undefined;
  }
  if (state.loading !== loading) return undefined;
  openConversation(id);
  choice.show(state.conversation);
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
      text: message.content, state: message.state, degraded: message.degraded, feedback: message.feedback, by: choice.title(message.assistant),
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

window.addEventListener("online", () => { if (!state.asking) state.reload?.(); });
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

/** Back to the door, with a word on why. What was on the page stays with whom it belongs to. */
function leave(text = "") {
  clear();
  door(text);
}

function door(text = "") {
  byId("sign-in-problem").textContent = text;
  byId("sign-in-problem").hidden = text === "";
  show("sign-in");
}

/** What there is for nobody in particular: the chat, where visitors may ask, or the door. What was typed before this ran stays. */
function nobody() {
  if (!config.visitors) { door(); return; }
  show("chat");
  choice.load();
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
    await session.signIn(byId("email").value, byId("password").value);
    // A visitor who signs in leaves the visitor behind; and whoever comes next is not told who was here.
    byId("sign-in-form").reset();
    clear();
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
byId("open-sign-in").addEventListener("click", () => { drawer(false); door(); });
byId("stay-visitor").addEventListener("click", () => {
  show("chat");
  if (session.user === null) choice.load();
  focusField();
});
byId("sign-out").addEventListener("click", () => {
  for (const name of ["open", "name", "assistants"]) remembered.set(name, null);
  state.draft = null;
  session.signOut();
  clear();
  nobody();
});

async function showQuota() {
  if (!session.kind || state.noQuota) return;
  try {
    // A visitor has a number of questions a day of its own.
    const { requests_this_month: month, questions_today: today } = await session.json("/api/v1/quota");
    const period = today ?? month;
    if (!period) return;
    const number = new Intl.NumberFormat(locale);
    const limited = typeof period.limit === "number";
    byId("quota-text").textContent = limited
      ? t(today ? "used_today" : "used", { used: number.format(period.used), limit: number.format(period.limit) })
      : t("used_unlimited", { used: number.format(period.used) });
    byId("quota-bar").style.width = limited && period.limit > 0 ? `${Math.min(100, (100 * period.used) / period.limit)}%` : "0";
    byId("quota-bar").parentElement.hidden = !limited;
    byId("quota").hidden = false;
  } catch (error) {
    if (error.code === "somebody_else") return;
    byId("quota").hidden = true;
    // A server that knows no quotas is not asked again.
    state.noQuota = error instanceof Refused && error.status === 404;
  }
}

async function showName() {
  if (session.kind !== "user") return;
  try {
    const me = await session.json("/api/v1/me");
    remembered.set("name", me.name);
    showAccount();
  } catch { /* The name is an aid. */ }
}

async function enter() {
  show("chat");
  showAccount();
  const { draft } = state;
  state.draft = null;
  if (draft?.text && draft.user === session.user) { field.value = draft.text; sizeQuestion(); }
  const open = remembered.get("open");
  const user = session.user;
  // First: who gave the answers of the conversation, and whom it goes on with, is shown by their names.
  await choice.load();
  if (session.user !== user) return;
  const opened = open ? loadConversation(open) : null;
  showName();
  list.load();
  showQuota();
  await opened;
  if (!byId("chat").hidden) focusField();
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
  const user = session.user;
  if (user === null) return nobody();
  try { await session.token(); } catch { /* What is asked for says so, too. */ }
  // Where it is somebody else by now, or nobody, that was seen to.
  return session.user === user ? enter() : undefined;
}

start();
