/* owner --clone--> outer --clone+exec--> keeper; outer exits, the keeper is an orphan.
 *
 * 1. outer has exit signal 0 and never execs, so neither SIGCHLD nor waitpid(-1) tells of it
 *    (exec would reset the exit signal: that is why the keeper itself cannot be our child).
 * 2. outer begins in our descriptor table and takes a copy of what is not above its two descriptors: to
 *    copy and close thousands costs an owner of thousands more than all the rest, so it gives low ones.
 *    Of the copy it closes all but the keeper's five, before the keeper gets a copy in turn: a table is as
 *    large as its highest number, and the keeper would have tens of kilobytes of empty table.
 * 3. The pidfd that the kernel makes for the keeper goes to the owner over the keeper's own socket:
 *    no number is ever looked up.
 * 4. The keeper descends from us at this moment: it has our limits, identity, cgroup, terminal.
 * 5. Nobody asks how a keeper ended, and who adopts it may be we (PID 1, a subreaper), where waitpid(-1)
 *    would see it, or an init that does not reap: where the kernel can, it is the one that reaps.
 *
 * PERMITTED in outer_main and keeper_main: raw system calls, their own stacks, *arg, hf_clone.
 * All signals stay blocked until the keeper has its own signalfd, so no handler of ours can run.
 */
#define _GNU_SOURCE
#include "launch.h"
#include "wire.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <sys/socket.h>
#include <sys/wait.h>

struct launch {
    const char *path;
    int control, owner;
    long keeper_pid;
    int told; /* the owner was sent the keeper's pidfd */
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

/* Out of the way of 0 to 4, if it lies there: of an owner whose table is full the copy is full, too. */
static long lift(int fd)
{
    return fd >= 5 ? fd : HF_CALL3(SYS_fcntl, fd, F_DUPFD_CLOEXEC, 5);
}

/* Descriptors 0 to 4 as the keeper wants them, and nothing else. */
static long set_table(struct launch *l)
{
    int last = l->control > l->owner ? l->control : l->owner;
    long r = HF_CALL3(HF_SYS_close_range, last + 1, ~0U, HF_CLOSE_RANGE_UNSHARE);
    if (r < 0) /* before 5.9: a copy of all */
        r = HF_CALL1(SYS_unshare, CLONE_FILES);
    if (r < 0) /* what comes now must not happen to our own table */
        return r;
    long control = lift(l->control), owner = lift(l->owner);
    if (control < 0 || owner < 0)
        return control < 0 ? control : owner;
    long null = HF_CALL4(SYS_openat, AT_FDCWD, "/dev/null", O_RDWR | O_CLOEXEC, 0);
    if (null < 0) /* a chroot without /dev: any descriptor that nobody reads or writes will do */
        null = owner;
    for (int fd = 0; fd < 5; fd++) {
        long from = fd == HF_CONTROL_FD ? control : fd == HF_OWNER_FD ? owner : null;
        r = from != fd ? HF_CALL3(SYS_dup3, from, fd, 0) : HF_CALL3(SYS_fcntl, fd, F_SETFD, 0);
        if (r < 0)
            return r;
    }
    if (HF_CALL3(HF_SYS_close_range, 5, ~0U, 0) < 0) /* before 5.9: not smaller, but as closed */
        hf_close_on_exec_from(5);
    return 0;
}

static int keeper_main(void *raw)
{
    struct launch *l = raw;
    const char *const argv[] = {"holdfast-keeper", NULL}, *const envp[] = {NULL};
    return fail(l, HF_CALL3(SYS_execve, l->path, argv, envp));
}

static long send_pidfd(int pidfd, long pid)
{
    union { char space[CMSG_SPACE(sizeof(int))]; struct cmsghdr align; } ancillary = {{0}};
    struct { struct hf_record record; struct hf_launched body; } packet = {
        {.tag = HF_LAUNCHED, .length = sizeof(struct hf_launched)}, {.pid = (int32_t)pid}};
    struct iovec iov = {.iov_base = &packet, .iov_len = sizeof packet};
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &ancillary,
                             .msg_controllen = sizeof ancillary.space};
    struct cmsghdr *c = CMSG_FIRSTHDR(&message);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(sizeof pidfd);
    *(int *)(void *)CMSG_DATA(c) = pidfd;
    return HF_CALL3(SYS_sendmsg, HF_CONTROL_FD, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
}

static int outer_main(void *raw)
{
    struct launch *l = raw;
    int ignored, pidfd = -1;
    struct hf_clone_request request = {
        .flags = HF_CLONE_PIDFD | HF_CLONE_AUTOREAP, .exit_signal = SIGCHLD, .pidfd = &pidfd,
        .fn = keeper_main, .arg = l, .stack = l->stack, .stack_size = l->stack_size, .handlers_cleared = &ignored,
    };
    long r = set_table(l);
    if (r < 0)
        return fail(l, r);
    l->keeper_pid = hf_clone(&request);
    if (l->keeper_pid < 0)
        return fail(l, l->keeper_pid);
    if (l->result->stage) { /* it never became a keeper: a subreaper owner must not inherit it */
        siginfo_t info;
        hf_waitid(HF_P_PIDFD, pidfd, &info, WEXITED | HF_WALL, NULL);
    } else if ((r = send_pidfd(pidfd, l->keeper_pid)) < 0) {
        /* The owner is gone, or has too many descriptors in flight.  The keeper must not be killed for
         * that: it may hold a tree already.  It ends by itself when the owner's end of the socket does. */
        fail(l, r);
    } else {
        l->told = 1;
    }
    return 0;
}

long hf_launch(const char *path, int control_fd, int owner_pidfd, struct hf_child_result *result)
{
    char outer_stack[8192] __attribute__((aligned(16)));
    char keeper_stack[8192] __attribute__((aligned(16)));
    struct launch l = {
        .path = path, .control = control_fd, .owner = owner_pidfd, .result = result,
        .stack = keeper_stack, .stack_size = sizeof keeper_stack,
    };
    int ignored;
    struct hf_clone_request request = {
        .flags = CLONE_FILES, .exit_signal = 0, .fn = outer_main, .arg = &l,
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
    if (!result->stage && !l.told) { /* somebody killed outer: the pidfd will never come */
        result->stage = HF_STAGE_LAUNCH;
        result->error = EIO;
    }
    return result->stage ? -result->error : l.keeper_pid;
}
