// What a performance trace of Chromium says of a page's main thread.

/** What is traced for it; with details, for people who look for the reason. */
export const CATEGORIES = ["toplevel", "__metadata"];
export const DETAILS = [...CATEGORIES, "devtools.timeline", "disabled-by-default-devtools.timeline"];

/**
 * Processor time of the longest task of a page's main thread, in milliseconds: what the page itself computes without a pause. What other programs of the machine take does not count.
 * @param {{ traceEvents: { name: string, ph: string, pid: number, tid: number, dur?: number, tdur?: number, args?: { name?: string } }[] }} trace
 * @returns {number}
 */
export function busiest({ traceEvents }) {
  const main = new Set(traceEvents.filter((event) => event.name === "thread_name" && event.args?.name === "CrRendererMain").map(({ pid, tid }) => `${pid}/${tid}`));
  const tasks = traceEvents.filter((event) => /RunTask$/.test(event.name) && event.ph === "X" && main.has(`${event.pid}/${event.tid}`));
  return tasks.reduce((longest, event) => Math.max(longest, (event.tdur ?? event.dur ?? 0) / 1000), 0);
}
