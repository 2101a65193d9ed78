// The browser's timeline: a real Chromium on a real machine, pages that say what they like, and everything of it as text.
import { readFileSync } from "node:fs";
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { accessible, expect, login, test } from "./lab";

const EVIL = '<img src=x onerror="document.title=1">\u202egnp';
const PAGES: Record<string, [string, string]> = {
  "/": ["text/html", `<!doctype html><title>Shop ${EVIL}</title><h1>Shop</h1><button id=buy onclick="console.log('bought', 3); fetch('/api/order', {method: 'POST', body: 'x'}).then((answer) => answer.text())">Buy</button><script>console.warn("careful ${EVIL.replaceAll('"', "'")}"); setTimeout(() => { throw new Error("it broke") }, 20); for (const path of ["/missing", "/data.json"]) fetch(path).then((answer) => answer.text())</script>`],
  "/data.json": ["application/json", '{"answer":"the whole body"}'],
  "/api/order": ["application/json", "{}"],
  "/second": ["text/html", "<!doctype html><title>Second</title><h1>Second page</h1>"],
};

function serve(): Promise<{ server: Server; url: string }> {
  const server = createServer((request, response) => {
    const page = PAGES[request.url ?? ""];
    response.writeHead(page ? 200 : 404, { "content-type": `${page?.[0] ?? "text/plain"}; charset=utf-8`, "set-cookie": "secret=value" });
    response.end(page?.[1] ?? "no such page");
  });
  return new Promise((done) => server.listen(0, "127.0.0.1", () => done({ server, url: `http://127.0.0.1:${(server.address() as AddressInfo).port}` })));
}

test("a page is opened, what happens on it appears, and all of it is played again", async ({ page, lab }) => {
  test.setTimeout(120_000);
  const { server, url } = await serve();
  await lab.setUp();
  const peer = await lab.machine("surfer", {}, undefined, "\nbrowser:\n  allow_addresses: ['127.0.0.1']\n");
  const session = await lab.post("/api/sessions", { title: "Look at the shop", node_ids: [peer.node] });
  await login(page, lab, "ada", `/sessions/${session.id}/browser`);
  page.on("dialog", () => { throw new Error("a script of a stranger ran"); });
  await expect(page.getByRole("heading", { name: "Open the first page" })).toBeVisible();
  await accessible(page);

  // The first action: a page, with its picture.
  await page.getByLabel("Address").fill(url.replace("http://", ""));
  await page.getByRole("button", { name: "Go", exact: true }).click();
  const list = page.getByRole("listbox", { name: "What happened" });
  const line = (text: string | RegExp) => list.getByRole("option").filter({ hasText: text });
  await expect(line(/navigate http:\/\/127/)).toBeVisible({ timeout: 45_000 });
  await expect(line("it broke")).toBeVisible({ timeout: 20_000 });
  await expect(line("careful")).toContainText("<img src=x");
  await expect(line("/missing")).toContainText("404");
  await expect(line("The browser has started")).toBeVisible();
  const seen = page.getByRole("region", { name: "What was seen" });
  await expect(seen.getByRole("img", { name: /The page http:\/\/127/ })).toBeVisible();
  expect(await seen.locator("img").evaluate((image: HTMLImageElement) => image.decode().then(() => image.naturalWidth))).toBeGreaterThan(300);
  await expect(list.locator("img").first()).toHaveAttribute("loading", "lazy");
  await accessible(page);

  // What another does appears by itself, while we look on.
  await lab.post(`/api/sessions/${session.id}/browser`, { order: { action: { click: { target: "#buy" } } } });
  await expect(line("click #buy")).toBeVisible();
  await expect(line("bought 3")).toBeVisible();
  await expect(line("POST")).toContainText("200");

  // Kinds, and words.
  const kinds = page.getByRole("group", { name: "Kinds" });
  await kinds.getByRole("button", { name: /Network/ }).click();
  await expect(line("bought 3")).toHaveCount(0);
  await page.getByLabel("Find in the timeline").fill("data.json");
  await expect(list.getByRole("option")).toHaveCount(1);
  await line("data.json").click();
  const entry = page.getByTestId("entry");
  await expect(entry).toContainText("200");
  await entry.getByText(/Response headers/).click();
  await expect(entry).toContainText("content-type");
  await expect(entry).not.toContainText("secret=value");
  await entry.getByRole("button", { name: "Body" }).click();
  await expect(page.getByTestId("body")).toContainText("the whole body");
  await accessible(page);
  await page.getByLabel("Find in the timeline").fill("");
  await kinds.getByRole("button", { name: /All/ }).click();

  const [download] = await Promise.all([page.waitForEvent("download"), page.getByRole("button", { name: "HAR", exact: true }).click()]);
  const har = JSON.parse(readFileSync(await download.path(), "utf8"));
  expect(har.log.entries.map((entry: { request: { url: string } }) => entry.request.url)).toContain(`${url}/data.json`);

  // What is on the page, as an AI reads it; a second page; and an address that is refused says so.
  await page.getByRole("button", { name: "Snapshot", exact: true }).click();
  await expect(page.getByTestId("snapshot")).toContainText("Buy");
  await page.getByLabel("Address").fill(`${url}/second`);
  await page.getByRole("button", { name: "Go", exact: true }).click();
  await expect(line(/\/second/).first()).toBeVisible();
  await expect(seen.getByRole("img", { name: /second/ })).toBeVisible();
  await page.getByLabel("Address").fill("http://10.0.0.1/");
  await page.getByRole("button", { name: "Go", exact: true }).click();
  await expect(line("may not be reached").first()).toBeVisible({ timeout: 45_000 });

  // From the start, by hand and by itself: the picture is the one of that moment.
  await page.getByRole("button", { name: "To the start" }).click();
  await expect(seen).toContainText("No picture was taken up to here");
  await expect(list.getByRole("option", { selected: true })).toContainText("navigate");
  const slider = page.getByRole("slider", { name: "Place in the timeline" });
  await expect(slider).toHaveAttribute("aria-valuetext", /^1 of /);
  await slider.focus();
  await page.keyboard.press("ArrowRight");
  await expect(slider).toHaveAttribute("aria-valuetext", /^2 of /);
  await list.focus();
  await page.keyboard.press("End");
  await page.keyboard.press("Home");
  await page.getByRole("button", { name: "Replay", exact: true }).click();
  await expect(seen.getByRole("img", { name: /127.*:\d+\/,/ })).toBeVisible({ timeout: 30_000 });
  await page.getByRole("button", { name: "Stop the replay" }).click();
  // The place is in the address: a reload is there again.
  const place = await slider.getAttribute("aria-valuetext");
  await page.reload();
  await expect(slider).toHaveAttribute("aria-valuetext", place ?? "");
  await page.getByRole("button", { name: "Live", exact: true }).click();
  await page.getByRole("button", { name: "Close the browser" }).click();
  await expect(line("The browser was closed")).toBeVisible();
  await expect(page.getByRole("button", { name: "Picture", exact: true })).toHaveCount(0);

  // In the conversation actions are lines that lead here.
  await page.getByRole("link", { name: "Conversation" }).click();
  await page.getByRole("link", { name: "click #buy" }).click();
  await expect(list.getByRole("option", { selected: true })).toContainText("click #buy");
  await expect(page).not.toHaveTitle(/^1$/);
  server.close();
});

test("ten thousand events are scrolled and filtered at once, and a stream that breaks goes on where it was", async ({ page, lab }) => {
  await lab.setUp();
  const session = await lab.post("/api/sessions", { title: "Much" });
  // What a machine would have sent, by the same stream.
  const count = 10_000;
  const events = Array.from({ length: count }, (_, at) => {
    const kind = at % 100 === 99 ? "error" : at % 10 === 5 ? "request" : at % 10 === 0 ? "navigation" : "console";
    return { seq: at + 1, node_id: "n", browser: "b", kind, event: { kind, at_ms: 1_700_000_000_000 + at, tab: 1, text: `line ${at}`, level: "log", url: `http://a/${at}`, method: "GET", status: 200, took_ms: 3 } };
  });
  const text = events.map((event) => `id: ${event.seq}\nevent: ${event.kind}\ndata: ${JSON.stringify(event)}\n\n`).join("");
  let asked = 0;
  await page.route(/browser\/stream/, async (route) => {
    asked += 1;
    const from = Number(new URL(route.request().url()).searchParams.get("last_event_id") ?? 0);
    await route.fulfill({ contentType: "text/event-stream", body: asked === 1 ? text.slice(0, text.indexOf("id: 6001\n")) : from === 6000 ? text.slice(text.indexOf("id: 6001\n")) : "" });
  });
  await login(page, lab, "ada", `/sessions/${session.id}/browser`);
  await expect(page.getByRole("group", { name: "Kinds" }).getByRole("button", { name: /All/ })).toContainText("10000", { timeout: 20_000 });
  const list = page.getByRole("listbox", { name: "What happened" });
  await expect(list.getByRole("option").filter({ hasText: "line 9999" })).toBeVisible();
  expect(await list.getByRole("option").count()).toBeLessThan(60);
  await page.getByRole("group", { name: "Kinds" }).getByRole("button", { name: /Errors/ }).click();
  await expect(page.getByRole("slider")).toHaveAttribute("max", "99");
  await list.focus();
  await page.keyboard.press("Home");
  await expect(list.getByRole("option", { selected: true })).toContainText("line 99");
});
