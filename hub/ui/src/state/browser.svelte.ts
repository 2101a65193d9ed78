// What happened in a session's browsers, kept true by one stream.
import type { Link } from "../api/stream";
import { Stream } from "../api/stream";
import { entryOf, KINDS, type BrowserEvent, type Entry } from "../lib/browser";

/** What the hub keeps, too. */
const KEPT = 10_000;
/** What comes in such a moment is taken in at once. */
const TOGETHER_MS = 60;
/** It is one connection more, of six that a browser has for a host. */
const HIDDEN_MS = 5_000;

export class BrowserState {
  /** In the order of the log. */
  events = $state.raw<Entry[]>([]);
  link = $state<Link>("connecting");
  /** What was kept before is here. */
  loaded = $state(false);

  #stream: Stream;
  #last = 0;
  #batch: Entry[] = [];
  #timer: ReturnType<typeof setTimeout> | undefined;

  constructor(session: string) {
    this.#stream = new Stream(`/api/sessions/${encodeURIComponent(session)}/browser/stream`, {
      kinds: KINDS,
      hiddenMs: HIDDEN_MS,
      on: (_, data) => {
        const row = data as BrowserEvent;
        if (row.seq <= this.#last) return;
        this.#last = row.seq;
        this.#batch.push(entryOf(row));
        this.#soon();
      },
      link: (link) => {
        this.link = link;
        if (link === "live") this.#soon();
      },
    });
  }

  close(): void {
    clearTimeout(this.#timer);
    this.#stream.close();
  }

  #soon(): void {
    this.#timer ??= setTimeout(() => {
      this.#timer = undefined;
      if (this.#batch.length) this.events = [...this.events, ...this.#batch].slice(-KEPT);
      this.#batch = [];
      this.loaded = true;
    }, TOGETHER_MS);
  }
}
