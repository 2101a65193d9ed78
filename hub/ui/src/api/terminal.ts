// The way to a terminal: a WebSocket that heals by itself, and knows to the byte how far it has come.
import type { Schemas } from "./client";

/** What the hub tells in text frames. */
export type Opened = { type: "opened"; task_id: string; node_id: string; offset: number; written?: number; columns: number; rows: number; may_type: boolean };
export type Exit = { type: "exit"; state: Schemas["TaskView"]["state"]; exit_code: number | null; signal: number | null; code: string | null; reason: string | null };
type Told = Opened | Exit | { type: "size"; columns: number; rows: number } | { type: "gap"; next_offset: number } | { type: "error"; code: string; detail: string };

/** `behind`: more comes than can be shown; `slow`: the hub says that we take too little; `shut`: we are no longer let in. */
export type Stage = "connecting" | "open" | "waiting" | "behind" | "slow" | "ended" | "shut";

export interface TerminalOptions {
  /** A connection stands. `fresh`: what is shown is to be forgotten first. */
  opened(told: Opened, fresh: boolean): void;
  /** Output; `offset` is that of its first byte. */
  bytes(bytes: Uint8Array, offset: number): void;
  /** Somebody else gave it this size. */
  sized(columns: number, rows: number): void;
  /** Some output was not kept. */
  gap(): void;
  exit(told: Exit): void;
  /** What we asked for was refused. */
  refused(detail: string): void;
  stage(stage: Stage, why: string): void;
  /** The size it should have, or none to leave it as it is. */
  size(): { columns: number; rows: number } | null;
  /** Whether it is worth trying again; asked when a connection could not be made. */
  alive?(): Promise<boolean>;
  /** For tests. */
  socket?: (address: string) => WebSocket;
}

const FIRST_WAIT_MS = 300;
const LONGEST_WAIT_MS = 8_000;
/** The connection before the one that took over is waited for so long, so that what was typed there comes first. */
const HAND_OVER_MS = 2_000;
/** The hub takes frames up to 64 KiB. */
const FRAME_BYTES = 32 * 1024;
export const SLOW = 4408;
export const SHUT_OUT = 4401;

export class TerminalLink {
  #path: string;
  #options: TerminalOptions;
  #socket: WebSocket | null = null;
  /** Of the byte that comes next; none: wherever the hub begins. */
  #offset: number | null = null;
  #wait = FIRST_WAIT_MS;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #over = false;
  /** Takes what is typed; the one before until the next one stands. */
  #writer: WebSocket | null = null;
  /** Typed while the hub may not have read all of the writer before; none: it has. */
  #held: Uint8Array[] | null = null;
  /** Sizes that we asked for and have not heard of yet: the hub tells us of those, too. */
  #asked: string[] = [];
  stage: Stage = "connecting";

  constructor(path: string, options: TerminalOptions) {
    this.#path = path;
    this.#options = options;
    this.#connect();
  }

  /** What is typed; false when nobody is there to take it. */
  type(data: string | Uint8Array): boolean {
    const writer = this.#writer;
    if (!writer) return false;
    const bytes = typeof data === "string" ? new TextEncoder().encode(data) : data;
    if (this.#held) this.#held.push(bytes);
    else for (let at = 0; at < bytes.length; at += FRAME_BYTES) writer.send(bytes.slice(at, at + FRAME_BYTES));
    return true;
  }

  /** Another connection takes what is typed, once the hub has read all of the one before: it closes that one then. */
  #handOver(before: WebSocket): void {
    // One before that is still read is waited for: nothing was typed since.
    if (this.#held) return before.close(1000);
    const held: Uint8Array[] = (this.#held = []);
    const read = () => {
      if (this.#held !== held) return;
      this.#held = null;
      held.forEach((bytes) => this.type(bytes));
    };
    before.onclose = read;
    before.close(1000);
    setTimeout(read, HAND_OVER_MS);
  }

  resize(columns: number, rows: number): void {
    if (!this.#writer) return;
    this.#asked.push(`${columns}x${rows}`);
    this.#writer.send(JSON.stringify({ type: "resize", columns, rows }));
  }

  /** Shows nothing more until {@link latest}; what is typed goes its way. */
  hold(): void {
    if (!this.#over && this.stage === "open") this.#say("behind", "");
  }

  /** Goes on with what is printed now, and skips what was printed before. */
  latest(): void {
    if (this.stage !== "behind" || this.#offset === null) return;
    this.#offset = null;
    this.#connect();
  }

  /** Whatever stood in the way may be over. */
  now(): void {
    if (!this.#over && !this.#socket) this.#connect();
  }

  /** The network has changed: an old connection may be dead without anybody knowing. */
  renew(): void {
    if (this.#over) return;
    this.#leave();
    if (this.stage === "open") this.#say("waiting", "");
    this.#connect();
  }

  close(): void {
    this.#over = true;
    this.#leave();
  }

  #leave(): void {
    clearTimeout(this.#timer);
    const sockets = new Set([this.#socket, this.#writer]);
    this.#socket = this.#writer = this.#held = null;
    for (const socket of sockets) socket?.close(1000);
  }

  #say(stage: Stage, why: string): void {
    this.stage = stage;
    this.#options.stage(stage, why);
  }

  #connect(): void {
    clearTimeout(this.#timer);
    const query = new URLSearchParams();
    const size = this.#options.size();
    if (size) Object.entries({ cols: size.columns, rows: size.rows }).forEach(([key, value]) => query.set(key, String(value)));
    const fresh = this.#offset === null;
    if (this.#offset !== null) query.set("offset", String(this.#offset));
    const make = this.#options.socket ?? ((address: string) => new WebSocket(address));
    const socket = make(`${this.#path}&${query}`);
    socket.binaryType = "arraybuffer";
    this.#socket = socket;
    socket.onmessage = (event: MessageEvent<string | ArrayBuffer>) => {
      if (socket !== this.#socket) return;
      if (typeof event.data !== "string") {
        const bytes = new Uint8Array(event.data);
        const at = this.#offset ?? 0;
        this.#offset = at + bytes.length;
        if (this.stage === "behind") return;
        if (this.stage === "slow") this.#say("open", "");
        this.#options.bytes(bytes, at);
      } else this.#hear(socket, JSON.parse(event.data) as Told, fresh);
    };
    socket.onclose = (event) => {
      if (socket !== this.#socket) return;
      const stood = this.#writer === socket;
      this.#leave();
      void this.#closed(event.code, event.reason, stood);
    };
  }

  #hear(socket: WebSocket, told: Told, fresh: boolean): void {
    if (told.type === "opened") {
      const before = this.#writer;
      this.#writer = socket;
      if (before && before !== socket) this.#handOver(before);
      this.#wait = FIRST_WAIT_MS;
      this.#offset = told.offset;
      this.#asked = [];
      if (this.stage !== "slow") this.#say("open", "");
      this.#options.opened(told, fresh);
    } else if (told.type === "size") {
      // Those before it were overtaken: the hub tells the last one.
      const own = this.#asked.indexOf(`${told.columns}x${told.rows}`);
      this.#asked.splice(0, own + 1);
      if (own < 0) this.#options.sized(told.columns, told.rows);
    } else if (told.type === "gap") {
      this.#offset = told.next_offset;
      this.#options.gap();
    } else if (told.type === "exit") {
      this.#over = true;
      this.#options.exit(told);
      this.#say("ended", "");
    } else this.#options.refused(told.detail);
  }

  async #closed(code: number, reason: string, stood: boolean): Promise<void> {
    if (this.#over) return;
    if (code === SHUT_OUT) {
      this.#over = true;
      return this.#say("shut", reason);
    }
    if (code === SLOW) this.#say("slow", reason);
    else this.#say("waiting", reason);
    if (!stood && this.#options.alive && !(await this.#options.alive())) {
      if (this.#over) return;
      this.#over = true;
      return this.#say("shut", "it is not there any more, or is no longer yours to see");
    }
    if (this.#over || this.#socket) return;
    this.#timer = setTimeout(() => this.#connect(), code === SLOW ? FIRST_WAIT_MS : this.#wait);
    this.#wait = Math.min(this.#wait * 2, LONGEST_WAIT_MS);
  }
}
