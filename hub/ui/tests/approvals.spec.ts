// Questions to a person: they show themselves wherever the person is, are answered, remembered and taken back.
import { accessible, expect, login, test, until } from "./lab";

const asking = (...words: string[]) => ({ mode: "permissive", ask: [{ prefix: words, reason: "look first", match: [words.join(" ")] }] });

test("a question shows itself at once, and is answered on its page, by keyboard, and in the conversation", async ({ page, lab }) => {
  await lab.setUp();
  const peer = await lab.machine("careful");
  await lab.policy(peer.node, asking("touch"));
  const session = await lab.post("/api/sessions", { title: "Questions", node_ids: [peer.node] });
  const run = (words: string, more: Record<string, unknown> = {}) => lab.post(`/api/sessions/${session.id}/dispatch`, { node: peer.node, argv: words.split(" "), ...more });
  const state = async (task: { id: string }) => (await lab.get(`/api/tasks/${task.id}`)).state as string;
  await login(page, lab, "ada", "/machines");
  await expect(page.locator(".link.live")).toBeVisible();
  await expect(page.getByRole("link", { name: /Approvals/ })).not.toContainText("1");

  const asked = Date.now();
  const first = await run("touch made", { env: { DEEP: "thought" } });
  await expect(page.getByRole("link", { name: /Approvals.*waiting for you/ })).toContainText("1");
  expect(Date.now() - asked).toBeLessThan(2_000);
  await expect(page).toHaveTitle(/^\(1\)/);
  await page.keyboard.press("g");
  await page.keyboard.press("p");
  const card = page.getByRole("article").filter({ hasText: "touch made" });
  for (const text of ["A program of", "ada", "careful", "Questions", "look first", "DEEP=thought", "In the session's folder"]) await expect(card).toContainText(text);
  await expect(card).toContainText(/9:\d\d/);
  await accessible(page);
  // What came by one key.
  await page.keyboard.press("j");
  await page.keyboard.press("y");
  await expect(card).toHaveCount(0);
  await until("it ran", async () => (await state(first)) === "succeeded");
  await expect(page.getByRole("heading", { name: "Nobody waits for you" })).toBeVisible();
  await expect(page.getByText("Allowed without asking again")).toHaveCount(0);

  // Denied, with a word for whoever asked.
  const second = await run("touch made");
  const again = page.getByRole("article").filter({ hasText: "touch made" });
  await again.focus();
  await page.keyboard.press("n");
  await page.keyboard.type("not now");
  await page.keyboard.press("Enter");
  await expect(again).toHaveCount(0);
  expect((await lab.get(`/api/tasks/${second.id}`)).reason).toContain("not now");

  // For commands that begin so: what does not fit is said where it was written.
  await run("touch one");
  const third = page.getByRole("article").filter({ hasText: "touch one" });
  await third.getByRole("button", { name: "Commands like it" }).click();
  await expect(third.getByLabel(/begins with/)).toHaveValue("touch one");
  await third.getByLabel(/begins with/).fill("ls");
  await third.getByRole("button", { name: "Allow these" }).click();
  await expect(third.getByRole("alert")).toContainText("other commands");
  await third.getByLabel(/begins with/).fill("touch");
  await third.getByRole("button", { name: "Allow these" }).click();
  const allowed = page.getByRole("region", { name: "What is allowed" });
  await expect(allowed.getByRole("row").filter({ hasText: "commands that begin so" })).toContainText("touch");
  expect(await state(await run("touch two"))).not.toBe("awaiting_approval");
  await accessible(page);
  await allowed.getByRole("button", { name: "Take back" }).click();
  await page.getByRole("dialog").getByRole("button", { name: "Take back" }).click();
  await expect(allowed).toHaveCount(0);

  // In the conversation, beside its task; and nobody's answer means no.
  await page.goto(`${lab.url}/sessions/${session.id}`);
  const fourth = await run("touch three");
  const panel = page.locator(`#task-${fourth.id}`);
  await expect(panel).toContainText("look first");
  await panel.getByRole("button", { name: "30 minutes" }).click();
  await expect(panel).toContainText("exit 0");
  await expect(panel).toContainText("allowed by ada");
  const fifth = await run("touch four", { approval_timeout_ms: 1_500 });
  await expect(page.locator(`#task-${fifth.id}`)).toContainText("look first");
  await expect(page.locator(`#task-${fifth.id}`)).toContainText("which means no");
  await expect(page.getByRole("link", { name: /Approvals/ })).not.toContainText("1");
});

test("who may not answer is shown who must, and a telephone shows that something waits", async ({ page, lab }) => {
  await lab.setUp();
  const peer = await lab.machine("careful");
  await lab.policy(peer.node, asking("touch"));
  const bob = await lab.user("bob");
  const session = await lab.post("/api/sessions", { title: "Shared", node_ids: [peer.node] });
  await lab.fetch("PUT", `/api/sessions/${session.id}/members/bob`, { role: "member" });
  await lab.post(`/api/sessions/${session.id}/dispatch`, { node: peer.node, argv: ["touch", "x"] }, bob);
  await login(page, lab, "bob", "/approvals");
  const card = page.getByRole("article").filter({ hasText: "touch x" });
  await expect(card).toContainText("owner or an administrator");
  await expect(card.getByRole("button")).toHaveCount(0);
  await page.getByRole("button", { name: "Log out" }).click();
  await login(page, lab, "ada", "/machines");
  await page.setViewportSize({ width: 390, height: 844 });
  await page.getByRole("link", { name: "1 waiting for your approval" }).click();
  await expect(page.getByRole("article").filter({ hasText: "touch x" })).toContainText("bob");
  await page.getByRole("button", { name: "Allow once" }).click();
  await expect(page.getByRole("heading", { name: "Nobody waits for you" })).toBeVisible();
  expect(await page.evaluate(() => document.documentElement.scrollWidth - innerWidth)).toBeLessThanOrEqual(0);
});
