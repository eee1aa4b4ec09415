// The list of conversations of whoever is here.
import { byId, el, icon } from "./dom.js";
import { Refused } from "./session.js";

export class List {
  #session;
  #t;
  #locale;
  #page;
  #cursor = null;
  #lastDay = "";
  #current = null;

  /** `page` has what this leads to: `open(id)`, `deleted(id)` and `announce(text)`. */
  constructor(session, t, locale, page) {
    this.#session = session;
    this.#t = t;
    this.#locale = locale;
    this.#page = page;
    byId("more-sessions").addEventListener("click", () => this.load(true));
  }

  /** Empties it. */
  clear() {
    this.#cursor = null;
    this.#show([], false);
  }

  /** Shows which one is open. */
  mark(id) {
    this.#current = id;
    for (const item of document.querySelectorAll(".session")) this.#markItem(item);
  }

  async load(more = false) {
    if (this.#session.user === null) { this.clear(); return; }
    try {
      const page = await this.#session.json(`/api/v1/sessions?limit=30${more && this.#cursor ? `&cursor=${this.#cursor}` : ""}`);
      this.#cursor = page.next_cursor ?? null;
      this.#show(page.items, more);
    } catch { /* The list is an aid: the chat goes on without it, and the next answer asks for it again. */ }
  }

  #markItem(item) {
    const current = item.dataset.id === this.#current;
    item.toggleAttribute("data-current", current);
    if (current) item.querySelector(".open").setAttribute("aria-current", "true");
    else item.querySelector(".open").removeAttribute("aria-current");
  }

  #dayOf(date) {
    const today = new Date();
    const days = Math.round((new Date(today.toDateString()) - new Date(date.toDateString())) / 86_400_000);
    if (days >= 7) return new Intl.DateTimeFormat(this.#locale, { month: "long", year: "numeric" }).format(date);
    const day = new Intl.RelativeTimeFormat(this.#locale, { numeric: "auto" }).format(-days, "day");
    return day.charAt(0).toLocaleUpperCase(this.#locale) + day.slice(1);
  }

  #show(items, more) {
    const list = byId("sessions");
    if (!more) { list.replaceChildren(); this.#lastDay = ""; }
    for (const found of items) {
      const day = this.#dayOf(new Date(found.created_at));
      if (day !== this.#lastDay) { list.append(el("li", { class: "day" }, day)); this.#lastDay = day; }
      list.append(this.#item(found));
    }
    byId("no-sessions").hidden = list.childNodes.length > 0;
    byId("more-sessions").hidden = !this.#cursor;
  }

  #item(found) {
    const t = this.#t;
    const open = el("button", { class: "open", type: "button", title: found.title, dir: "auto", onclick: () => this.#page.open(found.id) }, found.title);
    const remove = el("button", { class: "remove", type: "button", "aria-label": `${t("delete")}: ${found.title}` }, icon("trash"));
    const item = el("li", { class: "session", "data-id": found.id }, open, remove);
    const calm = () => { delete remove.dataset.sure; remove.setAttribute("aria-label", `${t("delete")}: ${found.title}`); };
    remove.addEventListener("blur", calm);
    remove.addEventListener("click", async () => {
      // What is deleted does not come back, so it takes two.
      if (!("sure" in remove.dataset)) { remove.dataset.sure = ""; remove.setAttribute("aria-label", t("delete_again")); this.#page.announce(t("delete_again")); return; }
      try {
        await this.#session.json(`/api/v1/sessions/${found.id}`, "DELETE");
      } catch (error) {
        if (!(error instanceof Refused && error.status === 404)) { calm(); return; }
      }
      this.#page.announce(t("deleted"));
      this.#page.deleted(found.id);
      await this.load();
      byId("new-chat").focus();
    });
    this.#markItem(item);
    return item;
  }
}
