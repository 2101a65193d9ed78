// One session as its page shows it: conversation, tasks with their output, what happened to its files; all of it kept true by one stream.
import { all, Failure, get, post, freshKey, send, type EventRow, type NodeSync, type Page, type Session, type Task } from "../api/client";
import { Stream, type Link } from "../api/stream";
import { decode, Output, type StreamName } from "../lib/output";
import { hub } from "./hub.svelte";

const KINDS = ["message", "task", "output", "output_gap", "node_attached", "node_detached", "session_updated", "member_added", "member_removed", "files", "file_conflict", "workspace"];
/** What is in the log beside messages and tasks, and worth a line. */
const NOTED = new Set(["node_attached", "node_detached", "member_added", "member_removed", "files", "file_conflict"]);
/** Lines and tasks that a page keeps. */
const KEPT = 1000;

type OutputEvent = { task: string; stream: StreamName; offset: number; data?: string; base64?: string; next_offset?: number };

export class SessionState {
  readonly id: string;
  session = $state.raw<Session | null>(null);
  lost = $state<"" | "gone" | "failed">("");
  loaded = $state(false);
  messages = $state.raw<EventRow[]>([]);
  notes = $state.raw<EventRow[]>([]);
  tasks = $state.raw<Task[]>([]);
  older = $state<string | null>(null);
  link = $state<Link>("connecting");
  /** How each attached machine's copy does, as the machines say it. */
  sync = $state.raw<Record<string, NodeSync>>({});
  /** Grows whenever files, locks or conflicts may have changed. */
  files = $state(0);

  #outputs = new Map<string, Output>();
  #byId = new Map<string, Task>();
  #stream: Stream;
  #stale = new Set<string>();
  #timer: ReturnType<typeof setTimeout> | undefined;
  #batch: EventRow[] = [];

  constructor(id: string) {
    this.id = id;
    // Live first, then what was before: nothing falls between. Nothing is shown twice either, for messages and tasks have names.
    this.#stream = new Stream(`/api/sessions/${encodeURIComponent(id)}/events?output=true&live=true`, {
      kinds: KINDS,
      on: (kind, data) => this.#hear(kind, data),
      link: (state) => {
        this.link = state;
      },
      read: () => void this.load(),
    });
  }

  close(): void {
    clearTimeout(this.#timer);
    this.#stream.close();
  }

  get #path(): string {
    return `/api/sessions/${encodeURIComponent(this.id)}`;
  }

  async load(): Promise<void> {
    try {
      const [session, tasks, messages] = await Promise.all([get<Session>(this.#path), get<Page<Task>>(`${this.#path}/tasks?limit=100`), all<EventRow>(`${this.#path}/messages`, KEPT * 10)]);
      this.session = session;
      this.#putTasks(tasks.items);
      this.older ??= tasks.next_cursor ?? "";
      this.messages = merge(this.messages, messages);
      this.loaded = true;
      this.files += 1;
    } catch (error) {
      if (error instanceof Failure && error.status === 404) {
        this.lost = "gone";
        this.#stream.close();
      } else if (!this.loaded) setTimeout(() => void this.load(), 1500);
    }
  }

  async loadOlder(): Promise<void> {
    if (!this.older) return;
    const page = await get<Page<Task>>(`${this.#path}/tasks?limit=100&cursor=${encodeURIComponent(this.older)}`);
    this.#putTasks(page.items);
    this.older = page.next_cursor ?? "";
  }

  task(id: string): Task | undefined {
    return this.#byId.get(id);
  }

  output(id: string): Output {
    let output = this.#outputs.get(id);
    if (!output) {
      output = new Output((stream, from, to) => fetchOutput(id, stream, from, to));
      this.#outputs.set(id, output);
    }
    return output;
  }

  /** Runs a command on each of these machines. */
  async run(nodes: string[], spec: { script?: string; stdin?: boolean }): Promise<void> {
    const wanted = nodes.map((node) => post<Task>(`${this.#path}/dispatch`, { node, queue_timeout_ms: 0, ...spec }, { headers: { "Idempotency-Key": freshKey() } }));
    const results = await Promise.allSettled(wanted);
    this.#putTasks(results.flatMap((result) => (result.status === "fulfilled" ? [result.value] : [])));
    const failed = results.find((result) => result.status === "rejected");
    if (failed) throw failed.reason;
  }

  /** A task that was asked for elsewhere on the page. */
  put(task: Task): void {
    this.#putTasks([task]);
  }

  async say(text: string): Promise<void> {
    this.messages = merge(this.messages, [await post<EventRow>(`${this.#path}/messages`, { text })]);
  }

  #hear(kind: string, data: unknown): void {
    if (kind === "output" || kind === "output_gap") {
      const event = data as OutputEvent;
      // What terminals show and browsers answer is read where it is shown.
      const spec = this.#byId.get(event.task)?.spec;
      if (spec?.terminal || spec?.browser) return;
      const output = this.output(event.task);
      if (event.next_offset !== undefined) output.gap(event.stream, event.next_offset);
      else output.piece(event.stream, event.offset, decode(event));
      return;
    }
    const row = data as EventRow;
    const detail = row.data as Record<string, unknown>;
    if (kind === "workspace") {
      this.sync = { ...this.sync, [String(detail.node_id)]: detail.sync as NodeSync };
      return;
    }
    if (kind === "task") {
      const id = String(detail.id);
      const known = this.#byId.get(id);
      if (known) this.#putTasks([{ ...known, ...(detail as Partial<Task>), id, session_id: known.session_id, node_id: known.node_id }]);
      this.#stale.add(id);
    }
    if (kind === "files" || kind === "file_conflict") this.files += 1;
    if (kind === "node_attached" || kind === "node_detached" || kind === "session_updated" || kind.startsWith("member_")) this.#stale.add("");
    this.#batch.push(row);
    this.#timer ??= setTimeout(() => this.#flush(), 30);
  }

  /** What came in a moment is taken in at once: thousands of rows are one change of the page. */
  #flush(): void {
    this.#timer = undefined;
    const rows = this.#batch;
    this.#batch = [];
    this.messages = merge(this.messages, rows.filter((row) => row.kind === "message"));
    this.notes = merge(this.notes, rows.filter((row) => NOTED.has(row.kind))).slice(-KEPT);
    const ids = [...this.#stale];
    this.#stale.clear();
    for (const id of ids) {
      if (id === "") void get<Session>(this.#path).then((session) => { this.session = session; hub.putSession(session); }).catch((error) => { if (error instanceof Failure && error.status === 404) this.lost = "gone"; });
      else void get<Task>(`/api/tasks/${id}`).then((task) => this.#putTasks([task])).catch(() => {});
    }
  }

  #putTasks(tasks: Task[]): void {
    let changed = false;
    for (const task of tasks) {
      const known = this.#byId.get(task.id);
      // What was asked for earlier may come later: a final state stays.
      if (known && known.finished_at_ms != null && task.finished_at_ms == null) continue;
      this.#byId.set(task.id, task);
      changed = true;
    }
    if (changed) this.tasks = [...this.#byId.values()];
  }
}

async function fetchOutput(id: string, stream: StreamName, from: number, to: number | null): Promise<{ bytes: Uint8Array; at: number }> {
  try {
    const response = await send("GET", `/api/tasks/${id}/output?stream=${stream}&offset=${from}`);
    const bytes = new Uint8Array(await response.arrayBuffer());
    return { bytes: to === null ? bytes : bytes.subarray(0, to - from), at: from };
  } catch (error) {
    if (error instanceof Failure && error.code === "output_truncated" && error.body.next_offset != null) return fetchOutput(id, stream, error.body.next_offset, to);
    return { bytes: new Uint8Array(), at: from };
  }
}

/** Rows in the order of the log, each once. */
export function merge(old: EventRow[], rows: EventRow[]): EventRow[] {
  if (!rows.length) return old;
  const by = new Map(old.map((row) => [row.seq, row]));
  for (const row of rows) by.set(row.seq, row);
  return [...by.values()].sort((a, b) => a.seq - b.seq);
}
