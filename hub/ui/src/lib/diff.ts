// The difference of two texts, line by line (Myers), with a little of what is around it.

export type Line = { kind: " " | "+" | "-"; text: string; old?: number; new?: number };
export type Part = Line[] | { skipped: number };

/** More differences than this are not worth reading line by line: everything is shown as replaced. */
const MOST = 400;

export function diffLines(before: string, after: string): Line[] {
  const a = split(before);
  const b = split(after);
  let start = 0;
  while (start < a.length && start < b.length && a[start] === b[start]) start += 1;
  let end = 0;
  while (end < a.length - start && end < b.length - start && a[a.length - 1 - end] === b[b.length - 1 - end]) end += 1;
  const middle = myers(a.slice(start, a.length - end), b.slice(start, b.length - end));
  const kinds: Line["kind"][] = [...Array<" ">(start).fill(" "), ...middle, ...Array<" ">(end).fill(" ")];
  let [i, j] = [0, 0];
  return kinds.map((kind) => {
    if (kind === "+") return { kind, text: b[j++] ?? "", new: j };
    if (kind === "-") return { kind, text: a[i++] ?? "", old: i };
    j += 1;
    return { kind, text: a[i++] ?? "", old: i, new: j };
  });
}

const split = (text: string) => (text === "" ? [] : text.replace(/\n$/, "").split("\n"));

function myers(a: string[], b: string[]): Line["kind"][] {
  const replaced = (): Line["kind"][] => [...a.map(() => "-" as const), ...b.map(() => "+" as const)];
  if (!a.length || !b.length) return replaced();
  const most = Math.min(MOST, a.length + b.length);
  let furthest = new Map<number, number>([[1, 0]]);
  const trace: Map<number, number>[] = [];
  for (let d = 0; d <= most; d += 1) {
    trace.push(new Map(furthest));
    for (let k = -d; k <= d; k += 2) {
      const down = k === -d || (k !== d && (furthest.get(k - 1) ?? -1) < (furthest.get(k + 1) ?? -1));
      let x = down ? (furthest.get(k + 1) ?? 0) : (furthest.get(k - 1) ?? 0) + 1;
      while (x < a.length && x - k < b.length && a[x] === b[x - k]) x += 1;
      furthest.set(k, x);
      if (x >= a.length && x - k >= b.length) return back(trace, a.length, b.length);
    }
    furthest = new Map(furthest);
  }
  return replaced();
}

function back(trace: Map<number, number>[], x: number, y: number): Line["kind"][] {
  const kinds: Line["kind"][] = [];
  for (let d = trace.length - 1; d >= 0; d -= 1) {
    const furthest = trace[d] as Map<number, number>;
    const k = x - y;
    const down = k === -d || (k !== d && (furthest.get(k - 1) ?? -1) < (furthest.get(k + 1) ?? -1));
    const from = down ? k + 1 : k - 1;
    const startX = furthest.get(from) ?? 0;
    const startY = startX - from;
    while (x > startX && y > startY && x > 0 && y > 0) {
      kinds.push(" ");
      x -= 1;
      y -= 1;
    }
    if (d > 0) {
      kinds.push(down ? "+" : "-");
      x = startX;
      y = startY;
    }
  }
  return kinds.reverse();
}

/** Differences with `around` lines before and after; what is between is counted. */
export function parts(lines: Line[], around = 3): Part[] {
  const near = lines.map(() => false);
  lines.forEach((line, at) => {
    if (line.kind !== " ") near.fill(true, Math.max(0, at - around), Math.min(lines.length, at + around + 1));
  });
  const all: Part[] = [];
  for (let at = 0; at < lines.length; ) {
    const shown = near[at];
    let to = at;
    while (to < lines.length && near[to] === shown) to += 1;
    all.push(shown ? lines.slice(at, to) : { skipped: to - at });
    at = to;
  }
  return all;
}
