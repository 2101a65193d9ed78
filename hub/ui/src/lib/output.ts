// What tasks print, piece by piece, in the right order and once, whatever the way it comes.

/** The bytes of an `output` event. */
export function decode(event: { data?: string; base64?: string }): Uint8Array {
  if (event.data !== undefined) return new TextEncoder().encode(event.data);
  return Uint8Array.from(atob(event.base64 ?? ""), (c) => c.charCodeAt(0));
}

export const textOf = (bytes: Uint8Array) => new TextDecoder().decode(bytes);

export type StreamName = "stdout" | "stderr";
export type Sink = (bytes: Uint8Array, stream: StreamName) => void;
/** Reads `[from, to)` of a stream from the hub; shorter when some of it was not kept. */
export type Fetch = (stream: StreamName, from: number, to: number | null) => Promise<{ bytes: Uint8Array; at: number }>;

/** How much of a task's output a page keeps: the end of it. */
export const KEPT_BYTES = 8 * 1024 * 1024;

/** The output of one task. Pieces may come live, be fetched, overlap, or begin in the middle; readers see each byte once, in order. */
export class Output {
  #at: Record<StreamName, number> = { stdout: 0, stderr: 0 };
  #kept: { bytes: Uint8Array; stream: StreamName }[] = [];
  #size = 0;
  #sinks = new Set<Sink>();
  #work: Promise<void> = Promise.resolve();
  #fetch: Fetch;
  /** Bytes that are not shown any more, or were never kept. */
  dropped = 0;

  constructor(fetch: Fetch) {
    this.#fetch = fetch;
  }

  get size(): number {
    return this.#at.stdout + this.#at.stderr;
  }

  /** Replays what is there, then goes on; the answer ends it. */
  read(sink: Sink): () => void {
    for (const { bytes, stream } of this.#kept) sink(bytes, stream);
    this.#sinks.add(sink);
    return () => this.#sinks.delete(sink);
  }

  /** A piece that came live. What is missing before it is fetched first. */
  piece(stream: StreamName, offset: number, bytes: Uint8Array): void {
    this.#next(async () => {
      if (offset > this.#at[stream]) await this.#fill(stream, offset);
      this.#take(stream, offset, bytes);
    });
  }

  /** A part that the hub has not kept. */
  gap(stream: StreamName, to: number): void {
    this.#next(async () => this.#skip(stream, to));
  }

  /** Everything that is there up to now. */
  load(): Promise<void> {
    return this.#next(async () => {
      await this.#fill("stdout", null);
      await this.#fill("stderr", null);
    });
  }

  #next(work: () => Promise<void>): Promise<void> {
    this.#work = this.#work.then(work).catch(() => {});
    return this.#work;
  }

  async #fill(stream: StreamName, to: number | null): Promise<void> {
    const { bytes, at } = await this.#fetch(stream, this.#at[stream], to);
    this.#skip(stream, at);
    this.#take(stream, at, bytes);
    if (to !== null) this.#skip(stream, to);
  }

  #skip(stream: StreamName, to: number): void {
    if (to <= this.#at[stream]) return;
    this.dropped += to - this.#at[stream];
    this.#at[stream] = to;
  }

  #take(stream: StreamName, offset: number, bytes: Uint8Array): void {
    const known = this.#at[stream] - offset;
    if (known >= bytes.length) return;
    const fresh = known > 0 ? bytes.subarray(known) : bytes;
    this.#at[stream] = Math.max(this.#at[stream], offset) + fresh.length;
    this.#kept.push({ bytes: fresh, stream });
    this.#size += fresh.length;
    while (this.#size > KEPT_BYTES && this.#kept.length > 1) {
      const oldest = this.#kept.shift();
      this.#size -= oldest?.bytes.length ?? 0;
      this.dropped += oldest?.bytes.length ?? 0;
    }
    for (const sink of this.#sinks) sink(fresh, stream);
  }
}
