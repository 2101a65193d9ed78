import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { Stream, type Link } from "./stream";

/** A source whose ends are in the test's hands. */
class Fake {
  static all: Fake[] = [];
  onopen: (() => void) | null = null;
  onerror: ((event: unknown) => void) | null = null;
  closed = false;
  #heard = new Map<string, (event: unknown) => void>();
  constructor(readonly url: string) {
    Fake.all.push(this);
  }
  addEventListener(kind: string, act: (event: unknown) => void) {
    this.#heard.set(kind, act);
  }
  tell(kind: string, data: unknown, id = "") {
    const event = { data: JSON.stringify(data), lastEventId: id };
    this.#heard.get(kind)?.(event);
    if (kind === "error") this.onerror?.(event);
  }
  /** The connection breaks: browsers tell that as an event of the same name. */
  breaks() {
    this.#heard.get("error")?.({});
    this.onerror?.({});
  }
  close() {
    this.closed = true;
  }
}
const last = () => Fake.all.at(-1) as Fake;

describe("an event stream", () => {
  beforeEach(() => {
    vi.useFakeTimers();
    Fake.all = [];
  });
  afterEach(() => vi.useRealTimers());
  const open = () => {
    const seen: unknown[] = [];
    const links: Link[] = [];
    const reads = { count: 0 };
    const stream = new Stream("/api/events?live=true", { kinds: ["node", "error"], on: (_, data) => seen.push(data), link: (state) => links.push(state), read: () => (reads.count += 1), source: Fake as unknown as typeof EventSource });
    return { stream, seen, links, reads };
  };

  it("hears of what is called an error, and does not take it for one of its own", () => {
    const { seen, links } = open();
    last().onopen?.();
    last().tell("error", "it broke", "3");
    expect([seen, links.at(-1), last().closed]).toEqual([["it broke"], "live", false]);
    last().breaks();
    expect([seen.length, links.at(-1)]).toEqual([1, "waiting"]);
  });

  it("goes on behind the last event it has seen, and says that it was away", () => {
    const { seen, links } = open();
    last().onopen?.();
    last().tell("node", 1, "7");
    last().tell("node", 2);
    last().breaks();
    expect(links).toEqual(["connecting", "live", "waiting"]);
    vi.advanceTimersByTime(500);
    expect(last().url).toBe("/api/events?live=true&last_event_id=7");
    last().onopen?.();
    expect(links.at(-1)).toBe("live");
    expect(seen).toEqual([1, 2]);
  });

  it("has what was before read when it is live, each time, and once without it", () => {
    const live = open();
    expect(live.reads.count).toBe(0);
    last().onopen?.();
    vi.advanceTimersByTime(60_000);
    expect(live.reads.count).toBe(1);
    last().breaks();
    vi.advanceTimersByTime(500);
    expect(live.reads.count).toBe(1);
    last().onopen?.();
    expect(live.reads.count).toBe(2);

    const slow = open();
    vi.advanceTimersByTime(1_000);
    expect(slow.reads.count).toBe(1);
    last().onopen?.();
    expect(slow.reads.count).toBe(2);

    const refused = open();
    last().breaks();
    last().breaks();
    vi.advanceTimersByTime(60_000);
    expect(refused.reads.count).toBe(1);

    const left = open();
    left.stream.close();
    vi.advanceTimersByTime(60_000);
    expect(left.reads.count).toBe(0);
  });

  it("waits longer each time, and never for ever", () => {
    open();
    const waits = [500, 1000, 2000, 4000, 8000, 8000];
    for (const wait of waits) {
      const before = Fake.all.length;
      last().breaks();
      vi.advanceTimersByTime(wait - 1);
      expect(Fake.all.length).toBe(before);
      vi.advanceTimersByTime(1);
      expect(Fake.all.length).toBe(before + 1);
    }
  });
  it("hears nothing of a source that it has let go, and nothing when it is closed", () => {
    const { stream, seen } = open();
    const first = last();
    first.breaks();
    vi.advanceTimersByTime(500);
    first.tell("node", "late");
    stream.close();
    last().breaks();
    vi.advanceTimersByTime(60_000);
    expect(Fake.all.length).toBe(2);
    expect(seen).toEqual([]);
    expect(first.closed && last().closed).toBe(true);
  });
});
