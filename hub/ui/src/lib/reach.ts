// How a machine is, in words.
import type { Node } from "../api/client";

export type Reach = Node["presence"]["state"];

export const REACH: Record<Reach, { word: string; tone: "good" | "warn" | "bad" | "idle" | "wait" }> = {
  online: { word: "Online", tone: "good" },
  degraded: { word: "Degraded", tone: "warn" },
  offline: { word: "Offline", tone: "idle" },
  pending: { word: "Needs approval", tone: "wait" },
  refused: { word: "Refused", tone: "bad" },
  revoked: { word: "Revoked", tone: "bad" },
};

/** One line that says why a machine is not there, or how it is reached. */
export function reason(node: Node): string {
  const { presence } = node;
  switch (presence.state) {
    case "refused":
      return node.refusal?.reason ?? "the hub turned it away";
    case "offline":
      return presence.last_disconnect?.reason ?? "it has not connected yet";
    case "pending":
      return "compare its fingerprint and approve it";
    case "revoked":
      return "it may not connect any more";
    default:
      return presence.path_reason ?? "";
  }
}

/** How packets go: "relay fra-1", "direct". */
export function way(node: Node, relayName: (id: string) => string): string {
  const { path, relay } = node.presence;
  if (!path) return "–";
  return path === "relay" && relay ? `relay ${relayName(relay)}` : path;
}

export const isHere = (node: Node) => node.presence.state === "online" || node.presence.state === "degraded";

/** What to check when a machine does not come, most likely first. */
export function diagnose(step: "redeem" | "approve" | "connect" | "smoke", host: string, refusal?: { reason: string } | null): string[] {
  if (refusal) return [`The hub refused a machine: ${refusal.reason}.`, "Make a new invite here and paste the new line."];
  const local = ["localhost", "127.0.0.1", "[::1]"].includes(host);
  switch (step) {
    case "redeem":
      return [
        ...(local ? [`You reach this hub as ${host}, so only this very machine can join. For others, start the hub with --public-url.`] : []),
        "Was the line pasted, and does its terminal show an error?",
        `Can that machine reach the hub? Try there: curl -fsS ${location.origin}/healthz`,
        "Outgoing UDP or TCP to the relay's port must be allowed. On the machine, cortex-peer doctor says what is blocked.",
      ];
    case "approve":
      return ["The machine waits for you: compare the fingerprint with the one in its terminal, then approve it."];
    case "connect":
      return [
        "It registered its key, but has no connection yet. Outgoing UDP or TCP to the relay's port may be blocked.",
        "On the machine, cortex-peer doctor says what is blocked and how to let it through.",
      ];
    case "smoke":
      return ["The command has not ended. The machine may be busy, or its policy may hold the task back; the task's page says more."];
  }
}
