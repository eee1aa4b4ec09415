// What has to be true of the chat page and the widget, as somebody in front of a browser finds it.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";

import { people } from "./people.mjs";
import { HOSTILE, pause, site, until } from "./stack.mjs";

const PHONE = { viewport: { width: 390, height: 844 }, deviceScaleFactor: 2, isMobile: true, hasTouch: true };
const PIXEL = Buffer.from("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC", "base64");
const PWNED = "<img src=x onerror=window.pwned=90></script><script>window.pwned=91</script>";

export function* cases({ stack, model, pictures, log, lasting }) {
  const tenants = {};
  const at = (tenant) => `${stack.url}/c/${tenant.slug}`;
  const picture = (page, name) => page.screenshot({ path: `${pictures}${name}.png` });

  /** A page on which everything that goes wrong, or elsewhere, is noted. */
  async function open(context, url, { expectErrors = false } = {}) {
    const page = await context.newPage();
    page.noted = { errors: [], foreign: [] };
    page.on("pageerror", (error) => page.noted.errors.push(error.message));
    // What the server has not got yet is asked for once.
    const known = (message) => message.location().url.endsWith("/api/v1/quota");
    page.on("console", (message) => { if (message.type() === "error" && !known(message)) page.noted.errors.push(message.text()); });
    page.on("request", (request) => {
      if (!request.url().startsWith(stack.url) && !/^(?:data|about|blob):/.test(request.url())) page.noted.foreign.push(request.url());
    });
    page.on("dialog", (dialog) => { page.noted.errors.push(`a dialog: ${dialog.message()}`); dialog.dismiss(); });
    page.clean = () => {
      assert.deepEqual(page.noted.foreign, [], "requests went elsewhere");
      if (!expectErrors) assert.deepEqual(page.noted.errors, []);
    };
    await page.goto(url);
    return page;
  }

  async function signIn(page, tenant) {
    await page.locator("#email").fill(tenant.user.email);
    await page.locator("#password").fill(tenant.user.password);
    await page.locator("#sign-in-submit").click();
    await page.locator("#chat").waitFor();
  }

  async function signedIn(context, tenant, options) {
    const page = await open(context, at(tenant), options);
    await signIn(page, tenant);
    return page;
  }

  const answers = (page) => page.locator(".message.assistant");
  const lastAnswer = (page) => answers(page).last().locator(".prose");

  async function ask(page, text) {
    const before = await answers(page).count();
    await page.locator("#question").fill(text);
    await page.locator("#question").press("Enter");
    await until("the question is shown", async () => (await answers(page).count()) > before);
  }

  /** Waits until no answer is under way. */
  const settled = (page) => page.waitForFunction(() => document.getElementById("stop").hidden && document.getElementById("log").getAttribute("aria-busy") !== "true");

  yield ["set up", async () => {
    const shop = await site("localhost", stack.url, "outdoor");
    const stranger = await site("127.0.0.1", stack.url, "outdoor");
    const framing = await site("127.0.0.1", stack.url, "outdoor", true);
    const framed = await site("localhost", stack.url, "outdoor", true);
    Object.assign(tenants, { shop, stranger, framing, framed });
    tenants.dental = await stack.tenant("dental", "Harbour Dental", "clinic", model.url);
    tenants.outdoor = await stack.tenant("outdoor", "Northwind Outdoor", "retail", model.url, {
      visitors: { enabled: true, questions_per_day: 1000, questions_per_visitor: 6 },
      widget: { allowed_origins: [shop.origin, framed.origin] },
    });
    tenants.hostile = await stack.tenant("hostile", "Hostile", "general", model.url, {
      welcome_message: PWNED, error_message: PWNED, visitors: { enabled: true, questions_per_day: 1000, questions_per_visitor: 20 },
      branding: {
        assistant_name: PWNED, primary_color: "#ffee00", logo_url: null, language: "de", voice: "",
        font: "slab", suggestions: [PWNED], notice: PWNED, privacy_url: "https://good.example/\"onclick=\"window.pwned=92",
        image_origins: [],
      },
    });
  }];

  yield ["a user signs in, asks and reads an answer as it comes", async (context) => {
    const page = await open(await context(), at(tenants.dental), { expectErrors: true });
    await page.locator("#sign-in").waitFor();
    await picture(page, "dental-sign-in-desktop");
    await page.locator("#email").fill(tenants.dental.user.email);
    await page.locator("#password").fill("not the password");
    await page.locator("#sign-in-submit").click();
    await page.locator("#sign-in-problem").waitFor();
    assert.match(await page.locator("#sign-in-problem").textContent(), /wrong/);
    await signIn(page, tenants.dental);
    assert.match(await page.locator(".greeting").textContent(), /Harbour Dental/);
    await page.locator("#who").getByText("Robin Smith").waitFor();
    await picture(page, "dental-welcome-desktop");
    await ask(page, "slow, please");
    await until("some of it", async () => /word3/.test(await lastAnswer(page).textContent()));
    assert.doesNotMatch(await lastAnswer(page).textContent(), /word40/);
    assert.equal(await page.locator("#stop").isVisible(), true);
    await settled(page);
    assert.match(await lastAnswer(page).textContent(), /word1 .*word40/s);
    await ask(page, "Which jacket?");
    await settled(page);
    const answer = lastAnswer(page);
    assert.equal(await answer.locator("ol > li").count(), 3);
    assert.equal(await answer.locator("strong").textContent(), "most");
    assert.equal(await answer.locator("table tr").count(), 3);
    assert.match(await answer.locator("pre code").textContent(), /^pack = base/);
    assert.equal(await answer.locator("a").getAttribute("rel"), "noopener noreferrer nofollow ugc");
    // Read out to those who do not see it, once it is whole.
    await until("it is announced", async () => /what matters/.test(await page.locator("#announce").textContent()));
    await picture(page, "dental-answer-desktop");
    page.clean();
  }];

  yield ["an assistant is chosen with the keyboard, and its conversation stays with it", async (context) => {
    tenants.desk = await stack.tenant("desk", "Service Desk", "general", model.url, {
      assistants: [
        { name: "billing", title: "Invoices", prompt: "You know invoices." },
        { name: "orders", title: "Orders & <b>parcels</b>", prompt: "You know parcels." },
      ],
    });
    const page = await signedIn(await context(), tenants.desk);
    const choice = page.locator("#assistant");
    await choice.waitFor();
    assert.equal(await choice.evaluate((node) => node.labels[0].textContent), "Assistant");
    assert.deepEqual(await choice.locator("option").allTextContents(), ["Automatic", "Invoices", "Orders & <b>parcels</b>"]);
    // The field is one step behind it.
    await choice.focus();
    await page.keyboard.press("ArrowDown");
    await page.keyboard.press("ArrowDown");
    assert.equal(await choice.inputValue(), "orders");
    await page.keyboard.press("Tab");
    assert.equal(await page.evaluate(() => document.activeElement.id), "question");
    await ask(page, "say It is on its way.");
    await settled(page);
    const by = answers(page).last().locator(".by");
    assert.equal(await by.textContent(), "Orders & <b>parcels</b>");
    await picture(page, "desk-assistants-desktop");
    await page.reload();
    await until("the conversation is back", async () => (await answers(page).count()) === 1);
    assert.equal(await choice.inputValue(), "orders");
    assert.equal(await by.textContent(), "Orders & <b>parcels</b>");
    await ask(page, "say Tomorrow.");
    await settled(page);
    const token = await stack.userToken(tenants.desk);
    const [session] = (await stack.call("GET", "/api/v1/sessions", token)).items;
    const messages = (await stack.call("GET", `/api/v1/sessions/${session.id}/messages`, token)).items;
    assert.deepEqual(messages.map((message) => message.assistant), [undefined, "orders", undefined, "orders"]);
    // A new conversation begins without a choice; where there is nothing to choose, none is offered.
    await page.locator("#new-chat").click();
    assert.equal(await choice.inputValue(), "");
    page.clean();
    const plain = await signedIn(await context(), await stack.tenant("plain", "Plain", "general", model.url));
    assert.equal(await plain.locator("#assistant").count(), 0);
    plain.clean();
  }];

  yield ["images go with a question, small enough, and are there again after a reload", async (context) => {
    tenants.photos = await stack.tenant("photos", "Photo Desk", "general", model.url, {
      assistants: [{ name: "words", title: "Words" }, { name: "pictures", title: "Pictures", accepts_images: true }],
    });
    const page = await signedIn(await context(), tenants.photos);
    const attach = page.locator("#attach");
    const thumbnails = page.locator("#attachments li:not([aria-busy]) img");
    const focused = () => page.evaluate(() => document.activeElement.getAttribute("aria-label") ?? document.activeElement.id);
    /** A photo of 3000 by 2000, on the clipboard or dragged. */
    const give = (name, on) => page.evaluate(async ([kind, selector]) => {
      const canvas = Object.assign(document.createElement("canvas"), { width: 3000, height: 2000 });
      const drawing = canvas.getContext("2d");
      for (let at = 0; at < 300; at += 1) { drawing.fillStyle = `hsl(${at * 7} 80% 50%)`; drawing.fillRect((at * 137) % 3000, (at * 71) % 2000, 400, 300); }
      const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.9));
      const data = new DataTransfer();
      data.items.add(new File([blob], `${kind}.jpg`, { type: "image/jpeg" }));
      const options = { bubbles: true, cancelable: true };
      const event = kind === "paste" ? new ClipboardEvent("paste", { ...options, clipboardData: data }) : new DragEvent("drop", { ...options, dataTransfer: data });
      return document.querySelector(selector).dispatchEvent(event);
    }, [name, on]);

    // Offered by whom it is for.
    await attach.waitFor();
    await page.locator("#assistant").selectOption("words");
    await attach.waitFor({ state: "hidden" });
    await page.locator("#assistant").selectOption("");
    await attach.waitFor();
    // Chosen, dropped and pasted; what is no image is named.
    await page.locator("#files").setInputFiles([{ name: "pixel.png", mimeType: "image/png", buffer: PIXEL }, { name: "notes.png", mimeType: "image/png", buffer: Buffer.from("no image") }]);
    await page.locator("#attach-problem").getByText("notes.png cannot be read as an image.").waitFor();
    assert.equal(await give("drop", "#scroll"), false, "the browser does not open it");
    assert.equal(await give("paste", "#question"), false);
    await until("three of them", async () => (await thumbnails.count()) === 3);
    assert.equal(await page.locator("#send").isDisabled(), true, "a question has words");
    await page.locator("#files").setInputFiles(["4.png", "5.png"].map((name) => ({ name, mimeType: "image/png", buffer: PIXEL })));
    await page.locator("#attach-problem").getByText("At most 4 images").waitFor();
    await until("a fourth", async () => (await thumbnails.count()) === 4);
    // Taken out with the keyboard, which stays where it is.
    await page.getByLabel("Remove 4.png").focus();
    await page.keyboard.press("Enter");
    assert.equal(await focused(), "Remove paste.jpg");
    await page.getByLabel("Remove pixel.png").focus();
    await page.keyboard.press("Space");
    assert.equal(await focused(), "Remove drop.jpg");
    await page.keyboard.press("Tab");
    await page.keyboard.press("Enter");
    assert.equal(await focused(), "Remove drop.jpg");
    await until("it is said", async () => /removed/.test(await page.locator("#announce").textContent()));
    await page.keyboard.press("Tab");
    assert.equal(await focused(), "Add images");
    await page.keyboard.press("Tab");
    await page.locator("#question").fill("say What a view.");
    await picture(page, "photos-attached-desktop");
    await page.keyboard.press("Enter");
    await until("the answer", async () => /What a view/.test(await lastAnswer(page).textContent()));
    await settled(page);
    const sent = model.images.at(-1);
    assert.equal(sent.length, 1);
    assert.match(sent[0], /^data:image\/jpeg;base64,/);
    assert.equal(await page.locator("#attachments").isVisible(), false);
    const shown = page.locator(".message.user img");
    const size = () => shown.first().evaluate((node) => [node.naturalWidth, node.naturalHeight, node.alt]);
    await until("it is shown", async () => (await size())[0] > 0);
    assert.deepEqual(await size(), [2048, 1365, "Image 1"]);
    // From the server, and asked about once more.
    await page.reload();
    await until("it is back", async () => (await shown.count()) === 1 && (await size())[0] === 2048);
    await picture(page, "photos-history-desktop");
    await answers(page).first().getByLabel("Try again").click();
    await until("it is asked again", async () => (await shown.count()) === 2);
    await settled(page);
    assert.deepEqual(model.images.at(-1), sent);
    page.clean();
    const plain = await signedIn(await context(), tenants.dental);
    assert.equal(await plain.locator("#attach").count(), 0);
    plain.clean();
  }];

  yield ["an answer is stopped", async (context) => {
    const page = await signedIn(await context(), tenants.dental);
    await ask(page, "slow and stopped");
    await until("some of it", async () => /word2/.test(await lastAnswer(page).textContent()));
    await page.locator("#stop").click();
    await page.getByText("You stopped this answer.").first().waitFor();
    await settled(page);
    assert.doesNotMatch(await lastAnswer(page).textContent(), /word40/);
    const token = await stack.userToken(tenants.dental);
    const [session] = (await stack.call("GET", "/api/v1/sessions", token)).items;
    const messages = (await stack.call("GET", `/api/v1/sessions/${session.id}/messages`, token)).items;
    assert.equal(messages.at(-1).state, "stopped");
    page.clean();
  }];

  yield ["an answer that broke off is asked for again", async (context) => {
    const page = await signedIn(await context(), tenants.dental);
    await ask(page, "cut this one");
    await page.locator(".again").waitFor();
    assert.match(await lastAnswer(page).textContent(), /word1/);
    await picture(page, "dental-retry-desktop");
    await page.locator(".again").click();
    await until("the second answer", async () => /word40/.test(await lastAnswer(page).textContent()));
    await settled(page);
    assert.equal(await answers(page).count(), 2);
    page.clean();
  }];

  yield ["a reload in the middle of an answer goes on with it", async (context) => {
    const page = await signedIn(await context(), tenants.dental);
    const before = model.calls.length;
    await ask(page, "slow across a reload");
    for (let reload = 0; reload < 3; reload += 1) {
      const seen = (await lastAnswer(page).textContent()).length;
      await until("more of it", async () => (await lastAnswer(page).textContent()).length > seen);
      await page.reload();
      await until("the answer is there", async () => (await answers(page).count()) === 1);
    }
    await until("the whole answer", async () => /word40/.test(await lastAnswer(page).textContent()));
    await settled(page);
    const words = (await lastAnswer(page).textContent()).trim().split(/\s+/);
    assert.deepEqual(words, Array.from({ length: 40 }, (_, index) => `word${index + 1}`));
    assert.equal(model.calls.length - before, 1, "the model was asked once");
    page.clean();
    return "3 reloads, 1 model call, every word once";
  }];

  yield ["a broken connection goes on behind the last event", async (context) => {
    const made = await context();
    const page = await signedIn(made, tenants.dental, { expectErrors: true });
    await ask(page, "slow over a bad line");
    await until("some of it", async () => /word4/.test(await lastAnswer(page).textContent()));
    const client = await made.newCDPSession(page);
    await client.send("Network.enable");
    await client.send("Network.emulateNetworkConditions", { offline: true, latency: 0, downloadThroughput: -1, uploadThroughput: -1 });
    await pause(1200);
    await client.send("Network.emulateNetworkConditions", { offline: false, latency: 0, downloadThroughput: -1, uploadThroughput: -1 });
    await until("the whole answer", async () => /word40/.test(await lastAnswer(page).textContent()), 40_000);
    await settled(page);
    const words = (await lastAnswer(page).textContent()).trim().split(/\s+/);
    assert.equal(words.length, 40);
  }];

  yield ["conversations are listed, opened and deleted", async (context) => {
    const page = await signedIn(await context(), tenants.dental);
    await ask(page, "say The first of two");
    await settled(page);
    await page.locator("#new-chat").click();
    assert.equal(await answers(page).count(), 0);
    await page.locator(".greeting").waitFor();
    await ask(page, "say The second of two");
    await settled(page);
    const first = page.locator(".session .open", { hasText: "say The first of two" });
    await first.click();
    await until("the first one is open", async () => /The first/.test(await lastAnswer(page).textContent()));
    await page.locator(".session[data-current]", { hasText: "say The first of two" }).waitFor();
    await picture(page, "dental-history-desktop");
    const item = page.locator(".session", { hasText: "say The first of two" });
    await item.hover();
    await item.locator(".remove").click();
    assert.equal(await first.count(), 1, "one press deletes nothing");
    await item.locator(".remove").click();
    await until("it is gone", async () => (await first.count()) === 0);
    assert.equal(await answers(page).count(), 0);
    page.clean();
  }];

  yield ["feedback is given, kept and taken back", async (context) => {
    const page = await signedIn(await context(), tenants.dental);
    await ask(page, "say Rate me");
    await settled(page);
    await page.getByRole("button", { name: "Not helpful" }).click();
    await page.locator(".comment textarea").fill("It should <b>say</b> more.");
    await picture(page, "dental-feedback-desktop");
    await page.locator(".comment .primary").click();
    await page.locator(".comment").waitFor({ state: "detached" });
    const token = await stack.userToken(tenants.dental);
    const [session] = (await stack.call("GET", "/api/v1/sessions", token)).items;
    const stored = async () => (await stack.call("GET", `/api/v1/sessions/${session.id}/messages`, token)).items.at(-1).feedback;
    assert.deepEqual(await stored(), { rating: "down", comment: "It should <b>say</b> more." });
    await page.reload();
    const pressed = page.locator('.actions [aria-pressed="true"]');
    await pressed.waitFor();
    assert.equal(await pressed.getAttribute("aria-label"), "Not helpful");
    await pressed.click();
    await until("it is taken back", async () => (await stored()) === undefined);
    page.clean();
  }];

  yield ["the quota is shown", async (context) => {
    const made = await context();
    const there = await fetch(`${stack.url}/api/v1/quota`, { headers: { authorization: `Bearer ${await stack.userToken(tenants.dental)}` } });
    await made.route("**/api/v1/quota", (route) => route.fulfill({
      json: { plan: "pro", requests_per_minute: { limit: 20, remaining: 20 }, requests_this_month: { limit: 2000, used: 450, remaining: 1550, resets_at: "2030-01-01T00:00:00Z" } },
    }));
    const page = await signedIn(made, tenants.dental);
    await page.getByText("450 / 2,000 questions this month").waitFor();
    await picture(page, "dental-quota-desktop");
    if (there.status !== 200) return `the server has no quota yet (${there.status})`;
    const own = await signedIn(await context(), tenants.dental);
    await own.locator("#quota").waitFor();
    return (await own.locator("#quota-text").textContent());
  }];

  yield ["dark mode follows the system and the switch, and is kept", async (context) => {
    const made = await context({ colorScheme: "dark" });
    const page = await signedIn(made, tenants.dental);
    const light = () => page.evaluate(() => { const [r, g, b] = getComputedStyle(document.body).backgroundColor.match(/\d+/g).map(Number); return (r + g + b) / 3 > 128; });
    assert.equal(await light(), false);
    await ask(page, "Which jacket?");
    await settled(page);
    await picture(page, "dental-dark-desktop");
    const button = page.getByRole("button", { name: "Dark mode" });
    assert.equal(await button.getAttribute("aria-pressed"), "true");
    await button.click();
    assert.equal(await light(), true);
    await page.reload();
    assert.equal(await light(), true);
    assert.equal(await button.getAttribute("aria-pressed"), "false");
    await button.click();
    assert.equal(await light(), false);
    page.clean();
  }];

  yield ["texts are readable in both themes and both brands", async (context) => {
    const checked = [];
    for (const colorScheme of ["light", "dark"]) {
      for (const tenant of [tenants.dental, tenants.outdoor, tenants.hostile]) {
        const page = await signedInOrVisiting(await context({ colorScheme }), tenant);
        await ask(page, "Which jacket?");
        await settled(page);
        const poor = await page.evaluate(contrasts);
        assert.deepEqual(poor, [], `${tenant.slug}, ${colorScheme}`);
        checked.push(`${tenant.slug} ${colorScheme}`);
      }
    }
    return checked.join(", ");
  }];

  async function signedInOrVisiting(context, tenant) {
    const page = await open(context, at(tenant));
    await until("the page has begun", async () => (await page.locator("#sign-in").isVisible()) || (await page.locator("#question").isVisible()));
    if (await page.locator("#sign-in").isVisible()) await signIn(page, tenant);
    return page;
  }

  yield ["everything can be done with the keyboard alone", async (context) => {
    const page = await open(await context(), at(tenants.dental));
    await page.locator("#sign-in").waitFor();
    const focused = () => page.evaluate(() => document.activeElement?.id || document.activeElement?.className || document.activeElement?.tagName);
    const visible = () => page.evaluate(() => { const style = getComputedStyle(document.activeElement); return style.outlineStyle !== "none" || style.boxShadow !== "none" || getComputedStyle(document.activeElement.closest(".composer") ?? document.activeElement).boxShadow !== "none"; });
    assert.equal(await focused(), "email");
    await page.keyboard.type(tenants.dental.user.email);
    await page.keyboard.press("Tab");
    await page.keyboard.type(tenants.dental.user.password);
    await page.keyboard.press("Enter");
    await page.locator("#chat").waitFor();
    await until("the field has the focus", async () => (await focused()) === "question");
    await page.keyboard.type("slow by keyboard");
    await page.keyboard.press("Enter");
    await until("some of it", async () => (await answers(page).count()) === 1 && /word2/.test(await lastAnswer(page).textContent()));
    await page.keyboard.press("Escape");
    await page.getByText("You stopped this answer.").first().waitFor();
    await settled(page);
    await page.keyboard.type("say Hello");
    await page.keyboard.press("Enter");
    await until("the second answer", async () => (await answers(page).count()) === 2);
    await settled(page);
    // Back from the field to the thumb of the last answer.
    const names = [];
    for (let step = 0; step < 12; step += 1) {
      await page.keyboard.press("Shift+Tab");
      assert.ok(await visible(), `the focus on ${await focused()} is not visible`);
      const name = await page.evaluate(() => document.activeElement.getAttribute("aria-label"));
      names.push(name);
      if (name === "Helpful") break;
    }
    assert.equal(names.at(-1), "Helpful", names.join(", "));
    await page.keyboard.press("Space");
    await page.locator(".comment textarea").waitFor();
    await page.keyboard.press("Escape");
    await page.locator(".comment").waitFor({ state: "detached" });
    await page.reload();
    await page.locator('.actions [aria-pressed="true"]').waitFor();
    await page.evaluate(() => document.activeElement?.blur());
    await page.keyboard.press("Tab");
    const skip = page.locator(".skip");
    await until("the skip link is reached", async () => {
      if (await skip.evaluate((link) => link === document.activeElement)) return true;
      await page.keyboard.press("Shift+Tab");
      return false;
    });
    await page.keyboard.press("Enter");
    await until("it leads to the field", async () => (await focused()) === "question");
    page.clean();
  }];

  yield ["every control has a name and every landmark is there", async (context) => {
    const page = await signedIn(await context(), tenants.dental);
    await ask(page, "Which jacket?");
    await settled(page);
    const nameless = await page.evaluate(() => [...document.querySelectorAll("button, a, input, textarea, [tabindex='0']")]
      .filter((node) => node.checkVisibility?.() !== false)
      .filter((node) => !(node.getAttribute("aria-label") || node.getAttribute("title") || node.textContent.trim() || node.labels?.length || node.closest("pre, .scroller")))
      .map((node) => node.outerHTML.slice(0, 120)));
    assert.deepEqual(nameless, []);
    const tree = await page.locator("body").ariaSnapshot();
    for (const part of ["main", "navigation \"Conversations\"", "heading \"Front desk\" [level=1]", "textbox \"Your question\"", "log \"Conversation\"", "status"]) {
      assert.ok(tree.includes(part), `${part} is not in\n${tree}`);
    }
    assert.equal(await page.locator("html").getAttribute("lang"), "en");
  }];

  yield ["hostile Markdown and HTML in an answer executes nothing", async (context) => {
    const page = await signedIn(await context(), tenants.dental);
    await ask(page, "hostile");
    await settled(page);
    for (const view of ["as it came", "as it is stored"]) {
      const answer = lastAnswer(page);
      assert.match(await answer.textContent(), /THE END OF THE ANSWER/, view);
      const found = await answer.evaluate((node) => ({
        tags: [...new Set([...node.querySelectorAll("*")].map((element) => element.localName))].sort(),
        attributes: [...new Set([...node.querySelectorAll("*")].flatMap((element) => element.getAttributeNames()))].sort(),
        links: [...node.querySelectorAll("[href], [src]")].map((element) => element.href || element.src),
      }));
      for (const tag of found.tags) assert.ok(["a", "blockquote", "br", "button", "code", "div", "em", "h3", "li", "ol", "p", "pre", "span", "strong", "svg", "table", "tbody", "td", "th", "thead", "tr", "ul", "use"].includes(tag), `${view}: <${tag}>`);
      for (const name of found.attributes) assert.ok(["aria-hidden", "aria-label", "class", "dir", "href", "rel", "role", "scope", "start", "tabindex", "target", "type"].includes(name), `${view}: ${name}`);
      const links = found.links.filter((link) => typeof link === "string" && link !== "");
      for (const link of links) assert.match(link, /^(?:https?:\/\/|mailto:)/, view);
      assert.ok(!links.some((link) => link.startsWith(stack.url)), `${view}: a link leads into the page`);
      for (const link of await answer.locator("a").all()) await link.hover({ force: true });
      await pause(300);
      assert.equal(await page.evaluate(() => window.pwned), undefined, view);
      await page.reload();
      await lastAnswer(page).waitFor();
    }
    assert.equal(new URL(page.url()).origin, stack.url);
    page.clean();
    return `${HOSTILE.length} characters`;
  }];

  yield ["a thousand hostile texts cost no time and make no markup", async (context) => {
    const page = await signedIn(await context(), tenants.dental);
    const source = await page.locator("script[type=module]").getAttribute("src");
    const slowest = await page.evaluate(async (address) => {
      const { render } = await import(address.replace("chat.js", "markdown.js"));
      const options = { images: [], imageLabel: "Image", code: (text) => { const pre = document.createElement("pre"); pre.textContent = text; return pre; } };
      const pieces = ["*", "**", "_", "`", "```", "[", "](", ")", "![", "<", ">", "|", "\n", "\n\n", "- ", "1. ", "> ", "#", "~~", "\\", "javascript:", "https://x.y", "<script>", "a", " ", "&lt;", "|---|", "\u202e", "\0"];
      let seed = 7;
      const random = (below) => { seed = (seed * 1103515245 + 12345) % 2147483648; return seed % below; };
      let worst = 0;
      const look = (text) => {
        const started = performance.now();
        const made = document.createElement("div");
        made.append(render(text, options));
        worst = Math.max(worst, performance.now() - started);
        for (const node of made.querySelectorAll("*")) {
          if (["script", "style", "iframe", "img", "form", "input", "object", "svg"].includes(node.localName)) throw new Error(`<${node.localName}> of ${JSON.stringify(text)}`);
          for (const name of node.getAttributeNames()) {
            if (name.startsWith("on") || name === "style") throw new Error(`${name} of ${JSON.stringify(text)}`);
            if (name === "href" && !/^(?:https?|mailto):/.test(node.getAttribute(name))) throw new Error(`${node.outerHTML} of ${JSON.stringify(text)}`);
          }
        }
      };
      for (let round = 0; round < 1000; round += 1) look(Array.from({ length: 1 + random(120) }, () => pieces[random(pieces.length)]).join(""));
      // What is quadratic in careless renderers.
      for (const piece of ["*", "**a ", "_a", "`", "[", "![", "](", "[a](", "> ", "- ", "<", "a|", "|-", "~~", "\\", "https://", "*a_b", "``a`", "#", "1. ", "&", "\n- a\n\n", " ".repeat(40) + "a"]) look(piece.repeat(20000 / piece.length));
      return worst;
    }, source);
    assert.ok(slowest < 1500, `${slowest} ms`);
    return `slowest ${Math.round(slowest)} ms for 20,000 characters`;
  }];

  yield ["what a tenant, a user or a title says is text", async (context) => {
    const page = await open(await context(), at(tenants.hostile));
    assert.equal(await page.locator(".greeting").textContent(), PWNED);
    assert.equal(await page.title(), PWNED);
    await picture(page, "hostile-brand-desktop");
    await page.locator(".suggestion").click();
    await settled(page);
    await ask(page, `say ${PWNED}`);
    await settled(page);
    await page.locator(".session .open", { hasText: "onerror" }).first().waitFor();
    await page.reload();
    await page.locator(".session .open").first().waitFor();
    assert.equal(await page.locator(".message.user .text").first().textContent(), PWNED);
    assert.equal(await page.evaluate(() => window.pwned), undefined);
    assert.equal(await page.locator("html").getAttribute("lang"), "de");
    page.clean();
  }];

  yield ["the page's policy stops what gets into it all the same", async (context) => {
    const made = await context();
    const page = await signedIn(made, tenants.dental, { expectErrors: true });
    const stopped = await page.evaluate(async () => {
      const tried = {};
      try { document.body.insertAdjacentHTML("beforeend", "<img src=x onerror=window.pwned=1>"); } catch (error) { tried.markup = error.name; }
      // Not in this very call, which the browser's debugger lets do more.
      await new Promise((resolve) => setTimeout(() => {
        try { new Function("window.pwned=2")(); } catch (error) { tried.code = error.name; }
        resolve();
      }, 50));
      const script = document.createElement("script");
      try { script.textContent = "window.pwned=3"; document.head.append(script); } catch (error) { tried.script = error.name; }
      await fetch("https://evil.example/").catch((error) => { tried.fetch = error.name; });
      return { ...tried, pwned: String(window.pwned) };
    });
    assert.deepEqual(stopped, { pwned: "undefined", markup: "TypeError", code: "EvalError", script: "TypeError", fetch: "TypeError" });
    const cookies = await made.cookies(`${at(tenants.dental)}/session`);
    const [cookie] = cookies;
    assert.deepEqual([cookies.length, cookie.httpOnly, cookie.sameSite, cookie.path], [1, true, "Strict", "/c/dental/session"]);
    assert.equal((await made.cookies(`${stack.url}/api/v1/me`)).length, 0);
    const kept = await page.evaluate(() => JSON.stringify({ ...localStorage }));
    assert.doesNotMatch(kept, /fhr_|eyJ/, "no token is kept in the browser's storage for good");
    for (const text of [await page.content(), kept, page.url()]) assert.doesNotMatch(text, /canary-of-the-key|system_prompt/);
  }];

  yield* people({ stack, model, tenants, at, open, signIn, signedIn, ask, answers, lastAnswer, settled, picture, PIXEL, PHONE });

  yield ["a session is renewed, by many tabs at once, and survives hasty reloads", async (context) => {
    const made = await context();
    const page = await signedIn(made, tenants.dental);
    const key = "freehold:dental:access";
    const tabs = [page];
    for (let tab = 0; tab < 4; tab += 1) tabs.push(await open(made, at(tenants.dental)));
    for (let round = 0; round < 3; round += 1) {
      await Promise.all(tabs.map((tab) => tab.evaluate((name) => sessionStorage.removeItem(name), key)));
      await Promise.all(tabs.map((tab) => tab.reload()));
      for (const tab of tabs) await tab.locator("#question").waitFor();
    }
    // Reloaded while the renewal is under way: the answer with the new cookie arrives nevertheless.
    for (let haste = 0; haste < 12; haste += 1) {
      await page.evaluate((name) => sessionStorage.removeItem(name), key);
      await page.reload({ waitUntil: "commit" });
      await pause(haste * 12);
    }
    await page.reload();
    await page.locator("#question").waitFor();
    assert.equal(await page.locator("#sign-in").isVisible(), false);
    return "5 tabs, 12 hasty reloads";
  }];

  yield ["whoever was signed out elsewhere is asked to sign in again", async (context) => {
    const page = await signedIn(await context(), tenants.dental, { expectErrors: true });
    await ask(page, "say Hello");
    await settled(page);
    await page.locator("#sign-out").click();
    await page.locator("#sign-in").waitFor();
    await page.reload();
    await page.locator("#sign-in").waitFor();
    assert.equal(await answers(page).count(), 0);
    await signIn(page, tenants.dental);
    await page.evaluate(() => { const kept = JSON.parse(sessionStorage.getItem("freehold:dental:access")); kept.token += "x"; sessionStorage.setItem("freehold:dental:access", JSON.stringify(kept)); });
    await page.context().clearCookies();
    await page.reload();
    await page.locator("#sign-in").waitFor();
  }];

  yield ["a visitor chats without an account, and costs nothing before the first question", async (context) => {
    const made = await context();
    const page = await open(made, at(tenants.outdoor), { expectErrors: true });
    await page.locator("#question").waitFor();
    await pause(300);
    assert.equal((await made.cookies(`${at(tenants.outdoor)}/session`)).length, 0, "whoever looks is nobody yet");
    await picture(page, "outdoor-welcome-desktop");
    await page.locator(".suggestion").first().click();
    await until("the answer", async () => (await answers(page).count()) === 1);
    await settled(page);
    await picture(page, "outdoor-answer-desktop");
    await page.reload();
    await until("it is still there", async () => (await answers(page).count()) === 1);
    for (let question = 0; question < 5; question += 1) { await ask(page, `say ${question}`); await settled(page); }
    await ask(page, "say one too many");
    await page.getByText("No more questions can be asked without an account today").first().waitFor();
    await picture(page, "outdoor-limit-desktop");
    const other = await open(await context(), at(tenants.outdoor));
    await ask(other, "say another visitor");
    await settled(other);
    await until("a visitor sees its own conversations", async () => (await other.locator(".session").count()) === 1);
    other.clean();
    // Signing in leaves the visitor behind.
    await page.locator("#open-sign-in").click();
    await signIn(page, tenants.outdoor);
    await until("the user's own list", async () => (await page.locator(".session").count()) === 0);
  }];

  yield ["a phone has everything, and nothing is cut off", async (context) => {
    const page = await signedIn(await context(PHONE), tenants.dental);
    await picture(page, "dental-welcome-phone");
    await ask(page, "Which jacket should I take with me for a rainy hike in the hills?");
    await settled(page);
    await picture(page, "dental-answer-phone");
    const fits = () => page.evaluate(() => document.documentElement.scrollWidth <= window.innerWidth);
    assert.ok(await fits(), "the page is wider than the screen");
    const small = await page.evaluate(() => [...document.querySelectorAll(".bar button, .dock button, .sign-in button")]
      .filter((node) => node.checkVisibility()).map((node) => node.getBoundingClientRect()).filter((box) => box.width < 38 || box.height < 38).length);
    assert.equal(small, 0, "a button is too small for a finger");
    await page.locator("#open-history").click();
    await page.locator(".session").first().waitFor();
    await pause(250);
    await picture(page, "dental-history-phone");
    assert.equal(await page.evaluate(() => document.getElementById("main").inert), true);
    await page.locator("#close-history").click();
    assert.equal(await page.evaluate(() => document.getElementById("main").inert), false);
    page.clean();
    const dark = await open(await context({ ...PHONE, colorScheme: "dark" }), at(tenants.outdoor));
    await picture(dark, "outdoor-welcome-dark-phone");
    await dark.locator(".suggestion").first().click();
    await until("the answer", async () => (await answers(dark).count()) === 1);
    await settled(dark);
    await picture(dark, "outdoor-answer-dark-phone");
    dark.clean();
  }];

  yield ["the widget opens the chat in a client's own site, where frames may store nothing at all", async (context) => {
    const made = await context();
    const page = await made.newPage();
    const problems = [];
    page.on("pageerror", (error) => problems.push(error.message));
    page.on("console", (message) => { if (message.type() === "error") problems.push(message.text()); });
    await page.goto(tenants.shop.origin);
    const button = page.getByRole("button", { name: "Open the chat" });
    await button.waitFor();
    assert.equal(page.frames().length, 1, "nothing is loaded before it is wanted");
    await button.click();
    const frame = page.frameLocator("iframe");
    await frame.locator("#question").waitFor();
    await frame.locator("#question").fill("Which jacket?");
    await frame.locator("#no-sessions:not([hidden])").waitFor({ state: "attached" });
    await frame.locator("#question").press("Enter");
    await frame.locator(".actions").waitFor();
    await picture(page, "widget-desktop");
    await frame.locator("#close-widget").click();
    await button.waitFor();
    await until("the focus is back on the button", () => page.evaluate(() => document.activeElement?.shadowRoot?.activeElement?.className === "button"));
    await button.click();
    await frame.locator("#question").press("Escape");
    await button.waitFor();
    const denied = await page.frames()[1].evaluate(() => { try { return String(sessionStorage.length); } catch (error) { return error.name; } });
    assert.equal(denied, "SecurityError", "this browser blocks what third parties store");
    assert.deepEqual(await made.cookies(stack.url), [], "no cookie at all");
    // The short-lived token is over: the frame renews it with what it has in memory.
    await button.click();
    await frame.locator("#question").fill("say And on");
    await page.clock.install();
    await page.clock.fastForward(16 * 60 * 1000);
    await frame.locator("#question").press("Enter");
    await frame.locator(".actions").nth(1).waitFor();
    assert.deepEqual(problems, []);
    // A user signs in there as well.
    await frame.locator("#open-history").click();
    await frame.locator("#open-sign-in").click();
    await frame.locator("#email").fill(tenants.outdoor.user.email);
    await frame.locator("#password").fill(tenants.outdoor.user.password);
    await frame.locator("#sign-in-submit").click();
    await frame.locator("#question").waitFor();
    await frame.locator("#open-history").click();
    await frame.locator("#sign-out").waitFor();
    const phone = await (await context(PHONE)).newPage();
    await phone.goto(tenants.shop.origin);
    await phone.getByRole("button", { name: "Open the chat" }).click();
    await phone.frameLocator("iframe").locator("#question").waitFor();
    await picture(phone, "widget-phone");
  }];

  yield ["the widget goes on after a reload where frames may store something", async () => {
    const made = await lasting();
    try {
      const page = await made.newPage();
      page.setDefaultTimeout(15_000);
      await page.goto(tenants.shop.origin);
      const button = page.getByRole("button", { name: "Open the chat" });
      const frame = page.frameLocator("iframe");
      await button.click();
      // What is typed before the page's script runs waits for it; the key that sends it would not.
      await frame.locator("#question").fill("say Remember me");
      await frame.locator("#no-sessions:not([hidden])").waitFor({ state: "attached" });
      await frame.locator("#question").press("Enter");
      await frame.locator(".actions").waitFor();
      await page.reload();
      await button.click();
      await frame.getByText("Remember me", { exact: true }).last().waitFor();
      // In another tab it is the same visitor.
      const other = await made.newPage();
      await other.goto(tenants.shop.origin);
      await other.getByRole("button", { name: "Open the chat" }).click();
      await other.frameLocator("iframe").locator("#open-history").click();
      await other.frameLocator("iframe").locator(".session .open", { hasText: "Remember me" }).waitFor();
      assert.deepEqual(await made.cookies(stack.url), [], "no cookie at all");
    } finally {
      await made.close();
    }
  }];

  yield ["a foreign origin gets neither the widget nor the page", async (context) => {
    const made = await context();
    const page = await made.newPage();
    const said = [];
    page.on("console", (message) => said.push(message.text()));
    await page.goto(tenants.stranger.origin);
    await until("it is told why", () => said.some((text) => text.includes("allowed origins")));
    assert.equal(await page.getByRole("button").count(), 0);
    await page.goto(tenants.framing.origin);
    await until("the frame is refused", () => said.some((text) => /frame-ancestors|refused to connect|Content Security Policy/i.test(text)));
    assert.equal(await page.frameLocator("#frame").locator("#question").count(), 0);
    await page.goto(tenants.framed.origin);
    await page.frameLocator("#frame").locator("#question").waitFor();
    // The page without `embedded` is framed by nobody, and the site around gets no answer from a frame it does not own.
    const headers = (path, extra = {}) => fetch(stack.url + path, { headers: extra });
    assert.match((await headers("/c/outdoor")).headers.get("content-security-policy"), /frame-ancestors 'none'/);
    for (const origin of [tenants.stranger.origin, "null", "https://evil.example", ""]) {
      const answer = await headers("/c/outdoor/widget.json", origin ? { origin } : {});
      assert.deepEqual([answer.status, answer.headers.get("access-control-allow-origin")], [403, null], origin);
    }
    // Another site's requests to the page's session, cookie or not.
    for (const extra of [{}, { "x-freehold-page": "1", "sec-fetch-site": "cross-site" }, { "x-freehold-page": "1", "sec-fetch-site": "same-site" }]) {
      const answer = await fetch(`${stack.url}/c/dental/session/refresh`, { method: "POST", headers: { cookie: "freehold_refresh=x", ...extra } });
      assert.equal(answer.status, 403);
    }
    const preflight = await fetch(`${stack.url}/c/dental/session`, { method: "OPTIONS", headers: { origin: tenants.shop.origin, "access-control-request-method": "POST", "access-control-request-headers": "x-freehold-page" } });
    assert.equal(preflight.headers.get("access-control-allow-origin"), null);
  }];

  yield ["unknown and suspended pages look alike", async (context) => {
    await stack.call("POST", "/platform/v1/tenants/hostile/suspend", stack.owner, { reason: "a test" });
    const page = await open(await context(), `${stack.url}/c/nobody-is-here`, { expectErrors: true });
    await picture(page, "unknown-desktop");
    const unknown = await page.content();
    await until("it is suspended", async () => (await fetch(`${stack.url}/c/hostile`)).status === 404);
    await page.goto(`${stack.url}/c/hostile`);
    assert.equal(await page.content(), unknown);
    const [one, other] = await Promise.all(["nobody-is-here", "hostile"].map((slug) => fetch(`${stack.url}/c/${slug}`)));
    const told = (answer) => [...answer.headers].filter(([name]) => !["x-request-id", "date"].includes(name));
    assert.deepEqual(told(one), told(other));
  }];

  yield ["the page is light and soon there", async (context) => {
    const made = await context();
    const page = await made.newPage();
    const client = await made.newCDPSession(page);
    await client.send("Network.enable");
    let bytes = 0;
    const hosts = new Set();
    client.on("Network.loadingFinished", (event) => { bytes += event.encodedDataLength; });
    client.on("Network.requestWillBeSent", (event) => hosts.add(new URL(event.request.url).host));
    await page.goto(at(tenants.outdoor), { waitUntil: "networkidle" });
    const paint = await page.evaluate(() => performance.getEntriesByName("first-contentful-paint")[0]?.startTime);
    assert.ok(bytes < 60_000, `${bytes} bytes`);
    assert.deepEqual([...hosts], [new URL(stack.url).host]);
    const cold = bytes;
    bytes = 0;
    await page.reload({ waitUntil: "networkidle" });
    const again = await page.evaluate(() => performance.getEntriesByName("first-contentful-paint")[0]?.startTime);
    return `${(cold / 1000).toFixed(1)} KB with headers, first paint ${Math.round(paint)} ms; again ${(bytes / 1000).toFixed(1)} KB, ${Math.round(again)} ms`;
  }];

  yield ["nothing secret is in the server's log", async () => {
    const text = readFileSync(log, "utf8");
    for (const canary of ["fhr_", "eyJhbGciOi", "canary-of-the-key", "Which jacket", tenants.dental.user.password, tenants.dental.user.email]) {
      assert.ok(!text.includes(canary), `${canary} is in the log`);
    }
  }];
}

/** In the page: visible texts whose contrast with what is behind them is below what WCAG asks for. */
function contrasts() {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = 1;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const rgba = (color) => {
    context.clearRect(0, 0, 1, 1);
    context.fillStyle = color;
    context.fillRect(0, 0, 1, 1);
    return [...context.getImageData(0, 0, 1, 1).data].map((value) => value / 255);
  };
  const over = (top, bottom) => [0, 1, 2].map((at) => top[at] * top[3] + bottom[at] * (1 - top[3]));
  const behind = (node) => {
    const layers = [];
    for (let at = node; at; at = at.parentElement) {
      const color = rgba(getComputedStyle(at).backgroundColor);
      if (color[3] > 0) layers.push(color);
      if (color[3] === 1) break;
    }
    return layers.reverse().reduce((below, layer) => over(layer, below), [1, 1, 1]);
  };
  const luminance = (color) => {
    const [red, green, blue] = color.map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4));
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  const poor = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || !node.checkVisibility({ opacityProperty: true }) || node.closest(".hidden, .skip, script, style, noscript, :disabled")) continue;
    const surface = behind(node);
    const text = over(rgba(getComputedStyle(node).color), surface);
    const [light, dark] = [luminance(text), luminance(surface)].sort((a, b) => b - a);
    const ratio = (light + 0.05) / (dark + 0.05);
    if (ratio < 4.45) poor.push(`${node.className || node.localName}: ${ratio.toFixed(2)} (${walker.currentNode.textContent.trim().slice(0, 30)})`);
  }
  return [...new Set(poor)];
}
