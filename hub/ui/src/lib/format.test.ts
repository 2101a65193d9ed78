import { describe, expect, it } from "vitest";
import { ago, bytes, countdown, duration, plain } from "./format";

describe("numbers and times", () => {
  it("shows sizes with a unit that fits", () => {
    expect([0, 1023, 1024, 1536, 200 * 1024, 5 * 1024 ** 3].map(bytes)).toEqual(["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "200 KiB", "5.0 GiB"]);
    expect([null, undefined, Number.NaN].map(bytes)).toEqual(["–", "–", "–"]);
    expect(bytes(Number.MAX_SAFE_INTEGER)).toBe("8.0 PiB");
  });
  it("shows durations in two units at most", () => {
    expect([0.42, 12, 1234, 61_000, 7_260_000, 90_000_000].map(duration)).toEqual(["0.4 ms", "12 ms", "1.2 s", "1 min 1 s", "2 h 1 min", "1 d 1 h"]);
    expect(duration(-1)).toBe("–");
  });
  it("says how long ago, and how soon", () => {
    expect([0, 11_000, 120_000, 7_200_000].map((past) => ago(1e12 - past, 1e12))).toEqual(["just now", "11 s ago", "2 min ago", "2 h ago"]);
    expect(ago(1e12 + 3_600_000, 1e12)).toBe("in 1 h");
    expect(ago(null, 0)).toBe("never");
  });
  it("counts down", () => {
    expect([-5, 59_000, 3_600_000].map(countdown)).toEqual(["0:00", "0:59", "1:00:00"]);
  });
  it("makes what hides or turns text around visible", () => {
    expect(plain("a\u202egpj\u0007\n")).toBe("a\\u202egpj\\u0007\\u000a");
    expect(plain("Grüße 你好 👋")).toBe("Grüße 你好 👋");
  });
});
