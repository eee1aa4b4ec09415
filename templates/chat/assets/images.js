// Images that go with a question: chosen, pasted or dropped, made small enough here, shown, and taken out again.
import { el, icon } from "./dom.js";

const MOST = 4;
/** Models look no closer. */
const LONGEST_EDGE = 2048;
/** As many as there may be are within what the server takes together. */
const MOST_BYTES = 2.5 * 1024 * 1024;

/** A file as a `data:` URL. */
export function dataUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}

/**
 * What is sent of a file. It is always drawn anew, for files also say where and when a photo was taken, and by whom, which
 * nobody asked for. A photo becomes JPEG; others stay as exact as they are, unless that is too large.
 */
async function prepared(file) {
  const bitmap = await createImageBitmap(file);
  try {
    const scale = Math.min(1, LONGEST_EDGE / Math.max(bitmap.width, bitmap.height));
    const size = (edge) => Math.max(1, Math.round(edge * scale));
    const canvas = el("canvas", { width: size(bitmap.width), height: size(bitmap.height) });
    const context = canvas.getContext("2d");
    context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    const made = async (...how) => {
      const blob = await new Promise((resolve) => canvas.toBlob(resolve, ...how));
      return blob && blob.size <= MOST_BYTES ? blob : null;
    };
    const exact = file.type === "image/jpeg" ? null : await made("image/png");
    if (exact) return exact;
    // What a JPEG cannot let through is white.
    context.globalCompositeOperation = "destination-over";
    context.fillStyle = "#fff";
    context.fillRect(0, 0, canvas.width, canvas.height);
    for (const quality of [0.86, 0.6]) {
      const blob = await made("image/jpeg", quality);
      if (blob) return blob;
    }
    throw new TypeError("it cannot be made small enough");
  } finally {
    bitmap.close();
  }
}

/** The images of the question that is being written. Where the page has no place for them there are none. */
export class Attachments {
  #parts;
  #t;
  #announce;
  #changed;
  #items = [];
  #offered = false;

  /** `parts` are the page's elements: `button`, `input`, `list`, `problem`, `field` and `area`, where files may be dropped. */
  constructor(parts, t, announce, changed) {
    this.#parts = parts;
    this.#t = t;
    this.#announce = announce;
    this.#changed = changed;
    // A file that is dropped beside the area would open in the place of the page.
    for (const name of ["dragover", "drop"]) window.addEventListener(name, (event) => { if (event.dataTransfer?.types.includes("Files")) event.preventDefault(); });
    if (!parts.button) return;
    parts.button.addEventListener("click", () => parts.input.click());
    parts.input.addEventListener("change", () => {
      this.add(parts.input.files);
      // The same file may be chosen again.
      parts.input.value = "";
      parts.field.focus();
    });
    parts.field.addEventListener("paste", (event) => {
      const files = [...event.clipboardData.files];
      // Texts copied from documents come with a picture of themselves.
      if (!this.#offered || files.length === 0 || event.clipboardData.types.includes("text/plain")) return;
      event.preventDefault();
      this.add(files);
    });
    parts.area.addEventListener("drop", (event) => this.add(event.dataTransfer.files));
  }

  /** Whether any may be added. */
  offer(offered) {
    this.#offered = offered;
    if (this.#parts.button) this.#parts.button.hidden = !offered;
  }

  /** Whether one is still being made small enough. */
  get preparing() { return this.#items.some((item) => item.blob === null); }

  #problem(text) {
    this.#parts.problem.textContent = text;
    this.#parts.problem.hidden = text === "";
  }

  async add(files) {
    const images = [...files].filter((file) => file.type.startsWith("image/"));
    if (!this.#offered || images.length === 0) return;
    const room = MOST - this.#items.length;
    this.#problem(images.length > room ? this.#t("images_too_many", { limit: MOST }) : "");
    await Promise.all(images.slice(0, room).map((file) => this.#one(file)));
  }

  async #one(file) {
    const name = file.name || this.#t("image");
    const image = el("img", { alt: name, width: 64, height: 64 });
    const remove = el("button", { type: "button", "aria-label": this.#t("remove_image", { name }), title: this.#t("remove_image", { name }) }, icon("close"));
    const item = { blob: null, url: "", node: el("li", { "aria-busy": "true" }, image, remove) };
    remove.addEventListener("click", () => this.#remove(item));
    this.#items.push(item);
    this.#show();
    try {
      const blob = await prepared(file);
      if (!this.#items.includes(item)) return;
      item.blob = blob;
      item.url = URL.createObjectURL(blob);
      image.src = item.url;
      item.node.removeAttribute("aria-busy");
      this.#announce(this.#t("image_added", { name }));
    } catch {
      this.#drop(item);
      this.#problem(this.#t("image_unreadable", { name }));
    }
    this.#changed();
  }

  #show() {
    this.#parts.list.replaceChildren(...this.#items.map((item) => item.node));
    this.#parts.list.hidden = this.#items.length === 0;
    this.#changed();
  }

  #drop(item) {
    this.#items = this.#items.filter((other) => other !== item);
    URL.revokeObjectURL(item.url);
    this.#show();
  }

  #remove(item) {
    const index = this.#items.indexOf(item);
    this.#problem("");
    this.#drop(item);
    this.#announce(this.#t("image_removed"));
    // Whoever removes with the keyboard goes on where they are.
    const next = this.#items[Math.min(index, this.#items.length - 1)];
    (next?.node.querySelector("button") ?? this.#parts.field).focus();
  }

  /** Those of a question that is sent now. */
  take() {
    const taken = this.#items.map(({ blob }) => ({ blob: async () => blob }));
    for (const item of this.#items) URL.revokeObjectURL(item.url);
    this.#items = [];
    if (this.#parts.button) { this.#problem(""); this.#show(); }
    return taken;
  }
}

/** An image of an earlier question, which is fetched once it is needed. */
export function kept(session, id) {
  let fetched = null;
  return {
    blob: () => {
      fetched ??= session.request(`/api/v1/images/${id}`).then((response) => response.blob());
      fetched.catch(() => { fetched = null; });
      return fetched;
    },
  };
}
