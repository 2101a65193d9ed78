// xterm.js under a policy that lets nobody write styles into the page: its style elements are kept as style sheets of scripts.
import { FitAddon } from "@xterm/addon-fit";
import { Terminal, type ITerminalInitOnlyOptions, type ITerminalOptions, type ITheme } from "@xterm/xterm";
import "@xterm/xterm/css/xterm.css";

const LINES = 20_000;
/** One piece is parsed without a pause: small ones let the page draw in between. */
const PIECE_BYTES = 8 * 1024;
/** More waiting bytes than this are not queued: the terminal says when it is ready. */
const PENDING_BYTES = 64 * 1024;

export interface Screen {
  write(bytes: Uint8Array): void;
  dark(dark: boolean): void;
  /** What is selected, or everything. */
  text(): string;
  dispose(): void;
}

/** What stands in for a `<style>`: takes its text, and gives it to the page as a sheet. */
function sheetElement(make: (tag: string) => HTMLElement): HTMLElement {
  const sheet = new CSSStyleSheet();
  document.adoptedStyleSheets = [...document.adoptedStyleSheets, sheet];
  const element = make("span");
  element.hidden = true;
  Object.defineProperty(element, "textContent", { set: (css: string) => sheet.replaceSync(css), get: () => "" });
  const remove = element.remove.bind(element);
  element.remove = () => {
    document.adoptedStyleSheets = document.adoptedStyleSheets.filter((other) => other !== sheet);
    remove();
  };
  return element;
}

function withSheets(work: () => void): void {
  const make = Document.prototype.createElement.bind(document) as (tag: string) => HTMLElement;
  document.createElement = ((tag: string) => (tag === "style" ? sheetElement(make) : make(tag))) as typeof document.createElement;
  try {
    work();
  } finally {
    delete (document as { createElement?: unknown }).createElement;
  }
}

/** Writes styles that xterm.js puts into an attribute (colours that were mended, and those of 24 bits) the way that scripts may. */
function setAttribute(this: HTMLElement, name: string, value: string): void {
  if (name === "style") this.style.cssText = value;
  else Element.prototype.setAttribute.call(this, name, value);
}

type Inner = { _core?: { _renderService?: { _renderer?: { value?: { _rowFactory?: { _document: Document } } } } } };

/** The document as those see it who make the rows. */
const elements = new Proxy(document, {
  get(real, key) {
    if (key === "createElement")
      return (tag: string) => {
        const element = document.createElement(tag);
        if (tag === "span") element.setAttribute = setAttribute;
        return element;
      };
    const value: unknown = Reflect.get(real, key, real);
    return typeof value === "function" ? value.bind(real) : value;
  },
});

const THEMES = {
  dark: { background: "#0a0d12", foreground: "#d6dce6", cursor: "#0a0d12", selectionBackground: "#37436a" },
  light: {
    background: "#fbfbfd", foreground: "#1d232c", cursor: "#fbfbfd", selectionBackground: "#c9d2fb",
    black: "#1d232c", red: "#b3261e", green: "#13723f", yellow: "#885300", blue: "#2f47c2", magenta: "#86268f", cyan: "#0b6f7f", white: "#5b6472",
    brightBlack: "#535d6c", brightRed: "#c4362d", brightGreen: "#177f47", brightYellow: "#946000", brightBlue: "#4252d6", brightMagenta: "#9a35a3", brightCyan: "#0c7c8d", brightWhite: "#171b22",
  },
};

/** Lines that hold something, and the one where the cursor waits: without a row for it the first line would scroll away. */
const used = ({ buffer: { active } }: Terminal) => active.baseY + active.cursorY + 1;

/** What both kinds have in common. */
export function newTerminal(place: HTMLElement, label: string, isDark: boolean, more: ITerminalOptions & ITerminalInitOnlyOptions): { terminal: Terminal; fit: FitAddon } {
  const terminal = new Terminal({
    scrollback: LINES,
    fontSize: 12.5,
    lineHeight: 1.25,
    fontFamily: getComputedStyle(document.documentElement).getPropertyValue("--mono"),
    minimumContrastRatio: 4.5,
    // What a task prints may name links; nobody is taken there by it.
    linkHandler: { activate: () => {} },
    theme: theme(isDark, !more.disableStdin),
    ...more,
  });
  const fit = new FitAddon();
  terminal.loadAddon(fit);
  withSheets(() => terminal.open(place));
  // The one place inside of xterm.js that we reach into; where it has moved, a test sees colours that are missing.
  const rows = (terminal as unknown as Inner)._core?._renderService?._renderer?.value?._rowFactory;
  if (rows) rows._document = elements;
  terminal.textarea?.setAttribute("aria-label", label);
  return { terminal, fit };
}

/** Colours; where somebody types there is a cursor to be seen. */
export function theme(isDark: boolean, cursor: boolean): ITheme {
  const colours = isDark ? THEMES.dark : THEMES.light;
  return cursor ? { ...colours, cursor: colours.foreground, cursorAccent: colours.background } : colours;
}

/** Hands bytes to a terminal as fast as it can parse them, in pieces between which the page draws. */
export class Feed {
  #terminal: Terminal;
  #queue: { bytes: Uint8Array; done?: () => unknown }[] = [];
  #waiting = 0;
  #pending = 0;
  #frame = 0;
  #parsed: () => void;

  constructor(terminal: Terminal, parsed: () => void = () => {}) {
    this.#terminal = terminal;
    this.#parsed = parsed;
  }

  /** Bytes that are not shown yet. */
  get behind(): number {
    return this.#waiting + this.#pending;
  }

  /** `done` is called when all of it is on the screen. */
  write(bytes: Uint8Array, done?: () => unknown): void {
    for (let at = 0; at < bytes.length; at += PIECE_BYTES) {
      const piece = bytes.subarray(at, at + PIECE_BYTES);
      this.#queue.push({ bytes: piece, done: at + PIECE_BYTES >= bytes.length ? done : undefined });
    }
    this.#waiting += bytes.length;
    this.#pump();
  }

  drop(): void {
    cancelAnimationFrame(this.#frame);
    this.#frame = 0;
    this.#queue = [];
    this.#waiting = 0;
  }

  #pump(): void {
    while (this.#pending < PENDING_BYTES) {
      const piece = this.#queue.shift();
      if (!piece) return;
      const { length } = piece.bytes;
      this.#waiting -= length;
      this.#pending += length;
      this.#terminal.write(piece.bytes, () => {
        this.#pending -= length;
        piece.done?.();
        this.#parsed();
        // The next ones come when the page has drawn; a page that is not drawn is not waited for.
        if (!this.#queue.length || this.#pending > PENDING_BYTES / 2 || this.#frame) return;
        if (document.hidden) this.#pump();
        else this.#frame = requestAnimationFrame(() => { this.#frame = 0; this.#pump(); });
      });
    }
  }
}

export function openScreen(place: HTMLElement, label: string, isDark: boolean): Screen {
  const { terminal, fit } = newTerminal(place, label, isDark, { convertEol: true, disableStdin: true, cursorInactiveStyle: "none", cursorStyle: "bar", rows: 2 });
  // Tab leaves it: it takes no input.
  terminal.attachCustomKeyEventHandler((event) => event.key !== "Tab" && !(event.ctrlKey && event.key === "c"));

  let wanted = 2;
  const size = () => {
    const columns = fit.proposeDimensions()?.cols;
    if (columns && Number.isFinite(columns) && (columns !== terminal.cols || wanted !== terminal.rows)) terminal.resize(Math.max(20, columns), wanted);
  };
  const observer = new ResizeObserver(size);
  observer.observe(place);
  size();
  const feed = new Feed(terminal, () => {
    const lines = Math.min(24, Math.max(2, used(terminal)));
    if (lines <= wanted) return;
    wanted = lines;
    size();
  });

  return {
    write: (bytes) => feed.write(bytes),
    dark: (dark) => (terminal.options.theme = theme(dark, false)),
    text: () => textOf(terminal),
    dispose() {
      feed.drop();
      observer.disconnect();
      terminal.dispose();
    },
  };
}

/** What is selected, or everything. */
export function textOf(terminal: Terminal): string {
  if (terminal.hasSelection()) return terminal.getSelection();
  terminal.selectAll();
  const text = terminal.getSelection();
  terminal.clearSelection();
  return text;
}
