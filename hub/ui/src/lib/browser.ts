// What happened in a session's browsers, as the lines of a timeline. Everything in an event was said by a page or a machine: any field may be missing, or of another kind.
import type { Task } from "../api/client";
import { bytes, duration, plain } from "./format";
import { isFinal, type Tone } from "./tasks";

export type BrowserEvent = { seq: number; node_id: string; browser: string; kind: string; event: Record<string, unknown> };
export type Group = "action" | "page" | "console" | "error" | "network" | "file" | "picture";

/** Kinds of events that the hub may send. */
export const KINDS = ["console", "error", "log", "request", "navigation", "dialog", "download", "screenshot", "tab", "refused", "started", "closed", "crash", "too_large"];
export const GROUPS: { key: Group; word: string }[] = [
  { key: "action", word: "Actions" },
  { key: "page", word: "Pages" },
  { key: "console", word: "Console" },
  { key: "error", word: "Errors" },
  { key: "network", word: "Network" },
  { key: "file", word: "Dialogs, downloads" },
  { key: "picture", word: "Pictures" },
];

export interface Entry {
  key: string;
  at: number;
  groups: Group[];
  icon: string;
  tone: Tone;
  /** One line. */
  text: string;
  /** Beside it: a status, a time. */
  note: string;
  tab: number | null;
  event?: BrowserEvent;
  task?: Task;
}

export const str = (value: unknown): string => (typeof value === "string" ? value : "");
export const num = (value: unknown): number | null => (typeof value === "number" && Number.isFinite(value) ? value : null);
export const obj = (value: unknown): Record<string, unknown> => (typeof value === "object" && value !== null && !Array.isArray(value) ? (value as Record<string, unknown>) : {});

/** The action of an order: its name, and what it was given. */
export function actionOf(order: unknown): { name: string; given: Record<string, unknown> } {
  const { action } = obj(order);
  if (typeof action === "string") return { name: action, given: {} };
  const [name, given] = Object.entries(obj(action))[0] ?? ["?", {}];
  return { name, given: obj(given) };
}

/** An order in words; never what is typed. */
export function orderWords(order: unknown): string {
  const { name, given } = actionOf(order);
  if (name === "batch") {
    const steps = Array.isArray(given.steps) ? given.steps : [];
    return steps.slice(0, 4).map((action) => orderWords({ action })).join(", then ") + (steps.length > 4 ? `, and ${steps.length - 4} more` : "");
  }
  const about = str(given.url) || str(given.target) || str(given.expression) || str(given.key) || str(given.tab);
  return `${name.replaceAll("_", " ")} ${about}`.trim();
}

const isFailed = (event: Record<string, unknown>) => str(event.error) !== "" || (num(event.status) ?? 0) >= 400;

/** One event as a line. */
export function entryOf(row: BrowserEvent): Entry {
  const { event, kind } = row;
  const line = (groups: Group[], icon: string, tone: Tone, text: string, note = ""): Entry => ({
    key: `e${row.seq}`, at: num(event.at_ms) ?? 0, groups, icon, tone, text: plain(text), note: plain(note), tab: num(event.tab), event: row,
  });
  switch (kind) {
    case "console":
    case "log": {
      const level = str(event.level);
      const bad = ["error", "assert"].includes(level);
      return line(bad ? ["console", "error"] : ["console"], "list", bad ? "bad" : level === "warning" ? "warn" : "", str(event.text), level === "log" ? "" : level);
    }
    case "error":
      return line(["error", "console"], "warn", "bad", str(event.text).split("\n")[0] ?? "", "error");
    case "request": {
      const failed = isFailed(event);
      const status = str(event.error) || String(num(event.status) ?? "");
      return line(failed ? ["network", "error"] : ["network"], "network", failed ? "bad" : "", `${str(event.method)} ${str(event.url)}`, [status, event.took_ms == null ? "" : duration(num(event.took_ms))].filter(Boolean).join(" · "));
    }
    case "navigation":
      return line(["page"], "globe", "accent", str(event.url), event.same_document === true ? "within the page" : "");
    case "dialog":
      return line(["file"], "info", "warn", `${str(event.type) || "dialog"}: ${str(event.message)}`);
    case "download": {
      const download = obj(event.download);
      const bad = ["refused", "canceled"].includes(str(download.state));
      return line(bad ? ["file", "error"] : ["file"], "download", bad ? "bad" : "", str(download.path) || str(download.name), [str(download.state).replace("_", " "), num(download.bytes) ? bytes(num(download.bytes)) : ""].filter(Boolean).join(" · "));
    }
    case "screenshot":
      return line(["picture"], "camera", "", str(event.url) || "A picture", num(event.width) === null ? "" : `${num(event.width)} × ${num(event.height)}`);
    case "tab":
      return line(["page"], "globe", "", event.refused ? `A tab was refused: ${str(event.refused)}` : `Tab ${num(event.tab) ?? "?"} was ${event.closed ? "closed" : "opened"}`);
    case "refused":
      return line(["network", "error"], "lock", "bad", `${str(event.host)}:${num(event.port) ?? "?"} may not be reached from there`, str(event.address));
    case "started":
      return line(["page"], "play", "good", `The browser has started: ${str(event.version) || "Chromium"}`, str(event.sandbox));
    case "closed":
      return line(["page"], "stop", "", "The browser was closed");
    case "crash":
      return line(["page", "error"], "warn", "bad", event.tab == null ? "The browser has crashed" : `Tab ${num(event.tab)} has crashed`, str(event.how));
    case "too_large":
      return line(["console"], "info", "", "Something too large to be kept", bytes(num(event.bytes)));
    default:
      return line(["console"], "info", "", kind);
  }
}

function ofTask(task: Task): Entry {
  const bad = isFinal(task) && task.state !== "succeeded";
  const took = task.usage ? duration(task.usage.wall_ms) : "";
  return {
    key: `t${task.id}`, at: task.created_at_ms, groups: bad ? ["action", "error"] : ["action"], icon: "pointer", tone: bad ? "bad" : isFinal(task) ? "good" : "accent",
    text: plain(orderWords(task.spec.browser)), note: [isFinal(task) ? (bad ? (task.code ?? task.state) : "") : task.state.replace("_", " "), took].filter(Boolean).join(" · "), tab: null, task,
  };
}

/** Events in their order, each action before the first event that it caused. Clocks of hub and machines need not agree. */
export function entries(events: Entry[], tasks: Task[]): Entry[] {
  const actions = tasks.filter((task) => task.spec.browser != null).sort((a, b) => a.created_at_ms - b.created_at_ms || (a.id < b.id ? -1 : 1));
  const place = new Map(actions.map((task, index) => [task.id, index]));
  // What a browser does before it is told of any action belongs to the one for which it was started.
  const started = new Map<string, number>();
  for (const { event } of events) {
    const index = place.get(str(event?.event.task_id));
    if (event && index !== undefined && !started.has(event.browser)) started.set(event.browser, index);
  }
  const all: Entry[] = [];
  let next = 0;
  for (const entry of events) {
    const upTo = place.get(str(entry.event?.event.task_id)) ?? started.get(entry.event?.browser ?? "");
    while (upTo !== undefined && next <= upTo) all.push(ofTask(actions[next++] as Task));
    all.push(entry);
  }
  while (next < actions.length) all.push(ofTask(actions[next++] as Task));
  return all;
}

/** What a person would have seen at one place of the timeline. */
export function moment(all: Entry[], at: number): { url: string; picture: Entry | null } {
  const tab = all[at]?.tab ?? null;
  const fits = (entry: Entry) => tab === null || entry.tab === null || entry.tab === tab;
  let url = "";
  for (let index = Math.min(at, all.length - 1); index >= 0; index -= 1) {
    const entry = all[index] as Entry;
    const event = entry.event;
    if (!event || !fits(entry)) continue;
    if (event.kind === "started" || event.kind === "closed") break;
    if (!url && (event.kind === "navigation" || event.kind === "screenshot")) url = str(event.event.url);
    if (event.kind === "screenshot") return { url, picture: entry };
  }
  return { url, picture: null };
}
