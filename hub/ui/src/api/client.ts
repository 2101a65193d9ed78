// Requests to the hub: JSON there and back, and failures as problems that say what to do.
import type { components } from "./schema";

export type Schemas = components["schemas"];
export type Node = Schemas["NodeView"];
export type NodeStatus = Schemas["NodeStatus"];
export type Health = Schemas["Health"];
export type Session = Schemas["SessionView"];
export type Task = Schemas["TaskView"];
export type TaskSpec = Schemas["TaskSpec"];
export type Invite = Schemas["InviteView"];
export type FreshInvite = Schemas["FreshInvite"];
export type Program = Schemas["Program"];
export type Me = Schemas["Me"];
export type Relay = Schemas["RelayView"];
export type Audit = Schemas["AuditView"];
export type Token = Schemas["TokenView"];
export type User = Schemas["UserView"];
export type FileView = Schemas["FileView"];
export type Commit = Schemas["CommitView"];
export type Difference = Schemas["DifferenceView"];
export type Workspace = Schemas["WorkspaceView"];
export type NodeSync = Schemas["NodeSync"];
export type Lock = Schemas["LockView"];
export type DriftView = Schemas["DriftView"];
export type Conflict = Schemas["ConflictView"];
export type EventRow = Schemas["EventView"];
export type Page<T> = { items: T[]; next_cursor?: string | null };

/** What the hub answered instead of what was asked for. */
export class Failure extends Error {
  constructor(
    readonly status: number,
    readonly code: string,
    readonly detail: string,
    readonly fix: string,
    readonly body: Partial<Schemas["Problem"]> = {},
  ) {
    super(fix ? `${detail}. ${capital(fix)}.` : detail);
  }
}

const capital = (text: string) => text.charAt(0).toUpperCase() + text.slice(1).replace(/\.$/, "");

/** Told when the hub no longer knows who we are. */
let onStranger = () => {};
export function whenShutOut(act: () => void): void {
  onStranger = act;
}

type Options = { headers?: Record<string, string>; signal?: AbortSignal };

/** The raw response; throws a {@link Failure} for anything but success. */
export async function send(method: string, path: string, body?: BodyInit | null, options: Options = {}): Promise<Response> {
  let response: Response;
  try {
    response = await fetch(path, { method, body, headers: options.headers, signal: options.signal, credentials: "same-origin" });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new Failure(0, "unreachable", "the hub does not answer", "it may be restarting; this page goes on by itself when it is back");
  }
  if (response.ok) return response;
  const problem = (await response.json().catch(() => ({}))) as Partial<Schemas["Problem"]>;
  const failure = new Failure(
    response.status,
    problem.code ?? "unknown",
    problem.detail ?? `the hub answered ${response.status}`,
    problem.fix ?? "",
    problem,
  );
  if (response.status === 401 && path !== "/api/login" && path !== "/api/me") onStranger();
  throw failure;
}

async function json<T>(method: string, path: string, body?: unknown, options: Options = {}): Promise<T> {
  const headers: Record<string, string> = { Accept: "application/json", ...options.headers };
  if (method !== "GET") headers["Content-Type"] = "application/json";
  const response = await send(method, path, method === "GET" ? null : JSON.stringify(body ?? {}), { ...options, headers });
  return (response.status === 204 ? undefined : await response.json()) as T;
}

export const get = <T>(path: string, options?: Options) => json<T>("GET", path, undefined, options);
export const post = <T>(path: string, body?: unknown, options?: Options) => json<T>("POST", path, body, options);
export const put = <T>(path: string, body?: unknown) => json<T>("PUT", path, body);
export const patch = <T>(path: string, body?: unknown) => json<T>("PATCH", path, body);
export const remove = <T>(path: string, body?: unknown, options?: Options) => json<T>("DELETE", path, body, options);

/** Every item of a list, page after page, up to `most`. */
export async function all<T>(path: string, most = 5000): Promise<T[]> {
  const items: T[] = [];
  let cursor: string | null = null;
  do {
    const at: string = `${path}${path.includes("?") ? "&" : "?"}limit=1000${cursor ? `&cursor=${encodeURIComponent(cursor)}` : ""}`;
    const page: Page<T> = await get<Page<T>>(at);
    items.push(...page.items);
    cursor = page.next_cursor ?? null;
  } while (cursor && items.length < most);
  return items;
}

/** A path of a workspace as part of an address. */
export const escapePath = (path: string) => path.split("/").map(encodeURIComponent).join("/");

/** Shows an error of anything to a person. */
export const explain = (error: unknown) => (error instanceof Error ? capital(error.message) : String(error));

/** Hands a file to the person. */
export function save(blob: Blob, name: string): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

/** A key that makes a request safe to send again. */
export const freshKey = () => crypto.randomUUID?.() ?? Array.from(crypto.getRandomValues(new Uint8Array(16)), (b) => b.toString(16)).join("");
