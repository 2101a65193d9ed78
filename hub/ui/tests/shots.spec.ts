// Every page in light and dark, wide and narrow: pictures to look at (hub/ui/shots), and no serious finding of axe on any of them.
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { accessible, expect, login, test, until } from "./lab";

const BOARD = `<!doctype html><title>Nightly builds</title><style>body{font:16px sans-serif;margin:40px;background:#fff;color:#222}td,th{padding:10px 24px;border-bottom:1px solid #ddd;text-align:left}button{padding:8px 16px}</style>
<h1>Nightly builds</h1><table><tr><th>Machine<th>Took<th>State</tr><tr><td>studio-linux<td>12 min<td>passed</tr><tr><td>build-server<td>40 min<td>passed</tr></table><p><button onclick="document.body.append('started'); console.error('queue is full'); console.log('run', 812)">Run again</button>
<script>console.log("board ready"); fetch("/api/builds").then((answer) => answer.text())</script>`;

for (const scheme of ["light", "dark"] as const) test(`every page can be looked at, ${scheme}`, async ({ page, lab }) => {
  test.setTimeout(240_000);
  await lab.setUp();
  const [one, two] = await Promise.all([lab.machine("studio-linux", { labels: { gpu: "rtx4090", place: "office" } }, undefined, "\nbrowser:\n  allow_addresses: ['127.0.0.1']\n"), lab.machine("build-server", { labels: { arch: "x86" } }), lab.machine("new-laptop", { approval: true })]);
  const three = await lab.machine("old-nas");
  await three.process.end("SIGTERM");
  await lab.user("bob");
  const session = await lab.post("/api/sessions", { title: "Why is the build slow?", node_ids: [one.node, two.node] });
  await lab.post("/api/sessions", { title: "Photos from the NAS", node_ids: [three.node] });
  await lab.fetch("PUT", `/api/sessions/${session.id}/members/bob`, { role: "member" });
  await lab.post(`/api/sessions/${session.id}/messages`, { text: "The nightly build takes 40 minutes on build-server, and 12 on mine. Let us look at both." });
  for (const [path, text] of [["README.md", "# Build\n\nRun `make`.\n"], ["src/main.c", '#include <stdio.h>\n\nint main(void) {\n    printf("hello\\n");\n    return 0;\n}\n'], ["src/util/list.c", "/* nothing */\n"], ["Makefile", "all:\n\tcc -O2 -o app src/main.c\n"]] as const) await lab.putFile(session.id, path, text);
  await lab.putFile(session.id, "src/main.c", '#include <stdio.h>\n\nint main(int argc, char **argv) {\n    (void)argv;\n    printf("hello %d\\n", argc);\n    return 0;\n}\n');
  for (const script of ["printf '\\033[1;34mcpu\\033[0m  '; nproc; free -m | head -2; for i in 1 2 3 4; do printf '\\033[32mok\\033[0m  step %s\\n' $i; done", "test -e missing || { echo 'no such file: missing' >&2; exit 2; }"])
    await Promise.all([one, two].map(({ node }) => lab.post(`/api/sessions/${session.id}/dispatch`, { node, script })));
  await until("the tasks have ended", async () => (await lab.get(`/api/sessions/${session.id}/tasks`)).items.every((task: { finished_at_ms: number | null }) => task.finished_at_ms));
  await lab.post(`/api/sessions/${session.id}/messages`, { text: "Same cores. Then it is the disk." });
  await lab.post(`/api/sessions/${session.id}/workspace/lock`, { prefix: "src/util", lease_ms: 600_000, owner: "ada" });

  // A terminal in which something was done, and a browser that was shown a page.
  const terminal = await lab.post(`/api/sessions/${session.id}/dispatch`, { node: one.node, script: "printf '\\033[1;32mada@studio-linux\\033[0m:\\033[1;34m~/build\\033[0m$ time make\\ncc -O2 -o app src/main.c\\n\\nreal\\t0m12.4s\\n\\033[1;32mada@studio-linux\\033[0m:\\033[1;34m~/build\\033[0m$ '; sleep 600", terminal: { columns: 100, rows: 30 }, stdin: true });
  const board = createServer((request, response) => { response.writeHead(request.url === "/" ? 200 : 404, { "content-type": "text/html; charset=utf-8" }); response.end(request.url === "/" ? BOARD : "no such page"); });
  await new Promise<void>((done) => board.listen(0, "127.0.0.1", done));
  const act = (action: unknown) => lab.post(`/api/sessions/${session.id}/browser`, { node: one.node, order: { action } });
  await act({ batch: { steps: [{ navigate: { url: `http://127.0.0.1:${(board.address() as AddressInfo).port}/` } }, { screenshot: {} }] } });
  await act({ click: { target: "button" } });
  await act({ snapshot: {} });
  await act({ screenshot: {} });
  board.close();

  await lab.policy(two.node, {
    mode: "permissive", task_slots: 4, run_timeout_ms: 3_600_000, network: ["github.com:443", "*.crates.io"],
    ask: [{ prefix: ["git", "push"], reason: "it leaves this machine", match: ["cd app && git push -f"], not_match: ["git pull"] }, { prefix: ["docker"] }],
    deny: [{ prefix: ["shutdown"], reason: "the night builds need it" }],
  });
  for (const script of ["docker ps", "cd app && git push origin main", "docker system prune --all --force"]) await lab.post(`/api/sessions/${session.id}/dispatch`, { node: two.node, script, env: { CI: "1" } });
  const [first] = (await lab.get("/api/approvals")).items;
  await lab.person("POST", `/api/approvals/${first.task_id}/approve`, { reach: "half_hour" });
  await lab.fetch("PUT", "/api/secrets/github", { value: "a-very-secret-value" });
  const busy = await lab.post(`/api/sessions/${session.id}/dispatch`, { node: one.node, argv: ["sleep", "600"] });
  await until("it runs", async () => (await lab.get(`/api/tasks/${busy.id}`)).state === "running");
  await lab.post(`/api/nodes/${one.node}/drain`);

  const pages: [string, string][] = [
    ["machines", "/machines"], ["machine", `/machines/${encodeURIComponent(one.node)}`], ["machine-offline", `/machines/${encodeURIComponent(three.node)}`], ["machine-policy", `/machines/${encodeURIComponent(two.node)}/policy`], ["machine-log", `/machines/${encodeURIComponent(two.node)}/log`], ["approvals", "/approvals"], ["sessions", "/sessions"], ["session", `/sessions/${session.id}`],
    ["files", `/sessions/${session.id}/files?file=src%2Fmain.c`], ["terminal", `/sessions/${session.id}/terminal?at=${terminal.id}`], ["browser", `/sessions/${session.id}/browser`], ["tasks", "/tasks"], ["relays", "/relays"], ["audit", "/audit"], ["tokens", "/tokens"], ["users", "/users"], ["settings", "/settings"],
  ];
  const only = process.env.SHOTS?.split(",");
  await page.emulateMedia({ colorScheme: scheme, reducedMotion: "reduce" });
  await page.context().clearCookies();
  await page.setViewportSize({ width: 1440, height: 900 });
  await page.goto(lab.url);
  await expect(page.getByRole("button", { name: "Log in" })).toBeVisible();
  await page.screenshot({ path: `shots/login-${scheme}-1440.png` });
  await login(page, lab);
  for (const width of [1440, 390]) {
    await page.setViewportSize({ width, height: width === 390 ? 844 : 900 });
    for (const [name, path] of pages.filter(([name]) => !only || only.includes(name))) {
      await page.goto(lab.url + path);
      await expect(page.locator("main h1").first()).toBeVisible();
      if (name === "session") await expect(page.getByText("docker system prune").last()).toBeInViewport();
      if (name === "terminal") await expect(page.locator("#terminal-pane .xterm-rows")).toContainText("12.4s");
      if (name === "browser") await expect(page.getByRole("region", { name: "What was seen" }).getByRole("img")).toBeVisible();
      if (name === "files") await expect(page.getByLabel(/^Content of/)).toBeVisible();
      if (name === "machine-policy") await expect(page.getByTestId("in-force")).toBeVisible();
      if (name === "machine-log") await expect(page.getByRole("row").nth(2)).toBeVisible();
      await page.waitForTimeout(350);
      await page.screenshot({ path: `shots/${name}-${scheme}-${width}.png`, fullPage: !["session", "files", "terminal"].includes(name) });
      if (width === 1440) await accessible(page);
      expect(await page.evaluate(() => document.documentElement.scrollWidth - innerWidth), name).toBeLessThanOrEqual(0);
    }
    if (!only || only.includes("policy-editor")) {
      await page.goto(`${lab.url}/machines/${encodeURIComponent(two.node)}/policy`);
      await page.getByRole("button", { name: "Change", exact: true }).click();
      await page.screenshot({ path: `shots/policy-editor-${scheme}-${width}.png`, fullPage: true });
    }
    await page.goto(`${lab.url}/machines`);
    await page.getByRole("button", { name: "Add machine" }).first().click();
    await expect(page.getByTestId("one-liner")).toBeVisible();
    await page.screenshot({ path: `shots/add-${scheme}-${width}.png` });
    if (width === 390) {
      await page.keyboard.press("Escape");
      await page.getByRole("button", { name: "Menu" }).click();
      await page.screenshot({ path: `shots/menu-${scheme}-${width}.png` });
    }
  }
});
