import { describe, expect, it } from "vitest";
import { diffLines, parts } from "./diff";

const join = (lines: (string | undefined)[]) => lines.join("\n");

describe("the difference of two texts", () => {
  it("leads from one to the other, whatever they are", () => {
    const random = (length: number) => join(Array.from({ length }, () => "abcd"[Math.floor(Math.random() * 4)]));
    for (let round = 0; round < 300; round += 1) {
      const [a, b] = [random(1 + Math.floor(Math.random() * 30)), random(1 + Math.floor(Math.random() * 30))];
      const lines = diffLines(a, b);
      expect(join(lines.filter(({ kind }) => kind !== "+").map(({ text }) => text))).toBe(a);
      expect(join(lines.filter(({ kind }) => kind !== "-").map(({ text }) => text))).toBe(b);
    }
  });
  it("is small where little differs", () => {
    expect(diffLines("a\nb\nc\n", "a\nB\nc\n").map(({ kind, text }) => kind + text)).toEqual([" a", "-b", "+B", " c"]);
    expect(diffLines("", "x\n").map(({ kind, text }) => kind + text)).toEqual(["+x"]);
    expect(diffLines("same\n", "same\n").every(({ kind }) => kind === " ")).toBe(true);
  });
  it("leaves out what is far from any difference", () => {
    const long = Array.from({ length: 50 }, (_, at) => `line ${at}`);
    const changed = long.with(25, "other");
    const shown = parts(diffLines(join(long), join(changed)));
    expect(shown.map((part) => (Array.isArray(part) ? part.length : part))).toEqual([{ skipped: 22 }, 8, { skipped: 21 }]);
  });
  it("gives up on what nobody would read", () => {
    const [a, b] = [Array.from({ length: 9000 }, (_, at) => `a${at}`), Array.from({ length: 9000 }, (_, at) => `b${at}`)];
    expect(diffLines(join(a), join(b)).length).toBe(18_000);
  });
});
