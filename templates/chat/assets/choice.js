// Whom to ask, where there are several assistants, and whether they accept images.
import { byId, el } from "./dom.js";

export class Choice {
  /** The menu; none where there is nothing to choose. */
  #select = byId("assistant");
  #session;
  #config;
  #t;
  #attachments;
  #remembered;
  #titles = new Map();
  /** The names of those that accept images. */
  #accepting = new Set();

  /** `conversation()` is the one that is open. */
  constructor(session, config, t, attachments, remembered, conversation) {
    this.#session = session;
    this.#config = config;
    this.#t = t;
    this.#attachments = attachments;
    this.#remembered = remembered;
    this.#select?.addEventListener("change", () => { this.keep(conversation()); this.#offerImages(); });
  }

  /** The name of the one that was chosen, if any was. */
  get name() { return this.#select?.value; }

  /** What the one of a name is called. */
  title(name) { return this.#titles.get(name); }

  /** Forgets whom there is to choose from: that is told to those who are signed in. */
  clear() {
    this.#titles.clear();
    this.#accepting = new Set();
    this.#select?.replaceChildren();
    if (this.#select) byId("choice").hidden = true;
    this.#attachments.offer(false);
  }

  async load() {
    const [select, config] = [this.#select, this.#config];
    if (!select && !config.images) return;
    if (this.#session.user === null) {
      if (select) byId("choice").hidden = true;
      // Whoever has asked nothing yet is nobody's visitor yet: the settings say that it may be possible, the first answer whether it is.
      this.#attachments.offer(config.images && config.visitors);
      return;
    }
    try {
      const { items } = await this.#session.json("/api/v1/assistants");
      this.#accepting = new Set(items.filter((one) => one.accepts_images).map((one) => one.name));
      if (!select) { this.#offerImages(); return; }
      this.#titles.clear();
      for (const one of items) this.#titles.set(one.name, one.title);
      const before = select.value;
      select.replaceChildren(el("option", { value: "" }, this.#t("automatic")), ...items.map((one) => el("option", { value: one.name, title: one.description }, one.title)));
      select.value = this.#titles.has(before) ? before : "";
      byId("choice").hidden = items.length < 2;
      this.#offerImages();
    } catch { /* Without a choice the service chooses. */ }
  }

  /** Images are for those who accept them. */
  #offerImages() {
    this.#attachments.offer(this.name ? this.#accepting.has(this.name) : this.#accepting.size > 0);
  }

  /** A conversation goes on with whom its reader chose for it. */
  show(conversation) {
    if (!this.#select) return;
    const chosen = this.#remembered.get("assistants")?.[conversation];
    this.#select.value = this.#titles.has(chosen) ? chosen : "";
    this.#offerImages();
  }

  /** Notes for a conversation whom its reader chose. */
  keep(conversation) {
    if (!this.#select || !conversation) return;
    const { [conversation]: _, ...others } = this.#remembered.get("assistants") ?? {};
    const all = this.name ? { ...others, [conversation]: this.name } : others;
    this.#remembered.set("assistants", Object.fromEntries(Object.entries(all).slice(-50)));
  }
}
