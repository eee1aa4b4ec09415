// Who is chatting, and the tokens that prove it.
//
// On the page itself the long-lived token is in a cookie that no script can read, sent to the page's own session address
// only and never from another site; it stays the same, so tabs and hasty reloads cannot get into each other's way. In a frame on a client's site such a cookie would not be sent (and others are often
// blocked), so there the token is in the frame's own storage: a user's for as long as the tab is open, a visitor's until it
// expires. Where a browser denies frames even that, it is in memory, and the next page begins anew. The short-lived token is kept for the tab, so that a reload goes on without asking for a new one.
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
  #access;
  #refreshing = null;
  /** A frame's refresh token, for browsers that let it keep none. */
  #unkept = null;

  constructor(slug, embedded) {
    this.#slug = slug;
    this.#embedded = embedded;
    this.#access = stored.get("sessionStorage", this.#key("access"));
  }

  /** A frame keeps its own: what the page itself remembers is not the frame's to forget. */
  #key(name) { return `freehold:${this.#embedded ? "frame:" : ""}${this.#slug}:${name}`; }

  /** `user`, `visitor` or `null`, as far as this browser remembers. */
  get kind() {
    return this.#access?.kind ?? stored.get("sessionStorage", this.#key("kind")) ?? stored.get("localStorage", this.#key("kind"));
  }

  #keep(tokens, kind) {
    this.#access = { token: tokens.access_token, until: Date.now() + tokens.expires_in * 1000, kind };
    for (const name of ["kind", "refresh"]) for (const old of ["sessionStorage", "localStorage"]) stored.set(old, this.#key(name), null);
    stored.set("sessionStorage", this.#key("access"), this.#access);
    const storage = this.#embedded && kind === "user" ? "sessionStorage" : "localStorage";
    stored.set(storage, this.#key("kind"), kind);
    if (this.#embedded) {
      this.#unkept = tokens.refresh_token;
      stored.set(storage, this.#key("refresh"), tokens.refresh_token);
    }
  }

  /** Called when whoever was signed in is not any more, with what it was. */
  onlost = () => {};

  #lose() {
    const kind = this.kind;
    this.#forget();
    if (kind) this.onlost(kind);
  }

  #forget() {
    this.#access = null;
    this.#unkept = null;
    for (const storage of ["sessionStorage", "localStorage"]) {
      for (const name of ["access", "kind", "refresh"]) stored.set(storage, this.#key(name), null);
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

  async signIn(email, password) {
    const [path, body] = this.#embedded
      ? ["/api/v1/auth/login", { tenant: this.#slug, email, password }]
      : [`/c/${this.#slug}/session`, { email, password }];
    const tokens = await (await accepted(await this.#post(path, body))).json();
    this.#keep(tokens, "user");
  }

  /** Becomes a visitor. Asked for with the first question only, so that whoever just looks leaves nothing behind. */
  async visit() {
    const [path, body] = this.#embedded
      ? ["/api/v1/auth/visitor", { tenant: this.#slug }]
      : [`/c/${this.#slug}/session`, { visitor: true }];
    const tokens = await (await accepted(await this.#post(path, body))).json();
    this.#keep(tokens, "visitor");
  }

  async signOut() {
    const refresh = this.#refreshToken();
    this.#forget();
    try {
      if (!this.#embedded) await this.#post(`/c/${this.#slug}/session`, undefined, "DELETE");
      else if (refresh) await this.#post("/api/v1/auth/logout", { refresh_token: refresh });
    } catch { /* Signed out here at least; the token ends by itself. */ }
  }

  #refreshToken() {
    // What is stored may be newer: another frame of this browser may have renewed it.
    return stored.get("sessionStorage", this.#key("refresh")) ?? stored.get("localStorage", this.#key("refresh")) ?? this.#unkept;
  }

  /** A token that is good for a while; `null` if nobody is signed in. */
  async token(rejected = null) {
    const good = this.#access && this.#access.token !== rejected && this.#access.until - Date.now() > EARLY_MS;
    if (good) return this.#access.token;
    if (!this.kind) return null;
    this.#refreshing ??= this.#inTurn(() => this.#refresh()).finally(() => { this.#refreshing = null; });
    await this.#refreshing;
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
    const kind = this.kind;
    const refresh = this.#refreshToken();
    if (this.#embedded && !refresh) return this.#lose();
    const response = this.#embedded
      ? await this.#post("/api/v1/auth/refresh", { refresh_token: refresh })
      : await this.#post(`/c/${this.#slug}/session/refresh`, {});
    if (response.status === 401 || response.status === 403) return this.#lose();
    this.#keep(await (await accepted(response)).json(), kind);
  }

  /** A request as whoever is signed in. Throws {@link Refused} for what is not a good answer. */
  async request(path, options = {}) {
    const send = async (token) => fetch(path, {
      ...options, credentials: "omit",
      headers: { ...options.headers, ...(token ? { authorization: `Bearer ${token}` } : {}) },
    });
    const token = await this.token();
    let response = await send(token);
    if (response.status === 401 && token) {
      const renewed = await this.token(token);
      if (renewed) response = await send(renewed);
      if (response.status === 401) this.#lose();
    }
    return accepted(response);
  }

  /** The same with a JSON body and answer. */
  async json(path, method = "GET", body = undefined) {
    const options = { method };
    if (body !== undefined) {
      options.body = JSON.stringify(body);
      options.headers = { "content-type": "application/json" };
    }
    const response = await this.request(path, options);
    return response.status === 204 ? null : response.json();
  }
}
