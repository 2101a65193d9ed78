// Where the person is: the address bar is the only place that knows.

class Router {
  path = $state(location.pathname);
  query = $state(location.search);

  constructor() {
    addEventListener("popstate", () => this.#read());
    document.addEventListener("click", (event) => {
      const link = (event.target as Element | null)?.closest?.("a");
      if (!link || event.defaultPrevented || event.button !== 0 || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
      if (link.origin !== location.origin || link.target || link.hasAttribute("download") || /^\/(api|dist|install)/.test(link.pathname)) return;
      event.preventDefault();
      this.go(link.pathname + link.search);
    });
  }

  go(to: string, replace = false): void {
    if (to === this.path + this.query) return;
    history[replace ? "replaceState" : "pushState"](null, "", to);
    this.#read();
    scrollTo(0, 0);
  }

  /** The parts of the path: `/sessions/1/files` → ["sessions", "1", "files"]. */
  get parts(): string[] {
    return this.path.split("/").filter(Boolean).map(decode);
  }

  param(name: string): string | null {
    return new URLSearchParams(this.query).get(name);
  }

  #read(): void {
    this.path = location.pathname;
    this.query = location.search;
  }
}

function decode(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

export const router = new Router();
