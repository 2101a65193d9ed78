// The session's files on the page, on the hub, and on a machine.
import { execFileSync } from "node:child_process";
import { existsSync, mkdirSync, readdirSync, renameSync, writeFileSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { accessible, expect, login, test, until } from "./lab";

test("files are made, edited, uploaded, compared, restored and removed, and machines follow", async ({ page, lab }) => {
  await lab.setUp();
  const peer = await lab.machine("keeper");
  const session = await lab.post("/api/sessions", { title: "Files", node_ids: [peer.node] });
  await lab.putFile(session.id, "src/main.txt", "one\ntwo\nthree\n");
  const folder = join(peer.home, "work", session.id);
  await until("the machine has the file", () => existsSync(join(folder, "src/main.txt")));
  await login(page, lab, "ada", `/sessions/${session.id}/files`);
  await expect(page.getByTestId("copy")).toContainText("in sync");

  await page.getByRole("treeitem", { name: /src/ }).click();
  await page.getByRole("treeitem", { name: /main\.txt/ }).click();
  const content = page.getByLabel("Content of src/main.txt");
  await expect(content).toHaveValue("one\ntwo\nthree\n");
  await accessible(page);
  await content.fill("one\n2\nthree\n");
  await page.keyboard.press("Control+s");
  await expect(page.getByText("not saved")).toHaveCount(0);
  await until("the machine has the edit", () => readFileSync(join(folder, "src/main.txt"), "utf8") === "one\n2\nthree\n");

  // Somebody else writes while this page edits: nothing is lost.
  await content.fill("one\nmine\nthree\n");
  await lab.putFile(session.id, "src/main.txt", "one\ntheirs\nthree\n");
  await expect(page.getByTestId("edit-conflict")).toContainText("theirs");
  await accessible(page);
  await page.getByRole("button", { name: "Save mine over it" }).click();
  await expect(page.getByTestId("edit-conflict")).toHaveCount(0);
  await until("mine is there", () => readFileSync(join(folder, "src/main.txt"), "utf8").includes("mine"));

  // What the machine writes comes by itself; without an edit of ours the page simply shows it.
  writeFileSync(join(folder, "src/main.txt"), "from the machine\n");
  await expect(content).toHaveValue("from the machine\n", { timeout: 20_000 });

  await page.getByRole("button", { name: "History of this file" }).click();
  await expect(page.getByRole("heading", { name: "History of this file" })).toBeVisible();
  const rows = page.locator(".commit");
  await expect(rows).toHaveCount(5);
  await rows.first().locator("button.head").click();
  await expect(page.locator(".diff .add")).toContainText("from the machine");
  await accessible(page);
  await rows.last().getByRole("button", { name: "Restore" }).click();
  await page.getByRole("dialog").getByRole("button", { name: "Restore" }).click();
  await until("it is as it was", () => readFileSync(join(folder, "src/main.txt"), "utf8") === "one\ntwo\nthree\n");
  await page.getByRole("button", { name: "History of this file" }).click();
  await expect(content).toHaveValue("one\ntwo\nthree\n");

  await page.getByLabel("Upload").setInputFiles({ name: "up.bin", mimeType: "application/octet-stream", buffer: Buffer.from([0, 1, 2]) });
  await until("the upload is there", () => existsSync(join(folder, "src/up.bin")));
  await page.getByRole("treeitem", { name: /up\.bin/ }).click();
  await expect(page.getByText("This is not text.")).toBeVisible();
  const [download] = await Promise.all([page.waitForEvent("download"), page.getByRole("button", { name: "Download" }).last().click()]);
  expect(readFileSync(await download.path())).toEqual(Buffer.from([0, 1, 2]));

  await page.getByRole("button", { name: "Lock", exact: true }).click();
  await expect(page.getByText("holds src/up.bin")).toBeVisible();
  await page.getByRole("button", { name: "Give the lock back" }).click();
  await expect(page.getByText("holds src/up.bin")).toHaveCount(0);
  await page.getByRole("button", { name: "Remove" }).click();
  await page.getByRole("dialog").getByRole("button", { name: "Remove" }).click();
  await until("it is gone there too", () => !existsSync(join(folder, "src/up.bin")));
});

test("when both sides change a file, both are kept and a person decides", async ({ page, lab }) => {
  await lab.setUp();
  const peer = await lab.machine("other side");
  const session = await lab.post("/api/sessions", { title: "Both", node_ids: [peer.node] });
  await lab.putFile(session.id, "notes.txt", "base\n");
  const file = join(peer.home, "work", session.id, "notes.txt");
  await until("the machine has it", () => existsSync(file));
  await login(page, lab, "ada", `/sessions/${session.id}/files?file=notes.txt`);
  // Cut off, it cannot know what the page writes.
  peer.process.child.kill("SIGSTOP");
  writeFileSync(file, "on the machine\n");
  const content = page.getByLabel("Content of notes.txt");
  await expect(content).toHaveValue("base\n");
  await content.fill("on the page\n");
  await page.getByRole("button", { name: "Save" }).click();
  await expect(page.getByText("not saved")).toHaveCount(0);
  peer.process.child.kill("SIGCONT");
  const notice = page.getByTestId("conflict");
  await expect(notice).toContainText("notes.txt", { timeout: 30_000 });
  await accessible(page);
  await notice.getByRole("button", { name: "Take theirs" }).click();
  await expect(notice).toHaveCount(0);
  await expect(content).toHaveValue("on the machine\n");
});

test("a machine that differs is named and set right, one that would delete much asks, and what is locked is held until it is given back", async ({ page, lab }) => {
  test.setTimeout(120_000);
  await lab.setUp();
  const peer = await lab.machine("odd one");
  const session = await lab.post("/api/sessions", { title: "Guarded", node_ids: [peer.node] });
  const folder = join(peer.home, "work", session.id);
  const many = Array.from({ length: 30 }, (_, at) => `many/${at}.txt`);
  for (const path of many) await lab.putFile(session.id, path, `file ${path}\n`);
  await until("the machine has them", () => existsSync(join(folder, "many/29.txt")));
  await login(page, lab, "ada", `/sessions/${session.id}/files`);
  const copy = page.getByTestId("copy");
  await expect(copy).toContainText("in sync", { timeout: 20_000 });

  // What it changed while its edits wait is found by a check, said by name, and set right.
  await page.getByRole("button", { name: "Pause" }).click();
  await expect(page.getByText("what machines change waits")).toBeVisible();
  writeFileSync(join(folder, "many/3.txt"), "changed there\n");
  await page.getByRole("button", { name: "Check" }).click();
  const drift = page.getByTestId("drift");
  await expect(drift).toContainText("odd one differs", { timeout: 20_000 });
  await expect(drift).toContainText("many/3.txt");
  await accessible(page);
  await expect(drift.getByRole("button", { name: "Set right" })).toBeDisabled();
  await page.getByRole("button", { name: "Resume" }).click();
  await drift.getByRole("button", { name: "Set right" }).click();
  await expect(drift).toHaveCount(0, { timeout: 20_000 });
  await expect(page.getByText("It is the same again")).toBeVisible();
  await expect(copy).toContainText("in sync", { timeout: 20_000 });

  // Much is deleted only when somebody says yes.
  const asked = page.getByTestId("question");
  renameSync(join(folder, "many"), join(peer.home, "elsewhere"));
  await expect(asked).toContainText("odd one asks", { timeout: 20_000 });
  await accessible(page);
  expect((await lab.get(`/api/sessions/${session.id}/workspace`)).entries).toBe(31);
  await asked.getByRole("button", { name: "No" }).click();
  await until("everything is back", () => existsSync(join(folder, "many/29.txt")));
  await expect(asked).toHaveCount(0, { timeout: 20_000 });
  renameSync(join(folder, "many"), join(peer.home, "elsewhere again"));
  await asked.getByRole("button", { name: "Yes, do it" }).click({ timeout: 20_000 });
  await expect(page.getByText("0 entries")).toBeVisible({ timeout: 20_000 });
  await expect(asked).toHaveCount(0);

  // A lock: who holds it and for how long; what a machine writes there waits, and goes on when it is given back.
  await lab.putFile(session.id, "plan.txt", "ours\n");
  await until("the machine has the plan", () => existsSync(join(folder, "plan.txt")));
  await page.getByRole("treeitem", { name: /plan/ }).click();
  await page.getByRole("button", { name: "Lock", exact: true }).click();
  await expect(page.getByText("holds plan.txt")).toBeVisible();
  writeFileSync(join(folder, "plan.txt"), "theirs\n");
  await expect(copy).toContainText("1 held", { timeout: 20_000 });
  await expect(page.getByLabel("Content of plan.txt")).toHaveValue("ours\n");
  await page.getByRole("button", { name: "Give the lock back" }).click();
  await expect(page.getByLabel("Content of plan.txt")).toHaveValue("theirs\n", { timeout: 20_000 });
  await expect(copy).toContainText("in sync", { timeout: 20_000 });
});

test("twenty thousand entries are scrolled, opened and found at once", async ({ page, lab }) => {
  await lab.setUp();
  const session = await lab.post("/api/sessions", { title: "Large" });
  const folder = join(lab.home, "large");
  for (let d = 0; d < 20; d += 1) {
    mkdirSync(join(folder, `folder-${d}`), { recursive: true });
    for (let f = 0; f < 1000; f += 1) writeFileSync(join(folder, `folder-${d}`, `file-${f}.txt`), `${d}/${f}\n`);
  }
  execFileSync("tar", ["cf", join(lab.home, "large.tar"), "-C", folder, ...readdirSync(folder)]);
  const put = await fetch(`${lab.url}/api/sessions/${session.id}/workspace/archive`, { method: "PUT", body: readFileSync(join(lab.home, "large.tar")), headers: { authorization: `Bearer ${lab.token}`, "content-type": "application/x-tar" } });
  expect(put.ok, await put.text()).toBe(true);
  await login(page, lab, "ada", `/sessions/${session.id}/files`);
  await expect(page.getByText("20,020 entries")).toBeVisible();
  const tree = page.getByRole("tree");
  await expect(page.getByRole("treeitem")).toHaveCount(20);
  await page.getByRole("treeitem", { name: /folder-7\b/ }).click();
  await expect(page.getByRole("treeitem", { name: /file-0\.txt/ })).toBeVisible();
  expect(await page.getByRole("treeitem").count()).toBeLessThan(120);
  // By keyboard alone.
  await tree.focus();
  await page.keyboard.press("End");
  await expect(page.getByRole("treeitem", { name: /folder-19/ })).toBeVisible();
  const began = Date.now();
  await page.getByLabel("Find a file").fill("folder-13/file-777");
  await page.getByRole("treeitem", { name: /file-777/ }).click();
  await expect(page.getByLabel(/^Content of/)).toHaveValue("13/777\n");
  expect(Date.now() - began).toBeLessThan(5000);
});
