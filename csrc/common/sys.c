/* The few system calls that need care; see sys.h.
 *
 *   pidfd_send_signal 5.1   CLONE_PIDFD 5.2   clone3, pidfd_open 5.3   P_PIDFD 5.4
 *   CLONE_CLEAR_SIGHAND 5.5   CLONE_INTO_CGROUP 5.7   close_range 5.9   CLONE_AUTOREAP 7.1
 */
#define _GNU_SOURCE
#include "sys.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <time.h>
#include <unistd.h>

#if defined(__x86_64__)
/* Inline, because libc's syscall() writes errno, and that is the parent's in a vfork child. */
long hf_syscall(long number, long a, long b, long c, long d, long e, long f)
{
    register long r10 __asm__("r10") = d, r8 __asm__("r8") = e, r9 __asm__("r9") = f;
    long result;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}
#else
/* Elsewhere errno is saved around libc's: the parent is suspended while the child runs this. */
long hf_syscall(long number, long a, long b, long c, long d, long e, long f)
{
    int saved = errno;
    long result = syscall(number, a, b, c, d, e, f);
    if (result == -1)
        result = -errno;
    errno = saved;
    return result;
}
#endif

hf_sigmask hf_block_all_signals(void)
{
    hf_sigmask all = ~0ULL, old = 0;
    /* Raw: libc's sigprocmask keeps its internal signals open, and their handlers would then run
     * in the child on the parent's memory. */
    HF_CALL4(SYS_rt_sigprocmask, SIG_SETMASK, &all, &old, sizeof all);
    return old;
}

void hf_set_signal_mask(hf_sigmask mask)
{
    HF_CALL4(SYS_rt_sigprocmask, SIG_SETMASK, &mask, NULL, sizeof mask);
}

int hf_pidfd_open(int pid)
{
    return (int)HF_CALL2(HF_SYS_pidfd_open, pid, 0);
}

int hf_pidfd_signal(int pidfd, int signo, unsigned flags)
{
    return (int)HF_CALL4(HF_SYS_pidfd_send_signal, pidfd, signo, NULL, flags);
}

int hf_waitid(int which, int id, siginfo_t *info, int options, struct rusage *usage)
{
    info->si_pid = 0; /* WNOHANG with nothing to tell leaves it alone */
    return (int)HF_CALL5(SYS_waitid, which, id, info, options, usage);
}

uint64_t hf_clock_ns(int clock)
{
    struct timespec now;
#if __SIZEOF_LONG__ == 8
    /* Not through libc: the keeper asks a few times in its life, and the page of the vdso that this
     * would map and search costs it 10 KB and 4 us. */
    HF_CALL2(SYS_clock_gettime, clock, &now);
#else
    clock_gettime(clock, &now);
#endif
    return (uint64_t)now.tv_sec * 1000000000ULL + (uint64_t)now.tv_nsec;
}

void hf_close_on_exec_from(int first)
{
    if (HF_CALL3(HF_SYS_close_range, first, ~0U, HF_CLOSE_RANGE_CLOEXEC) == 0)
        return;
    /* Before 5.11: mark what can be open, one by one. */
    struct { uint64_t soft, hard; } limit = {1024, 1024};
    HF_CALL4(SYS_prlimit64, 0, RLIMIT_NOFILE, NULL, &limit);
    for (int fd = first; (uint64_t)fd < limit.soft && fd < 65536; fd++)
        HF_CALL3(SYS_fcntl, fd, F_SETFD, FD_CLOEXEC);
}

/* A child that execs leaves its frames behind without unwinding them; the address sanitizer would take
 * them for live ones when our stack grows over them again. */
#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define HF_ASAN
#endif
#elif defined(__SANITIZE_ADDRESS__)
#define HF_ASAN
#endif
#ifdef HF_ASAN
void __asan_unpoison_memory_region(const volatile void *start, size_t size);
#define FORGET_FRAMES(r) __asan_unpoison_memory_region((r)->stack, (r)->stack_size)
#else
#define FORGET_FRAMES(r) (void)(r)
#endif

struct clone3_args {
    uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, set_tid_size, cgroup;
};
enum { CLONE3_FIRST_SIZE = 64 }; /* as of Linux 5.3: without the last three */

#if defined(__x86_64__)
/* long hf_clone3_enter(struct clone3_args *, size_t, int (*fn)(void *), void *arg)
 * The child starts on an empty stack of its own: it has no frame to return to, so it must never
 * come back through this function.  syscall destroys rcx, hence arg moves to r8 first. */
__asm__(".text\n.type hf_clone3_enter,@function\nhf_clone3_enter:\n"
        "  mov %rcx, %r8\n"
        "  mov $435, %eax\n"
        "  syscall\n"
        "  test %rax, %rax\n"
        "  jnz 1f\n"
        "  xor %ebp, %ebp\n"
        "  mov %r8, %rdi\n"
        "  call *%rdx\n"
        "  mov %eax, %edi\n"
        "  mov $60, %eax\n"
        "  syscall\n"
        "  hlt\n"
        "1: ret\n"
        ".size hf_clone3_enter,.-hf_clone3_enter\n");
extern long hf_clone3_enter(struct clone3_args *, size_t, int (*)(void *), void *)
    __attribute__((visibility("hidden")));
static int clone3_usable = -1; /* -1 not tried, 0 no, 1 yes; a race only tries twice */
#else
static int clone3_usable = 0; /* other machines take clone(2) through libc, which knows their stacks */
static long hf_clone3_enter(struct clone3_args *a, size_t n, int (*fn)(void *), void *arg)
{
    (void)a, (void)n, (void)fn, (void)arg;
    return -ENOSYS;
}
#endif

void hf_forbid_clone3(void)
{
    clone3_usable = 0;
}

int hf_has_clone3(void)
{
    return clone3_usable != 0;
}

int hf_has_autoreap(void)
{
    static int known = -1; /* -1 not asked; a race only asks twice */
    if (clone3_usable == 0)
        return 0;
    if (known < 0) {
        /* The cgroup is no descriptor.  A kernel that knows the flags gets as far as looking it up (EBADF),
         * one that does not refuses them before (EINVAL); neither makes a process. */
        struct clone3_args args = {.flags = HF_CLONE_AUTOREAP | HF_CLONE_INTO_CGROUP, .cgroup = 0x7fffffff};
        known = HF_CALL2(HF_SYS_clone3, &args, sizeof args) == -EBADF;
    }
    return known;
}

long hf_clone(const struct hf_clone_request *r)
{
    uint64_t flags = r->flags | HF_CLONE_VM | HF_CLONE_VFORK;
    if (flags & HF_CLONE_AUTOREAP && !hf_has_autoreap()) {
        if (flags & HF_CLONE_PIDFD_AUTOKILL)
            return -ENOSYS;
        flags &= ~HF_CLONE_AUTOREAP;
    }
    if (clone3_usable != 0) {
        struct clone3_args args = {
            .flags = flags | (r->handlers_cleared ? HF_CLONE_CLEAR_SIGHAND : 0),
            .pidfd = (uint64_t)(uintptr_t)r->pidfd,
            .exit_signal = flags & HF_CLONE_AUTOREAP ? 0 : (uint64_t)r->exit_signal,
            .stack = (uint64_t)(uintptr_t)r->stack,
            .stack_size = r->stack_size & ~15ULL,
            .cgroup = (uint64_t)r->cgroup,
        };
        int into_cgroup = (flags & HF_CLONE_INTO_CGROUP) != 0;
        if (r->handlers_cleared)
            *r->handlers_cleared = 1;
        long pid = hf_clone3_enter(&args, into_cgroup ? sizeof args : CLONE3_FIRST_SIZE, r->fn, r->arg);
        FORGET_FRAMES(r);
        if (pid >= 0) {
            clone3_usable = 1;
            return pid;
        }
        if (into_cgroup || flags & HF_CLONE_PIDFD_AUTOKILL)
            return pid;
        /* ENOSYS: before 5.3.  EPERM, EINVAL: a seccomp filter, or before 5.5 (CLEAR_SIGHAND).
         * Anything else (EAGAIN, ENOMEM, EMFILE) is a real answer. */
        if (pid != -ENOSYS && pid != -EPERM && pid != -EINVAL)
            return pid;
        clone3_usable = 0;
    }
    if (flags & HF_CLONE_INTO_CGROUP)
        return -ENOSYS;
    flags &= ~HF_CLONE_AUTOREAP;
    if (r->handlers_cleared)
        *r->handlers_cleared = 0;
    int saved = errno;
    char *top = r->stack + (r->stack_size & ~15UL);
    long pid = clone(r->fn, top, (int)(flags | (unsigned)r->exit_signal), r->arg, r->pidfd, NULL, NULL);
    if (pid < 0)
        pid = -errno;
    FORGET_FRAMES(r);
    errno = saved;
    return pid;
}
