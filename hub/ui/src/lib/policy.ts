// A machine's policy between the hub, a form, and a text: what is there, what may be wrong with it, and what changed.
import type { Schemas } from "../api/client";
import { duration } from "./format";
import { join, split } from "./words";

export type Policy = Schemas["SandboxPolicy"];
export type Rule = Schemas["CommandRule"];
export const LISTS = ["ask", "deny", "allow"] as const;
export type List = (typeof LISTS)[number];

/** A rule as it is written in a form. */
export type RuleForm = { key: number; words: string; reason: string; match: string; notMatch: string };
export type PolicyForm = { mode: Policy["mode"]; slots: number; seconds: number; dangerous: boolean; network: string } & Record<List, RuleForm[]>;
/** What `PUT …/policy` takes. */
export type Body = Omit<Policy, "sequence">;

let last = 0;
const lines = (text: string) => text.split("\n").map((line) => line.trim()).filter(Boolean);
export const emptyRule = (): RuleForm => ({ key: ++last, words: "", reason: "", match: "", notMatch: "" });

export function formOf(policy: Body): PolicyForm {
  const rules = (list: Rule[] | undefined) => (list ?? []).map((rule) => ({ key: ++last, words: join(rule.prefix), reason: rule.reason ?? "", match: (rule.match ?? []).join("\n"), notMatch: (rule.not_match ?? []).join("\n") }));
  return {
    mode: policy.mode, slots: policy.task_slots, seconds: Math.round(policy.run_timeout_ms / 1000), dangerous: policy.ask_dangerous ?? true, network: (policy.network ?? []).join("\n"),
    allow: rules(policy.allow), ask: rules(policy.ask), deny: rules(policy.deny),
  };
}

export function bodyOf(form: PolicyForm): Body {
  const rules = (list: RuleForm[]) => list.map((rule): Rule => ({ prefix: split(rule.words), ...(rule.reason.trim() ? { reason: rule.reason.trim() } : {}), ...(lines(rule.match).length ? { match: lines(rule.match) } : {}), ...(lines(rule.notMatch).length ? { not_match: lines(rule.notMatch) } : {}) }));
  return { mode: form.mode, allow: rules(form.allow), ask: rules(form.ask), deny: rules(form.deny), ask_dangerous: form.dangerous, task_slots: form.slots, run_timeout_ms: form.seconds * 1000, network: lines(form.network) };
}

/** As a text that can be edited, and that the machine's own file (YAML) takes, too. */
export const textOf = (body: Body) => JSON.stringify({ mode: body.mode, task_slots: body.task_slots, run_timeout_ms: body.run_timeout_ms, ask_dangerous: body.ask_dangerous ?? true, ask: body.ask ?? [], deny: body.deny, allow: body.allow, network: body.network ?? [] }, null, 2);

/** The text as a body, or where and why it is none. */
export function parse(text: string): { body: Body } | { error: string } {
  try {
    const value: unknown = JSON.parse(text);
    if (typeof value !== "object" || value === null || Array.isArray(value)) return { error: "A policy is an object: { … }" };
    return { body: value as Body };
  } catch (error) {
    return { error: `This is not JSON: ${error instanceof Error ? error.message : String(error)}` };
  }
}

/** Which part of a form an error of the hub is about: "" for all of it. */
export function placeOf(pointer: string | null | undefined): { list: List; at: number | null } | { field: string } | null {
  const [, head = "", at] = (pointer ?? "").split("/");
  if ((LISTS as readonly string[]).includes(head)) return { list: head as List, at: at === undefined ? null : Number(at) };
  return head ? { field: head } : null;
}

const NAMES: Record<string, string> = { mode: "weakest mode", task_slots: "tasks at a time", run_timeout_ms: "longest run", ask_dangerous: "ask about dangerous commands", ask: "asked about", deny: "denied", allow: "allowed", network: "hosts" };

const shown = (key: string, value: unknown): string => {
  if (typeof value === "object" && value !== null && "prefix" in value) return join((value as Rule).prefix);
  if (key === "run_timeout_ms") return value ? duration(Number(value)) : "no bound";
  if (typeof value === "boolean") return value ? "yes" : "no";
  return value == null ? "nothing" : String(value);
};

/** What a change did, a line for each part. */
export function changed(difference: Record<string, unknown>): string[] {
  return Object.entries(difference).flatMap(([key, what]) => {
    const { before, after, added, removed } = what as { before?: unknown; after?: unknown; added?: unknown[]; removed?: unknown[] };
    const name = NAMES[key] ?? key;
    if (!added && !removed) return [`${name}: ${shown(key, before)} → ${shown(key, after)}`];
    return [...(removed ?? []).map((item) => `${name}: − ${shown(key, item)}`), ...(added ?? []).map((item) => `${name}: + ${shown(key, item)}`)];
  });
}
