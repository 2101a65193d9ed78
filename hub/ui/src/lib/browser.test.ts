import { describe, expect, it } from "vitest";
import type { Task } from "../api/client";
import { entries, entryOf, moment, orderWords, type BrowserEvent } from "./browser";

const event = (seq: number, kind: string, more: Record<string, unknown> = {}): BrowserEvent => ({ seq, node_id: "n", browser: "b", kind, event: { kind, at_ms: seq, ...more } });
const task = (id: string, at: number, action: unknown, state = "succeeded") => ({ id, created_at_ms: at, state, spec: { browser: { action } } }) as unknown as Task;

describe("a browser's timeline", () => {
  it("has each action before what it caused, whatever the clocks say", () => {
    const events = [event(0, "tab", { opened: true }), event(1, "started", { task_id: "a" }), event(2, "navigation", { task_id: "a", url: "http://a/" }), event(3, "console", { text: "late" }), event(4, "screenshot", { task_id: "c" })];
    const tasks = [task("c", 9_000, "back"), task("a", 7_000, { navigate: { url: "http://a/" } }), task("b", 8_000, "reload"), task("d", 9_999, "forward", "running")];
    expect(entries(events.map(entryOf), tasks).map(({ key }) => key)).toEqual(["ta", "e0", "e1", "e2", "e3", "tb", "tc", "e4", "td"]);
  });

  it("says of an order what it is about, and never what is typed", () => {
    expect(orderWords({ action: { fill: { target: "#pw", value: "hunter2" } } })).toBe("fill #pw");
    expect(orderWords({ action: "back" })).toBe("back");
    expect(orderWords({ action: { batch: { steps: [{ navigate: { url: "http://a/" } }, { screenshot: {} }] } } })).toBe("navigate http://a/, then screenshot");
    for (const odd of [null, 1, "x", [], {}, { action: null }, { action: { batch: { steps: 3 } } }]) expect(typeof orderWords(odd)).toBe("string");
  });

  it("takes any nonsense for what it is", () => {
    for (const kind of ["console", "error", "request", "navigation", "dialog", "download", "screenshot", "tab", "refused", "started", "crash", "too_large", "?"])
      for (const more of [{}, { text: 1, url: [], status: "x", download: "x", tab: "t", took_ms: {}, level: null, error: 5 }]) {
        const entry = entryOf(event(1, kind, more));
        expect(typeof entry.text + typeof entry.note).toBe("stringstring");
      }
    expect(entryOf(event(1, "console", { text: "a\u202eb\n", level: "error" }))).toMatchObject({ text: "a\\u202eb\\u000a", tone: "bad", groups: ["console", "error"] });
    expect(entryOf(event(1, "request", { method: "GET", url: "http://a/", status: 404, took_ms: 12 }))).toMatchObject({ note: "404 · 12 ms", groups: ["network", "error"] });
  });

  it("knows what was seen at any place of it", () => {
    const all = [event(1, "started"), event(2, "navigation", { url: "http://a/", tab: 1 }), event(3, "screenshot", { url: "http://a/", tab: 1 }), event(4, "navigation", { url: "http://b/", tab: 2 }), event(5, "console", { tab: 1 }), event(6, "closed"), event(7, "console", {})].map(entryOf);
    expect(moment(all, 1)).toEqual({ url: "http://a/", picture: null });
    expect(moment(all, 3)).toEqual({ url: "http://b/", picture: null });
    expect(moment(all, 4)).toEqual({ url: "http://a/", picture: all[2] });
    expect(moment(all, 6)).toEqual({ url: "", picture: null });
    expect(moment([], -1)).toEqual({ url: "", picture: null });
  });
});
