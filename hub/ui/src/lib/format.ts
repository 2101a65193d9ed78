// Numbers and times as people read them.

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

export function bytes(count: number | null | undefined): string {
  if (count == null || !Number.isFinite(count)) return "–";
  let value = count;
  let unit = 0;
  while (value >= 1024 && unit < UNITS.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${unit === 0 || value >= 100 ? Math.round(value) : value.toFixed(1)} ${UNITS[unit]}`;
}

/** 0.4 ms, 12 ms, 1.2 s, 3 min 4 s, 2 h 5 min, 3 d 4 h. */
export function duration(ms: number | null | undefined): string {
  if (ms == null || !Number.isFinite(ms) || ms < 0) return "–";
  if (ms < 10) return `${Number(ms.toFixed(1))} ms`;
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 60_000) return `${(ms / 1000).toFixed(ms < 10_000 ? 1 : 0)} s`;
  const [days, hours, minutes, seconds] = [ms / 86_400_000, (ms / 3_600_000) % 24, (ms / 60_000) % 60, (ms / 1000) % 60].map(Math.floor) as [number, number, number, number];
  if (days) return hours ? `${days} d ${hours} h` : `${days} d`;
  if (hours) return minutes ? `${hours} h ${minutes} min` : `${hours} h`;
  return seconds ? `${minutes} min ${seconds} s` : `${minutes} min`;
}

export const rtt = (us: number | null | undefined) => (us == null ? "–" : duration(us / 1000));

/** "just now", "4 min ago", "in 3 h". */
export function ago(at: number | null | undefined, now: number): string {
  if (at == null) return "never";
  const past = now - at;
  const size = Math.abs(past);
  if (size < 10_000) return "just now";
  const [count, unit] =
    size < 60_000 ? [size / 1000, "s"] : size < 3_600_000 ? [size / 60_000, "min"] : size < 86_400_000 ? [size / 3_600_000, "h"] : [size / 86_400_000, "d"];
  const text = `${Math.floor(count as number)} ${unit as string}`;
  return past > 0 ? `${text} ago` : `in ${text}`;
}

/** How long it has been so: "for 12 s", "for 4 min". */
export function lasting(since: number | null | undefined, now: number): string {
  if (since == null) return "";
  const past = ago(since, now);
  return past === "just now" ? past : `for ${past.replace(" ago", "")}`;
}

/** Minutes and seconds that are left. */
export function countdown(ms: number): string {
  if (ms <= 0) return "0:00";
  const seconds = Math.floor(ms / 1000);
  if (seconds >= 86_400) return duration(ms);
  const two = (value: number) => String(value).padStart(2, "0");
  const [h, m, s] = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60, seconds % 60];
  return h ? `${h}:${two(m)}:${two(s)}` : `${m}:${two(s)}`;
}

export const exact = (at: number | null | undefined) => (at == null ? "" : new Date(at).toLocaleString());
export const clock = (at: number) => new Date(at).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit" });
export const short = (id: string) => (id.length > 14 ? `${id.slice(0, 6)}…${id.slice(-5)}` : id);
export const plural = (count: number, one: string, many = `${one}s`) => `${count.toLocaleString("en")} ${count === 1 ? one : many}`;

/** A text that is safe to show on one line: control characters and direction overrides become visible. */
export function plain(text: string): string {
  return text.replace(/[\u0000-\u001f\u007f-\u009f\u200e\u200f\u202a-\u202e\u2066-\u2069]/g, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`);
}
