// What this page knows of the hub: who we are, machines, sessions, and the live link that keeps them true.
import { all, explain, Failure, get, post, whenShutOut, type Health, type Me, type Node, type Page, type Session } from "../api/client";
import { Stream, type Link } from "../api/stream";

const KINDS = ["node", "node_health", "invite", "session", "task", "approval", "relay"];
const HISTORY = 60;
/** More changes than this at once are read as one list, and lists no more often than this: the events themselves say how machines are. */
const ONE_BY_ONE = 12;
const LIST_MS = 1500;
const SOON_MS = 60;
/** Changes of which the event says everything that there is to know: while many of them come nothing is read, and once it is calm the list is, to be sure. */
const TOLD = new Set(["update", "approve", "drain", "undrain", "revoke", "share", "unshare", "health", "path", "refused", "policy", "policy_in_force", "offline"]);
/** So many machines are read first, to have something to show. */
const FIRST = 60;
/** When more than so many news were taken in at once, the next wait for a while: most of the time belongs to whoever looks and scrolls. */
const MANY = 8;
const REST_MS = 120;
/** Where no frames are drawn, as in a tab behind another, changes are taken in after this. */
const UNSEEN_MS = 200;

export type HubEvent = { kind: string; at: number; data: Record<string, unknown> };
export type Toast = { id: number; text: string; bad: boolean };

/** A machine: its record, and what its heartbeats said lately. */
export class Machine {
  node: Node = $state.raw() as Node;
  cpu: number[] = $state.raw([]);
  memory: number[] = $state.raw([]);

  constructor(node: Node) {
    this.node = node;
    if (node.presence.health) this.hear(node.presence.health);
  }

  hear(health: Health): void {
    this.cpu = [...this.cpu.slice(1 - HISTORY), health.cpu_percent];
    this.memory = [...this.memory.slice(1 - HISTORY), (100 * health.memory_used_bytes) / Math.max(1, health.memory_total_bytes)];
  }

  get disk(): number | null {
    const health = this.node.presence.health;
    return health?.disk_total_bytes ? 100 - (100 * health.disk_free_bytes) / health.disk_total_bytes : null;
  }
}

class HubState {
  phase = $state<"loading" | "setup" | "login" | "in" | "unreachable">("loading");
  me = $state.raw<Me | null>(null);
  machines = $state.raw<Machine[]>([]);
  sessions = $state.raw<Session[]>([]);
  ready = $state(false);
  link = $state<Link>("connecting");
  now = $state(Date.now());
  toasts = $state.raw<Toast[]>([]);

  #stream: Stream | null = null;
  #known = new Map<string, Machine>();
  #listeners = new Set<(event: HubEvent) => void>();
  #stale = new Set<string>();
  #untold = false;
  #sessionsSoon: ReturnType<typeof setTimeout> | undefined;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #listed = 0;
  #restUntil = 0;
  #heard: { kind: string; event: { at_ms: number; data: Record<string, unknown> } }[] = [];
  #frame: (() => void) | null = null;
  #toast = 0;

  constructor() {
    setInterval(() => (this.now = Date.now()), 1000);
    whenShutOut(() => {
      if (this.phase === "in") this.#leave();
    });
  }

  async begin(): Promise<void> {
    // Beside the question who we are: whoever is logged in sees machines one round trip earlier.
    const first = get<Page<Node>>(`/api/nodes?limit=${FIRST}`).catch(() => null);
    try {
      await this.enter(await get<Me>("/api/me"), first);
    } catch (error) {
      if (!(error instanceof Failure) || error.status !== 401) {
        this.phase = "unreachable";
        setTimeout(() => void this.begin(), 1500);
        return;
      }
      const { needed } = await get<{ needed: boolean }>("/api/setup").catch(() => ({ needed: false }));
      this.phase = needed ? "setup" : "login";
    }
  }

  async enter(me: Me, first: Promise<Page<Node> | null> = Promise.resolve(null)): Promise<void> {
    this.me = me;
    this.phase = "in";
    this.#stream?.close();
    this.#stream = new Stream("/api/events", {
      kinds: KINDS,
      on: (kind, data) => this.#hear(kind, data as { at_ms: number; data: Record<string, unknown> }),
      link: (state) => {
        this.link = state;
      },
      // Heartbeats are not kept, and a hub that was away for long may have let go of what came before.
      read: () => void this.reload(),
    });
    // Those are shown until everything has been read, which is done when the stream is live: nothing falls between.
    void first.then((page) => { if (page && this.me === me && !this.ready) this.#take(page.items); });
  }

  async reload(): Promise<void> {
    try {
      const [nodes, sessions] = await Promise.all([all<Node>("/api/nodes"), all<Session>("/api/sessions")]);
      this.#take(nodes);
      this.sessions = sessions;
      this.ready = true;
    } catch (error) {
      if (error instanceof Failure && error.status === 401) return;
      setTimeout(() => void this.reload(), 2000);
    }
  }

  async logout(): Promise<void> {
    await post("/api/logout").catch(() => {});
    this.#leave();
  }

  #leave(): void {
    this.#stream?.close();
    this.#stream = null;
    this.#heard = [];
    this.me = null;
    this.ready = false;
    this.#known.clear();
    this.machines = [];
    this.sessions = [];
    this.phase = "login";
  }

  may(scope: "read" | "dispatch" | "manage" | "admin"): boolean {
    const role = this.me?.role;
    if (!this.me?.scopes.includes(scope)) return false;
    return role === "admin" || (role === "member" && scope !== "admin") || scope === "read";
  }

  machine(id: string): Machine | undefined {
    // Read through the list, so that whoever asks hears of changes.
    return this.machines.length ? this.#known.get(id) : undefined;
  }

  nodeName(id: string): string {
    return this.machine(id)?.node.name ?? `${id.slice(0, 8)}…`;
  }

  /** What somebody is called, as far as this page knows. */
  person(id: string, session?: string): string {
    if (id === this.me?.user_id) return this.me.name;
    const within = session ? this.session(session) : undefined;
    if (within?.user_id === id) return within.owner;
    return within?.members.find((member) => member.user_id === id)?.name ?? this.machines.find(({ node }) => node.owner_id === id)?.node.owner ?? `user ${id.slice(0, 6)}…`;
  }

  session(id: string): Session | undefined {
    return this.sessions.find((session) => session.id === id);
  }

  /** Hears every event of the hub until the answer is called. */
  listen(act: (event: HubEvent) => void): () => void {
    this.#listeners.add(act);
    return () => this.#listeners.delete(act);
  }

  put(node: Node): void {
    const known = this.#known.get(node.id);
    if (known) known.node = node;
    else {
      this.#known.set(node.id, new Machine(node));
      this.#list();
    }
  }

  putSession(session: Session): void {
    const rest = this.sessions.filter((other) => other.id !== session.id);
    this.sessions = [session, ...rest].sort((a, b) => b.updated_at_ms - a.updated_at_ms);
  }

  say(text: string, bad = false): void {
    const id = ++this.#toast;
    this.toasts = [...this.toasts.slice(-3), { id, text, bad }];
    setTimeout(() => this.hush(id), bad ? 12_000 : 5_000);
  }

  hush(id: number): void {
    this.toasts = this.toasts.filter((toast) => toast.id !== id);
  }

  /** Does something that may fail, and says so. */
  async attempt<T>(work: () => Promise<T>, done?: string): Promise<T | undefined> {
    try {
      const value = await work();
      if (done) this.say(done);
      return value;
    } catch (error) {
      this.say(explain(error), true);
      return undefined;
    }
  }

  #list(): void {
    this.machines = [...this.#known.values()].sort((a, b) => a.node.name.localeCompare(b.node.name) || (a.node.id < b.node.id ? -1 : 1));
  }

  #take(nodes: Node[]): void {
    const ids = new Set(nodes.map((node) => node.id));
    for (const id of this.#known.keys()) if (!ids.has(id)) this.#known.delete(id);
    for (const node of nodes) {
      const known = this.#known.get(node.id);
      if (known) known.node = node;
      else this.#known.set(node.id, new Machine(node));
    }
    this.#list();
  }

  /** What comes in between two frames is taken in at once: the page is drawn once for all of it. When much comes, between more frames than two. */
  #hear(kind: string, event: { at_ms: number; data: Record<string, unknown> }): void {
    this.#heard.push({ kind, event });
    if (this.#frame) return;
    const rest = Math.max(0, this.#restUntil - performance.now());
    let frame = 0;
    const pause = setTimeout(() => (frame = requestAnimationFrame(() => this.#frame?.())), rest);
    const unseen = setTimeout(() => this.#frame?.(), rest + UNSEEN_MS);
    this.#frame = () => {
      clearTimeout(pause);
      clearTimeout(unseen);
      cancelAnimationFrame(frame);
      this.#frame = null;
      const heard = this.#heard;
      this.#heard = [];
      if (heard.length > MANY) this.#restUntil = performance.now() + REST_MS;
      // Of heartbeats only a machine's last one is worth drawing.
      const last = new Map(heard.filter(({ kind }) => kind === "node_health").map((one) => [one.event.data.node_id, one]));
      for (const one of heard) if (one.kind !== "node_health" || last.get(one.event.data.node_id) === one) this.#takeIn(one.kind, one.event);
    };
  }

  #takeIn(kind: string, event: { at_ms: number; data: Record<string, unknown> }): void {
    const data = event.data;
    if (kind === "node" || kind === "node_health") this.#hearNode(kind, data);
    if (kind === "session") this.#sessionsSoon ??= setTimeout(() => void this.#readSessions(), SOON_MS);
    for (const listener of this.#listeners) listener({ kind, at: event.at_ms, data });
  }

  #hearNode(kind: string, data: Record<string, unknown>): void {
    const id = String(data.node_id);
    const change = String(data.change);
    const machine = this.#known.get(id);
    if (change === "deleted") {
      if (this.#known.delete(id)) this.#list();
      return;
    }
    if (machine) {
      const { node_id: _, change: __, name, labels, standing, approved_at_ms, shared_with, refusal, path_policy, drained_at_ms, ...presence } = data;
      const node = machine.node;
      const own = kind === "node" ? { name, labels, standing, approved_at_ms, shared_with, refusal, path_policy, drained_at_ms } : {};
      const news = { ...node, ...own, presence: { ...node.presence, ...presence } } as Node;
      if (news.presence.state !== "online" && news.presence.state !== "degraded") news.presence.health = null;
      machine.node = news;
      if (news.name !== node.name) this.#list();
      if (kind === "node_health" && data.health) machine.hear(data.health as Health);
    }
    if (kind === "node") {
      this.#stale.add(id);
      this.#untold ||= !machine || !TOLD.has(change);
      this.#soon();
    }
  }

  #soon(): void {
    const many = this.#stale.size > ONE_BY_ONE;
    if (many && !this.#untold) clearTimeout(this.#timer);
    else if (this.#timer !== undefined) return;
    const wait = !many ? SOON_MS : this.#untold ? Math.max(SOON_MS, this.#listed + LIST_MS - Date.now()) : LIST_MS;
    this.#timer = setTimeout(() => {
      this.#timer = undefined;
      // Meanwhile there may be more of them.
      if (!many && this.#stale.size > ONE_BY_ONE) this.#soon();
      else void this.#refresh();
    }, wait);
  }

  async #refresh(): Promise<void> {
    const ids = [...this.#stale];
    this.#stale.clear();
    this.#untold = false;
    try {
      if (ids.length > ONE_BY_ONE) {
        this.#listed = Date.now();
        this.#take(await all<Node>("/api/nodes"));
      }
      else await Promise.all(ids.map((id) => this.#look(id)));
    } catch {
      // The link says when the hub is back, and everything is read then.
    }
  }

  async #readSessions(): Promise<void> {
    this.#sessionsSoon = undefined;
    this.sessions = await all<Session>("/api/sessions").catch(() => this.sessions);
  }

  async #look(id: string): Promise<void> {
    try {
      this.put(await get<Node>(`/api/nodes/${encodeURIComponent(id)}`));
    } catch (error) {
      if (error instanceof Failure && error.status === 404 && this.#known.delete(id)) this.#list();
    }
  }
}

export const hub = new HubState();
