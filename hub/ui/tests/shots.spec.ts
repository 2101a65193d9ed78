// Every page in light and dark, wide and narrow: pictures to look at (hub/ui/shots), and no serious finding of axe on any of them.
import { accessible, expect, login, test, until } from "./lab";

for (const scheme of ["light", "dark"] as const) test(`every page can be looked at, ${scheme}`, async ({ page, lab }) => {
  test.setTimeout(240_000);
  await lab.setUp();
  const [one, two] = await Promise.all([lab.machine("studio-linux", { labels: { gpu: "rtx4090", place: "office" } }), lab.machine("build-server", { labels: { arch: "x86" } }), lab.machine("new-laptop", { approval: true })]);
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

  const pages: [string, string][] = [
    ["machines", "/machines"], ["machine", `/machines/${encodeURIComponent(one.node)}`], ["machine-offline", `/machines/${encodeURIComponent(three.node)}`], ["sessions", "/sessions"], ["session", `/sessions/${session.id}`],
    ["files", `/sessions/${session.id}/files?file=src%2Fmain.c`], ["tasks", "/tasks"], ["relays", "/relays"], ["audit", "/audit"], ["tokens", "/tokens"], ["users", "/users"], ["settings", "/settings"],
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
      if (name === "session") await expect(page.locator(".xterm-rows").last()).toContainText(/missing|step/);
      if (name === "files") await expect(page.getByLabel(/^Content of/)).toBeVisible();
      await page.waitForTimeout(350);
      await page.screenshot({ path: `shots/${name}-${scheme}-${width}.png`, fullPage: name !== "session" && name !== "files" });
      if (width === 1440) await accessible(page);
      expect(await page.evaluate(() => document.documentElement.scrollWidth - innerWidth), name).toBeLessThanOrEqual(0);
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
