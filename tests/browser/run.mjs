// Runs the cases of cases.mjs, each in a browser context of its own; see scripts/test-browser.
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { chromium } from "playwright-core";

import { cases } from "./cases.mjs";
import { Stack, fakeModel } from "./stack.mjs";

const wanted = process.argv.slice(2);
const home = mkdtempSync(join(tmpdir(), "freehold-browser-"));
const pictures = fileURLToPath(new URL("pictures/", import.meta.url));
const log = join(home, "server.log");
let [passed, failed] = [0, 0];
let stack = null;
let model = null;
let browser = null;

const stop = async () => {
  await browser?.close().catch(() => {});
  stack?.stop();
  model?.close();
};
for (const signal of ["SIGINT", "SIGTERM"]) process.once(signal, () => stop().finally(() => process.exit(1)));

try {
  model = await fakeModel();
  stack = await Stack.start({ program: process.env.SERVER, databaseUrl: process.env.DATABASE_URL, log });
  // A sandbox of Chromium's own is not to be had for root, which containers mostly are.
  browser = await chromium.launch({ executablePath: process.env.CHROMIUM, args: ["--no-sandbox"] });
  // One that lets frames of other sites store something, which this browser's own setting does not.
  const lasting = () => {
    const profile = mkdtempSync(join(home, "profile-"));
    mkdirSync(join(profile, "Default"));
    writeFileSync(join(profile, "Default", "Preferences"), JSON.stringify({ profile: { cookie_controls_mode: 0, block_third_party_cookies: false } }));
    return chromium.launchPersistentContext(profile, { executablePath: process.env.CHROMIUM, args: ["--no-sandbox"] });
  };
  const world = { stack, model, pictures, log, lasting };
  for (const [name, run] of cases(world)) {
    if (wanted.length > 0 && !name.startsWith("set up") && !wanted.some((part) => name.includes(part))) continue;
    const contexts = [];
    const context = async (options = {}) => {
      const made = await browser.newContext({ viewport: { width: 1280, height: 800 }, reducedMotion: "reduce", ...options });
      made.setDefaultTimeout(15_000);
      contexts.push(made);
      return made;
    };
    const started = Date.now();
    try {
      const said = await run(context);
      passed += 1;
      console.log(`ok    ${name}${said ? `: ${said}` : ""} (${Date.now() - started} ms)`);
    } catch (error) {
      failed += 1;
      console.log(`FAIL  ${name}\n${error.stack}`);
      const page = contexts.at(-1)?.pages().at(-1);
      await page?.screenshot({ path: join(pictures, "failed.png") }).catch(() => {});
    }
    for (const made of contexts) await made.close().catch(() => {});
  }
} catch (error) {
  failed += 1;
  console.log(`FAIL  set up\n${error.stack}`);
  try { console.log(readFileSync(log, "utf8").slice(-3000)); } catch { /* It did not come that far. */ }
} finally {
  await stop();
  rmSync(home, { recursive: true, force: true });
}
console.log(`${passed} cases passed, ${failed} failed; pictures in ${pictures}`);
process.exit(failed === 0 ? 0 : 1);
