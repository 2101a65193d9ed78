// A real hub with a real relay in it, and real peers, each in a temporary folder; ended with the test.
import { type ChildProcess, spawn } from "node:child_process";
import { chownSync, mkdtempSync, rmSync, writeFileSync, appendFileSync, readFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import AxeBuilder from "@axe-core/playwright";
import { expect, type Page, test as base } from "@playwright/test";

const target = process.env.CARGO_TARGET_DIR ?? resolve(import.meta.dirname, "../../../target");
const program = (name: string) => join(target, process.env.PROFILE_DIR ?? "debug", name);
export const PASSWORD = "a long and silly password";

const freePort = () =>
  new Promise<number>((done) => {
    const server = createServer().listen(0, "127.0.0.1", () => {
      const address = server.address();
      server.close(() => done(typeof address === "object" && address ? address.port : 0));
    });
  });

/** Waits until `look` finds something. */
export async function until<T>(what: string, look: () => Promise<T | undefined | null | false> | T | undefined | null | false, ms = 20_000): Promise<T> {
  const end = Date.now() + ms;
  for (;;) {
    const found = await look();
    if (found) return found;
    if (Date.now() > end) throw new Error(`${what}: not within ${ms} ms`);
    await new Promise((go) => setTimeout(go, 40));
  }
}

class Process {
  readonly child: ChildProcess;
  log = "";
  constructor(name: string, args: string[], home: string, as: { uid?: number; gid?: number } = {}) {
    const clean = { PATH: process.env.PATH ?? "", HOME: home, LANG: "C.UTF-8" };
    this.child = spawn(name, args, { cwd: home, env: clean, stdio: ["ignore", "pipe", "pipe"], detached: true, ...as });
    const hear = (bytes: Buffer) => (this.log += bytes.toString());
    this.child.stdout?.on("data", hear);
    this.child.stderr?.on("data", hear);
  }
  get ended(): boolean {
    return this.child.exitCode !== null || this.child.signalCode !== null;
  }
  async end(signal: NodeJS.Signals = "SIGTERM"): Promise<void> {
    if (this.ended || !this.child.pid) return;
    this.child.kill(signal);
    await until("the process ends", () => this.ended, 10_000).catch(() => this.child.kill("SIGKILL"));
  }
  /** It, and whatever it started. */
  async endGroup(): Promise<void> {
    if (!this.child.pid) return;
    try {
      process.kill(-this.child.pid, "SIGKILL");
    } catch {
      // It is gone.
    }
  }
}

export class Peer {
  process: Process;
  constructor(
    readonly home: string,
    readonly node: string,
  ) {
    this.process = this.#spawn();
  }
  #spawn(): Process {
    return new Process(program("cortex-peer"), ["run", "--allow-root", "--config", join(this.home, "peer.yaml")], this.home);
  }
  restart(): void {
    this.process = this.#spawn();
  }
}

export class Lab {
  // Short: Chromium puts a socket far below it, and those have 108 characters.
  home = mkdtempSync(join(tmpdir(), "cx-"));
  process!: Process;
  url = "";
  setupLink = "";
  token = "";
  /** Of the first administrator, for what only people may do. */
  cookie = "";
  #peers: Peer[] = [];
  #others: Process[] = [];
  #homes: string[] = [];

  static async start(): Promise<Lab> {
    const lab = new Lab();
    const [http, relay] = [await freePort(), await freePort()];
    lab.url = `http://127.0.0.1:${http}`;
    writeFileSync(
      join(lab.home, "hub.yaml"),
      JSON.stringify({ data_dir: join(lab.home, "data"), listen: `127.0.0.1:${http}`, relay: { listen: `127.0.0.1:${relay}` }, limits: { logins_per_network: 1000, logins_per_account: 100 } }),
    );
    lab.spawn();
    lab.setupLink = await until("the hub prints its link", () => /\S+#setup=\S+/.exec(lab.process.log)?.[0] ?? (lab.process.ended && Promise.reject(new Error(lab.process.log))));
    return lab;
  }

  spawn(): void {
    this.process = new Process(program("cortex-hub"), ["serve", "--config", join(this.home, "hub.yaml")], this.home);
  }

  async ready(): Promise<void> {
    await until("the hub is ready", async () => (await fetch(`${this.url}/readyz`).catch(() => null))?.ok);
  }

  /** The first administrator, and a token for what a test does beside the page. */
  async setUp(name = "ada"): Promise<void> {
    const setup = await this.fetch("POST", "/api/setup", { token: this.setupLink.split("#setup=")[1], name, password: PASSWORD }, null);
    const cookie = setup.headers.get("set-cookie")?.split(";")[0] ?? "";
    this.cookie = cookie;
    const made = await this.fetch("POST", "/api/tokens", { name: "test", scopes: ["read", "dispatch", "manage", "admin"] }, null, { cookie });
    this.token = ((await made.json()) as { text: string }).text;
  }

  async user(name: string, role = "member"): Promise<string> {
    await this.post("/api/users", { name, password: PASSWORD, role });
    const login = await this.fetch("POST", "/api/login", { name, password: PASSWORD }, null);
    const cookie = login.headers.get("set-cookie")?.split(";")[0] ?? "";
    const scopes = role === "viewer" ? ["read"] : ["read", "dispatch", "manage"];
    const made = await this.fetch("POST", "/api/tokens", { name: "test", scopes }, null, { cookie });
    return ((await made.json()) as { text: string }).text;
  }

  async fetch(method: string, path: string, body?: unknown, token: string | null = this.token, headers: Record<string, string> = {}): Promise<Response> {
    const response = await fetch(this.url + path, {
      method,
      headers: { "content-type": "application/json", origin: this.url, ...(token ? { authorization: `Bearer ${token}` } : {}), ...headers },
      body: body === undefined ? undefined : typeof body === "string" ? body : JSON.stringify(body),
    });
    if (!response.ok) throw new Error(`${method} ${path}: ${response.status} ${await response.text()}`);
    return response;
  }
  // biome-ignore lint: what comes is what the API's description says.
  async get(path: string, token?: string): Promise<any> {
    return (await this.fetch("GET", path, undefined, token)).json();
  }
  async post(path: string, body: unknown = {}, token?: string): Promise<any> {
    const response = await this.fetch("POST", path, body, token);
    return response.status === 204 ? null : response.json();
  }
  /** As the first administrator, logged in. */
  async person(method: string, path: string, body?: unknown): Promise<any> {
    const response = await this.fetch(method, path, body, null, { cookie: this.cookie });
    return response.status === 204 ? null : response.json();
  }
  /** The node says that this policy is in force there. */
  async policy(node: string, policy: unknown): Promise<void> {
    await this.person("PUT", `/api/nodes/${node}/policy`, policy);
    await until("the policy is in force", async () => (await this.get(`/api/nodes/${node}/policy`)).is_in_force);
  }
  async putFile(session: string, path: string, content: string): Promise<any> {
    const address = path.split("/").map(encodeURIComponent).join("/");
    return (await this.fetch("PUT", `/api/sessions/${session}/files/${address}`, content, this.token, { "content-type": "application/octet-stream" })).json();
  }

  /** A machine that is online. */
  async machine(name: string, options: Record<string, unknown> = {}, token?: string, settings = ""): Promise<Peer> {
    const invite = await this.post("/api/nodes/invite", { name, ...options }, token);
    const peer = await this.peer(invite.yaml + settings);
    const node = await until("the invite is redeemed", async () => (await this.get(`/api/nodes/invites/${invite.id}`, token)).node_id as string | null);
    (peer as { node: string }).node = node;
    if (!options.approval) await until("the machine is online", async () => (await this.get(`/api/nodes/${node}`, token)).presence.state === "online");
    return peer;
  }

  async peer(yaml: string): Promise<Peer> {
    const home = mkdtempSync(join(this.home, "p-"));
    writeFileSync(join(home, "peer.yaml"), yaml);
    appendFileSync(join(home, "peer.yaml"), `\nstate_dir: ${join(home, "state")}\nworkspace_dir: ${join(home, "work")}\n`);
    const peer = new Peer(home, "");
    this.#peers.push(peer);
    return peer;
  }

  /** A program that ends with the test, and the folder with it. */
  start(home: string, name: string, args: string[]): Process {
    const process = new Process(name, args, home);
    this.#others.push(process);
    this.#homes.push(home);
    return process;
  }

  /** A relay of its own process, which serves this hub. */
  async relay(): Promise<{ process: Process; endpoint: string }> {
    const key = await until("the hub's key", () => /for relays elsewhere: (\S+)/.exec(this.process.log)?.[1]);
    const home = mkdtempSync(join(tmpdir(), "cortex-relay-"));
    const port = await freePort();
    const process = this.start(home, program("cortex-relay"), ["serve", "--listen", `127.0.0.1:${port}`, "--address", `127.0.0.1:${port}`, "--state-dir", home, "--hub", key]);
    const endpoint = await until("the relay's line", () => /^\S+:\d+#\S+$/m.exec(process.log)?.[0] ?? (process.ended && Promise.reject(new Error(process.log))));
    return { process, endpoint };
  }

  /** Types a line into a fresh shell of somebody with an empty home, who is not root. */
  shell(line: string): { log: () => string } {
    const home = mkdtempSync(join(tmpdir(), "cortex-person-"));
    const nobody = process.getuid?.() === 0 ? { uid: 65_534, gid: 65_534 } : {};
    if (nobody.uid) chownSync(home, nobody.uid, nobody.gid);
    const shell = new Process("sh", ["-c", line], home, nobody);
    this.#others.push(shell);
    this.#homes.push(home);
    return { log: () => shell.log };
  }

  async restart(): Promise<void> {
    await this.process.end();
    this.spawn();
    await this.ready();
  }

  async stop(): Promise<void> {
    for (const other of this.#others) await other.endGroup();
    for (const peer of this.#peers) await peer.process.end("SIGKILL");
    for (const peer of this.#peers) await peer.process.endGroup();
    await this.process.end();
    if (process.env.KEEP_LOGS) writeFileSync("/tmp/cortex-ui-hub.log", this.process.log);
    for (const home of this.#homes) rmSync(home, { recursive: true, force: true, maxRetries: 5 });
    rmSync(this.home, { recursive: true, force: true, maxRetries: 5 });
  }
}

export const readText = (path: string) => readFileSync(path, "utf8");

/** Logs in on the page. */
export async function login(page: Page, lab: Lab, name = "ada", path = "/"): Promise<void> {
  await page.goto(lab.url + path);
  await page.getByLabel("Login name").fill(name);
  await page.getByLabel("Password").fill(PASSWORD);
  await page.getByRole("button", { name: "Log in" }).click();
  await expect(page.getByRole("navigation", { name: "Main" })).toBeAttached();
}

/** No serious findings of axe. */
export async function accessible(page: Page): Promise<void> {
  const { violations } = await new AxeBuilder({ page }).withTags(["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]).exclude(".xterm").analyze();
  const serious = violations.filter(({ impact }) => impact === "serious" || impact === "critical");
  expect(serious.map(({ id, nodes }) => `${id}: ${nodes.map((node) => node.html).join(" | ")}`)).toEqual([]);
}

/** Each test has a lab of its own; a page that breaks the policy of its scripts and styles, or fails by itself, fails the test. */
export const test = base.extend<{ lab: Lab; page: Page }>({
  lab: async ({}, use) => {
    const lab = await Lab.start();
    await use(lab);
    await lab.stop();
  },
  page: async ({ page }, use) => {
    const faults: string[] = [];
    page.on("pageerror", (error) => faults.push(String(error)));
    page.on("console", (message) => {
      if (/Content Security Policy|Refused to/.test(message.text())) faults.push(message.text());
    });
    await use(page);
    expect(faults).toEqual([]);
  },
});
export { expect };
