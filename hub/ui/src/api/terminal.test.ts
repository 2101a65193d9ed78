import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { TerminalLink, type Stage } from "./terminal";

class Socket {
  static all: Socket[] = [];
  binaryType = "";
  sent: (string | Uint8Array)[] = [];
  onmessage: ((event: { data: string | ArrayBuffer }) => void) | null = null;
  onclose: ((event: { code: number; reason: string }) => void) | null = null;
  closedWith: number | null = null;
  constructor(readonly address: string) {
    Socket.all.push(this);
  }
  send(data: string | Uint8Array) { this.sent.push(data); }
  close(code: number) { this.closedWith = code; }
  tell(told: unknown) { this.onmessage?.({ data: JSON.stringify(told) }); }
  bytes(text: string) { this.onmessage?.({ data: new TextEncoder().encode(text).buffer as ArrayBuffer }); }
  end(code: number, reason = "") { this.onclose?.({ code, reason }); }
}
const last = () => Socket.all.at(-1) as Socket;
const opened = (offset: number) => ({ type: "opened", offset, columns: 80, rows: 24, may_type: true });

function link(alive = true) {
  const seen = { stages: [] as Stage[], shown: "", fresh: [] as boolean[], gaps: 0, exit: 0, sizes: [] as string[] };
  const link = new TerminalLink("/t?task=1", {
    opened: (_, fresh) => seen.fresh.push(fresh),
    bytes: (bytes) => (seen.shown += new TextDecoder().decode(bytes)),
    sized: (columns, rows) => seen.sizes.push(`${columns}x${rows}`),
    gap: () => (seen.gaps += 1),
    exit: () => (seen.exit += 1),
    refused: () => {},
    stage: (stage) => seen.stages.push(stage),
    size: () => ({ columns: 90, rows: 20 }),
    alive: async () => alive,
    socket: (address) => new Socket(address) as unknown as WebSocket,
  });
  return { link, seen };
}

beforeEach(() => { vi.useFakeTimers(); Socket.all = []; });
afterEach(() => vi.useRealTimers());

describe("the way to a terminal", () => {
  it("hears of the sizes that others gave it, and not of its own", () => {
    const { link: at, seen } = link();
    const size = (columns: number, rows: number) => last().tell({ type: "size", columns, rows });
    last().tell(opened(0));
    at.resize(100, 30);
    at.resize(101, 30);
    at.resize(102, 30);
    // The hub tells the last of several.
    size(101, 30);
    size(102, 30);
    expect(seen.sizes).toEqual([]);
    size(80, 24);
    size(102, 30);
    expect(seen.sizes).toEqual(["80x24", "102x30"]);
  });

  it("goes on at the byte where it was cut", async () => {
    const { link: at, seen } = link();
    expect(last().address).toBe("/t?task=1&cols=90&rows=20");
    expect(at.type("lost")).toBe(false);
    last().tell(opened(100));
    last().bytes("hello");
    expect(at.type("x".repeat(40_000))).toBe(true);
    expect(last().sent.map((frame) => frame.length)).toEqual([32_768, 7_232]);
    last().end(1006);
    await vi.advanceTimersByTimeAsync(400);
    expect(last().address).toContain("offset=105");
    last().tell(opened(105));
    last().tell({ type: "gap", next_offset: 500 });
    last().end(1001);
    await vi.advanceTimersByTimeAsync(400);
    expect(last().address).toContain("offset=500");
    last().tell(opened(500));
    expect(seen).toMatchObject({ shown: "hello", fresh: [true, false, false], gaps: 1 });
    expect(seen.stages).toEqual(["open", "waiting", "open", "waiting", "open"]);
  });

  it("waits longer each time that nobody answers, and not at all for what is gone", async () => {
    const { seen } = link();
    for (const wait of [300, 600, 1200]) {
      const count = Socket.all.length;
      last().end(1006);
      await vi.advanceTimersByTimeAsync(wait - 10);
      expect(Socket.all.length).toBe(count);
      await vi.advanceTimersByTimeAsync(20);
      expect(Socket.all.length).toBe(count + 1);
    }
    expect(seen.stages.at(-1)).toBe("waiting");
    const gone = link(false);
    last().end(1006);
    await vi.advanceTimersByTimeAsync(60_000);
    expect(gone.seen.stages).toEqual(["waiting", "shut"]);
  });

  it("says that it was too slow until there is output again", async () => {
    const { seen } = link();
    last().tell(opened(0));
    last().end(4408, "too slow");
    await vi.advanceTimersByTimeAsync(400);
    last().tell(opened(0));
    expect(seen.stages).toEqual(["open", "slow"]);
    last().bytes("more");
    expect(seen.stages).toEqual(["open", "slow", "open"]);
  });

  it("skips to the latest when more comes than can be shown", async () => {
    const { link: at, seen } = link();
    last().tell(opened(0));
    last().bytes("seen");
    at.hold();
    const first = last();
    first.bytes("skipped");
    at.latest();
    at.latest();
    expect(Socket.all.length).toBe(2);
    expect(last().address).not.toContain("offset");
    // Until the next one stands, keys go the old way.
    expect([at.type("\u0003"), first.sent.length, first.closedWith]).toEqual([true, 1, null]);
    last().tell(opened(9_000));
    expect(first.closedWith).toBe(1000);
    last().bytes("now");
    // What is typed now must not come before what the hub has not read yet: when it has, it closes.
    expect([at.type("x"), at.type("y"), last().sent.length]).toEqual([true, true, 0]);
    first.end(1000);
    expect(last().sent.map((sent) => new TextDecoder().decode(sent as Uint8Array))).toEqual(["x", "y"]);
    at.type("z");
    expect([seen.shown, seen.fresh, last().sent.length, first.sent.length]).toEqual(["seennow", [true, true], 3, 1]);
    expect(seen.stages).toEqual(["open", "behind", "open"]);
  });

  it("does not wait for long for what was typed on the connection before, and loses nothing when that changes twice", async () => {
    const { link: at } = link();
    const typed = () => last().sent.map((sent) => new TextDecoder().decode(sent as Uint8Array));
    last().tell(opened(0));
    for (const offset of [9_000, 10_000]) {
      at.hold();
      at.latest();
      last().tell(opened(offset));
      at.type(`${offset} `);
      expect(typed()).toEqual([]);
    }
    expect(Socket.all.map((socket) => socket.closedWith)).toEqual([1000, 1000, null]);
    vi.advanceTimersByTime(2_000);
    expect(typed()).toEqual(["9000 ", "10000 "]);
    at.type("more");
    expect(typed().length).toBe(3);
  });

  it("ends with its program, and with its owner", async () => {
    const { seen } = link();
    last().tell(opened(0));
    last().tell({ type: "exit", state: "succeeded", exit_code: 0 });
    last().end(1000);
    const other = link();
    last().tell(opened(0));
    last().end(4401, "you are no longer let in");
    const closed = link();
    closed.link.close();
    last().end(1006);
    await vi.advanceTimersByTimeAsync(60_000);
    expect(Socket.all.length).toBe(3);
    expect([seen.stages.at(-1), seen.exit, other.seen.stages.at(-1)]).toEqual(["ended", 1, "shut"]);
  });
});
