import { describe, expect, it } from "vitest";
import type { FileView } from "../api/client";
import { Tree } from "./tree";

const file = (path: string, kind: FileView["kind"] = "file"): FileView => ({ path, name: path.split("/").at(-1) ?? "", kind, size: 1, hash: path, executable: false });
const paths = (tree: Tree, open: string[] = [], wanted = "") => tree.rows(new Set(open), wanted).map((row) => `${" ".repeat(row.depth)}${row.file.name}`);

describe("the tree of files", () => {
  const tree = () => new Tree([file("b.txt"), file("a", "directory"), file("a/10.txt"), file("a/9.txt"), file("a/z", "directory"), file("a/z/deep.txt")]);
  it("shows folders first, and what is in those that are open", () => {
    expect(paths(tree())).toEqual(["a", "b.txt"]);
    expect(paths(tree(), ["a"])).toEqual(["a", " z", " 9.txt", " 10.txt", "b.txt"]);
    expect(paths(tree(), ["a", "a/z"])).toContain("  deep.txt");
  });
  it("finds files wherever they are", () => {
    expect(paths(tree(), [], "DEEP")).toEqual(["a/z/deep.txt"]);
  });
  it("takes in what has changed", () => {
    const changed = tree();
    changed.apply([{ path: "b.txt" }, { path: "c.txt", after: file("c.txt") }, { path: "a/9.txt", after: { ...file("a/9.txt"), size: 5 } }]);
    expect(paths(changed, ["a"])).toEqual(["a", " z", " 9.txt", " 10.txt", "c.txt"]);
    expect(changed.get("a/9.txt")?.size).toBe(5);
    expect(changed.size).toBe(6);
  });
  it("stays quick with twenty thousand entries", () => {
    const many = Array.from({ length: 20_000 }, (_, at) => file(`folder-${at % 40}/file-${at}.txt`));
    const began = performance.now();
    const large = new Tree([...Array.from({ length: 40 }, (_, at) => file(`folder-${at}`, "directory")), ...many]);
    expect(large.rows(new Set(Array.from({ length: 40 }, (_, at) => `folder-${at}`))).length).toBe(20_040);
    expect(performance.now() - began).toBeLessThan(3000);
  });
});
