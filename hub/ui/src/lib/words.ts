// Words of a command as one types them: quotes hold words with spaces together, a backslash takes the next character as it is.

export function split(text: string): string[] {
  const words: string[] = [];
  let word = "";
  let open = "";
  let any = false;
  for (let at = 0; at < text.length; at++) {
    const c = text[at] as string;
    if (open) {
      if (c === open) open = "";
      else if (c === "\\" && open === '"' && /["\\]/.test(text[at + 1] ?? "")) word += text[++at];
      else word += c;
    } else if (c === "'" || c === '"') {
      open = c;
      any = true;
    } else if (c === "\\" && at + 1 < text.length) word += text[++at];
    else if (/\s/.test(c)) {
      if (word || any) words.push(word);
      word = "";
      any = false;
    } else word += c;
  }
  if (word || any) words.push(word);
  return words;
}

const PLAIN = /^[A-Za-z0-9_./:=@%+,-]+$/;
export const quote = (word: string) => (PLAIN.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`);
export const join = (words: readonly string[]) => words.map(quote).join(" ");

/** What one may want to allow of a command from now on: its program, and the subcommand behind it. */
export function firstWords(argv: readonly string[], script: string): string[] {
  const words = argv.length ? [...argv] : split((script.split(/[\n;|&<>]/).find((part) => part.trim()) ?? "").trim()).filter((word) => !/^[A-Za-z_]\w*=/.test(word));
  return words.slice(0, words[1] !== undefined && /^[a-z][a-z0-9-]*$/.test(words[1]) ? 2 : 1);
}
