import { expect, test } from "vitest";
import { wallOf } from "./walls";

test("a missing wall is told with its fix, and with the command where there is one", () => {
  expect(wallOf("cannot make namespaces: Operation not permitted. Fix: user namespaces are switched off; as root: sysctl -w user.max_user_namespaces=15000")).toEqual({
    what: "cannot make namespaces: Operation not permitted",
    fix: "user namespaces are switched off; as root: sysctl -w user.max_user_namespaces=15000",
    command: "sysctl -w user.max_user_namespaces=15000",
  });
  expect(wallOf("x. Fix: write a profile to /etc/apparmor.d/cortex-peer and run: apparmor_parser -r /etc/apparmor.d/cortex-peer").command).toBe("apparmor_parser -r /etc/apparmor.d/cortex-peer");
  expect(wallOf("x. Fix: start the peer outside of the chroot").command).toBe("");
  expect(wallOf("the self-test got through to: bpf")).toEqual({ what: "the self-test got through to: bpf", fix: "", command: "" });
});
