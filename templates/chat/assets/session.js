// Who is chatting, and the tokens that prove it.
//
// On the page itself the long-lived token is in a cookie that no script can read, sent to the page's own session address
// only and never from another site; it stays the same, so tabs and hasty reloads cannot get into each other's way. In a
// frame on a client's site such a cookie would not be sent (and others are often blocked), so there the token is in the
// frame's own storage: a user's for as long as the tab is open, a visitor's until it expires. Where a browser denies frames
// even that, it is in memory, and the next page begins anew. The short-lived token is kept for the tab, so that a reload
// goes on without asking for a new one.
//
// Tabs share the cookie, and whoever signs in or out in one does so for all of them, while what is on the screen belongs to
// one person. So a tab knows whose it is: with every new token the server says whom it is for, and tabs tell each other. A
// tab that finds somebody else clears itself (`onchange`), and what was asked for as one person is never sent as another.
import { stored } from "./dom.js";

const EARLY_MS = 60_000;

export class Refused extends Error {
  constructor(status, problem, retryAfter) {
    super(problem?.code ?? `status ${status}`);
    this.status = status;
    this.code = problem?.code ?? "";
    this.detail = problem?.detail ?? "";
    /** The first field that was refused. */
    this.field = problem?.errors?.[0]?.field ?? "";
    this.retryAfter = retryAfter;
  }
}

/** What somebody asked for who is not there any more. */
const gone = () => new Refused(0, { code: "somebody_else" }, 0);

/** The answer, if it is a good one; else a {@link Refused}. */
export async function accepted(response) {
  if (response.ok) return response;
  let problem = null;
  try { problem = await response.json(); } catch { /* A proxy's page, say: the status has to do. */ }
  throw new Refused(response.status, problem, Number(response.headers.get("retry-after")) || 0);
}

export class Session {
  #slug;
  #embedded;
  /** Whose tab this is: `{user, kind}`, or nobody's. */
  #who;
  #access;
  #refreshing = null;
  /** A frame's refresh token, for browsers that let it keep none. */
  #unkept = null;

  constructor(slug, embedded) {
    this.#slug = slug;
    this.#embedded = embedded;
    this.#who = this.#remembered();
    const access = stored.get("sessionStorage", this.#key("access"));
    this.#access = access?.user === this.user ? access : null;
    window.addEventListener("storage", (event) => { if (event.key === null || event.key === this.#key("who")) this.#compare(); });
    // A page that was put aside has heard of nothing meanwhile.
    window.addEventListener("pageshow", (event) => { if (event.persisted) this.#compare(); });
  }

  /** A frame keeps its own: what the page itself remembers is not the frame's to forget. */
  #key(name) { return `freehold:${this.#embedded ? "frame:" : ""}${this.#slug}:${name}`; }

  /** Whom this browser remembers. A frame's user is its own tab's, everybody else is every tab's. */
  #remembered() {
    return stored.get("sessionStorage", this.#key("who")) ?? stored.get("localStorage", this.#key("who"));
  }

  /** The id of whoever is chatting here; `null` for nobody. */
  get user() { return this.#who?.user ?? null; }

  /** `user`, `visitor` or `null`. */
  get kind() { return this.#who?.kind ?? null; }

  /** Called when this tab is somebody else's all at once, or nobody's any more, with whose it was: `{user, kind}` or `null`. */
  onchange = () => {};

  /** Looks whether another tab has become somebody else, which makes it so for this one. */
  #compare() {
    const who = this.#remembered();
    if ((who?.user ?? null) === this.user) return;
    const before = this.#who;
    this.#who = who;
    this.#access = null;
    this.#unkept = null;
    stored.set("sessionStorage", this.#key("access"), null);
    this.onchange(before);
  }

  #keep(tokens) {
    const kind = tokens.role === "visitor" ? "visitor" : "user";
    this.#who = { user: tokens.user_id, kind };
    this.#access = { token: tokens.access_token, until: Date.now() + tokens.expires_in * 1000, user: this.user };
    stored.set("sessionStorage", this.#key("access"), this.#access);
    const own = this.#embedded && kind === "user";
    const [storage, other] = own ? ["sessionStorage", "localStorage"] : ["localStorage", "sessionStorage"];
    if (this.#embedded) {
      this.#unkept = tokens.refresh_token;
      stored.set(other, this.#key("refresh"), null);
      stored.set(storage, this.#key("refresh"), tokens.refresh_token);
    }
    // Last, for other tabs look at once.
    stored.set(other, this.#key("who"), null);
    stored.set(storage, this.#key("who"), this.#who);
  }

  #lose() {
    const before = this.#who;
    this.#forget();
    if (before) this.onchange(before);
  }

  #forget() {
    this.#who = null;
    this.#access = null;
    this.#unkept = null;
    for (const storage of ["sessionStorage", "localStorage"]) {
      for (const name of ["access", "refresh", "who"]) stored.set(storage, this.#key(name), null);
    }
  }

  #post(path, body, method = "POST") {
    // The header cannot be sent by another site's form or image, which is what makes the cookie safe to act on.
    return fetch(path, {
      method, credentials: "same-origin", keepalive: true,
      headers: { "content-type": "application/json", "x-freehold-page": "1" },
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  }

  /** Signs in, and then whoever was there is signed out: the page's cookie is replaced, a frame's token ended here. */
  async signIn(email, password) {
    const [path, body] = this.#embedded
      ? ["/api/v1/auth/login", { tenant: this.#slug, email, password }]
      : [`/c/${this.#slug}/session`, { email, password }];
    const tokens = await (await accepted(await this.#post(path, body))).json();
    const former = this.#refreshToken();
    this.#keep(tokens);
    if (this.#embedded) this.#end(former);
  }

  /** Becomes a visitor. Asked for with the first question only, so that whoever just looks leaves nothing behind. */
  async visit() {
    const [path, body] = this.#embedded
      ? ["/api/v1/auth/visitor", { tenant: this.#slug }]
      : [`/c/${this.#slug}/session`, { visitor: true }];
    this.#keep(await (await accepted(await this.#post(path, body))).json());
  }

  async signOut() {
    const refresh = this.#refreshToken();
    this.#forget();
    await this.#end(refresh);
  }

  async #end(refresh) {
    try {
      if (!this.#embedded) await this.#post(`/c/${this.#slug}/session`, undefined, "DELETE");
      else if (refresh) await this.#post("/api/v1/auth/logout", { refresh_token: refresh });
    } catch { /* Signed out here at least; the token ends by itself. */ }
  }

  #refreshToken() {
    // What is stored may be newer: another frame of this browser may have renewed it.
    return stored.get("sessionStorage", this.#key("refresh")) ?? stored.get("localStorage", this.#key("refresh")) ?? this.#unkept;
  }

  /** A token that is good for a while; `null` if nobody is signed in. Throws {@link Refused} for what is somebody else's now. */
  async token(rejected = null) {
    const good = this.#access && this.#access.token !== rejected && this.#access.until - Date.now() > EARLY_MS;
    if (good) return this.#access.token;
    const user = this.user;
    if (user === null) return null;
    this.#refreshing ??= this.#inTurn(() => this.#refresh()).finally(() => { this.#refreshing = null; });
    await this.#refreshing;
    if (this.user !== null && this.user !== user) throw gone();
    return this.#access?.token ?? null;
  }

  /** A frame's refresh token works once, and coming twice looks like theft: frames of one browser take turns. */
  async #inTurn(work) {
    if (!this.#embedded || !navigator.locks) return work();
    let begun = false;
    try {
      return await navigator.locks.request(this.#key("refresh"), () => { begun = true; return work(); });
    } catch (error) {
      if (begun) throw error;
      // A frame that may store nothing may take no lock either, and has no token that another frame could use.
      return work();
    }
  }

  async #refresh() {
    const before = this.#who;
    const refresh = this.#refreshToken();
    if (this.#embedded && !refresh) return this.#lose();
    const response = this.#embedded
      ? await this.#post("/api/v1/auth/refresh", { refresh_token: refresh })
      : await this.#post(`/c/${this.#slug}/session/refresh`, {});
    // Signed out, or somebody else, while this was under way: the answer is nobody's.
    if (this.#who !== before) return;
    // Nothing but this says that the token is over: a service that is not active may come back.
    if (response.status === 401) return this.#lose();
    const tokens = await (await accepted(response)).json();
    if (this.#who !== before) return;
    this.#keep(tokens);
    if (this.user !== before.user) this.onchange(before);
  }

  /**
   * A request as whoever is signed in. Throws {@link Refused} for what is not a good answer, and for any answer to somebody
   * who is not there any more.
   */
  async request(path, options = {}) {
    const user = this.user;
    const same = () => { if (this.user !== user) throw gone(); };
    const send = async (token) => fetch(path, {
      ...options, credentials: "omit",
      headers: { ...options.headers, ...(token ? { authorization: `Bearer ${token}` } : {}) },
    });
    const token = await this.token();
    if (token) same();
    else if (user !== null) throw new Refused(401, { code: "unauthenticated" }, 0);
    let response = await send(token);
    if (response.status === 401 && token && this.user === user) {
      const renewed = await this.token(token);
      if (renewed) { same(); response = await send(renewed); }
      if (response.status === 401 && this.user === user) this.#lose();
    }
    if (response.ok) same();
    return accepted(response);
  }

  /** The same with a JSON body and answer. */
  async json(path, method = "GET", body = undefined) {
    const user = this.user;
    const options = { method };
    if (body !== undefined) {
      options.body = JSON.stringify(body);
      options.headers = { "content-type": "application/json" };
    }
    const response = await this.request(path, options);
    const answer = response.status === 204 ? null : await response.json();
    if (this.user !== user) throw gone();
    return answer;
  }
}
