// Terminals on the page: real shells on real machines, left and come back to.
import { accessible, expect, login, type Lab, test, until } from "./lab";
import type { Page } from "@playwright/test";

const shown = (page: Page) => page.locator("#terminal-pane .xterm-rows");
const status = (page: Page) => page.locator("#terminal-pane").getByRole("status");
/** Types a command whose output is not in what was typed. */
async function ask(page: Page, command: string, answer: string) {
  await page.keyboard.type(`${command}\n`);
  await expect(shown(page)).toContainText(answer);
}
async function stage(lab: Lab, machines: string[]) {
  await lab.setUp();
  const peers = await Promise.all(machines.map((name) => lab.machine(name)));
  const session = await lab.post("/api/sessions", { title: "Shells", node_ids: peers.map(({ node }) => node) });
  return { peers, session };
}

test("a shell is opened on a machine, used, left, come back to, looked at by others, and ended", async ({ page, lab, browser }) => {
  test.setTimeout(120_000);
  const { session } = await stage(lab, ["alpha", "beta"]);
  await lab.user("bob");
  await lab.fetch("PUT", `/api/sessions/${session.id}/members/bob`, { role: "viewer" });
  await login(page, lab, "ada", `/sessions/${session.id}`);
  await page.getByRole("navigation", { name: "Session" }).getByRole("link", { name: "Terminal" }).click();
  await expect(page.getByText("A shell on your machine, here")).toBeVisible();
  await accessible(page);
  await page.getByLabel("Machine", { exact: true }).selectOption("beta");
  await page.getByRole("button", { name: "New terminal" }).click();
  await expect(status(page)).toHaveText("Connected");
  await expect(page.getByRole("tabpanel", { name: "Terminal on beta" })).toBeVisible();
  await ask(page, "echo sum-$((40 + 2)); x=kept", "sum-42");

  // It has the size of its pane, and follows it.
  const columns = async () => Number((await page.getByTitle("Columns and rows").textContent())?.split(" ")[0]);
  const wide = await columns();
  await ask(page, "echo is-$(stty size | cut -d' ' -f2)-wide", `is-${wide}-wide`);
  await page.setViewportSize({ width: 900, height: 700 });
  await expect.poll(columns).toBeLessThan(wide);
  await ask(page, "echo now-$(stty size | cut -d' ' -f2)-wide", `now-${await columns()}-wide`);
  await accessible(page);

  // The keyboard gets out of it, and what was there before is there after a reload.
  await expect(page.locator("#terminal-pane textarea")).toBeFocused();
  await page.keyboard.press("Tab");
  await expect(page.locator("#terminal-pane textarea")).toBeFocused();
  await page.keyboard.press("Control+F6");
  await expect(page.getByRole("button", { name: "Copy" })).toBeFocused();
  await page.reload();
  await expect(status(page)).toHaveText("Connected");
  await expect(shown(page)).toContainText("sum-42");
  await ask(page, "echo back-$x-$((1 + 1))", "back-kept-2");

  // A second one on the other machine; both are in the list, and the way back is one click.
  await page.getByLabel("Machine", { exact: true }).selectOption("alpha");
  await page.getByRole("button", { name: "New terminal" }).click();
  await expect(page.getByRole("tab")).toHaveText(["beta", "alpha"]);
  await expect(page.getByRole("tab", { name: "alpha" })).toHaveAttribute("aria-selected", "true");
  await expect(status(page)).toHaveText("Connected");
  await ask(page, "echo other-$((2 + 2))", "other-4");
  await page.getByRole("tab", { name: "beta" }).click();
  await expect(shown(page)).toContainText("back-kept-2");

  // Somebody else looks on, and may not type.
  const context = await browser.newContext();
  const guest = await context.newPage();
  await login(guest, lab, "bob", new URL(page.url()).pathname + new URL(page.url()).search);
  await expect(status(guest)).toContainText("you may not type here");
  await expect(shown(guest)).toContainText("back-kept-2");
  await expect(guest.getByRole("button", { name: "End" })).toHaveCount(0);
  await page.locator("#terminal-pane .xterm").click();
  await ask(page, "echo seen-$((3 + 3))", "seen-6");
  await expect(shown(guest)).toContainText("seen-6");
  // The program draws for one size, and whoever looks on has the same.
  const sizes = () => Promise.all([page, guest].map((one) => one.getByTestId("size").innerText()));
  // It may go there over others.
  const both = (old: string) => expect.poll(async () => { const [own, seen] = await sizes(); return own !== old && own === seen; }).toBe(true);
  let [before = ""] = await sizes();
  await page.setViewportSize({ width: 1180, height: 800 });
  await both(before);
  await expect(guest.getByText("sized elsewhere")).toBeVisible();
  [before = ""] = await sizes();
  await page.setViewportSize({ width: 1440, height: 900 });
  await both(before);
  await context.close();

  await page.getByRole("button", { name: "End", exact: true }).click();
  await page.getByRole("dialog").getByRole("button", { name: "End it" }).click();
  await expect(status(page)).toContainText("Ended");
  await expect(page.getByRole("tab")).toHaveText(["alpha"]);
  await page.getByRole("tab", { name: "alpha" }).click();
  await expect(shown(page)).toContainText("other-4");
  await page.locator("#terminal-pane .xterm").click();
  await page.keyboard.type("exit 3\n");
  await expect(status(page)).toContainText("exit 3");
  // It is kept as any task is.
  await page.getByRole("link", { name: "Conversation" }).click();
  await page.getByRole("button", { name: "Show what was on it" }).last().click();
  await expect(page.locator("section.task .xterm-rows").last()).toContainText("other-4");
});

test("a connection that breaks, is too slow, or meets a hub that restarts is taken up again, with nothing lost", async ({ page, lab }) => {
  test.setTimeout(150_000);
  const { session } = await stage(lab, ["steady"]);
  const addresses: string[] = [];
  let cut: ((code: number) => Promise<void>) | undefined;
  let held = false;
  await page.routeWebSocket(/\/terminal\?/, (socket) => {
    addresses.push(socket.url());
    const server = socket.connectToServer();
    server.onMessage((message) => { if (!held || typeof message === "string") socket.send(message); });
    cut = async (code) => { await socket.close({ code, reason: "too slow; come back at your offset" }); await server.close(); };
  });
  await login(page, lab, "ada", `/sessions/${session.id}/terminal`);
  await page.getByRole("button", { name: "New terminal" }).click();
  await expect(status(page)).toHaveText("Connected");
  await ask(page, "x=41; echo one-$((1 + 1))", "one-2");

  // The hub says that we are too slow: it is said, and the next connection begins at the byte where we are.
  held = true;
  await cut?.(4408);
  await expect(status(page)).toContainText("too slow");
  await until("it comes back", () => addresses.length === 2);
  expect(Number(new URL(addresses[1] ?? "").searchParams.get("offset"))).toBeGreaterThan(0);
  held = false;
  await cut?.(1011);
  await expect(status(page)).toHaveText("Connected");
  await ask(page, "echo two-$((x + 1))", "two-42");

  await page.keyboard.type("i=0; while [ $i -lt 40 ]; do i=$((i+1)); echo tick-$i.; sleep 0.1; done; echo over-$((x + 2))\n");
  await expect(shown(page)).toContainText("tick-3.");
  await lab.process.end("SIGKILL");
  await expect(status(page)).toContainText("Reconnecting");
  lab.spawn();
  await lab.ready();
  await expect(status(page)).toHaveText("Connected", { timeout: 20_000 });
  await expect(shown(page)).toContainText("over-43", { timeout: 20_000 });
  const ticks = (await shown(page).locator("> div").allTextContents()).flatMap((line) => /^tick-(\d+)\.$/.exec(line.trim())?.[1] ?? []).map(Number);
  expect(ticks.length).toBeGreaterThan(15);
  expect(ticks).toEqual(ticks.map((_, at) => (ticks[0] ?? 0) + at));

  // What prints without end is not waited for: keys reach it, and the end of it is shown.
  await page.keyboard.type("yes 'much more than anybody reads'\n");
  await expect(shown(page)).toContainText("much more than anybody reads");
  await page.waitForTimeout(500);
  await page.keyboard.press("Control+c");
  await page.keyboard.type("\necho calm-$((4 + 4))\n");
  await expect(shown(page)).toContainText("calm-8", { timeout: 30_000 });
});

test("text is copied and pasted as text, and what a program prints is only shown", async ({ page, lab, context }) => {
  test.setTimeout(90_000);
  const { session } = await stage(lab, ["plain"]);
  await context.grantPermissions(["clipboard-read", "clipboard-write"], { origin: lab.url });
  await login(page, lab, "ada", `/sessions/${session.id}/terminal`);
  // On Linux xterm.js hands what the mouse selects to the middle button, and Chromium then complains of styles that it makes itself for that.
  await page.addInitScript(() => Object.defineProperty(navigator, "platform", { get: () => "Win32" }));
  page.on("dialog", () => { throw new Error("a script of a stranger ran"); });
  await page.getByRole("button", { name: "New terminal" }).click();
  await expect(status(page)).toHaveText("Connected");
  await ask(page, "PS1='ready> '; clear; echo copy-$((5 + 5))", "copy-10");
  const word = await page.locator("#terminal-pane .xterm-rows > div", { hasText: /^copy-10/ }).boundingBox();
  await page.mouse.dblclick((word?.x ?? 0) + 10, (word?.y ?? 0) + 6);
  await page.keyboard.press("Control+Shift+c");
  await expect.poll(() => page.evaluate(() => navigator.clipboard.readText())).toContain("copy");
  // Pasted text holds no keys: an escape that would end the paste, and one that would interrupt, are left out.
  await page.evaluate(() => navigator.clipboard.writeText("echo pas\u0003ted\u001b-$((6 + 6))"));
  await page.locator("#terminal-pane .xterm").click();
  await page.keyboard.press("Control+v");
  await page.keyboard.press("Enter");
  await expect(shown(page)).toContainText("pasted-12");
  await page.evaluate(() => navigator.clipboard.writeText("echo button-$((7 + 7))\n"));
  await page.getByRole("button", { name: "Paste" }).click();
  await page.keyboard.press("Enter");
  await expect(shown(page)).toContainText("button-14");

  // Colours of 24 bits are seen, though nobody may write styles into the page.
  await ask(page, "printf '\\033[38;2;200;30;30mred-%s\\033[0m\\n' $((4 + 4))", "red-8");
  const colour = await page.locator("#terminal-pane .xterm-rows span", { hasText: "red-8" }).last().evaluate((span) => getComputedStyle(span).color);
  expect(colour).toBe("rgb(200, 30, 30)");

  // Titles, links, the clipboard, markup: nothing of it leaves the screen.
  await page.keyboard.type(`printf '\\033]0;owned\\007\\033]52;c;b3duZWQ=\\007\\033]8;;javascript:alert(1)\\007link\\033]8;;\\007 <img src=x onerror=alert(1)> end-%s\\n' $((8 + 8))\n`);
  await expect(shown(page)).toContainText("end-16");
  await expect(page).not.toHaveTitle(/owned/);
  expect(await page.locator("#terminal-pane img, #terminal-pane a[href^='javascript']").count()).toBe(0);
  expect(await page.evaluate(() => navigator.clipboard.readText())).not.toContain("owned");
  // A question that was printed before is not answered again by whoever comes to look: that would be typed into the shell.
  await page.keyboard.type("stty -icanon -echo min 0 time 10; printf '\\033[c\\033[6n\\033]11;?\\007'; echo answered-$(dd bs=500 count=4 2>/dev/null | wc -c)-bytes; stty sane; echo asked-$((9 + 9))\n");
  await expect(shown(page)).toContainText("asked-18");
  await expect(shown(page)).toContainText(/answered-[1-9]\d-bytes/);
  await page.reload();
  await expect(status(page)).toHaveText("Connected");
  await expect(shown(page)).toContainText("asked-18");
  await ask(page, "echo clean-$((10 + 10))", "clean-20");
  const line = (await shown(page).locator("> div").allTextContents()).find((text) => text.includes("echo clean-"));
  expect(line?.trim()).toMatch(/^ready> echo clean-/);
});
