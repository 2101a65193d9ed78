// A terminal that somebody types into: keys, copy and paste, its size, and what a program may ask it.
import type { Terminal } from "@xterm/xterm";
import { Feed, newTerminal, textOf, theme } from "./terminal";

export interface Console {
  /** Output. What was printed `before` somebody came is only shown: its questions were answered long ago. */
  write(bytes: Uint8Array, before: boolean): void;
  /** Bytes that are not shown yet. */
  readonly behind: number;
  /** What waits is not shown. */
  drop(): void;
  reset(): void;
  /** A line of ours. */
  note(text: string): void;
  /** The size that fits in its place. */
  size(): { columns: number; rows: number };
  /** Takes the size that the program has: somebody else gave it. Until this one is used, or its place changes. */
  shape(columns: number, rows: number): void;
  mayType(may: boolean): void;
  paste(text: string): void;
  /** What is selected, or everything. */
  text(): string;
  dark(dark: boolean): void;
  focus(): void;
  dispose(): void;
}

export interface ConsoleOptions {
  typed(data: string | Uint8Array): void;
  resized(columns: number, rows: number): void;
  /** The key that leaves it was pressed. */
  left(): void;
  copied(text: string): void;
  /** All that was written is shown. */
  drained(): void;
}

/** Pasted text: never a key of its own. Lines end as the Enter key ends them. */
export const pasted = (text: string) => text.replace(/\r?\n/g, "\r").replace(/[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f]/g, "");

export function openConsole(place: HTMLElement, label: string, isDark: boolean, options: ConsoleOptions): Console {
  const { terminal, fit } = newTerminal(place, label, isDark, { cursorBlink: false, cursorInactiveStyle: "outline", rightClickSelectsWord: false, macOptionClickForcesSelection: true });
  let replaying = 0;
  onlyLiveAnswers(terminal, () => replaying > 0 || !place.contains(document.activeElement));
  const feed = new Feed(terminal, () => feed.behind === 0 && options.drained());

  // Whether it has the size that somebody else gave it.
  let shaped = false;
  terminal.onData((data) => {
    if (shaped) claim();
    options.typed(data);
  });
  terminal.onBinary((data) => options.typed(Uint8Array.from(data, (c) => c.charCodeAt(0) & 255)));
  terminal.attachCustomKeyEventHandler((event) => {
    if (event.type !== "keydown") return true;
    if (event.key === "F6" && event.ctrlKey) {
      event.preventDefault();
      options.left();
      return false;
    }
    // As in other terminals: Ctrl+C copies while something is selected, and Ctrl+Shift+C always. Ctrl+Shift+V pastes, and Ctrl+V where no program fills the screen: the browser does that.
    const c = event.key.toLowerCase() === "c";
    if (event.ctrlKey && c && (event.shiftKey || terminal.hasSelection())) {
      event.preventDefault();
      if (terminal.hasSelection()) options.copied(terminal.getSelection());
      terminal.clearSelection();
      return false;
    }
    const v = event.ctrlKey && !event.altKey && event.key.toLowerCase() === "v";
    return !(v && (event.shiftKey || terminal.buffer.active.type === "normal"));
  });
  const paste = (event: ClipboardEvent) => {
    event.preventDefault();
    event.stopImmediatePropagation();
    if (!terminal.options.disableStdin) terminal.paste(pasted(event.clipboardData?.getData("text/plain") ?? ""));
  };
  place.addEventListener("paste", paste, { capture: true });

  const size = () => {
    const wanted = fit.proposeDimensions();
    if (wanted && Number.isFinite(wanted.cols) && Number.isFinite(wanted.rows)) return { columns: Math.min(1000, Math.max(20, wanted.cols)), rows: Math.min(1000, Math.max(4, wanted.rows)) };
    return { columns: terminal.cols, rows: terminal.rows };
  };
  // The size is that of whoever used it last.
  function claim(): void {
    const { columns, rows } = size();
    shaped = false;
    terminal.resize(columns, rows);
    options.resized(columns, rows);
  }
  // A pane that is dragged has many sizes; the program hears of the one it comes to.
  let timer: ReturnType<typeof setTimeout> | undefined;
  const observer = new ResizeObserver(() => {
    clearTimeout(timer);
    timer = setTimeout(() => {
      if (!place.clientWidth) return;
      const { columns, rows } = size();
      if (columns === terminal.cols && rows === terminal.rows) return;
      // Somebody works in it elsewhere, and here it is only looked at.
      if (shaped && !(document.hasFocus() && place.contains(document.activeElement))) return;
      claim();
    }, 80);
  });
  observer.observe(place);
  const first = size();
  terminal.resize(first.columns, first.rows);
  terminal.textarea?.addEventListener("focus", claim);
  place.addEventListener("pointerdown", () => shaped && claim());

  let shows = 0;
  const drop = () => {
    feed.drop();
    shows += 1;
    replaying = 0;
  };

  return {
    write(bytes, before) {
      if (!before) return feed.write(bytes);
      replaying += 1;
      const show = shows;
      feed.write(bytes, () => show === shows && (replaying -= 1));
    },
    get behind() {
      return feed.behind;
    },
    drop,
    reset() {
      drop();
      terminal.reset();
    },
    note: (text) => feed.write(new TextEncoder().encode(`\x1b[0m\r\n\x1b[2m${text}\x1b[0m\r\n`)),
    size,
    shape(columns, rows) {
      const own = size();
      shaped = columns !== own.columns || rows !== own.rows;
      terminal.resize(columns, rows);
    },
    mayType: (may) => (terminal.options.disableStdin = !may),
    paste: (text) => terminal.paste(pasted(text)),
    text: () => textOf(terminal),
    dark: (dark) => (terminal.options.theme = theme(dark, true)),
    focus: () => terminal.focus(),
    dispose() {
      clearTimeout(timer);
      feed.drop();
      observer.disconnect();
      place.removeEventListener("paste", paste, { capture: true });
      terminal.dispose();
    },
  };
}

/** Programs ask terminals what they are, and get the answer as if it were typed. Only the one that is used answers: several that are looked at would answer several times, and a replay again. */
function onlyLiveAnswers({ parser }: Terminal, silent: () => boolean): void {
  const ask = [{ final: "c" }, { prefix: ">", final: "c" }, { prefix: "=", final: "c" }, { final: "n" }, { prefix: "?", final: "n" }, { prefix: ">", final: "q" }, { intermediates: "$", final: "p" }, { prefix: "?", intermediates: "$", final: "p" }];
  for (const id of ask) parser.registerCsiHandler(id, silent);
  parser.registerDcsHandler({ intermediates: "$", final: "q" }, silent);
  // Colours: a question ends with a question mark, everything else sets them.
  for (const number of [4, 10, 11, 12]) parser.registerOscHandler(number, (data) => data.endsWith("?") && silent());
}

