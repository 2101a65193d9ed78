// What a machine says of a wall that its sandbox lacks, taken apart for a person.

export interface Wall {
  /** What is missing. */
  what: string;
  /** What to do about it; empty: the machine does not know. */
  fix: string;
  /** The part of it that can be pasted. */
  command: string;
}

/** "cannot make namespaces: … Fix: …; as root: sysctl -w …" */
export function wallOf(text: string): Wall {
  const at = text.indexOf(". Fix: ");
  if (at < 0) return { what: text, fix: "", command: "" };
  const fix = text.slice(at + ". Fix: ".length);
  return { what: text.slice(0, at), fix, command: /(?:; as root|and run): ([a-z_]+(?: [^;`]+)?)$/.exec(fix)?.[1] ?? "" };
}
