import { describe, expect, it } from "vitest";
import type { Task } from "../api/client";
import { commandOf, runs, stateWord } from "./tasks";

const task = (id: string, node: string, at: number, script = "make", user = "ada") => ({ id, node_id: node, created_at_ms: at, spec: { script }, origin: { user_id: user, via: "ui" } }) as Task;

describe("runs", () => {
  it("are what one person sent to several machines at once", () => {
    const all = runs([task("3", "c", 100), task("1", "a", 0), task("2", "b", 50), task("4", "a", 60, "other"), task("5", "b", 80, "make", "bob")]);
    expect(all.map((run) => run.tasks.map(({ id }) => id))).toEqual([["1", "2", "3"], ["4"], ["5"]]);
  });
  it("are new ones when the same is sent again", () => {
    expect(runs([task("1", "a", 0), task("2", "a", 500)]).length).toBe(2);
    expect(runs([task("1", "a", 0), task("2", "b", 5000)]).length).toBe(2);
  });
});

describe("a command", () => {
  it("is shown as it would be typed", () => {
    expect(commandOf({ argv: ["echo", "a b", "it's", "-n", "x=1"] })).toBe("echo 'a b' 'it'\\''s' -n x=1");
    expect(commandOf({ script: "a | b" })).toBe("a | b");
  });
  it("says how it ended", () => {
    expect(stateWord({ state: "failed", exit_code: 3 })).toBe("exit 3");
    expect(stateWord({ state: "failed", signal: 9 })).toBe("signal 9");
    expect(stateWord({ state: "running", cancel_asked_at_ms: 1 })).toBe("cancelling");
    expect(stateWord({ state: "something new" })).toBe("something new");
  });
});
