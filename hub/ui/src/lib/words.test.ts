import { expect, test } from "vitest";
import { firstWords, join, split } from "./words";

test("words are split as a shell would, and joined so that they come back", () => {
  expect(split(`git  push 'two words' "a \\"b\\"" c\\ d ''`)).toEqual(["git", "push", "two words", 'a "b"', "c d", ""]);
  for (const words of [["git", "push"], ["a b", "it's", "$HOME", "\\", ""], ["'", '"', "`x`"]]) expect(split(join(words))).toEqual(words);
  expect(split("'never closed")).toEqual(["never closed"]);
});

test("the program and its subcommand are proposed", () => {
  expect(firstWords(["git", "push", "origin"], "")).toEqual(["git", "push"]);
  expect(firstWords([], "FORCE=1 rm -rf build; echo done")).toEqual(["rm"]);
  expect(firstWords([], "\n  systemctl restart nginx | cat")).toEqual(["systemctl", "restart"]);
  expect(firstWords([], "")).toEqual([]);
});
