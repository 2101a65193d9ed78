// Several people, machines that come and go, tokens, audit.
import { accessible, expect, login, test, until } from "./lab";

test("two people do not see each other's things until they share them", async ({ page, lab, browser }) => {
  await lab.setUp();
  const bob = await lab.user("bob");
  const peer = await lab.machine("adas machine");
  const session = await lab.post("/api/sessions", { title: "adas session", node_ids: [peer.node] });
  await lab.post(`/api/sessions/${session.id}/messages`, { text: "adas secret" });
  await login(page, lab, "bob");
  await expect(page.getByRole("heading", { name: "Bring your first machine" })).toBeVisible();
  await expect(page.getByRole("link", { name: "Users" })).toHaveCount(0);
  await page.goto(`${lab.url}/sessions/${session.id}`);
  await expect(page.getByText("There is no such session")).toBeVisible();
  await page.goto(`${lab.url}/machines/${encodeURIComponent(peer.node)}`);
  await expect(page.getByText("There is no such machine")).toBeVisible();
  await page.goto(`${lab.url}/tasks`);
  await expect(page.getByText("No tasks yet")).toBeVisible();
  await page.goto(`${lab.url}/sessions`);
  await expect(page.getByText("No sessions yet")).toBeVisible();

  // Ada shares; bob sees it without doing anything.
  const hers = await (await browser.newContext()).newPage();
  await login(hers, lab, "ada", `/sessions/${session.id}`);
  await hers.getByRole("button", { name: "Share" }).click();
  await hers.getByRole("dialog").getByLabel("Login name").fill("bob");
  await hers.getByRole("dialog").getByLabel("Role").selectOption("viewer");
  await hers.getByRole("dialog").getByRole("button", { name: "Share" }).click();
  await expect(hers.getByRole("dialog").getByRole("listitem")).toContainText("bob");
  await page.getByRole("link", { name: /adas session/ }).click();
  await expect(page.getByText("adas secret")).toBeVisible();
  await expect(page.getByLabel("Command")).toHaveCount(0);
  await expect(page.getByRole("button", { name: /Detach/ })).toHaveCount(0);
  // And when it is taken back, it is gone.
  await hers.getByRole("dialog").getByRole("button", { name: "Take back" }).click();
  await expect(page.getByText("There is no such session")).toBeVisible({ timeout: 20_000 });
  expect((await lab.get("/api/sessions", bob)).items).toEqual([]);
});

test("machines come, go, wait for approval, and are renamed, labelled, revoked and removed, all of it live", async ({ page, lab }) => {
  await lab.setUp();
  const peer = await lab.machine("mercury");
  await login(page, lab);
  const row = page.getByRole("row").filter({ hasText: "mercury" });
  await expect(row).toContainText("Online");
  await peer.process.end("SIGKILL");
  await expect(row).toContainText("Offline", { timeout: 20_000 });
  peer.restart();
  await expect(row).toContainText("Online", { timeout: 20_000 });
  await lab.machine("venus", { approval: true });
  const waiting = page.getByRole("row").filter({ hasText: "venus" });
  await expect(waiting).toContainText("Needs approval");
  await accessible(page);
  await waiting.getByRole("button", { name: /approve/ }).click();
  await expect(waiting).toContainText("Online", { timeout: 20_000 });
  await page.getByRole("link", { name: "venus" }).click();
  await page.getByRole("button", { name: "Rename" }).click();
  await page.getByLabel("Name", { exact: true }).fill("terra");
  await page.getByRole("dialog").getByRole("button", { name: "Rename" }).click();
  await expect(page.getByRole("heading", { name: "terra" })).toBeVisible();
  await page.getByLabel("New label").fill("gpu=yes");
  await page.getByRole("button", { name: "Add", exact: true }).click();
  await expect(page.getByText("gpu=yes")).toBeVisible();
  await page.getByRole("button", { name: "Revoke" }).click();
  await page.getByRole("dialog").getByRole("button", { name: "Revoke" }).click();
  await expect(page.getByText("Why it is not here")).toBeVisible();
  await page.getByRole("button", { name: "Remove", exact: true }).click();
  await page.getByRole("dialog").getByRole("button", { name: "Remove" }).click();
  await expect(page.getByRole("row").filter({ hasText: "terra" })).toHaveCount(0);
});

test("tokens, users, audit and passwords", async ({ page, lab }) => {
  await lab.setUp();
  await login(page, lab, "ada", "/tokens");
  await page.getByRole("button", { name: "Make a token" }).click();
  await page.getByLabel("What it is for").fill("assistant");
  await page.getByRole("dialog").getByRole("button", { name: "Make", exact: true }).click();
  const text = await page.getByTestId("token").innerText();
  expect(text).toMatch(/^cxt_/);
  expect((await lab.get("/api/me", text)).scopes.sort()).toEqual(["dispatch", "read"]);
  await page.getByRole("row").filter({ hasText: "assistant" }).getByRole("button", { name: "Revoke" }).click();
  await page.getByRole("dialog").getByRole("button", { name: "Revoke" }).click();
  await until("the token is no good", async () => (await fetch(`${lab.url}/api/me`, { headers: { authorization: `Bearer ${text}` } })).status === 401);

  await page.getByRole("link", { name: "Users" }).click();
  await page.getByRole("button", { name: "Add user" }).click();
  await page.getByLabel("Login name").fill("carol");
  await page.getByLabel("First password").fill("a fine long password");
  await page.getByRole("dialog").getByRole("button", { name: "Add", exact: true }).click();
  const carol = page.getByRole("row").filter({ hasText: "carol" });
  await expect(carol).toContainText("active");
  await carol.getByRole("button", { name: "Shut out" }).click();
  await expect(carol).toContainText("shut out");

  await page.getByRole("link", { name: "Audit" }).click();
  const rows = page.locator("tbody tr");
  await expect(rows.first()).toContainText("ada");
  const numbers = (await rows.locator("td:first-child").allInnerTexts()).map(Number);
  expect(numbers, "newest first").toEqual(Array.from(numbers, (_, at) => numbers.length - at));
  await page.getByRole("button", { name: "Verify the chain" }).click();
  await expect(page.getByRole("status").filter({ hasText: "The chain holds" })).toBeVisible();
  await accessible(page);
  await page.getByRole("button", { name: "Log out" }).click();
  await expect(page.getByRole("button", { name: "Log in" })).toBeVisible();
  await page.getByLabel("Login name").fill("ada");
  await page.getByLabel("Password").fill("wrong");
  await page.getByRole("button", { name: "Log in" }).click();
  await expect(page.getByRole("alert")).toBeVisible();
});
