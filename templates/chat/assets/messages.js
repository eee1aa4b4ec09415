// How messages look: a question as it was typed, an answer as Markdown with what can be done about it.
import { el, icon } from "./dom.js";
import { render, settledLength } from "./markdown.js";

/** What a frame has time for. */
const FRAME_MS = 16;

export class Messages {
  #t;
  #config;
  #log;
  /** The addresses under which this page shows images. */
  #urls = [];
  /** Loads images once somebody is about to see them. */
  #seen = new IntersectionObserver((entries, seen) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      seen.unobserve(target);
      this.#load(target);
    }
  });
  #images = new WeakMap();

  constructor(log, config, t) {
    this.#log = log;
    this.#config = config;
    this.#t = t;
  }

  clear() {
    this.#log.replaceChildren();
    this.#seen.disconnect();
    for (const url of this.#urls.splice(0)) URL.revokeObjectURL(url);
  }

  /** A question, with the images that came with it. */
  question(text, images = []) {
    const pictures = images.map((image, index) => {
      const picture = el("img", { alt: this.#t("image_number", { number: index + 1 }) });
      this.#images.set(picture, image);
      this.#seen.observe(picture);
      return picture;
    });
    const row = pictures.length > 0 ? el("div", { class: "pictures" }, ...pictures) : null;
    const node = el("article", { class: "message user", "aria-label": this.#t("you") }, row, el("div", { class: "text", lang: this.#config.language, dir: "auto" }, text));
    this.#log.append(node);
    return node;
  }

  async #load(picture) {
    try {
      const url = URL.createObjectURL(await this.#images.get(picture).blob());
      if (!picture.isConnected) { URL.revokeObjectURL(url); return; }
      this.#urls.push(url);
      picture.src = url;
    } catch {
      picture.replaceWith(el("span", { class: "note" }, this.#t("image_gone")));
    }
  }

  /** An answer that is still to come. */
  answer() {
    const prose = el("div", { class: "prose", lang: this.#config.language });
    const typing = el("span", { class: "typing", role: "img", "aria-label": this.#t("thinking") }, el("i"), el("i"), el("i"));
    const body = el("div", { class: "body" }, prose, typing);
    const logo = el("img", { class: "logo", src: this.#config.logo, alt: "", width: 30, height: 30, referrerpolicy: "no-referrer" });
    const node = el("article", { class: "message assistant", "aria-label": this.#config.name }, logo, body);
    this.#log.append(node);
    return new Answer(node, body, prose, typing, this.#config, this.#t);
  }
}

class Answer {
  text = "";
  id = null;
  #settled = 0;
  #settledNodes = 0;
  #frame = 0;
  #later = 0;
  /** Not before this is it drawn again. */
  #rested = 0;
  #node;
  #body;
  #prose;
  #typing;
  #config;
  #t;
  #below = [];

  constructor(node, body, prose, typing, config, t) {
    this.#node = node;
    this.#body = body;
    this.#prose = prose;
    this.#typing = typing;
    this.#config = config;
    this.#t = t;
  }

  get node() { return this.#node; }

  #options() {
    return {
      images: this.#config.image_origins,
      imageLabel: this.#t("image"),
      code: (text, language) => {
        const copy = el("button", { type: "button", "aria-label": this.#t("copy_code"), onclick: () => copyText(copy, text, this.#t) }, icon("copy"));
        return el("div", { class: "code" }, el("div", { class: "head" }, el("span", {}, language), copy),
          el("pre", { tabindex: "0", dir: "ltr" }, el("code", {}, text)));
      },
    };
  }

  /**
   * More of the text. It is shown with the next frame, and only what may still change is rendered again. That is the whole of
   * a long list or table: drawing it with every frame would cost the square of its length, so it takes a tenth of the time.
   */
  add(text) {
    this.text += text;
    if (this.#frame !== 0 || this.#later !== 0) return;
    const rest = this.#rested - performance.now();
    if (rest > 0) this.#later = setTimeout(() => { this.#later = 0; this.#next(); }, rest);
    else this.#next();
  }

  #next() {
    this.#frame = requestAnimationFrame(() => {
      this.#frame = 0;
      const begun = performance.now();
      this.#draw();
      // To lay it out takes about as long again.
      const cost = 2 * (performance.now() - begun);
      this.#rested = cost > FRAME_MS / 2 ? performance.now() + Math.min(10 * cost, 1000) : 0;
    });
  }

  #draw() {
    const tail = this.text.slice(this.#settled);
    while (this.#prose.childNodes.length > this.#settledNodes) this.#prose.lastChild.remove();
    const settled = settledLength(tail);
    if (settled > 0) {
      this.#prose.append(render(tail.slice(0, settled), this.#options()));
      this.#settled += settled;
      this.#settledNodes = this.#prose.childNodes.length;
    }
    this.#prose.append(render(tail.slice(settled), this.#options()));
  }

  /** The whole text, once nothing more comes. */
  #whole() {
    cancelAnimationFrame(this.#frame);
    clearTimeout(this.#later);
    this.#frame = this.#later = 0;
    this.#prose.replaceChildren(render(this.text, this.#options()));
    this.#typing.remove();
    for (const node of this.#below.splice(0)) node.remove();
  }

  #put(...nodes) { this.#below.push(...nodes); this.#body.append(...nodes); }

  note(text, kind = "") {
    for (const node of this.#below.splice(0)) node.remove();
    this.#put(el("p", { class: `note ${kind}` }, text));
  }

  /** An answer that is over. `by` is who gave it, where there are several; `again` asks the question once more, `rate` stores feedback. */
  finish({ text, state, degraded, message, feedback, by, again, rate }) {
    if (text !== undefined) this.text = text;
    this.#whole();
    if (by) this.#body.prepend(el("p", { class: "by" }, by));
    if (degraded) this.#prose.prepend(el("span", { class: "badge" }, this.#t("degraded")));
    const note = { stopped: "stopped", interrupted: "interrupted", failed: "failed" }[state];
    if (note) {
      const button = again && el("button", { class: "again", type: "button", onclick: again }, icon("retry"), this.#t("retry"));
      this.#put(el("div", { class: `note ${state === "stopped" ? "" : "problem"}` }, el("span", {}, message || this.#t(note)), button));
    }
    if (this.text.trim() !== "" && !degraded) this.#actions(feedback, rate, note ? null : again);
  }

  #actions(feedback, rate, again) {
    const copy = el("button", { type: "button", "aria-label": this.#t("copy"), title: this.#t("copy"), onclick: () => copyText(copy, this.text, this.#t) }, icon("copy"));
    const row = el("div", { class: "actions" }, copy);
    if (rate && this.id) {
      let current = feedback ?? null;
      const buttons = {};
      const show = () => { for (const [rating, button] of Object.entries(buttons)) button.setAttribute("aria-pressed", String(current?.rating === rating)); };
      for (const [rating, name, label] of [["up", "up", "helpful"], ["down", "down", "not_helpful"]]) {
        buttons[rating] = el("button", {
          type: "button", "aria-label": this.#t(label), title: this.#t(label),
          onclick: async () => {
            const before = current;
            this.#comment?.remove();
            current = current?.rating === rating ? null : { rating, comment: null };
            show();
            if (!(await rate(this.id, current))) { current = before; show(); return; }
            if (current) this.#ask(current, rate, buttons[rating]);
          },
        }, icon(name));
        row.append(buttons[rating]);
      }
      show();
    }
    if (again) row.append(el("button", { type: "button", "aria-label": this.#t("retry"), title: this.#t("retry"), onclick: again }, icon("retry")));
    this.#put(row);
  }

  #comment = null;

  /** What somebody who gave a thumb may add. */
  #ask(feedback, rate, opener) {
    const field = el("textarea", { id: `comment-${this.id}`, rows: 2, maxlength: 2000, dir: "auto" });
    const close = () => { this.#comment?.remove(); this.#comment = null; opener.focus(); };
    const label = el("label", { for: field.id }, `${this.#t(feedback.rating === "up" ? "feedback_ask_good" : "feedback_ask")} `, el("span", {}, `(${this.#t("feedback_optional")})`));
    this.#comment = el("form", {
      class: "comment",
      onsubmit: async (event) => {
        event.preventDefault();
        feedback.comment = field.value.trim() || null;
        if (await rate(this.id, feedback)) close();
      },
      onkeydown: (event) => { if (event.key === "Escape") { event.stopPropagation(); close(); } },
    }, label, field, el("div", { class: "row" },
      el("button", { class: "primary", type: "submit" }, this.#t("feedback_send")),
      el("button", { class: "quiet", type: "button", onclick: close }, this.#t("feedback_skip"))));
    this.#put(this.#comment);
    field.focus();
  }
}

async function copyText(button, text, t) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    return;
  }
  button.replaceChildren(icon("check"));
  button.setAttribute("aria-label", t("copied"));
  setTimeout(() => { button.replaceChildren(icon("copy")); button.setAttribute("aria-label", t("copy")); }, 1600);
}
