import { expect, test } from "vitest";
import { bodyOf, changed, formOf, parse, placeOf, textOf, type Body } from "./policy";

const body: Body = {
  mode: "permissive", task_slots: 4, run_timeout_ms: 60_000, ask_dangerous: false,
  ask: [{ prefix: ["git", "push"], reason: "look first", match: ["git push", "cd x && git push -f"], not_match: ["git pull"] }],
  deny: [{ prefix: ["rm", "two words"] }], allow: [], network: ["example.org", "*.example.org:443"],
};

test("a policy that goes through the form or the text is the same policy", () => {
  expect(bodyOf(formOf(body))).toEqual(body);
  expect(parse(textOf(body))).toEqual({ body });
  expect(parse("{")).toHaveProperty("error");
  expect(parse("[]")).toHaveProperty("error");
});

test("the hub's errors are found in the form", () => {
  expect(placeOf("/ask/2")).toEqual({ list: "ask", at: 2 });
  expect(placeOf("/deny")).toEqual({ list: "deny", at: null });
  expect(placeOf("/task_slots")).toEqual({ field: "task_slots" });
  expect(placeOf(undefined)).toBeNull();
});

test("changes are told in words", () => {
  expect(changed({ deny: { added: [{ prefix: ["git", "push"] }], removed: [] }, run_timeout_ms: { before: 0, after: 60_000 }, ask_dangerous: { before: true, after: false } })).toEqual([
    "denied: + git push", "longest run: no bound → 1 min", "ask about dangerous commands: yes → no",
  ]);
});
