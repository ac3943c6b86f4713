/* Raw system calls and kernel constants, shared by the extension and the keeper.
 *
 * The constants are written here because musl-gcc does not see the kernel headers and because
 * a glibc that is older than the kernel lacks half of them.  Every number is kernel ABI.
 * Wrappers return the result or -errno; none touches errno, so the functions that say so
 * may be called between clone and exec, where errno belongs to the parent.
 */
#ifndef HF_SYS_H
#define HF_SYS_H

#include <stddef.h>
#include <stdint.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <signal.h>

/* System calls that came with the unified table: one number on every architecture. */
#define HF_SYS_pidfd_send_signal 424
#define HF_SYS_pidfd_open 434
#define HF_SYS_clone3 435
#define HF_SYS_close_range 436

#define HF_CLONE_VM 0x100ULL
#define HF_CLONE_PIDFD 0x1000ULL           /* Linux 5.2 */
#define HF_CLONE_VFORK 0x4000ULL
#define HF_CLONE_CLEAR_SIGHAND 0x100000000ULL /* Linux 5.5, clone3 only */
#define HF_CLONE_INTO_CGROUP 0x200000000ULL /* Linux 5.7, clone3 only */
#define HF_CLONE_AUTOREAP 0x400000000ULL    /* Linux 7.1, clone3 only; so are the next two */
#define HF_CLONE_NNP 0x800000000ULL
#define HF_CLONE_PIDFD_AUTOKILL 0x1000000000ULL

#define HF_P_PIDFD 3                        /* Linux 5.4 */
#define HF_WALL 0x40000000
#define HF_WCLONE 0x80000000

#define HF_CLOSE_RANGE_UNSHARE 2            /* Linux 5.9 */
#define HF_CLOSE_RANGE_CLOEXEC 4            /* Linux 5.11 */
#define HF_PIDFD_SIGNAL_PROCESS_GROUP 4     /* Linux 6.9 */
#define HF_SO_PEERPIDFD 77                  /* Linux 6.5 */

/* PIDFD_GET_INFO (Linux 6.13), exit information since 6.15: only the 64 bytes of version 0 are used. */
struct hf_pidfd_info {
    uint64_t mask, cgroupid;
    uint32_t pid, tgid, ppid, ids[8];
    int32_t exit_code;
};
#define HF_PIDFD_GET_INFO 0xC040FF0BUL
#define HF_PIDFD_INFO_EXIT 8ULL

#define HF_NSIG 64                          /* signals are 1..64, a kernel mask is 8 bytes */

/* Leave signals 32-34 and friends in: the kernel's own mask, not libc's idea of it. */
typedef uint64_t hf_sigmask;

long hf_syscall(long number, long a, long b, long c, long d, long e, long f);
#define HF_CALL0(n) hf_syscall((n), 0, 0, 0, 0, 0, 0)
#define HF_CALL1(n, a) hf_syscall((n), (long)(a), 0, 0, 0, 0, 0)
#define HF_CALL2(n, a, b) hf_syscall((n), (long)(a), (long)(b), 0, 0, 0, 0)
#define HF_CALL3(n, a, b, c) hf_syscall((n), (long)(a), (long)(b), (long)(c), 0, 0, 0)
#define HF_CALL4(n, a, b, c, d) hf_syscall((n), (long)(a), (long)(b), (long)(c), (long)(d), 0, 0)
#define HF_CALL5(n, a, b, c, d, e) \
    hf_syscall((n), (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), 0)

hf_sigmask hf_block_all_signals(void);
void hf_set_signal_mask(hf_sigmask mask);
int hf_pidfd_open(int pid);
int hf_pidfd_signal(int pidfd, int signo, unsigned flags);
/* waitid(2) with rusage, which the C library does not give; 0 or -errno. */
int hf_waitid(int which, int id, siginfo_t *info, int options, struct rusage *usage);
uint64_t hf_clock_ns(int clock);

/* Everything open from first on becomes close-on-exec.  Raw calls only. */
void hf_close_on_exec_from(int first);

/* Start fn(arg) in a child that shares our memory while we are suspended (vfork semantics), on
 * the given stack.  flags are HF_CLONE_*; CLONE_VM and CLONE_VFORK are always added.  Returns the
 * pid or -errno; *pidfd gets the child's descriptor when HF_CLONE_PIDFD is among the flags.
 * fn's result is the exit code.  Call with all signals blocked.
 * HF_CLONE_AUTOREAP among the flags is a wish: where the kernel has it, the child leaves no zombie and
 * sends no signal at its end, and its status is told by pidfds that were opened before, without usage.
 * HF_CLONE_PIDFD_AUTOKILL with it is no wish: -ENOSYS where the kernel has no such thing, -EPERM without HF_CLONE_NNP
 * and CAP_SYS_ADMIN.
 * *handlers_cleared says whether the child's signal handlers are already reset: it decides
 * whether the child may unblock signals before it has reset them itself.  NULL: it keeps them.
 * HF_CLONE_INTO_CGROUP, with cgroup, is refused where clone3 cannot do it (or is not there); the caller then has another way. */
struct hf_clone_request {
    uint64_t flags;
    int exit_signal;
    int *pidfd;
    int (*fn)(void *);
    void *arg;
    char *stack;
    size_t stack_size;
    int *handlers_cleared;
    int cgroup;
};
long hf_clone(const struct hf_clone_request *request);
/* For tests of the fallback: never call clone3 again in this process. */
void hf_forbid_clone3(void);
int hf_has_clone3(void);
/* Whether HF_CLONE_AUTOREAP is granted.  Starts nothing; asks the kernel once. */
int hf_has_autoreap(void);

#endif
