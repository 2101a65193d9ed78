// Ways out of a sandbox, each tried for real in a process of its own. Prints `open NAME` for what works and `shut NAME` for what does not.
//
// Outside the sandbox the same program is the control, so nothing here does harm when it works: what is opened for writing is not written,
// what is set is set to what it was. The environment says what there is to reach: OUT (a folder with `secret`, `stream` and `datagram`), STATE (the
// peer's), OTHER (another session's folder), TCP, TCP6, UDP (ports that answer), NAME (abstract), PID (a process of the same user).
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/keyctl.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/klog.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/timex.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

static const char *env(const char *name) { const char *value = getenv(name); return value ? value : ""; }
static char *in(const char *folder, const char *name) { char *path; if (asprintf(&path, "%s/%s", env(folder), name) < 0) _exit(9); return path; }
static int number(const char *name) { return atoi(env(name)); }

static int reads(const char *path) {
    char byte;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    return fd >= 0 && read(fd, &byte, 1) == 1;
}
static int opens(const char *path, int flags) { return open(path, flags | O_CLOEXEC, 0644) >= 0; }
static int lists(const char *path) { DIR *dir = opendir(path); return dir && readdir(dir); }
static int runs(const char *command) { return system(command) == 0; }
// Whether a call is there at all: it may fail for what it was given, but not because nobody may call it.
static int there(long result) { return result >= 0 || (errno != EPERM && errno != ENOSYS && errno != EACCES); }
static int waited(pid_t child) { int status; return child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status) && !WEXITSTATUS(status); }

static int read_secret(void) { return reads(in("OUT", "secret")); }
static int list_outside(void) { return lists(env("OUT")); }
static int stat_secret(void) { struct stat s; return !stat(in("OUT", "secret"), &s); }
static int through_symlink(void) { unlink("link"); return !symlink(in("OUT", "secret"), "link") && reads("link"); }
static int through_proc_root(void) { char *p; return asprintf(&p, "/proc/1/root%s", in("OUT", "secret")) > 0 && reads(p); }
static int through_outside_root(void) { char *p; return asprintf(&p, "/proc/%d/root%s", number("PID"), in("OUT", "secret")) > 0 && reads(p); }
static int through_outside_cwd(void) { char *p; return asprintf(&p, "/proc/%d/cwd/.", number("PID")) > 0 && lists(p); }
static int through_dots(void) { char *p; return asprintf(&p, "../../../../../../../../../..%s", in("OUT", "secret")) > 0 && reads(p); }
static int hard_link(void) { unlink("hard"); return !link(in("OUT", "secret"), "hard"); }
static int write_secret(void) { return opens(in("OUT", "secret"), O_WRONLY); }
static int append_new(void) { return opens(in("OUT", "new"), O_WRONLY | O_CREAT); }
static int remove_outside(void) { return !unlink(in("OUT", "victim")); }
static int rename_out(void) { return opens("moving", O_WRONLY | O_CREAT) && !rename("moving", in("OUT", "moved")); }
static int chmod_secret(void) { return !chmod(in("OUT", "secret"), 0600); }
static int touch_secret(void) { return !utimensat(AT_FDCWD, in("OUT", "secret"), NULL, 0); }
static int xattr_secret(void) { return !setxattr(in("OUT", "secret"), "user.x", "x", 1, 0); }
static int truncate_secret(void) { return !truncate(in("OUT", "secret"), 6); }
static int make_folder_outside(void) { return !mkdir(in("OUT", "folder"), 0700); }
static int shadow(void) { return reads("/etc/shadow") || reads("/etc/gshadow"); }
static int home(void) { return lists("/root") || lists("/home/.") ? lists("/root") : 0; }
static int state(void) { return lists(env("STATE")); }
static int other_session(void) { return lists(env("OTHER")); }
static int write_usr(void) { return opens("/usr/cortex-escape", O_WRONLY | O_CREAT) && !unlink("/usr/cortex-escape"); }
static int write_program(void) { return opens("/usr/bin/env", O_RDWR) || access("/usr/bin/env", W_OK) == 0; }
static int write_etc(void) { return opens("/etc/cortex-escape", O_WRONLY | O_CREAT) && !unlink("/etc/cortex-escape"); }
static int write_users(void) { return opens("/etc/passwd", O_WRONLY); }
static int write_preload(void) { return access("/etc", W_OK) == 0; }
static int write_root(void) { return opens("/cortex-escape", O_WRONLY | O_CREAT) && !unlink("/cortex-escape"); }
static int chmod_device(void) { return !chmod("/dev/null", 0666); }
static int write_sys(void) { return opens("/sys/kernel/mm/transparent_hugepage/enabled", O_WRONLY); }
static int list_sys(void) { return lists("/sys/class"); }
static int release_agent(void) { return lists("/sys/fs/cgroup"); }

static int hook(void) { return opens(".git/hooks/pre-commit", O_WRONLY | O_CREAT); }
static int hook_folder(void) { return !rename(".git/hooks", ".git/old") && !rename(".git/old", ".git/hooks"); }
static int settings(void) { return opens(".git/config", O_WRONLY | O_APPEND); }
static int settings_over(void) { opens("new-config", O_WRONLY | O_CREAT); return !rename("new-config", ".git/config"); }
static int settings_away(void) { return !rename(".git/config", ".git/config2") && !rename(".git/config2", ".git/config"); }
static int settings_linked(void) { unlink(".git/c"); return !link(".git/config", ".git/c") && opens(".git/c", O_WRONLY); }
static int repository_away(void) { return !rename(".git", "git2") && !rename("git2", ".git"); }
static int absent_file(void) { return opens(".envrc", O_WRONLY | O_CREAT | O_TRUNC); }
static int absent_rules(void) { return opens(".cortexignore", O_WRONLY | O_CREAT); }
static int absent_agent(void) { mkdir(".claude", 0755); return opens(".claude/settings.json", O_WRONLY | O_CREAT); }
static int absent_editor(void) { mkdir(".vscode", 0755); return opens(".vscode/tasks.json", O_WRONLY | O_CREAT); }
static int absent_over(void) { opens("x", O_WRONLY | O_CREAT); return !rename("x", ".mcp.json"); }
static int absent_replaced(void) { unlink(".cursor"); return !symlink("/tmp", ".cursor"); }
static int absent_exchanged(void) { opens("y", O_WRONLY | O_CREAT); return !syscall(SYS_renameat2, AT_FDCWD, "y", AT_FDCWD, ".idea", 0); }
static int absent_mode(void) { return !chmod(".envrc", 0644); }

static int setuid_chmod(void) { opens("s1", O_WRONLY | O_CREAT); return !chmod("s1", 04755); }
static int setuid_fchmodat(void) { opens("s2", O_WRONLY | O_CREAT); return !fchmodat(AT_FDCWD, "s2", 04755, 0); }
static int setuid_open(void) { struct stat s; unlink("s3"); return open("s3", O_WRONLY | O_CREAT, 04755) >= 0 && !stat("s3", &s) && s.st_mode & S_ISUID; }
static int setuid_openat2(void) {
    struct { unsigned long long flags, mode, resolve; } how = {O_WRONLY | O_CREAT, 04755, 0};
    return syscall(SYS_openat2, AT_FDCWD, "s4", &how, sizeof how) >= 0;
}
static int setgid_chmod(void) { opens("s5", O_WRONLY | O_CREAT); return !chmod("s5", 02755); }
static int device(void) { unlink("d1"); return !mknod("d1", S_IFCHR | 0666, 0x105); }
static int block_device(void) { unlink("d2"); return !mknod("d2", S_IFBLK | 0666, 0x700); }
static int memory_device(void) { return opens("/dev/mem", O_RDONLY) || opens("/dev/kmsg", O_RDONLY) || opens("/dev/fuse", O_RDWR); }
static int become_root(void) { return !setuid(0) && !geteuid(); }
static int other_user(void) { return !setresuid(12345, 12345, 12345); }
static int other_groups(void) { gid_t group = 27; return !setgroups(1, &group); }
static int capability(void) {
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2] = {{1 << CAP_SYS_ADMIN, 1 << CAP_SYS_ADMIN, 0}, {0}};
    return !syscall(SYS_capset, &header, data);
}
static int has_capability(void) { return prctl(PR_CAPBSET_READ, CAP_SYS_ADMIN) == 1; }

static int core_pattern(void) { return opens("/proc/sys/kernel/core_pattern", O_WRONLY); }
static int sysrq(void) { return opens("/proc/sysrq-trigger", O_WRONLY); }
static int any_setting(void) { return opens("/proc/sys/vm/swappiness", O_WRONLY); }
static int environment_of_init(void) { return reads("/proc/1/environ"); }
static int memory_of_init(void) { return opens("/proc/1/mem", O_RDONLY); }
static int descriptors_of_init(void) { return lists("/proc/1/fd"); }
static int environment_outside(void) { char *p; return asprintf(&p, "/proc/%d/environ", number("PID")) > 0 && reads(p); }
static int sees_outside(void) { char *p; return asprintf(&p, "/proc/%d/comm", number("PID")) > 0 && reads(p); }
static int kernel_memory(void) { return opens("/proc/kcore", O_RDONLY) && reads("/proc/kcore"); }
static int kernel_log(void) { return klogctl(10, NULL, 0) >= 0; }
static int kernel_keys(void) { return reads("/proc/keys"); }
static int kernel_pages(void) { return reads("/proc/kpageflags") || reads("/proc/vmallocinfo"); }
static int oom_score(void) { return opens("/proc/self/oom_score_adj", O_WRONLY); }
static int own_maps(void) { return opens("/proc/self/uid_map", O_WRONLY); }

static int talks(int fd, struct sockaddr *at, socklen_t length) {
    char answer[8] = "hi";
    struct timeval wait = {0, 300000};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof wait);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &wait, sizeof wait);
    return fd >= 0 && !connect(fd, at, length) && send(fd, "hi", 2, MSG_NOSIGNAL) == 2 && recv(fd, answer, 2, 0) == 2;
}
static int to4(int type, const char *port, const char *host) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(number(port))};
    inet_pton(AF_INET, host, &at.sin_addr);
    return talks(socket(AF_INET, type, 0), (void *)&at, sizeof at);
}
static int tcp(void) { return to4(SOCK_STREAM, "TCP", "127.0.0.1"); }
static int udp(void) { return to4(SOCK_DGRAM, "UDP", "127.0.0.1"); }
static int tcp_by_host(void) { return to4(SOCK_STREAM, "TCP", env("HOST4")); }
static int tcp6(void) {
    struct sockaddr_in6 at = {.sin6_family = AF_INET6, .sin6_port = htons(number("TCP6")), .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    return talks(socket(AF_INET6, SOCK_STREAM, 0), (void *)&at, sizeof at);
}
static int to_path(int type, const char *path) {
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    strncpy(at.sun_path, path, sizeof at.sun_path - 1);
    int fd = socket(AF_UNIX, type, 0);
    return fd >= 0 && !connect(fd, (void *)&at, sizeof at);
}
static int path_stream(void) { return to_path(SOCK_STREAM, in("OUT", "stream")); }
static int path_datagram(void) { return to_path(SOCK_DGRAM, in("OUT", "datagram")); }
static int path_linked(void) { unlink("sock"); return !symlink(in("OUT", "stream"), "sock") && to_path(SOCK_STREAM, "sock"); }
static int abstract(void) {
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    size_t length = strlen(env("NAME"));
    memcpy(at.sun_path + 1, env("NAME"), length);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    return fd >= 0 && !connect(fd, (void *)&at, offsetof(struct sockaddr_un, sun_path) + 1 + length);
}
static int family(int name, int type, int protocol) { return socket(name, type, protocol) >= 0; }
static int netlink(void) { return family(AF_NETLINK, SOCK_RAW, 0); }
static int netlink_audit(void) { return family(AF_NETLINK, SOCK_RAW, 9); }
static int packet(void) { return family(AF_PACKET, SOCK_RAW, 0); }
static int vsock(void) { return family(AF_VSOCK, SOCK_STREAM, 0); }
static int alg(void) { return family(AF_ALG, SOCK_SEQPACKET, 0); }
static int key_socket(void) { return family(AF_KEY, SOCK_RAW, 2); }
static int xdp(void) { return family(44, SOCK_RAW, 0); }
static int raw(void) { return family(AF_INET, SOCK_RAW, IPPROTO_ICMP); }
static int raw_pair(void) { int fds[2]; return there(socketpair(AF_INET, SOCK_STREAM, 0, fds)) && errno != EAFNOSUPPORT; }
static int other_interface(void) {
    struct if_nameindex *all = if_nameindex();
    int found = 0;
    for (; all && all->if_index; all++) found |= strcmp(all->if_name, "lo") != 0;
    return found;
}

static int io_uring(void) { char params[120] = {0}; return syscall(SYS_io_uring_setup, 1, params) >= 0; }
static int io_uring_enter(void) { return there(syscall(SYS_io_uring_enter, -1, 0, 0, 0, 0)); }
static int bpf(void) { return there(syscall(SYS_bpf, 0, NULL, 0)); }
static int perf(void) { return there(syscall(SYS_perf_event_open, NULL, 0, -1, -1, 0)); }
static int userfault(void) { return there(syscall(SYS_userfaultfd, 0)); }
static int keyring(void) { return syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, NULL) >= 0; }
static int key(void) { return syscall(SYS_add_key, "user", "cortex", "x", 1, KEY_SPEC_PROCESS_KEYRING) >= 0; }
static int key_request(void) { return there(syscall(SYS_request_key, "user", "cortex", NULL, 0)); }
static int trace_me(void) { return !ptrace(PTRACE_TRACEME, 0, 0, 0); }
static int trace_outside(void) { pid_t pid = number("PID"); return !ptrace(PTRACE_SEIZE, pid, 0, 0); }
static int trace_init(void) { return getpid() != 1 && !ptrace(PTRACE_SEIZE, getppid(), 0, 0); }
static int read_process(void) {
    static char from[1] = "x";
    char to[1];
    struct iovec local = {to, 1}, remote = {from, 1};
    return process_vm_readv(getppid(), &local, 1, &remote, 1, 0) == 1;
}
static int write_process(void) {
    static char at[1] = "x";
    struct iovec local = {at, 1}, remote = {at, 1};
    return process_vm_writev(getppid(), &local, 1, &remote, 1, 0) == 1;
}
static int take_descriptor(void) { int pid = syscall(SYS_pidfd_open, getppid(), 0); return syscall(SYS_pidfd_getfd, pid, 1, 0) >= 0; }
static int compare(void) { return there(syscall(SYS_kcmp, getpid(), getpid(), 0, 0, 0)); }
static int signal_outside(void) { return !kill(number("PID"), 0); }
static int signal_by_descriptor(void) {
    int pid = syscall(SYS_pidfd_open, number("PID"), 0);
    return pid >= 0 && !syscall(SYS_pidfd_send_signal, pid, 0, NULL, 0);
}

static int user_namespace(void) { return !unshare(CLONE_NEWUSER); }
static int mount_namespace(void) { return !unshare(CLONE_NEWNS); }
static int net_namespace(void) { return !unshare(CLONE_NEWNET); }
static int cloned_namespace(void) {
    pid_t pid = syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0);
    if (pid == 0) _exit(0);
    return waited(pid);
}
static int clone3_namespace(void) {
    unsigned long long args[8] = {CLONE_NEWUSER, 0, 0, 0, SIGCHLD};
    pid_t pid = syscall(SYS_clone3, args, sizeof args);
    if (pid == 0) _exit(0);
    return waited(pid);
}
static int enter_namespace(void) { int fd = open("/proc/1/ns/mnt", O_RDONLY); return there(syscall(SYS_setns, fd >= 0 ? fd : open("/proc/self/ns/uts", O_RDONLY), 0)); }
static int mounts(void) { unshare(CLONE_NEWNS); mkdir("m", 0700); return !mount("none", "m", "tmpfs", 0, ""); }
static int binds(void) { unshare(CLONE_NEWNS); return !mount("/proc", "m", NULL, MS_BIND, NULL); }
static int remounts(void) { unshare(CLONE_NEWNS); return !mount(NULL, "/proc", NULL, MS_REMOUNT | MS_BIND, NULL); }
static int unmounts(void) { unshare(CLONE_NEWNS); mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL); return !umount2("/proc", MNT_DETACH); }
static int pivots(void) { return there(syscall(SYS_pivot_root, "/nonexistent", "/nonexistent")); }
static int chroots(void) { return !chroot("."); }
static int new_mount(void) { return syscall(SYS_fsopen, "tmpfs", 0) >= 0; }
static int clones_mount(void) { return there(syscall(SYS_open_tree, AT_FDCWD, "/", 1)); }
static int moves_mount(void) { return there(syscall(SYS_move_mount, -1, "", -1, "", 4 | 0x40)); }
static int sets_mount(void) { return there(syscall(SYS_mount_setattr, -1, "", 0x1000, NULL, 0)); }
static int by_handle(void) { return there(syscall(SYS_open_by_handle_at, -1, NULL, 0)); }
static int fanotify(void) { return there(syscall(SYS_fanotify_init, 0, 0)); }
static int module(void) { return there(syscall(SYS_init_module, NULL, 0, "")); }
static int module_file(void) { return there(syscall(SYS_finit_module, -1, "", 0)); }
static int kexec(void) { return there(syscall(SYS_kexec_load, 0, 999, NULL, 0)); }
static int reboots(void) { return there(syscall(SYS_reboot, 0, 0, 0, NULL)); }
static int swaps(void) { return there(syscall(SYS_swapon, "/nonexistent", 0)); }
static int host_name(void) { char name[65]; return !gethostname(name, 64) && !sethostname(name, strlen(name)); }
static int clock_set(void) { return there(syscall(SYS_clock_settime, 99, NULL)); }
static int clock_tuned(void) { struct timex t = {0}; return adjtimex(&t) >= 0; }
static int quota(void) { return there(syscall(SYS_quotactl, 0x800001 << 8, NULL, 0, NULL)); }
static int priority(void) { return !setpriority(PRIO_PROCESS, 0, -5); }
static int real_time(void) { struct sched_param p = {1}; return !sched_setscheduler(0, SCHED_FIFO, &p); }
static int more_core(void) { struct rlimit l = {RLIM_INFINITY, RLIM_INFINITY}; return !setrlimit(RLIMIT_CORE, &l); }
static int more_processes(void) { struct rlimit l = {RLIM_INFINITY, RLIM_INFINITY}; return !setrlimit(RLIMIT_NPROC, &l); }
static int more_locked(void) { struct rlimit l = {RLIM_INFINITY, RLIM_INFINITY}; return !setrlimit(RLIMIT_MEMLOCK, &l); }
static int types_into_terminal(void) {
    int terminal = posix_openpt(O_RDWR | O_NOCTTY);
    char letter = 'x';
    if (terminal < 0 || grantpt(terminal) || unlockpt(terminal)) return 0;
    setsid();
    int side = open(ptsname(terminal), O_RDWR);
    return side >= 0 && !ioctl(side, TIOCSTI, &letter);
}
static int changes_terminal(void) { int number = 0; return there(ioctl(posix_openpt(O_RDWR | O_NOCTTY), TIOCSETD, &number)); }
static int privileges(void) { return prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 0; }
static int unfiltered(void) { return prctl(PR_GET_SECCOMP, 0, 0, 0, 0) == 0; }
static int inherited(void) { int found = 0; for (int fd = 3; fd < 1024; fd++) found |= fcntl(fd, F_GETFD) != -1; return found; }
#if defined(__x86_64__)
static int i386(void) { long result; __asm__ volatile("int $0x80" : "=a"(result) : "a"(20L) : "memory"); return result > 0; }
static int x32(void) { return syscall(0x40000000L + SYS_getpid) > 0; }
static int ports(void) { return there(syscall(SYS_iopl, 0)) ; }
static int port_access(void) { return there(syscall(SYS_ioperm, 0x80, 1, 0)); }
static int table(void) { char entry[16]; return there(syscall(SYS_modify_ldt, 0, entry, sizeof entry)); }
#endif

static int by_shell(void) { return runs("cat \"$OUT/secret\" >/dev/null 2>&1"); }
static int by_quotes(void) { return runs("c''at \"$OUT\"/s?cret >/dev/null 2>&1"); }
static int by_loader(void) { return runs("for l in /lib64/ld-linux-*.so.* /lib/ld-linux-*.so.*; do [ -e $l ] && exec $l /bin/cat \"$OUT/secret\" >/dev/null 2>&1; done; exit 1"); }
static int by_awk(void) { return runs("awk '{exit 0} END {exit NR==0}' \"$OUT/secret\" >/dev/null 2>&1"); }
static int by_perl(void) { return runs("perl -e 'open(F, \"<\", \"$ENV{OUT}/secret\") or exit 1' >/dev/null 2>&1"); }
static int by_tar(void) { return runs("tar cf /dev/null \"$OUT/secret\" >/dev/null 2>&1"); }
static int by_find(void) { return runs("find \"$OUT/secret\" -exec cat {} + >/dev/null 2>&1"); }
static int by_descriptor(void) { return runs("exec 9<\"$OUT/secret\""); }

static const struct { const char *name; int (*run)(void); } tricks[] = {
#define T(name) {#name, name},
T(read_secret) T(list_outside) T(stat_secret) T(through_symlink) T(through_proc_root) T(through_outside_root) T(through_outside_cwd)
T(through_dots) T(hard_link) T(write_secret) T(append_new) T(remove_outside) T(rename_out) T(chmod_secret) T(touch_secret) T(xattr_secret)
T(truncate_secret) T(make_folder_outside) T(shadow) T(home) T(state) T(other_session) T(write_usr) T(write_program) T(write_etc)
T(write_users) T(write_preload) T(write_root) T(chmod_device) T(write_sys) T(list_sys) T(release_agent)
T(hook) T(hook_folder) T(settings) T(settings_over) T(settings_away) T(settings_linked) T(repository_away)
T(absent_file) T(absent_rules) T(absent_agent) T(absent_editor) T(absent_over) T(absent_replaced) T(absent_exchanged) T(absent_mode)
T(setuid_chmod) T(setuid_fchmodat) T(setuid_open) T(setuid_openat2) T(setgid_chmod) T(device) T(block_device) T(memory_device)
T(become_root) T(other_user) T(other_groups) T(capability) T(has_capability)
T(core_pattern) T(sysrq) T(any_setting) T(environment_of_init) T(memory_of_init) T(descriptors_of_init) T(environment_outside) T(sees_outside)
T(kernel_memory) T(kernel_log) T(kernel_keys) T(kernel_pages) T(oom_score) T(own_maps)
T(tcp) T(udp) T(tcp_by_host) T(tcp6) T(path_stream) T(path_datagram) T(path_linked) T(abstract) T(netlink) T(netlink_audit) T(packet) T(vsock) T(alg)
T(key_socket) T(xdp) T(raw) T(raw_pair) T(other_interface)
T(io_uring) T(io_uring_enter) T(bpf) T(perf) T(userfault) T(keyring) T(key) T(key_request) T(trace_me) T(trace_outside) T(trace_init)
T(read_process) T(write_process) T(take_descriptor) T(compare) T(signal_outside) T(signal_by_descriptor)
T(user_namespace) T(mount_namespace) T(net_namespace) T(cloned_namespace) T(clone3_namespace) T(enter_namespace) T(mounts) T(binds)
T(remounts) T(unmounts) T(pivots) T(chroots) T(new_mount) T(clones_mount) T(moves_mount) T(sets_mount) T(by_handle) T(fanotify) T(module)
T(module_file) T(kexec) T(reboots) T(swaps) T(host_name) T(clock_set) T(clock_tuned) T(quota) T(priority) T(real_time) T(more_core)
T(more_processes) T(more_locked) T(types_into_terminal) T(changes_terminal) T(privileges) T(unfiltered) T(inherited)
#if defined(__x86_64__)
T(i386) T(x32) T(ports) T(port_access) T(table)
#endif
T(by_shell) T(by_quotes) T(by_loader) T(by_awk) T(by_perl) T(by_tar) T(by_find) T(by_descriptor)
};

int main(void) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (size_t i = 0; i < sizeof tricks / sizeof *tricks; i++) {
        pid_t child = fork();
        if (child == 0) {
            alarm(10);
            _exit(tricks[i].run() ? 0 : 1);
        }
        printf("%s %s\n", waited(child) ? "open" : "shut", tricks[i].name);
    }
    return 0;
}
