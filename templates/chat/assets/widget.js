// Embeds a client's chat in its own site: <script src="https://HOST/widget.js" data-client="SLUG" async></script>
// Nothing of the site is read, and nothing but one element is added to it. Everything else happens in a frame of our own.
// A site that wants it out of the way for a while sets `hidden` on that element, <freehold-chat>.
(() => {
  "use strict";
  const script = document.currentScript;
  const slug = script?.dataset.client ?? "";
  if (!/^[a-z0-9-]{1,63}$/.test(slug)) return console.error("freehold: data-client has to be the client's name");
  // Sites that change pages without loading them run this again, and some embed it twice: there is one button all the same.
  const here = (window[Symbol.for("freehold.chat")] ??= new Set());
  if (here.has(slug)) return undefined;
  here.add(slug);
  const origin = new URL(script.src).origin;
  const placed = (make) => (document.body ? make() : document.addEventListener("DOMContentLoaded", make, { once: true }));

  fetch(`${origin}/c/${slug}/widget.json`, { credentials: "omit", referrerPolicy: "no-referrer" })
    .then((response) => (response.ok ? response.json() : Promise.reject(new Error(`status ${response.status}`))))
    .then((look) => placed(() => build(look)))
    .catch(() => {
      here.delete(slug);
      console.error(`freehold: the chat is not available at ${location.origin}; is it among the allowed origins?`);
    });

  function build(look) {
    // An element of a name of its own: themes hide every `div` that is empty, as this one looks from outside.
    const host = document.createElement("freehold-chat");
    const root = host.attachShadow({ mode: "open" });
    const sheet = new CSSStyleSheet();
    sheet.replaceSync(CSS);
    root.adoptedStyleSheets = [sheet];
    host.style.setProperty("--brand", look.color);
    host.style.setProperty("--on-brand", look.on_color);

    const button = document.createElement("button");
    button.type = "button";
    button.className = "button";
    button.setAttribute("aria-label", look.open_label);
    button.setAttribute("aria-expanded", "false");
    button.append(drawing("M5 5.5h14a2 2 0 0 1 2 2v8a2 2 0 0 1-2 2h-7.5L7 21v-3.5H5a2 2 0 0 1-2-2v-8a2 2 0 0 1 2-2Z"));
    let frame = null;

    const open = () => {
      if (!frame) {
        frame = document.createElement("iframe");
        frame.className = "frame";
        frame.title = look.name;
        frame.referrerPolicy = "no-referrer";
        frame.allow = "clipboard-write";
        frame.src = `${origin}/c/${slug}?embedded=1`;
        // The frame learns from this who embeds it, and answers nobody else.
        frame.addEventListener("load", () => frame.contentWindow.postMessage({ type: "freehold:hello" }, origin));
        root.append(frame);
      }
      frame.hidden = false;
      host.dataset.open = "";
      button.setAttribute("aria-expanded", "true");
      button.setAttribute("aria-label", look.close_label);
      frame.focus();
    };
    const close = () => {
      if (frame) frame.hidden = true;
      delete host.dataset.open;
      button.setAttribute("aria-expanded", "false");
      button.setAttribute("aria-label", look.open_label);
      button.focus();
    };
    button.addEventListener("click", () => (frame && !frame.hidden ? close() : open()));
    root.addEventListener("keydown", (event) => { if (event.key === "Escape" && frame && !frame.hidden) close(); });
    window.addEventListener("message", (event) => {
      if (event.origin !== origin || !frame || event.source !== frame.contentWindow) return;
      if (event.data?.type === "freehold:close") close();
    });
    root.append(button);
    stay(host);
  }

  /** Puts the element into the page, and there again when the site has exchanged what is on the page, or its whole body. */
  function stay(host) {
    let waiting = 0;
    const put = () => {
      waiting = 0;
      if (document.body && !host.isConnected) document.body.append(host);
      watch.disconnect();
      watch.observe(document.documentElement, { childList: true });
      if (document.body) watch.observe(document.body, { childList: true });
    };
    // Not at once, so that a site that takes it out again each time is not kept busy with that.
    const watch = new MutationObserver(() => { if (!host.isConnected || host.parentNode !== document.body) waiting ||= setTimeout(put, 100); });
    put();
  }

  function drawing(path) {
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    svg.setAttribute("viewBox", "0 0 24 24");
    svg.setAttribute("aria-hidden", "true");
    const shape = document.createElementNS("http://www.w3.org/2000/svg", "path");
    shape.setAttribute("d", path);
    svg.append(shape);
    return svg;
  }

  const CSS = `
    /* Whatever the site says of its elements: what is important in here is not to be overruled from there. */
    :host { all: initial !important; display: block !important; }
    :host([hidden]) { display: none !important; }
    .button { position: fixed; z-index: 2147483000; right: 20px; bottom: calc(20px + env(safe-area-inset-bottom));
      width: 58px; height: 58px; border: 0; border-radius: 50%; cursor: pointer; display: grid; place-items: center;
      background: var(--brand); color: var(--on-brand); box-shadow: 0 2px 6px #0003, 0 8px 28px #0003; }
    .button:hover { filter: brightness(1.07); }
    .button:focus-visible { outline: 3px solid var(--brand); outline-offset: 3px; }
    svg { width: 27px; height: 27px; fill: none; stroke: currentColor; stroke-width: 1.8; stroke-linejoin: round; }
    .frame { position: fixed; z-index: 2147483001; right: 20px; bottom: 92px; width: min(400px, calc(100vw - 40px));
      height: min(660px, calc(100dvh - 112px)); border: 0; border-radius: 20px; background: Canvas; color-scheme: normal;
      box-shadow: 0 4px 12px #0002, 0 16px 60px #0004; }
    .frame[hidden] { display: none; }
    @media (max-width: 480px) {
      .frame { inset: 0; width: 100vw; height: 100dvh; border-radius: 0; }
      :host([data-open]) .button { display: none; }
    }`;
})();
