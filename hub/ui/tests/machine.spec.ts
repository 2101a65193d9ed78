// One machine: its policy, its log, drained and filled again; secrets, logins, relays, and the bundle.
import { chmodSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { accessible, expect, login, test, until } from "./lab";

test("a policy is written in a form and as text, refused where it is wrong, and seen in force; its changes stay", async ({ page, lab, browser }) => {
  test.setTimeout(120_000);
  await lab.setUp();
  const peer = await lab.machine("careful");
  await login(page, lab, "ada", `/machines/${encodeURIComponent(peer.node)}/policy`);
  const card = page.getByRole("region", { name: "Policy", exact: true });
  await expect(card.getByTestId("in-force")).toBeVisible();
  await card.getByRole("button", { name: "Change" }).click();
  const ask = card.getByRole("group", { name: "Ask first" });
  await ask.getByRole("button", { name: "Add a rule" }).click();
  await ask.getByLabel("Command begins with").fill("git push");
  await ask.getByText("Self-tests").click();
  await ask.getByLabel("Must match, a script on each line").fill("git -C x push");
  await card.getByLabel("Tasks at a time").fill("3");
  await card.getByRole("button", { name: "Save" }).click();
  await expect(ask.getByRole("alert")).toContainText("git -C x push");
  await expect(ask.getByLabel("Command begins with")).toHaveAttribute("aria-invalid", "true");
  await accessible(page);
  await ask.getByLabel("Must match, a script on each line").fill("cd x && git push -f");
  await ask.getByLabel("Must not match").fill("git pull");
  await card.getByRole("tab", { name: "Text" }).click();
  const text = card.getByLabel("The policy as JSON");
  const policy = JSON.parse(await text.inputValue());
  expect(policy).toMatchObject({ task_slots: 3, ask: [{ prefix: ["git", "push"], match: ["cd x && git push -f"], not_match: ["git pull"] }] });
  await text.fill("{");
  await card.getByRole("button", { name: "Save" }).click();
  await expect(card.getByRole("alert")).toContainText("not JSON");
  await text.fill(JSON.stringify({ ...policy, task_slots: 0 }));
  await card.getByRole("button", { name: "Save" }).click();
  await expect(card.getByRole("alert")).toContainText("task slots");
  await text.fill(JSON.stringify({ ...policy, deny: [{ prefix: ["shutdown"], reason: "never" }], network: ["example.org"] }));
  // Somebody else is faster.
  await lab.person("PUT", `/api/nodes/${peer.node}/policy`, { mode: "permissive", task_slots: 7 });
  await card.getByRole("button", { name: "Save" }).click();
  await expect(card.getByRole("alert")).toContainText("Somebody else changed it");
  await card.getByRole("button", { name: "Keep mine" }).click();
  await card.getByRole("button", { name: "Save" }).click();
  await expect(card.getByTestId("in-force")).toBeVisible();
  await expect(card.getByRole("row", { name: /^Denied/ })).toContainText("shutdown");
  await expect(card.getByRole("row", { name: /^Tasks at a time/ })).toContainText("3");
  const changes = page.getByRole("region", { name: "Changes of the policy" });
  await expect(changes).toContainText("denied: + shutdown");
  await expect(changes).toContainText("tasks at a time: 7 → 3");
  await accessible(page);
  expect((await lab.get(`/api/nodes/${peer.node}/policy`)).in_force.policy.deny[0].prefix).toEqual(["shutdown"]);

  // Away: what is wanted waits for it.
  await peer.process.end("SIGKILL");
  await lab.person("PUT", `/api/nodes/${peer.node}/policy`, { mode: "strict" });
  await expect(card).toContainText("when it is back", { timeout: 20_000 });
  peer.restart();
  await expect(card.getByTestId("in-force")).toBeVisible({ timeout: 20_000 });

  // Who may only see the machine changes nothing there.
  await lab.user("bob");
  await lab.fetch("PUT", `/api/nodes/${peer.node}/shares/bob`);
  const his = await (await browser.newContext()).newPage();
  await login(his, lab, "bob", `/machines/${encodeURIComponent(peer.node)}/policy`);
  await expect(his.getByTestId("in-force")).toBeVisible();
  await expect(his.getByRole("button", { name: "Change", exact: true })).toHaveCount(0);
  await his.getByRole("link", { name: "Log", exact: true }).click();
  await expect(his.getByText("Only its owner and administrators")).toBeVisible();
});

test("a machine is drained with what runs said, filled again, and its log tells of all of it", async ({ page, lab }) => {
  await lab.setUp();
  const peer = await lab.machine("mercury");
  const session = await lab.post("/api/sessions", { title: "Work", node_ids: [peer.node] });
  const task = await lab.post(`/api/sessions/${session.id}/dispatch`, { node: peer.node, argv: ["sleep", "300"] });
  await until("it runs", async () => (await lab.get(`/api/tasks/${task.id}`)).state === "running");
  await login(page, lab, "ada", `/machines/${encodeURIComponent(peer.node)}`);
  await page.getByRole("button", { name: "Drain" }).click();
  const drained = page.getByTestId("drained");
  await expect(drained).toContainText("1 task still runs");
  await accessible(page);
  await page.getByRole("button", { name: "Cancel" }).click();
  await expect(drained).toContainText("it can be switched off");
  await page.getByRole("link", { name: "Machines", exact: true }).first().click();
  await expect(page.getByRole("row").filter({ hasText: "mercury" })).toContainText("draining");
  await page.getByRole("link", { name: "mercury" }).click();
  await page.getByRole("button", { name: "Undrain" }).click();
  await expect(drained).toHaveCount(0);
  await page.getByRole("link", { name: "Log", exact: true }).click();
  const log = page.getByRole("region", { name: "What was done" });
  await expect(log.getByRole("row").nth(1)).toContainText("takes tasks again");
  await expect(log.getByRole("row").nth(1)).toContainText("ada");
  await expect(log.getByRole("row").filter({ hasText: "node.drain" })).toContainText("takes no new tasks");
  await expect(log.getByRole("row").filter({ hasText: "task.finish" })).toContainText("the machine itself");
  await lab.fetch("PATCH", `/api/nodes/${peer.node}`, { name: "hermes" });
  await expect(log.getByRole("row").nth(1)).toContainText("node.update");
  await accessible(page);
});

test("secrets are kept and never shown, logins are ended, and relays change as one looks", async ({ page, lab, browser }) => {
  await lab.setUp();
  const peer = await lab.machine("mercury");
  const session = await lab.post("/api/sessions", { title: "Work", node_ids: [peer.node] });
  await login(page, lab, "ada", "/settings");
  const secrets = page.getByRole("region", { name: "Your secrets" });
  await secrets.getByLabel("Name").fill("github");
  await secrets.getByLabel("Value").fill("short");
  await secrets.getByLabel("Value").fill("a-very-secret-value");
  await secrets.getByRole("button", { name: "Keep" }).click();
  await expect(secrets.getByRole("listitem")).toContainText("github");
  await expect(secrets.getByLabel("Value")).toHaveValue("");
  const task = await lab.post(`/api/sessions/${session.id}/dispatch`, { node: peer.node, script: 'test "$TOKEN" = a-very-secret-value', secrets: { TOKEN: "github" } });
  await until("it ended", async () => (await lab.get(`/api/tasks/${task.id}`)).state === "succeeded");
  // Another login, ended here.
  const other = await (await browser.newContext()).newPage();
  await login(other, lab, "ada", "/machines");
  await page.reload();
  await expect(secrets.getByRole("listitem")).toContainText("used by a task");
  expect(await page.content()).not.toContain("a-very-secret-value");
  const logins = page.getByRole("region", { name: "Where you are logged in" });
  await expect(logins.getByRole("listitem").first()).toContainText("this one");
  await accessible(page);
  const count = await logins.getByRole("listitem").count();
  await logins.getByRole("button", { name: "Log out" }).first().click();
  await page.getByRole("dialog").getByRole("button", { name: "Log out" }).click();
  await expect(logins.getByRole("listitem")).toHaveCount(count - 1);
  await other.reload();
  await expect(other.getByRole("button", { name: "Log in" })).toBeVisible();
  await secrets.getByRole("button", { name: "Remove" }).click();
  await page.getByRole("dialog").getByRole("button", { name: "Remove" }).click();
  await expect(secrets.getByText("None yet")).toBeVisible();

  // A relay that starts and ends is seen without asking again and again.
  await page.goto(`${lab.url}/relays`);
  await expect(page.locator("section.card").first()).toContainText(/1\s*machine/);
  let asked = 0;
  page.on("request", (request) => { if (request.url().endsWith("/api/relays")) asked += 1; });
  const relay = await lab.relay();
  await lab.post("/api/relays", { endpoint: relay.endpoint, region: "elsewhere" });
  const card = page.locator("section.card").filter({ hasText: "elsewhere" });
  await expect(card).toContainText("Linked", { timeout: 20_000 });
  await relay.process.end("SIGKILL");
  await expect(card).toContainText("Not linked", { timeout: 20_000 });
  const before = asked;
  expect(before).toBeLessThan(40);
  await accessible(page);
});

test("a bundle that was unpacked in a fresh folder is whole, and brings its machine online", async ({ page, lab }) => {
  test.setTimeout(120_000);
  await lab.setUp();
  await login(page, lab);
  await page.locator(".card.empty").getByRole("button", { name: "Add machine" }).click();
  const dialog = page.getByRole("dialog", { name: "Add a machine" });
  await expect(dialog.getByTestId("one-liner")).toBeVisible();
  await dialog.getByText("Or download program and configuration").click();
  const [download] = await Promise.all([page.waitForEvent("download"), dialog.getByRole("button", { name: "Program + YAML" }).first().click()]);
  expect(download.suggestedFilename()).toMatch(/^cortex-peer-linux-.*\.tar\.gz$/);
  const folder = mkdtempSync(join(tmpdir(), "cortex-bundle-"));
  const file = join(folder, "bundle.tar.gz");
  await download.saveAs(file);
  for (const [path, mode] of [[folder, 0o755], [file, 0o644]] as const) chmodSync(path, mode);
  // As somebody who is not root would, in an empty home.
  const shell = lab.shell(`tar xzf ${file} && cd cortex-peer && ls -l peer.yaml && sha256sum -c SHA256SUMS && exec ./cortex-peer run --config peer.yaml`);
  await until("the sum fits", () => shell.log().includes("cortex-peer: OK"));
  expect(shell.log()).toMatch(/-rw------- .* peer.yaml/);
  await expect(dialog.getByText("exit 0")).toBeVisible({ timeout: 30_000 });
  await expect(dialog.getByText("is ready")).toBeVisible();
  expect((await lab.get("/api/nodes")).items[0].presence.state).toBe("online");
  rmSync(folder, { recursive: true });
});
