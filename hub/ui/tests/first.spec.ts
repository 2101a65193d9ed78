// From nothing to "my machine ran a command in my session", as a person does it.
import { accessible, expect, login, PASSWORD, readText, test } from "./lab";

test("an empty hub becomes one whose machine ran a command, in three actions and less than a minute", async ({ page, lab }) => {
  await page.goto(lab.setupLink);
  await expect(page).not.toHaveURL(/setup=/);
  await accessible(page);
  await page.getByLabel("Login name").fill("ada");
  await page.getByLabel("Password").fill(PASSWORD);
  await page.getByRole("button", { name: "Make the administrator" }).click();
  await expect(page.getByRole("heading", { name: "Bring your first machine" })).toBeVisible();
  await accessible(page);

  const began = Date.now();
  await page.locator(".card.empty").getByRole("button", { name: "Add machine" }).click(); // 1
  const dialog = page.getByRole("dialog", { name: "Add a machine" });
  await expect(dialog.getByTestId("one-liner")).toContainText("install.sh");
  await accessible(page);
  await dialog.getByRole("button", { name: "Copy the line" }).click(); // 2
  const line = await dialog.getByTestId("one-liner").innerText();
  const shell = lab.shell(line); // 3
  await expect(dialog.getByText("Invite redeemed"), shell.log()).toBeVisible({ timeout: 40_000 });
  await expect(dialog.getByText("exit 0"), shell.log()).toBeVisible({ timeout: 20_000 });
  await expect(dialog.getByTestId("steps")).toContainText("Linux");
  await expect(dialog.getByText("is ready")).toBeVisible();
  expect(Date.now() - began).toBeLessThan(60_000);
  await accessible(page);
  await dialog.getByRole("button", { name: "Open session" }).click();
  await expect(page.locator(".xterm-rows")).toContainText("Linux");
  await expect(page.locator('[data-state="succeeded"]').first()).toBeVisible();
  await accessible(page);
});

test("a machine that does not come is diagnosed after ten seconds, and an invite that nobody took is taken back", async ({ page, lab }) => {
  await lab.setUp();
  await login(page, lab);
  await page.getByRole("button", { name: "Add machine" }).first().click();
  await expect(page.getByTestId("one-liner")).toBeVisible();
  await expect(page.getByTestId("diagnosis")).toContainText("cortex-peer doctor", { timeout: 14_000 });
  await page.getByRole("tab", { name: /Windows/ }).click();
  await expect(page.getByRole("tabpanel")).toContainText("This hub has no program for Windows");
  await expect(page.getByRole("tabpanel").getByRole("link")).toHaveCount(0);
  await page.keyboard.press("Escape");
  await expect(page.getByRole("dialog")).toHaveCount(0);
  await expect.poll(async () => (await lab.get("/api/nodes/invites")).items[0].state).toBe("revoked");
});

test("by keyboard alone a machine is named, taken along as files, and approved where its steps are shown", async ({ page, lab }) => {
  await lab.setUp();
  await login(page, lab);
  await expect(page.getByRole("heading", { name: "Bring your first machine" })).toBeVisible();
  await page.keyboard.press("a");
  const dialog = page.getByRole("dialog", { name: "Add a machine" });
  await expect(dialog.getByTestId("one-liner")).toBeVisible();
  const first = await dialog.getByTestId("one-liner").textContent();
  await dialog.getByText("Name, approval, expiry").focus();
  await page.keyboard.press("Enter");
  await dialog.getByLabel("Name", { exact: true }).focus();
  await page.keyboard.type("by-key");
  await dialog.getByRole("checkbox", { name: /fingerprint/ }).focus();
  await page.keyboard.press("Space");
  await page.keyboard.press("Tab");
  await page.keyboard.press("Enter");
  await expect(dialog.getByTestId("one-liner")).not.toHaveText(first ?? "");
  await dialog.getByText("Or download program and configuration").focus();
  await page.keyboard.press("Enter");
  await expect(dialog.getByText("not available on this hub")).toBeVisible();
  await dialog.getByRole("button", { name: "peer.yaml" }).focus();
  const [download] = await Promise.all([page.waitForEvent("download"), page.keyboard.press("Enter")]);
  await lab.peer(readText(await download.path()));
  const approve = dialog.getByRole("button", { name: "Same: approve" });
  await expect(approve).toBeVisible();
  const node = (await lab.get("/api/nodes")).items[0];
  await expect(dialog.getByTestId("steps")).toContainText(node.fingerprint);
  await approve.focus();
  await page.keyboard.press("Enter");
  await expect(dialog.getByText("exit 0")).toBeVisible({ timeout: 20_000 });
  await expect(dialog.getByText("by-key is ready")).toBeVisible();
  await page.keyboard.press("Escape");
  await expect(page.getByRole("row").filter({ hasText: "by-key" })).toContainText("Online");
});
