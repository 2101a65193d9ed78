// xterm.js under a policy that lets nobody write styles into the page: its style elements are kept as style sheets of scripts.
import { FitAddon } from "@xterm/addon-fit";
import { Terminal } from "@xterm/xterm";
import "@xterm/xterm/css/xterm.css";

const LINES = 20_000;
/** More waiting bytes than this are not queued: the terminal says when it is ready. */
const PENDING_BYTES = 512 * 1024;

export interface Screen {
  write(bytes: Uint8Array): void;
  dark(dark: boolean): void;
  /** What is selected, or everything. */
  text(): string;
  rows(rows: number): void;
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

export function openScreen(place: HTMLElement, label: string, isDark: boolean): Screen {
  const terminal = new Terminal({
    convertEol: true,
    disableStdin: true,
    cursorInactiveStyle: "none",
    cursorStyle: "bar",
    scrollback: LINES,
    fontSize: 12.5,
    lineHeight: 1.25,
    fontFamily: getComputedStyle(document.documentElement).getPropertyValue("--mono"),
    minimumContrastRatio: 4.5,
    rows: 2,
    // What a task prints may name links; nobody is taken there by it.
    linkHandler: { activate: () => {} },
    theme: isDark ? THEMES.dark : THEMES.light,
  });
  const fit = new FitAddon();
  terminal.loadAddon(fit);
  withSheets(() => terminal.open(place));
  terminal.textarea?.setAttribute("aria-label", label);
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

  let queue: Uint8Array[] = [];
  let pending = 0;
  const pump = () => {
    while (queue.length && pending < PENDING_BYTES) {
      const bytes = queue.shift() as Uint8Array;
      pending += bytes.length;
      terminal.write(bytes, () => {
        pending -= bytes.length;
        const lines = Math.min(24, Math.max(2, used(terminal)));
        if (lines !== wanted) {
          wanted = Math.max(wanted, lines);
          size();
        }
        pump();
      });
    }
  };

  return {
    write(bytes) {
      queue.push(bytes);
      pump();
    },
    dark(dark) {
      terminal.options.theme = dark ? THEMES.dark : THEMES.light;
    },
    text() {
      if (terminal.hasSelection()) return terminal.getSelection();
      terminal.selectAll();
      const text = terminal.getSelection();
      terminal.clearSelection();
      return text;
    },
    rows(rows) {
      wanted = rows;
      size();
    },
    dispose() {
      queue = [];
      observer.disconnect();
      terminal.dispose();
    },
  };
}
