// Measures the page in real Chromium against a hub with many machines, and prints one JSON object. `cortex-bench ui` starts the hub and the machines.
//   CORTEX_URL, CORTEX_TOKEN, CORTEX_NAME, CORTEX_PASSWORD: where the hub is, and who measures.   CORTEX_EVENTS: how many changes come in a storm.
//   CORTEX_TRACE: where the trace of the storms is left, for chrome://tracing, with what each task was for.
// Hub, 500 machines, whoever changes them, and the browser share this machine's processors. So changes come at a rate (RATE) that leaves some of them to the browser, the others give way to
// it (bench/src/machine.rs), as it would be with a hub elsewhere; and beside the time between frames by the clock stands what the page itself computes without a pause, which nobody else's work makes longer.
import { chromium } from "@playwright/test";
import { busiest, CATEGORIES, DETAILS } from "./trace.mjs";

const env = (name) => process.env[name] ?? (() => { throw new Error(`${name} is not set; run cortex-bench ui`); })();
const url = env("CORTEX_URL");
const headers = { authorization: `Bearer ${env("CORTEX_TOKEN")}`, "content-type": "application/json", origin: url };
const wanted = Number(process.env.CORTEX_EVENTS ?? 10_000);
const RATE = 250;
const STORMS = 5;
const log = (text) => process.stderr.write(`${text}\n`);
const call = async (method, path, body) => {
  const response = await fetch(url + path, { method, headers, body: body && JSON.stringify(body) });
  if (!response.ok) throw new Error(`${method} ${path}: ${response.status} ${await response.text()}`);
  return response.json();
};
const middle = (values) => values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)];

const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"] });
const context = await browser.newContext({ viewport: { width: 1440, height: 900 } });
// When the list of machines stands there; which events came, and when a row said so.
await context.addInitScript(() => {
  const seen = { ready: 0, events: 0, told: {}, shown: {} };
  Object.assign(window, { seen });
  const Real = window.EventSource;
  window.EventSource = class extends Real {
    constructor(...args) {
      super(...args);
      for (const kind of ["node", "node_health"]) this.addEventListener(kind, (event) => {
        seen.events += 1;
        if (seen.rests) return;
        const { at_ms, data } = JSON.parse(event.data);
        if (data.change === "drain" || data.change === "undrain") seen.told[data.node_id] = at_ms;
      });
    }
  };
  addEventListener("DOMContentLoaded", () => {
    const look = () => {
      const rows = document.querySelectorAll(".list tbody tr");
      if (rows.length && !seen.ready) requestAnimationFrame(() => setTimeout(() => (seen.ready ||= performance.now())));
      for (const row of rows) {
        const id = decodeURIComponent(row.querySelector("a")?.pathname.split("/")[2] ?? "");
        const draining = row.textContent.includes("draining");
        if (seen.told[id] && seen.shown[id]?.draining !== draining) seen.shown[id] = { draining, at: Date.now() };
      }
    };
    seen.observer = new MutationObserver(look);
    seen.observer.observe(document, { subtree: true, childList: true, characterData: true });
  });
});
const page = await context.newPage();
await page.goto(url);
await page.getByLabel("Login name").fill(env("CORTEX_NAME"));
await page.getByLabel("Password").fill(env("CORTEX_PASSWORD"));
await page.getByRole("button", { name: "Log in" }).click();
await page.locator(".list tbody tr").first().waitFor();

log("first load");
const times = [];
let bytes = 0;
for (let round = 0; round < 5; round += 1) {
  const fresh = await context.newPage();
  const network = await context.newCDPSession(fresh);
  await network.send("Network.enable");
  await network.send("Network.setCacheDisabled", { cacheDisabled: true });
  const own = new Map();
  network.on("Network.responseReceived", ({ requestId, response }) => own.set(requestId, !new URL(response.url).pathname.startsWith("/api/")));
  let loaded = 0;
  network.on("Network.loadingFinished", ({ requestId, encodedDataLength }) => own.get(requestId) && (loaded += encodedDataLength));
  await fresh.goto(`${url}/machines`);
  await fresh.waitForFunction(() => window.seen.ready > 0);
  times.push(await fresh.evaluate(() => window.seen.ready));
  bytes = Math.max(bytes, loaded);
  await fresh.close();
}

log("status changes");
await page.goto(`${url}/machines`);
await page.locator(".link.live").waitFor();
await page.locator("a.title").nth(10).waitFor();
const ids = await page.evaluate(() => [...document.querySelectorAll(".list tbody tr a.title")].slice(0, 10).map((link) => decodeURIComponent(link.pathname.split("/")[2])));
const changes = [];
for (const id of ids)
  for (const [what, draining] of [["drain", true], ["undrain", false]]) {
    await call("POST", `/api/nodes/${id}/${what}`, {});
    await page.waitForFunction(([id, draining]) => window.seen.shown[id]?.draining === draining, [id, draining]);
    changes.push(await page.evaluate((id) => window.seen.shown[id].at - window.seen.told[id], id));
  }

log("storms");
const nodes = (await call("GET", "/api/nodes?limit=1000")).items.map((node) => node.id);
// What measures changes of rows rests: it would cost more than the rows.
await page.evaluate(() => { window.seen.rests = true; window.seen.observer.disconnect(); });
await page.mouse.move(700, 500);
await page.waitForTimeout(1000);
await browser.startTracing(page, { categories: process.env.CORTEX_TRACE ? DETAILS : CATEGORIES, path: process.env.CORTEX_TRACE });
let number = 0;
const storm = async () => {
  await page.evaluate(() => {
    const frames = { last: performance.now(), worst: 0, count: 0, on: true };
    Object.assign(window, { frames });
    window.seen.events = 0;
    const look = () => {
      const now = performance.now();
      frames.worst = Math.max(frames.worst, now - frames.last);
      frames.count += 1;
      frames.last = now;
      if (frames.on) requestAnimationFrame(look);
    };
    requestAnimationFrame(look);
  });
  let over = false;
  // Somebody scrolls along the list meanwhile.
  const scrolling = (async () => {
    for (let at = 0; !over; at += 1) {
      await page.mouse.wheel(0, at % 40 < 20 ? 400 : -400);
      await new Promise((go) => setTimeout(go, 100));
    }
  })();
  const each = Math.ceil(wanted / STORMS);
  const began = Date.now();
  let next = 0;
  const worker = async () => {
    while (next < each) {
      await new Promise((go) => setTimeout(go, began + (next++ * 1000) / RATE - Date.now()));
      await call("PATCH", `/api/nodes/${nodes[number % nodes.length]}`, { labels: { storm: String(number++) } });
    }
  };
  await Promise.all(Array.from({ length: 16 }, worker));
  const heard = await page.waitForFunction((each) => window.seen.events >= each && window.seen.events, each, { timeout: 60_000 }).then((found) => found.jsonValue());
  const seconds = (Date.now() - began) / 1000;
  // What is read once it is calm belongs to it.
  await page.waitForTimeout(2000);
  over = true;
  await scrolling;
  return { heard, seconds, ...(await page.evaluate(() => { window.frames.on = false; return { worst: window.frames.worst, count: window.frames.count }; })) };
};
const storms = [];
for (let round = 0; round < STORMS; round += 1) storms.push(await storm());
const busy = busiest(JSON.parse((await browser.stopTracing()).toString()));
await browser.close();

for (const { heard, seconds, count, worst } of storms) log(`${heard} events in ${seconds.toFixed(1)} s, ${count} frames, the worst ${worst.toFixed(0)} ms`);
log(`the busiest task ${busy.toFixed(0)} ms of a processor; status changes ${changes.map((ms) => ms.toFixed(0)).join(" ")}; ready after ${times.map((ms) => ms.toFixed(0)).join(" ")} ms`);
process.stdout.write(`${JSON.stringify({ machines: nodes.length, first_load_kb: bytes / 1000, interactive_ms: middle(times), status_change_ms: Math.max(...changes), worst_frame_ms_500_machines: middle(storms.map(({ worst }) => worst)), busiest_task_ms_500_machines: busy })}\n`);
