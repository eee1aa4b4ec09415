// What the browser's tests stand on: freehold-server on a throw-away Postgres, tenants, a fake model, clients' own sites.
// Everything it starts ends with it.
import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import { randomBytes } from "node:crypto";
import { createWriteStream, readFileSync } from "node:fs";
import { createServer } from "node:http";
import { createServer as createSocket } from "node:net";

export const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));
const password = () => randomBytes(15).toString("base64url");

function freePort() {
  return new Promise((resolve, reject) => {
    const socket = createSocket();
    socket.once("error", reject);
    socket.listen(0, "127.0.0.1", () => {
      const { port } = socket.address();
      socket.close(() => resolve(port));
    });
  });
}

/** Waits until something is so. */
export async function until(what, look, patience = 15_000) {
  const end = Date.now() + patience;
  for (;;) {
    const found = await look();
    if (found) return found;
    assert.ok(Date.now() < end, `${what}: not within ${patience} ms`);
    await pause(50);
  }
}

export const HOSTILE = readFileSync(new URL("hostile.md", import.meta.url), "utf8");

const NICE = `Good question! Here is what matters **most**:

1. A *waterproof* shell with taped seams
2. Ventilation under the arms
3. A hood that fits over a hat

| Layer | Material | Weight |
|---|---|---|
| Base | Merino | 180 g |
| Shell | 3-layer | 320 g |

\`\`\`text
pack = base + fleece + shell
\`\`\`

See [our guide](https://example.com/guide) and tell me where you are going.`;

const LONG = Array.from({ length: 40 }, (_, index) => `word${index + 1}`);

/** A model that answers as the last question says. */
export async function fakeModel() {
  const calls = [];
  /** The addresses of the images of each call's last question. */
  const images = [];
  const cut = new Set();
  const server = createServer(async (request, response) => {
    let text = "";
    for await (const chunk of request) text += chunk;
    const body = JSON.parse(text || "{}");
    const content = body.messages?.findLast((message) => message.role === "user")?.content ?? "";
    const parts = typeof content === "string" ? [{ text: content }] : content;
    const question = parts.map((part) => part.text ?? "").join("");
    calls.push(question);
    images.push(parts.filter((part) => part.image_url).map((part) => part.image_url.url));
    const send = (delta, finish = null) => response.write(`data: ${JSON.stringify({
      id: "x", object: "chat.completion.chunk", created: 1, model: "fake",
      choices: [{ index: 0, delta, finish_reason: finish }], usage: null,
    })}\n\n`);
    const end = () => {
      send({}, "stop");
      response.write(`data: ${JSON.stringify({ id: "x", object: "chat.completion.chunk", created: 1, model: "fake", choices: [], usage: { prompt_tokens: 5, completion_tokens: 7, total_tokens: 12 } })}\n\n`);
      response.end("data: [DONE]\n\n");
    };
    let gone = false;
    response.on("close", () => { gone = true; });
    response.writeHead(200, { "content-type": "text/event-stream" });
    send({ role: "assistant", content: "" });
    if (question.startsWith("slow") || question.startsWith("cut")) {
      for (const [index, word] of LONG.entries()) {
        if (gone) return;
        if (question.startsWith("cut") && index === 6 && !cut.has(question)) { cut.add(question); response.destroy(); return; }
        send({ content: `${word} ` });
        await pause(question.startsWith("slow") ? 120 : 10);
      }
      end();
      return;
    }
    const answer = question.startsWith("hostile") ? HOSTILE : question.startsWith("say ") ? question.slice(4) : NICE;
    // In pieces of any length: marks and fences are split anywhere.
    for (let at = 0; at < answer.length; at += 23) {
      if (gone) return;
      send({ content: answer.slice(at, at + 23) });
      await pause(4);
    }
    end();
  });
  const port = await freePort();
  await new Promise((resolve) => server.listen(port, "127.0.0.1", resolve));
  return { url: `http://127.0.0.1:${port}/v1`, calls, images, close: () => { server.closeAllConnections(); server.close(); } };
}

/** What themes of shops do to elements they did not expect. */
const THEME = `div:empty { display: none !important; }
body > * { position: relative; transform: translateZ(0); overflow: hidden; opacity: .99; filter: blur(0); contain: strict; }
body > :not(h1, p, main, iframe) { display: none !important; visibility: hidden !important; width: 0; height: 0; }
button { width: 4px; background: none !important; display: none; }`;

/** A client's own site, which embeds the widget or frames the page. */
export async function site(host, freehold, slug, framed = false) {
  const server = createServer((request, response) => {
    if (request.url === "/theme.css") { response.writeHead(200, { "content-type": "text/css" }); response.end(THEME); return; }
    response.writeHead(200, {
      "content-type": "text/html",
      // As a careful site would have it: the widget has to get by without a style or a script of its own in the page.
      "content-security-policy": `default-src 'self'; script-src ${freehold}; connect-src ${freehold}; frame-src ${freehold}`,
    });
    const widget = `<script src="${freehold}/widget.js" data-client="${slug}" async></script>`;
    const frame = `<iframe id="frame" src="${freehold}/c/${slug}?embedded=1" width="400" height="600"></iframe>`;
    response.end(`<!doctype html><link rel="stylesheet" href="/theme.css"><title>A shop</title><h1>Our shop</h1><p>Everything for a walk in the rain.</p>${framed ? frame : widget}`);
  });
  const port = await freePort();
  await new Promise((resolve) => server.listen(port, "127.0.0.1", resolve));
  return { origin: `http://${host}:${port}`, close: () => { server.closeAllConnections(); server.close(); } };
}

export class Stack {
  static async start({ program, databaseUrl, log }) {
    const stack = new Stack();
    const port = await freePort();
    stack.url = `http://127.0.0.1:${port}`;
    const environment = {
      ...process.env,
      PLATFORM_DATABASE_URL: databaseUrl,
      FREEHOLD_MASTER_KEYS: `1:${randomBytes(32).toString("base64")}`,
      FREEHOLD_LISTEN: `127.0.0.1:${port}`,
      FREEHOLD_ALLOW_PRIVATE_MODEL_HOSTS: "true",
      RUST_LOG: process.env.RUST_LOG ?? "info",
    };
    const output = createWriteStream(log);
    await new Promise((resolve) => output.once("open", resolve));
    stack.process = spawn(program, ["serve", "--migrate"], { env: environment, stdio: ["ignore", output, output] });
    await until("the server answers", async () => {
      assert.equal(stack.process.exitCode, null, `the server ended; see ${log}`);
      return fetch(`${stack.url}/api/health`).then((answer) => answer.ok, () => false);
    }, 60_000);
    const secret = password();
    const made = spawnSync(program, ["create-admin", "--email", "owner@freehold.example", "--password-file", "-"], { env: environment, input: secret });
    assert.equal(made.status, 0, String(made.stderr));
    stack.owner = (await stack.call("POST", "/platform/v1/sessions", null, { email: "owner@freehold.example", password: secret })).token;
    await stack.call("POST", "/platform/v1/clusters", stack.owner, { name: "local", admin_url: databaseUrl });
    return stack;
  }

  async call(method, path, token, body) {
    const answer = await fetch(this.url + path, {
      method,
      headers: { "content-type": "application/json", ...(token ? { authorization: `Bearer ${token}` } : {}) },
      body: body === undefined ? undefined : JSON.stringify(body),
    });
    const text = await answer.text();
    assert.ok(answer.ok, `${method} ${path}: ${answer.status} ${text.slice(0, 400)}`);
    return text === "" ? null : JSON.parse(text);
  }

  /** A tenant with an admin, a user and the fake model. */
  async tenant(slug, name, template, model, settings) {
    const tenant = { slug, user: { email: `user@${slug}.example`, password: password(), name: "Robin Smith" } };
    const made = await this.call("POST", "/platform/v1/tenants", this.owner, {
      slug, name, plan: "enterprise", template, admin_email: `admin@${slug}.example`, database: { mode: "managed" },
    });
    await until(`${slug} is provisioned`, async () => {
      const operation = await this.call("GET", `/platform/v1/operations/${made.operation.id}`, this.owner);
      assert.ok(!["failed", "needs_operator"].includes(operation.state), JSON.stringify(operation));
      return operation.state === "succeeded";
    }, 60_000);
    const accept = { tenant: slug, token: made.admin_invite.token, password: password() };
    tenant.admin = (await this.call("POST", "/api/v1/auth/accept-invite", null, accept)).access_token;
    await this.call("PUT", "/api/v1/ai-keys/main", tenant.admin, {
      provider: "openai_compatible", base_url: model, api_key: "sk-canary-of-the-key", models: ["fake"], default_model: "fake",
    });
    await this.call("POST", "/api/v1/users", tenant.admin, { ...tenant.user, role: "user" });
    if (settings) await this.call("PATCH", "/api/v1/config", tenant.admin, settings);
    return tenant;
  }

  async userToken(tenant) {
    const { email, password: secret } = tenant.user;
    return (await this.call("POST", "/api/v1/auth/login", null, { tenant: tenant.slug, email, password: secret })).access_token;
  }

  stop() { this.process.kill("SIGKILL"); }
}
