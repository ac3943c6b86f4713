/* From clone to exec.  In: a plan in plain C.  Out: a running program, or stage and errno.
 *
 * PERMITTED in the child (everything from child_main down): raw system calls through hf_syscall,
 * reads of the plan, writes to its own stack, to *result and, with HF_LISTEN_PID, over that one value of
 * the plan's environment.  FORBIDDEN: libc calls (errno, locks
 * and set*id broadcasts belong to the parent, whose other threads go on running), allocation,
 * anything that returns past child_main.  The memory is the parent's; the descriptor table is a copy.
 */
#define _GNU_SOURCE
#include "child.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#define IOPRIO_WHO_PROCESS 1

struct child_arg {
    const struct hf_plan *plan;
    struct hf_child_result *result;
    int parent;
    int handlers_cleared;
    int in_cgroup; /* the kernel has started it in the one of version 2 */
};

struct kernel_sigaction {
    void (*handler)(int);
    unsigned long flags;
    void (*restorer)(void);
    uint64_t mask;
};

static void set_handler(int signo, void (*handler)(int))
{
    struct kernel_sigaction action = {.handler = handler};
    HF_CALL4(SYS_rt_sigaction, signo, &action, NULL, sizeof(hf_sigmask));
}

/* 7.5 us for 64 signals, only where the kernel could not clear them in clone. */
static void reset_handlers(void)
{
    for (int signo = 1; signo <= HF_NSIG; signo++) {
        struct kernel_sigaction old = {0};
        if (HF_CALL4(SYS_rt_sigaction, signo, NULL, &old, sizeof(hf_sigmask)) == 0 &&
            old.handler != SIG_DFL && old.handler != SIG_IGN)
            set_handler(signo, SIG_DFL);
    }
}

static long install_fds(const struct hf_plan *plan)
{
    int above = 3;
    for (uint32_t i = 0; i < plan->n_fds; i++)
        if (plan->fd_targets[i] >= above)
            above = plan->fd_targets[i] + 1;
    if (plan->options & HF_CLOSE_FDS)
        hf_close_on_exec_from(3);
    /* 1. Lift every source out of the range of targets, or installing one would overwrite
     *    another that is still to be installed. */
    int lifted[256];
    if (plan->n_fds > 256)
        return -EINVAL; /* cannot happen: the wire and the extension check the same bound */
    for (uint32_t i = 0; i < plan->n_fds; i++) {
        if (plan->fd_sources[i] == plan->fd_targets[i] || plan->fd_sources[i] >= above) {
            lifted[i] = plan->fd_sources[i];
            continue;
        }
        long fd = HF_CALL3(SYS_fcntl, plan->fd_sources[i], F_DUPFD_CLOEXEC, above);
        if (fd < 0)
            return fd;
        lifted[i] = (int)fd;
    }
    /* 2. Install.  dup3 clears close-on-exec; an equal number has it cleared by hand. */
    for (uint32_t i = 0; i < plan->n_fds; i++) {
        int to = plan->fd_targets[i];
        long r;
        if (lifted[i] == to)
            r = HF_CALL3(SYS_fcntl, to, F_SETFD, 0);
        else
            r = HF_CALL3(SYS_dup3, lifted[i], to, 0);
        if (r < 0)
            return r;
    }
    for (int fd = 0; fd < 3; fd++)
        if (plan->closed_std & (1U << fd))
            HF_CALL1(SYS_close, fd);
    return 0;
}

/* One execve per directory of PATH, as execvp does.  The error of a candidate that exists but
 * cannot run wins over "not there" (EACCES is the answer a user can act on). */
static long search_and_exec(const struct hf_plan *plan)
{
    const char *name = plan->executable;
    for (const char *p = name; *p; p++)
        if (*p == '/')
            return HF_CALL3(SYS_execve, name, plan->argv, plan->envp);

    const char *path = "/bin:/usr/bin";
    for (char *const *e = plan->envp; *e; e++)
        if ((*e)[0] == 'P' && (*e)[1] == 'A' && (*e)[2] == 'T' && (*e)[3] == 'H' && (*e)[4] == '=')
            path = *e + 5;
    char candidate[4096];
    size_t name_len = 0;
    while (name[name_len])
        name_len++;
    long error = -ENOENT;
    if (name_len == 0)
        return error;
    for (;;) {
        size_t n = 0;
        while (path[n] && path[n] != ':')
            n++;
        if (n + name_len + 2 <= sizeof candidate) {
            size_t at = 0;
            for (; at < n; at++)
                candidate[at] = path[at];
            if (n > 0 && candidate[n - 1] != '/')
                candidate[at++] = '/';
            for (size_t i = 0; i <= name_len; i++)
                candidate[at++] = name[i];
            long r = HF_CALL3(SYS_execve, candidate, plan->argv, plan->envp);
            if (r != -ENOENT && r != -ENOTDIR)
                error = r;
            if (r == -E2BIG || r == -ENOMEM)
                return r; /* not about this candidate: the next would fail the same way */
        }
        if (!path[n])
            return error;
        path += n + 1;
    }
}

static long set_rlimit(uint32_t which, uint64_t soft, uint64_t hard)
{
    struct {uint64_t soft, hard;} value = {soft, hard};
    return HF_CALL4(SYS_prlimit64, 0, which, &value, NULL);
}

/* Nobody knows the number before there is a process, and after the exec it is too late: the value is written over
 * where it lies.  Who asked for it has put one there with room for any number. */
static long write_listen_pid(char *const *envp)
{
    static const char name[] = "LISTEN_PID=";
    for (; *envp; envp++) {
        size_t at = 0;
        while (name[at] && (*envp)[at] == name[at])
            at++;
        if (name[at])
            continue;
        char *value = *envp + at, digits[12];
        size_t room = 0, n = 0;
        while (value[room])
            room++;
        for (long pid = HF_CALL0(SYS_getpid); pid > 0; pid /= 10)
            digits[n++] = (char)('0' + pid % 10);
        if (n > room)
            return -EINVAL;
        for (at = 0; at < n; at++)
            value[at] = digits[n - 1 - at];
        value[n] = '\0';
        return 0;
    }
    return -EINVAL;
}

/* Before the descriptors are installed, which may take the numbers of these, and with the rights of the owner. */
static long enter_cgroups(const struct child_arg *arg)
{
    const struct hf_plan *plan = arg->plan;
    for (uint32_t i = 0; i < plan->n_cgroups; i++) {
        long fd = plan->cgroup_sources[i];
        int is_directory = plan->cgroup_targets[i] == HF_TARGET_CGROUP;
        if (is_directory && arg->in_cgroup)
            continue;
        if (is_directory)
            fd = HF_CALL4(SYS_openat, fd, "cgroup.procs", O_WRONLY | O_CLOEXEC, 0);
        long r = fd < 0 ? fd : HF_CALL3(SYS_write, fd, "0", 1); /* who writes it */
        if (r < 0)
            return r;
        if (is_directory)
            HF_CALL1(SYS_close, fd);
    }
    return 0;
}

/* The kernel takes what it has of a mask in silence, and no CPU at all is its only error: so what it took is compared. */
static long set_affinity(const char *wanted, uint32_t size)
{
    char got[HF_CPUS_BYTES_MAX];
    long r = HF_CALL3(SYS_sched_setaffinity, 0, size, wanted);
    long n = r < 0 ? r : HF_CALL3(SYS_sched_getaffinity, 0, sizeof got, got);
    for (uint32_t i = 0; n >= 0 && i < size; i++)
        if (wanted[i] & ~(i < n ? got[i] : 0))
            return -EINVAL;
    return n;
}

static long set_oom_score_adj(int value)
{
    char text[12];
    size_t at = sizeof text;
    for (int left = value < 0 ? -value : value; left || at == sizeof text; left /= 10)
        text[--at] = (char)('0' + left % 10);
    if (value < 0)
        text[--at] = '-';
    long fd = HF_CALL4(SYS_openat, AT_FDCWD, "/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC, 0);
    if (fd < 0)
        return fd;
    long r = HF_CALL3(SYS_write, fd, text + at, sizeof text - at);
    HF_CALL1(SYS_close, fd);
    return r;
}

/* Exactly these.  What is not in the set cannot be put there, and asked for it would be missing without a word. */
static long set_bounding(uint64_t wanted)
{
    for (int n = 0; n < 64; n++) {
        long has = HF_CALL2(SYS_prctl, PR_CAPBSET_READ, n); /* -EINVAL: the kernel does not know it */
        if (wanted >> n & 1) {
            if (has != 1)
                return has < 0 ? has : -EPERM;
        } else if (has == 1) {
            long r = HF_CALL2(SYS_prctl, PR_CAPBSET_DROP, n);
            if (r < 0)
                return r;
        }
    }
    return 0;
}

/* The inheritable set is what root has beyond the bounding set after an exec, and what keeps an ambient capability: so
 * it loses what is out of bounds (ambient with it), and gets what shall be ambient.  The exec makes the rest. */
static long set_ambient(const struct hf_more *more)
{
    struct {uint32_t version; int pid;} head = {0x20080522, 0};
    struct {uint32_t effective, permitted, inheritable;} half[2];
    long r = HF_CALL2(SYS_capget, &head, half);
    for (int i = 0; r >= 0 && i < 2; i++) {
        if (more->flags & HF_MORE_BOUNDING)
            half[i].inheritable &= (uint32_t)(more->bounding >> 32 * i);
        if (more->flags & HF_MORE_AMBIENT)
            half[i].inheritable |= (uint32_t)(more->ambient >> 32 * i);
    }
    if (r >= 0)
        r = HF_CALL2(SYS_capset, &head, half);
    if (r < 0 || !(more->flags & HF_MORE_AMBIENT))
        return r;
    r = HF_CALL5(SYS_prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
    for (int n = 0; r >= 0 && n < 64; n++)
        if (more->ambient >> n & 1)
            r = HF_CALL5(SYS_prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, n, 0, 0);
    return r;
}

#define TRY(stage_, call) do { long r_ = (call); if (r_ < 0) { \
    result->error = (int)-r_; result->stage = (stage_); return 127; } } while (0)

/* The order is subprocess's where subprocess has the step: chdir and descriptors with the owner's
 * rights, identity afterwards, the mask last. */
static int child_main(void *raw)
{
    struct child_arg *arg = raw;
    const struct hf_plan *plan = arg->plan;
    struct hf_child_result *result = arg->result;
    uint32_t o = plan->options, more = plan->more.flags;

    TRY(HF_STAGE_CGROUP, enter_cgroups(arg));
    TRY(HF_STAGE_FDS, install_fds(plan));
    if (plan->cwd)
        TRY(HF_STAGE_CHDIR, HF_CALL1(SYS_chdir, plan->cwd));
    if (o & HF_SET_UMASK)
        HF_CALL1(SYS_umask, plan->umask);
    if (o & HF_RESTORE_SIGNALS) {
        set_handler(SIGPIPE, SIG_DFL);
        set_handler(SIGXFSZ, SIG_DFL);
    }
    if (o & HF_IGNORE_SIGCHLD)
        set_handler(SIGCHLD, SIG_IGN);
    if (o & HF_NEW_SESSION)
        TRY(HF_STAGE_SETSID, HF_CALL0(SYS_setsid));
    if (o & HF_TERMINAL)
        TRY(HF_STAGE_SETSID, HF_CALL3(SYS_ioctl, 0, TIOCSCTTY, 0));
    if (o & HF_SET_PGID)
        TRY(HF_STAGE_SETPGID, HF_CALL2(SYS_setpgid, 0, plan->pgid));
    if (o & HF_SET_NICE) {
        /* The raw call answers 20 - nice. */
        long was = HF_CALL2(SYS_getpriority, PRIO_PROCESS, 0);
        TRY(HF_STAGE_NICE, was < 0 ? was : HF_CALL3(SYS_setpriority, PRIO_PROCESS, 0, 20 - was + plan->nice));
    }
    if (more & HF_MORE_CPUS)
        TRY(HF_STAGE_CPU_AFFINITY, set_affinity(plan->cpus, plan->more.cpus_size));
    if (more & HF_MORE_IOPRIO)
        TRY(HF_STAGE_IOPRIO, HF_CALL3(SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, plan->more.ioprio));
    if (more & HF_MORE_OOM_SCORE_ADJ) /* before the limits, of which one may leave no descriptor for it */
        TRY(HF_STAGE_OOM_SCORE_ADJ, set_oom_score_adj(plan->more.oom_score_adj));
    if (plan->restore_nofile != ~0ULL) {
        struct {uint64_t soft, hard;} now = {0, 0};
        TRY(HF_STAGE_RLIMIT, HF_CALL4(SYS_prlimit64, 0, RLIMIT_NOFILE, NULL, &now));
        TRY(HF_STAGE_RLIMIT, set_rlimit(RLIMIT_NOFILE, plan->restore_nofile, now.hard));
    }
    for (uint32_t i = 0; i < plan->n_rlimits; i++)
        TRY(HF_STAGE_RLIMIT, set_rlimit(plan->rlimits[i].which, plan->rlimits[i].soft, plan->rlimits[i].hard));
    if (more & HF_MORE_BOUNDING) /* needs CAP_SETPCAP, so while we are who we were */
        TRY(HF_STAGE_CAPABILITIES, set_bounding(plan->more.bounding));
    if (more & HF_MORE_AMBIENT && o & HF_SET_UID) /* what root has goes with its uid otherwise; the exec ends it */
        TRY(HF_STAGE_CAPABILITIES, HF_CALL2(SYS_prctl, PR_SET_KEEPCAPS, 1));
    /* Groups before gid before uid: each needs the right that the next gives up.  Raw calls,
     * because libc's would change the identity of the parent's other threads. */
    if (o & HF_SET_GROUPS)
        TRY(HF_STAGE_SETGROUPS, HF_CALL2(SYS_setgroups, plan->n_groups, plan->groups));
    if (o & HF_SET_GID)
        TRY(HF_STAGE_SETGID, HF_CALL3(SYS_setresgid, plan->gid, plan->gid, plan->gid));
    if (o & HF_SET_UID)
        TRY(HF_STAGE_SETUID, HF_CALL3(SYS_setresuid, plan->uid, plan->uid, plan->uid));
    if (more & (HF_MORE_BOUNDING | HF_MORE_AMBIENT))
        TRY(HF_STAGE_CAPABILITIES, set_ambient(&plan->more));
    if (more & HF_MORE_NO_NEW_PRIVS)
        TRY(HF_STAGE_NO_NEW_PRIVS, HF_CALL5(SYS_prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    if (o & HF_PDEATHSIG) {
        /* 1. After identity: a change of uid clears it.  2. Then look at the parent: had it died
         *    before the prctl, nothing would ever be sent. */
        TRY(HF_STAGE_PDEATHSIG, HF_CALL2(SYS_prctl, PR_SET_PDEATHSIG, SIGKILL));
        if (HF_CALL0(SYS_getppid) != arg->parent)
            TRY(HF_STAGE_PDEATHSIG, -ESRCH);
    }
    if (o & HF_LISTEN_PID)
        TRY(HF_STAGE_EXEC, write_listen_pid(plan->envp));
    /* No handler of the parent's may run here once signals are open. */
    if (!arg->handlers_cleared)
        reset_handlers();
    hf_set_signal_mask(plan->mask);
    TRY(HF_STAGE_EXEC, search_and_exec(plan));
    return 127;
}

long hf_spawn(const struct hf_plan *plan, char *stack, int *pidfd, struct hf_child_result *result)
{
    struct child_arg arg = {.plan = plan, .result = result, .parent = (int)HF_CALL0(SYS_getpid)};
    struct hf_clone_request request = {
        .flags = pidfd ? HF_CLONE_PIDFD | (plan->auto_reap ? HF_CLONE_AUTOREAP : 0) : 0,
        /* The exec makes it SIGCHLD.  Until then no wait but __WCLONE's sees a child that is held by its number. */
        .exit_signal = pidfd ? SIGCHLD : 0,
        .pidfd = pidfd, .fn = child_main, .arg = &arg,
        .stack = stack, .stack_size = HF_CHILD_STACK, .handlers_cleared = &arg.handlers_cleared,
    };
    if (pidfd && plan->auto_kill) /* no_new_privs from the start is what an ordinary user may do it with */
        request.flags |= HF_CLONE_PIDFD_AUTOKILL | (plan->more.flags & HF_MORE_NO_NEW_PRIVS ? HF_CLONE_NNP : 0);
    result->stage = result->error = 0;
    if (pidfd)
        *pidfd = -1;
    hf_sigmask old = hf_block_all_signals();
    long pid = -ENOSYS;
    for (uint32_t i = 0; i < plan->n_cgroups; i++)
        if (plan->cgroup_targets[i] == HF_TARGET_CGROUP) {
            request.flags |= HF_CLONE_INTO_CGROUP;
            request.cgroup = plan->cgroup_sources[i];
            arg.in_cgroup = 1;
            pid = hf_clone(&request);
        }
    if (pid < 0) {
        /* Not asked, or refused: the child goes there by itself, and an error then says what it was about. */
        request.flags &= ~HF_CLONE_INTO_CGROUP;
        arg.in_cgroup = 0;
        pid = hf_clone(&request);
    }
    hf_set_signal_mask(old);
    if (pid < 0) {
        result->stage = HF_STAGE_CLONE;
        result->error = (int)-pid;
        return pid;
    }
    if (result->stage) {
        /* By descriptor, so that no reuse of the number can hit another child of the parent. */
        siginfo_t info;
        if (!pidfd) {
            /* By a number that is no other's, for who could have taken it?  Nobody's wait(2) sees this child. */
            while (hf_waitid(P_PID, (int)pid, &info, (int)(WEXITED | HF_WCLONE), NULL) == -EINTR)
                continue;
            return -result->error;
        }
        hf_waitid(HF_P_PIDFD, *pidfd, &info, WEXITED | HF_WALL, NULL);
        HF_CALL1(SYS_close, *pidfd);
        *pidfd = -1;
        return -result->error;
    }
    return pid;
}
