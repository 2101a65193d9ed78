import { describe, expect, it } from "vitest";
import { decode, KEPT_BYTES, Output, textOf, type StreamName } from "./output";

const bytes = (text: string) => new TextEncoder().encode(text);

/** An output whose hub holds these texts; what was asked for is written down. */
function lab(held: Record<StreamName, string>) {
  const asked: string[] = [];
  const output = new Output(async (stream, from, to) => {
    asked.push(`${stream} ${from} ${to}`);
    await new Promise((go) => setTimeout(go, Math.random() * 3));
    return { bytes: bytes(held[stream]).subarray(from, to ?? undefined), at: from };
  });
  const seen: Record<StreamName, string> = { stdout: "", stderr: "" };
  output.read((piece, stream) => (seen[stream] += textOf(piece)));
  return { output, seen, asked };
}

describe("a task's output", () => {
  it("is whole and in order, however its pieces come", async () => {
    const text = "0123456789".repeat(20);
    for (let round = 0; round < 200; round += 1) {
      const { output, seen } = lab({ stdout: text, stderr: "" });
      const begin = Math.floor(Math.random() * text.length);
      if (round % 2) void output.load();
      for (let at = begin; at < text.length; ) {
        const length = 1 + Math.floor(Math.random() * 30);
        output.piece("stdout", at, bytes(text.slice(at, at + length)));
        // Pieces may be told twice, and overlap.
        if (Math.random() < 0.3) output.piece("stdout", Math.max(begin, at - 5), bytes(text.slice(Math.max(begin, at - 5), at + length)));
        at += length;
      }
      await output.load();
      expect(seen.stdout).toBe(text);
    }
  });
  it("goes on behind what was not kept", async () => {
    const { output, seen } = lab({ stdout: "", stderr: "" });
    output.piece("stdout", 0, bytes("ab"));
    output.gap("stdout", 100);
    output.piece("stdout", 100, bytes("cd"));
    await output.load();
    expect(seen.stdout).toBe("abcd");
    expect(output.dropped).toBe(98);
  });
  it("keeps the end of what is too much", async () => {
    const { output } = lab({ stdout: "", stderr: "" });
    const piece = new Uint8Array(1024 * 1024);
    for (let at = 0; at < 12; at += 1) output.piece("stdout", at * piece.length, piece);
    await output.load();
    let kept = 0;
    output.read((part) => (kept += part.length));
    expect(kept).toBeLessThanOrEqual(KEPT_BYTES);
    expect(output.dropped + kept).toBe(12 * piece.length);
  });
  it("reads text and anything else", () => {
    expect(textOf(decode({ data: "é" }))).toBe("é");
    expect([...decode({ base64: "/wA=" })]).toEqual([255, 0]);
  });
});
