// Event streams that heal by themselves: after a cut they go on exactly behind the last event that was seen.

export type Link = "connecting" | "live" | "waiting";

export interface StreamOptions {
  /** Kinds of events to hear. */
  kinds: string[];
  /** Called for each of them, in order. */
  on(kind: string, data: unknown, id: string): void;
  /** Called whenever the link changes. */
  link?(state: Link): void;
  /** Called when what was before the stream is to be read: each time that it is live, for from then on it misses nothing, and once when that takes long or fails. */
  read?(): void;
  /** How long a tab that nobody looks at keeps its connection; none: a minute. */
  hiddenMs?: number;
  /** For tests. */
  source?: typeof EventSource;
}

const FIRST_WAIT_MS = 500;
const LONGEST_WAIT_MS = 8_000;
/** What is there is shown after so long at the latest, whatever the stream does. */
const PATIENCE_MS = 1_000;
/** Browsers allow six connections to a host: tabs that nobody looks at give theirs back. */
const HIDDEN_MS = 60_000;

export class Stream {
  #path: string;
  #options: StreamOptions;
  #source: EventSource | null = null;
  #last = "";
  #wait = FIRST_WAIT_MS;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #hidden: ReturnType<typeof setTimeout> | undefined;
  #late: ReturnType<typeof setTimeout> | undefined;
  #wasLive = false;
  #closed = false;

  constructor(path: string, options: StreamOptions) {
    this.#path = path;
    this.#options = options;
    if (typeof document !== "undefined") {
      document.addEventListener("visibilitychange", this.#seen);
      window.addEventListener("online", this.#now);
    }
    this.#late = setTimeout(this.#readAnyway, PATIENCE_MS);
    this.#open();
  }

  close(): void {
    this.#closed = true;
    clearTimeout(this.#late);
    clearTimeout(this.#timer);
    clearTimeout(this.#hidden);
    this.#source?.close();
    if (typeof document !== "undefined") {
      document.removeEventListener("visibilitychange", this.#seen);
      window.removeEventListener("online", this.#now);
    }
  }

  #open(): void {
    if (this.#closed) return;
    clearTimeout(this.#timer);
    this.#source?.close();
    this.#options.link?.(this.#wasLive ? "waiting" : "connecting");
    const mark = this.#last ? `${this.#path.includes("?") ? "&" : "?"}last_event_id=${encodeURIComponent(this.#last)}` : "";
    const source = new (this.#options.source ?? EventSource)(this.#path + mark);
    this.#source = source;
    source.onopen = () => {
      if (source !== this.#source) return;
      this.#wait = FIRST_WAIT_MS;
      this.#wasLive = true;
      clearTimeout(this.#late);
      this.#late = undefined;
      this.#options.link?.("live");
      this.#options.read?.();
    };
    // What the browser would do itself it does only for some failures: here it is the same for all of them.
    source.onerror = (event) => {
      // The hub may tell of something that is called "error": that has data, and is heard below.
      if (source !== this.#source || this.#closed || "data" in event) return;
      source.close();
      this.#source = null;
      this.#options.link?.("waiting");
      if (this.#late !== undefined) this.#readAnyway();
      this.#timer = setTimeout(() => this.#open(), this.#wait);
      this.#wait = Math.min(this.#wait * 2, LONGEST_WAIT_MS);
    };
    for (const kind of this.#options.kinds) {
      source.addEventListener(kind, (event) => {
        if (source !== this.#source || !("data" in event)) return;
        const message = event as MessageEvent<string>;
        if (message.lastEventId) this.#last = message.lastEventId;
        this.#options.on(kind, JSON.parse(message.data), message.lastEventId);
      });
    }
  }

  #readAnyway = () => {
    clearTimeout(this.#late);
    this.#late = undefined;
    this.#options.read?.();
  };

  #now = () => {
    if (!this.#source && !this.#closed) this.#open();
  };

  #seen = () => {
    clearTimeout(this.#hidden);
    if (!document.hidden) return this.#now();
    this.#hidden = setTimeout(() => {
      clearTimeout(this.#timer);
      this.#source?.close();
      this.#source = null;
      this.#options.link?.("waiting");
    }, this.#options.hiddenMs ?? HIDDEN_MS);
  };
}
