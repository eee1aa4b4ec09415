// Whose page it is: who comes after whom, tabs that share a browser, lost connections, and what a page looks like to all of them.
import assert from "node:assert/strict";

import { pause, until } from "./stack.mjs";

export function* people({ stack, model, tenants, at, open, signIn, signedIn, ask, answers, lastAnswer, settled, picture, PIXEL, PHONE }) {
  const shown = (page) => page.locator("#log").innerText();
  const listed = (page) => page.locator(".session .open");
  const visitors = { visitors: { enabled: true, questions_per_day: 1000, questions_per_visitor: 20 } };

  /** Another user of a tenant, to sign in with. */
  async function another(tenant, name) {
    const user = { email: `${name}@${tenant.slug}.example`, password: "a long enough phrase for anybody", name };
    await stack.call("POST", "/api/v1/users", tenant.admin, { ...user, role: "user" });
    return { ...tenant, user };
  }

  /** Shuts the tenant's first user out, or lets it in again. */
  async function disable(tenant, disabled) {
    const { items } = await stack.call("GET", "/api/v1/users", tenant.admin);
    const { id } = items.find((user) => user.email === tenant.user.email);
    await stack.call("PATCH", `/api/v1/users/${id}`, tenant.admin, { disabled });
  }

  /** Asks what is refused before it is on the page. */
  async function type(page, text) {
    await page.locator("#question").fill(text);
    await page.locator("#question").press("Enter");
  }

  /** The bodies of the questions that a page sends. */
  function asked(page) {
    const bodies = [];
    page.on("request", (request) => { if (request.method() === "POST" && request.url().endsWith("/api/v1/chat")) bodies.push(request.postDataJSON()); });
    return bodies;
  }

  yield ["whoever signs in next sees nothing of who was here before", async (context) => {
    tenants.ward = await stack.tenant("ward", "Ward", "general", model.url);
    const other = await another(tenants.ward, "other");
    const page = await signedIn(await context(), tenants.ward, { expectErrors: true });
    const bodies = asked(page);
    await ask(page, "say My secret diagnosis");
    await settled(page);
    await disable(tenants.ward, true);
    await type(page, "say And my secret address");
    await page.locator("#sign-in").waitFor();
    assert.match(await page.locator("#sign-in-problem").textContent(), /signed out/);
    const nothing = async () => {
      assert.doesNotMatch(await page.content(), /secret|Robin|user@ward/);
      for (const field of ["question", "email", "password"]) assert.equal(await page.locator(`#${field}`).inputValue(), "", field);
    };
    await nothing();
    await signIn(page, other);
    await page.locator("#who").getByText("other").waitFor();
    await nothing();
    assert.equal(await listed(page).count(), 0);
    await ask(page, "say Hello from another");
    await until("it is answered", async () => /Hello from another/.test(await lastAnswer(page).textContent()));
    await settled(page);
    assert.equal(bodies.at(-1).session_id, undefined, "a conversation of its own");
    // The one who was shut out comes back: to the own conversation, and the question that was refused.
    await page.locator("#sign-out").click();
    await page.locator("#sign-in").waitFor();
    assert.doesNotMatch(await page.content(), /Hello from another/);
    await disable(tenants.ward, false);
    await signIn(page, tenants.ward);
    await listed(page).first().waitFor();
    await ask(page, "say Again a secret");
    await settled(page);
    await disable(tenants.ward, true);
    await type(page, "say The refused one");
    await page.locator("#sign-in").waitFor();
    await disable(tenants.ward, false);
    await signIn(page, tenants.ward);
    await until("the own conversation", async () => /Again a secret/.test(await shown(page)));
    assert.equal(await page.locator("#question").inputValue(), "say The refused one");
    assert.ok(!model.calls.includes("say The refused one"));
  }];

  yield ["whoever goes on without an account begins with an empty page", async (context) => {
    tenants.club = await stack.tenant("club", "Club", "general", model.url, visitors);
    const page = await open(await context(), at(tenants.club), { expectErrors: true });
    const bodies = asked(page);
    await page.locator("#open-sign-in").click();
    await signIn(page, tenants.club);
    await ask(page, "say A member's secret");
    await settled(page);
    await disable(tenants.club, true);
    await type(page, "say One more secret");
    await page.locator("#sign-in").waitFor();
    await page.locator("#stay-visitor").click();
    await page.locator("#question").waitFor();
    assert.doesNotMatch(await page.content(), /secret/);
    assert.equal(await listed(page).count(), 0);
    await ask(page, "say A visitor's words");
    await until("it is answered", async () => /A visitor's words/.test(await lastAnswer(page).textContent()));
    assert.equal(bodies.at(-1).session_id, undefined);
    assert.ok(!model.calls.includes("say One more secret"));
    await disable(tenants.club, false);
  }];

  yield ["a visitor who signs in asks at once, and one who does not goes on", async (context) => {
    const page = await open(await context(), at(tenants.club), { expectErrors: true });
    const bodies = asked(page);
    await ask(page, "say Visited");
    await settled(page);
    // What a visitor is told of is its own.
    await page.getByText("1 / 20 questions today").waitFor();
    await page.locator("#open-sign-in").click();
    await page.locator("#email").fill(tenants.club.user.email);
    await page.locator("#password").fill("not the password");
    await page.locator("#sign-in-submit").click();
    await page.locator("#sign-in-problem").waitFor();
    await page.locator("#stay-visitor").click();
    assert.match(await shown(page), /Visited/);
    await ask(page, "say Still the visitor");
    await settled(page);
    await page.locator("#open-sign-in").click();
    await signIn(page, tenants.club);
    assert.doesNotMatch(await shown(page), /Visited/);
    for (const words of ["First", "Second"]) {
      await ask(page, `say ${words}`);
      await until("it is answered", async () => (await lastAnswer(page).textContent()) === words);
      await settled(page);
    }
    assert.equal(bodies.at(-2).session_id, undefined);
    assert.notEqual(bodies.at(-1).session_id, undefined);
  }];

  yield ["a conversation that was deleted elsewhere costs one question at most", async (context) => {
    const page = await signedIn(await context(), tenants.ward, { expectErrors: true });
    await ask(page, "say Soon gone");
    await settled(page);
    const token = await stack.userToken(tenants.ward);
    const [session] = (await stack.call("GET", "/api/v1/sessions", token)).items;
    await stack.call("DELETE", `/api/v1/sessions/${session.id}`, token);
    await ask(page, "say Into the void");
    await page.getByText("This conversation is not there any more.").first().waitFor();
    await settled(page);
    await ask(page, "say In a new one");
    await until("it is answered", async () => /In a new one/.test(await lastAnswer(page).textContent()));
  }];

  yield ["tabs of one browser are one person's, and say so", async (context) => {
    const other = await another(tenants.club, "second");
    const made = await context();
    const first = await open(made, at(tenants.club), { expectErrors: true });
    await ask(first, "say Words of a visitor");
    await settled(first);
    const second = await open(made, at(tenants.club), { expectErrors: true });
    await until("the same visitor", async () => (await listed(second).count()) === 1);
    await second.locator("#open-sign-in").click();
    await signIn(second, tenants.club);
    await first.locator("#who").getByText("Robin Smith").waitFor();
    assert.doesNotMatch(await first.content(), /Words of a visitor/);
    await ask(first, "say Robin's words");
    await settled(first);
    // Signed out in one is signed out in all.
    await second.locator("#sign-out").click();
    await first.locator("#sign-in").waitFor();
    assert.doesNotMatch(await first.content(), /Robin's words|Robin Smith/);
    // And whoever signs in next is it everywhere, too.
    await second.locator("#open-sign-in, #email").locator("visible=true").first().click();
    await signIn(second, other);
    await first.locator("#who").getByText("second").waitFor();
    assert.equal(await listed(first).count(), 0);
  }];

  yield ["a tab that missed the news sends nothing as somebody else", async (context) => {
    const other = await another(tenants.ward, "third");
    const made = await context();
    const page = await made.newPage();
    // As if it had been asleep while it was told.
    await page.addInitScript(() => window.addEventListener("storage", (event) => event.stopImmediatePropagation(), true));
    await page.clock.install();
    await page.goto(at(tenants.ward));
    await signIn(page, tenants.ward);
    await ask(page, "say Robin's secret");
    await settled(page);
    const tab = await open(made, at(tenants.ward), { expectErrors: true });
    await tab.locator("#sign-out").click();
    await tab.locator("#sign-in").waitFor();
    await signIn(tab, other);
    assert.match(await shown(page), /Robin's secret/, "it has not heard of it");
    await page.clock.fastForward(16 * 60 * 1000);
    await type(page, "say Typed by Robin");
    await page.locator("#who").getByText("third").waitFor();
    await pause(500);
    assert.ok(!model.calls.includes("say Typed by Robin"));
    assert.doesNotMatch(await page.content(), /Robin/);
    assert.equal(await page.locator("#question").inputValue(), "");
    // The same with a token that is not over by the clock, but refused.
    await tab.locator("#sign-out").click();
    await tab.locator("#sign-in").waitFor();
    await signIn(tab, tenants.ward);
    await type(page, "say Typed by the third");
    await page.locator("#who").getByText("Robin Smith").waitFor();
    await pause(500);
    assert.ok(!model.calls.includes("say Typed by the third"));
    assert.equal(await page.locator("#question").inputValue(), "");
  }];

  yield ["an answer that was made while there was no connection is shown and not asked for again", async (context) => {
    const made = await context();
    const page = await made.newPage();
    await page.clock.install();
    await page.goto(at(tenants.ward));
    await signIn(page, tenants.ward);
    const before = model.calls.length;
    await ask(page, "slow and far away");
    await until("some of it", async () => /word4/.test(await lastAnswer(page).textContent()));
    const giveUp = async () => {
      for (let turn = 0; turn < 60 && (await page.locator(".again").count()) === 0; turn += 1) {
        await page.clock.fastForward(20_000);
        await pause(60);
      }
      await page.locator(".again").waitFor();
    };
    await made.setOffline(true);
    await giveUp();
    await page.locator(".again").click();
    await pause(300);
    assert.equal(await page.locator(".again").count(), 1, "it is still offered");
    await made.setOffline(false);
    await until("the whole answer", async () => /word40/.test(await lastAnswer(page).textContent()), 40_000);
    await settled(page);
    assert.equal(await page.locator(".again").count(), 0);
    assert.equal(await answers(page).count(), 1);
    // Where the browser noticed nothing, the button does.
    await ask(page, "slow and away once more");
    await until("some of it", async () => /word4/.test(await lastAnswer(page).textContent()));
    await page.route("**/api/v1/**", (route) => route.abort("connectionreset"));
    await giveUp();
    await page.unroute("**/api/v1/**");
    await page.locator(".again").click();
    await until("the whole answer", async () => /word40/.test(await lastAnswer(page).textContent()), 40_000);
    await settled(page);
    assert.equal(model.calls.length - before, 2, "each was asked once");
  }];

  yield ["a service that was suspended for a while takes nothing from its visitors", async (context) => {
    tenants.paused = await stack.tenant("paused", "Paused", "general", model.url, visitors);
    const made = await context();
    const page = await made.newPage();
    await page.clock.install();
    await page.goto(at(tenants.paused));
    await ask(page, "say Before");
    await settled(page);
    await stack.call("POST", "/platform/v1/tenants/paused/suspend", stack.owner, { reason: "a test" });
    await until("it is suspended", async () => (await fetch(at(tenants.paused))).status === 404);
    await page.clock.fastForward(16 * 60 * 1000);
    await ask(page, "say Meanwhile");
    await page.getByText("The chat is not available right now").first().waitFor();
    await settled(page);
    // Once the suspension is carried out.
    await until("it is resumed", () => stack.call("POST", "/platform/v1/tenants/paused/resume", stack.owner, {}).then(() => true, () => false));
    await until("it is back", async () => (await fetch(at(tenants.paused))).status === 200);
    await page.locator(".again").click();
    await until("it is answered", async () => /Meanwhile/.test(await lastAnswer(page).textContent()));
    await settled(page);
    await page.reload();
    await until("all of it is there", async () => /Before/.test(await shown(page)) && /Meanwhile/.test(await shown(page)));
  }];

  yield ["tables are readable on a phone", async (context) => {
    const page = await signedIn(await context(PHONE), tenants.ward);
    const row = (cell) => `| ${Array.from({ length: 7 }, (_, column) => `${cell} of column ${column}`).join(" | ")} |`;
    await ask(page, `say Prices:\n${row("Heading")}\n|${"---|".repeat(7)}\n${row("Something")}\n${row("Everything")}`);
    await settled(page);
    const table = lastAnswer(page).locator(".scroller");
    const size = await table.evaluate((node) => ({
      narrowest: Math.min(...[...node.querySelectorAll("th, td")].map((cell) => cell.getBoundingClientRect().width)),
      tallest: Math.max(...[...node.querySelectorAll("tr")].map((cell) => cell.getBoundingClientRect().height)),
      moves: node.scrollWidth > node.clientWidth,
    }));
    assert.ok(size.narrowest >= 80 && size.tallest < 140 && size.moves, JSON.stringify(size));
    assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= window.innerWidth), "the page itself stays");
    await picture(page, "table-phone");
    page.clean();
  }];

  yield ["a long table that is still growing leaves the page time for others", async (context) => {
    const page = await signedIn(await context(), tenants.ward);
    const source = await page.locator("script[type=module]").getAttribute("src");
    const [draws, shownAll] = await page.evaluate(async (address) => {
      const { Messages } = await import(address.replace("chat.js", "messages.js"));
      const log = document.createElement("div");
      document.body.append(log);
      const answer = new Messages(log, { name: "x", logo: "", image_origins: [] }, (key) => key).answer();
      let count = 0;
      new MutationObserver(() => { count += 1; }).observe(answer.node.querySelector(".prose"), { childList: true });
      const frame = () => new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)));
      const line = "| some text | **bold** and more | `code` |\n";
      answer.add(`| a | b | c |\n|---|---|---|\n${line.repeat(1500)}`);
      for (let at = 0; at < 60; at += 1) { answer.add(line); await frame(); }
      const drawn = count;
      answer.finish({ state: "complete" });
      const rows = log.querySelectorAll("tr").length;
      log.remove();
      return [drawn, rows === 1561];
    }, source);
    assert.ok(draws <= 20, `${draws} times for 60 pieces`);
    assert.ok(shownAll, "nothing is left out at the end");
    return `drawn ${draws} times for 60 pieces`;
  }];

  yield ["texts are written from the side they are written from", async (context) => {
    const page = await signedIn(await context(), tenants.ward);
    await ask(page, "say \u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd\n\n- \u05d0\u05d7\u05ea\n- \u05e9\u05ea\u05d9\u05d9\u05dd\n\nAnd English.");
    await settled(page);
    const direction = (selector) => lastAnswer(page).locator(selector).evaluateAll((nodes) => nodes.map((node) => getComputedStyle(node).direction));
    assert.deepEqual(await direction("p"), ["rtl", "ltr"]);
    assert.deepEqual(await direction("ul"), ["rtl"]);
    assert.equal(await lastAnswer(page).locator("ul").evaluate((node) => getComputedStyle(node).paddingLeft), "0px");
    assert.equal(await lastAnswer(page).getAttribute("lang"), "en");
    await page.locator("#question").fill("\u05e9\u05dc\u05d5\u05dd");
    assert.equal(await page.locator("#question").evaluate((node) => getComputedStyle(node).direction), "rtl");
    page.clean();
  }];

  yield ["Markdown as models write it", async (context) => {
    const page = await signedIn(await context(), tenants.ward);
    const source = await page.locator("script[type=module]").getAttribute("src");
    const rendered = (text) => page.evaluate(async ([address, markdown]) => {
      const { render } = await import(address.replace("chat.js", "markdown.js"));
      const made = document.createElement("div");
      made.append(render(markdown, { images: [], imageLabel: "Image", code: (code) => { const pre = document.createElement("pre"); pre.textContent = code; return pre; } }));
      for (const node of made.querySelectorAll("*")) for (const name of node.getAttributeNames()) if (name !== "href") node.removeAttribute(name);
      return made.innerHTML;
    }, [source, text]);
    const table = "<div><table><thead><tr><th>a</th><th>b</th></tr></thead><tbody><tr><td>1</td><td>2<br>3</td></tr></tbody></table></div>";
    for (const [text, html] of [
      ["Prices:\n| a | b |\n|---|---|\n| 1 | 2<br>3 |", `<p>Prices:</p>${table}`],
      ["***x*** and **y** and *z*", "<p><strong><em>x</em></strong> and <strong>y</strong> and <em>z</em></p>"],
      ["See https://a.example/Foo_(bar).", '<p>See <a href="https://a.example/Foo_(bar)">https://a.example/Foo_(bar)</a>.</p>'],
      ["(see https://a.example/x)", '<p>(see <a href="https://a.example/x">https://a.example/x</a>)</p>'],
      ["It was in\n1990. A good year", "<p>It was in<br>1990. A good year</p>"],
      ["Steps:\n1. one\n2. two", "<p>Steps:</p><ol><li>one</li><li>two</li></ol>"],
      ["1. Run\n    ```sh\n    make\n      more\n    ```", "<ol><li>Run<pre>make\n  more</pre></li></ol>"],
      ["a <br/> b <b>c</b>", "<p>a <br> b &lt;b&gt;c&lt;/b&gt;</p>"],
    ]) assert.equal(await rendered(text), html, text);
    page.clean();
  }];

  yield ["a question costs one look at the quota, and a phone's keyboard stays away", async (context) => {
    const page = await open(await context(PHONE), at(tenants.outdoor));
    const looks = [];
    page.on("request", (request) => { if (request.url().endsWith("/api/v1/quota")) looks.push(request.url()); });
    await page.locator(".suggestion").first().click();
    await until("the answer", async () => (await answers(page).count()) === 1);
    await settled(page);
    await pause(400);
    assert.equal(looks.length, 1);
    const focused = () => page.evaluate(() => document.activeElement.id);
    assert.notEqual(await focused(), "question");
    await page.locator("#new-chat-bar").click();
    assert.notEqual(await focused(), "question");
    page.clean();
  }];

  yield ["images are sent without what is written into their files", async (context) => {
    const tenant = tenants.photos ?? await stack.tenant("photos", "Photo Desk", "general", model.url, {
      assistants: [{ name: "words", title: "Words" }, { name: "pictures", title: "Pictures", accepts_images: true }],
    });
    const page = await signedIn(await context(), tenant);
    await page.locator("#attach").waitFor();
    const buffer = Buffer.concat([PIXEL, Buffer.from("taken at canary-street 1")]);
    await page.locator("#files").setInputFiles([{ name: "pixel.png", mimeType: "image/png", buffer }]);
    await page.locator("#attachments li:not([aria-busy]) img").waitFor();
    await ask(page, "say Nice");
    await settled(page);
    const [sent] = model.images.at(-1);
    const [head, data] = sent.split(",");
    assert.equal(head, "data:image/png;base64");
    assert.ok(!Buffer.from(data, "base64").includes("canary-street"));
    page.clean();
  }];

  yield ["the widget stands up to the site around it", async (context) => {
    const page = await (await context()).newPage();
    await page.goto(tenants.shop.origin);
    const button = page.getByRole("button", { name: "Open the chat" });
    await button.waitFor();
    const box = await button.boundingBox();
    assert.ok(box.width > 50 && box.height > 50 && box.x > 1000 && box.y > 600, JSON.stringify(box));
    // Embedded twice, or again by a site that changes pages by itself.
    await page.evaluate(() => {
      const script = document.querySelector("script[data-client]");
      const again = document.createElement("script");
      again.src = script.src;
      again.dataset.client = script.dataset.client;
      document.body.append(again);
    });
    await pause(600);
    assert.equal(await page.locator("freehold-chat").count(), 1);
    await page.evaluate(() => { document.body.replaceChildren(document.createElement("main")); });
    await button.waitFor();
    await page.evaluate(() => { document.documentElement.replaceChild(document.createElement("body"), document.body); });
    await button.waitFor();
    await page.evaluate(() => { document.body.replaceChildren(); });
    await button.click();
    await page.frameLocator("iframe").locator("#question").waitFor();
    // A site that does not want it on one of its pages says so.
    await page.evaluate(() => { document.querySelector("freehold-chat").hidden = true; });
    await button.waitFor({ state: "hidden" });
  }];
}
