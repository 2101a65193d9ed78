// Tasks in words, and runs: the same command that was sent to several machines at once.
import type { Task, TaskSpec } from "../api/client";
import { orderWords } from "./browser";

export type Tone = "good" | "bad" | "warn" | "accent" | "";

export const FINAL = new Set(["succeeded", "failed", "cancelled", "timed_out", "rejected", "expired", "lost"]);
export const isFinal = (task: { state: string }) => FINAL.has(task.state);

const WORDS: Record<string, string> = {
  queued: "queued",
  awaiting_approval: "needs approval",
  offered: "offered",
  leased: "starting",
  running: "running",
  succeeded: "exit 0",
  failed: "failed",
  cancelled: "cancelled",
  timed_out: "timed out",
  rejected: "rejected",
  expired: "expired",
  lost: "lost",
};

export function stateWord(task: Pick<Task, "state" | "exit_code" | "signal" | "cancel_asked_at_ms">): string {
  if (task.state === "failed" && task.exit_code != null) return `exit ${task.exit_code}`;
  if (task.state === "failed" && task.signal != null) return `signal ${task.signal}`;
  if (!FINAL.has(task.state) && task.cancel_asked_at_ms) return "cancelling";
  return WORDS[task.state] ?? task.state;
}

export function tone(state: string): Tone {
  if (state === "succeeded") return "good";
  if (["failed", "timed_out", "lost", "rejected"].includes(state)) return "bad";
  if (state === "awaiting_approval") return "warn";
  return FINAL.has(state) ? "" : "accent";
}

const SAFE = /^[A-Za-z0-9_./:=@%+,-]+$/;

/** A command as one would type it. */
export function commandOf(spec: TaskSpec): string {
  if (spec.script != null) return spec.script;
  if (spec.browser) return `browser: ${orderWords(spec.browser)}`;
  if (spec.terminal && !spec.argv?.length) return `terminal${spec.shell ? ` ${spec.shell}` : ""}`;
  return (spec.argv ?? []).map((word) => (SAFE.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`)).join(" ");
}

/** Tasks that were sent within this time, by the same person, with the same command, are one run. */
const TOGETHER_MS = 2_000;

export interface Run {
  key: string;
  at: number;
  command: string;
  tasks: Task[];
}

/** Groups tasks to runs, oldest first; within a run the tasks are in the order of their making. */
export function runs(tasks: Iterable<Task>): Run[] {
  const sorted = [...tasks].sort((a, b) => a.created_at_ms - b.created_at_ms || (a.id < b.id ? -1 : 1));
  const open = new Map<string, Run>();
  const all: Run[] = [];
  for (const task of sorted) {
    const same = JSON.stringify([task.origin.user_id, task.origin.token_id ?? "", task.spec]);
    const run = open.get(same);
    if (run && task.created_at_ms - run.at <= TOGETHER_MS && !run.tasks.some((other) => other.node_id === task.node_id)) {
      run.tasks.push(task);
      continue;
    }
    const fresh = { key: task.id, at: task.created_at_ms, command: commandOf(task.spec), tasks: [task] };
    open.set(same, fresh);
    all.push(fresh);
  }
  return all;
}
