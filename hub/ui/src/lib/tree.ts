// A workspace's files as the rows of a tree. Thousands of files are a list of paths, and only open folders make rows.
import type { Difference, FileView } from "../api/client";

export interface Row {
  file: FileView;
  depth: number;
  open: boolean;
  children: number;
}

/** Folders first, then names as people sort them. */
const order = new Intl.Collator("en", { numeric: true, sensitivity: "base" });
const compare = (a: FileView, b: FileView) => Number(b.kind === "directory") - Number(a.kind === "directory") || order.compare(a.name, b.name) || (a.path < b.path ? -1 : 1);

export const parentOf = (path: string) => path.slice(0, Math.max(0, path.lastIndexOf("/")));

export class Tree {
  #files = new Map<string, FileView>();
  #children = new Map<string, FileView[]>();
  /** Folders whose lists are in order. */
  #sorted = new Set<string>();

  constructor(files: Iterable<FileView> = []) {
    for (const file of files) this.put(file);
  }

  get size(): number {
    return this.#files.size;
  }

  get(path: string): FileView | undefined {
    return this.#files.get(path);
  }

  put(file: FileView): void {
    const parent = parentOf(file.path);
    if (this.#files.has(file.path)) this.#drop(file.path);
    this.#files.set(file.path, file);
    const siblings = this.#children.get(parent);
    if (siblings) siblings.push(file);
    else this.#children.set(parent, [file]);
    this.#sorted.delete(parent);
  }

  remove(path: string): void {
    this.#drop(path);
    this.#files.delete(path);
  }

  #drop(path: string): void {
    const siblings = this.#children.get(parentOf(path));
    const at = siblings?.findIndex((file) => file.path === path) ?? -1;
    if (at >= 0) siblings?.splice(at, 1);
  }

  /** Takes in what differs between two revisions. */
  apply(differences: Iterable<Difference>): void {
    for (const { path, after } of differences) {
      if (after) this.put(after);
      else this.remove(path);
    }
  }

  /** The rows that are seen when these folders are open. With `wanted`, every file whose path holds it, without folders. */
  rows(open: ReadonlySet<string>, wanted = ""): Row[] {
    if (wanted) {
      const text = wanted.toLowerCase();
      const found = [...this.#files.values()].filter((file) => file.kind !== "directory" && file.path.toLowerCase().includes(text));
      return found.sort((a, b) => order.compare(a.path, b.path)).map((file) => ({ file: { ...file, name: file.path }, depth: 0, open: false, children: 0 }));
    }
    const rows: Row[] = [];
    const walk = (folder: string, depth: number) => {
      for (const file of this.#list(folder)) {
        const isOpen = file.kind === "directory" && open.has(file.path);
        rows.push({ file, depth, open: isOpen, children: this.#children.get(file.path)?.length ?? 0 });
        if (isOpen) walk(file.path, depth + 1);
      }
    };
    walk("", 0);
    return rows;
  }

  #list(folder: string): FileView[] {
    const list = this.#children.get(folder) ?? [];
    if (!this.#sorted.has(folder)) {
      list.sort(compare);
      this.#sorted.add(folder);
    }
    return list;
  }
}
