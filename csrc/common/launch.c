/* owner --clone--> outer --clone+exec--> keeper; outer exits, the keeper is an orphan.
 *
 * 1. outer has exit signal 0 and never execs, so neither SIGCHLD nor waitpid(-1) tells of it
 *    (exec would reset the exit signal: that is why the keeper itself cannot be our child).
 * 2. outer shares our descriptor table, so the pidfd that the kernel makes for the keeper lies in
 *    our table, from before the keeper could run: no number is ever looked up.
 * 3. The keeper descends from us at this moment: it has our limits, identity, cgroup, terminal.
 *
 * PERMITTED in outer_main and keeper_main: raw system calls, their own stacks, *arg, hf_clone.
 * All signals stay blocked until the keeper has its own signalfd, so no handler of ours can run.
 */
#define _GNU_SOURCE
#include "launch.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/wait.h>

struct launch {
    const char *path;
    int control, owner;
    int keeper_pidfd;
    long keeper_pid;
    struct hf_child_result *result;
    char *stack;
    size_t stack_size;
};

static int fail(struct launch *l, long error)
{
    l->result->stage = HF_STAGE_LAUNCH;
    l->result->error = (int)-error;
    return 127;
}

static int keeper_main(void *raw)
{
    struct launch *l = raw;
    /* Lift first: either may lie on a number that is about to be overwritten. */
    long control = HF_CALL3(SYS_fcntl, l->control, F_DUPFD_CLOEXEC, 5);
    long owner = HF_CALL3(SYS_fcntl, l->owner, F_DUPFD_CLOEXEC, 5);
    if (control < 0 || owner < 0)
        return fail(l, control < 0 ? control : owner);
    long null = HF_CALL4(SYS_openat, AT_FDCWD, "/dev/null", O_RDWR | O_CLOEXEC, 0);
    if (null < 0) /* a chroot without /dev: any descriptor that nobody reads or writes will do */
        null = owner;
    for (int fd = 0; fd < 5; fd++) {
        long from = fd == HF_CONTROL_FD ? control : fd == HF_OWNER_FD ? owner : null;
        if (from != fd) {
            long r = HF_CALL3(SYS_dup3, from, fd, 0);
            if (r < 0)
                return fail(l, r);
        } else {
            HF_CALL3(SYS_fcntl, fd, F_SETFD, 0);
        }
    }
    hf_close_on_exec_from(5);
    const char *const argv[] = {"holdfast-keeper", NULL}, *const envp[] = {NULL};
    return fail(l, HF_CALL3(SYS_execve, l->path, argv, envp));
}

static int outer_main(void *raw)
{
    struct launch *l = raw;
    int ignored;
    struct hf_clone_request request = {
        .flags = HF_CLONE_PIDFD, .exit_signal = SIGCHLD, .pidfd = &l->keeper_pidfd, .fn = keeper_main,
        .arg = l, .stack = l->stack, .stack_size = l->stack_size, .handlers_cleared = &ignored,
    };
    l->keeper_pid = hf_clone(&request);
    if (l->keeper_pid < 0)
        fail(l, l->keeper_pid);
    else if (l->result->stage) { /* it never became a keeper: a subreaper owner must not inherit it */
        siginfo_t info;
        hf_waitid(HF_P_PIDFD, l->keeper_pidfd, &info, WEXITED | HF_WALL, NULL);
    }
    return 0;
}

long hf_launch(const char *path, int control_fd, int owner_pidfd, int *keeper_pidfd,
               struct hf_child_result *result)
{
    char outer_stack[8192] __attribute__((aligned(16)));
    char keeper_stack[8192] __attribute__((aligned(16)));
    struct launch l = {
        .path = path, .control = control_fd, .owner = owner_pidfd, .keeper_pidfd = -1, .result = result,
        .stack = keeper_stack, .stack_size = sizeof keeper_stack,
    };
    int ignored;
    struct hf_clone_request request = {
        .flags = HF_CLONE_FILES, .exit_signal = 0, .fn = outer_main, .arg = &l,
        .stack = outer_stack, .stack_size = sizeof outer_stack, .handlers_cleared = &ignored,
    };
    result->stage = result->error = 0;
    hf_sigmask old = hf_block_all_signals();
    long outer = hf_clone(&request);
    if (outer < 0) {
        result->stage = HF_STAGE_LAUNCH;
        result->error = (int)-outer;
    } else {
        /* __WCLONE: only children with an exit signal other than SIGCHLD.  Should another thread
         * have taken outer with __WALL and its number have come back, no ordinary child can be
         * meant by this. */
        siginfo_t info;
        while (hf_waitid(P_PID, (int)outer, &info, (int)(WEXITED | HF_WCLONE), NULL) == -EINTR)
            continue; /* cannot happen: all signals are blocked */
    }
    hf_set_signal_mask(old);
    if (result->stage) {
        if (l.keeper_pidfd >= 0)
            HF_CALL1(SYS_close, l.keeper_pidfd);
        return -result->error;
    }
    *keeper_pidfd = l.keeper_pidfd;
    return l.keeper_pid;
}
