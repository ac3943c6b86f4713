/* The floor: what starting a process and waiting for it costs when C does nothing else.
 * Loaded into the measuring process, so it has the same memory and the same processor as the others. */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef P_PIDFD
#define P_PIDFD 3
#endif

extern char **environ;

struct child { const char *path; char *const *argv; int out; };

static uint64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

static int child_main(void *raw)
{
    struct child *c = raw;
    if (c->out >= 0)
        dup2(c->out, 1);
    execve(c->path, c->argv, environ);
    _exit(127);
}

static char problem[120];

const char *floor_problem(void)
{
    return problem;
}

static int fail(const char *what, int number)
{
    snprintf(problem, sizeof problem, "%s: %d", what, number);
    return -1;
}

static int start(const char *path, char *const *argv, int out)
{
    static char stack[32768] __attribute__((aligned(16)));
    struct child c = {path, argv, out};
    int pidfd = -1;
    int pid = clone(child_main, stack + sizeof stack, CLONE_VM | CLONE_VFORK | CLONE_PIDFD | SIGCHLD, &c, &pidfd);
    return pid < 0 ? fail("clone", errno) : pidfd;
}

/* 0 when the child ended with code 0. */
static int end(int pidfd, int limit_ms)
{
    struct pollfd p = {.fd = pidfd, .events = POLLIN};
    siginfo_t info;
    int r;
    while ((r = poll(&p, 1, limit_ms)) < 0 && errno == EINTR)
        continue;
    if (r <= 0)
        return fail("poll", r < 0 ? errno : ETIMEDOUT);
    if (waitid(P_PIDFD, (id_t)pidfd, &info, WEXITED) < 0)
        return fail("waitid", errno);
    if (info.si_code != CLD_EXITED || info.si_status != 0)
        return fail(info.si_code == CLD_EXITED ? "exit code" : "signal", info.si_status);
    return 0;
}

/* n times spawn and wait; a duration each.  The number done. */
long floor_loop(const char *path, char *const *argv, long n, uint64_t *out)
{
    for (long i = 0; i < n; i++) {
        uint64_t began = now();
        int pidfd = start(path, argv, -1);
        if (pidfd < 0 || end(pidfd, -1) != 0)
            return i;
        close(pidfd);
        out[i] = now() - began;
    }
    return n;
}

/* n times: from the moment that the child noted just before its exit until its status is known. */
long floor_notice(const char *path, char *const *argv, int file, volatile uint64_t *stamp, long n, uint64_t *out)
{
    for (long i = 0; i < n; i++) {
        *stamp = 0;
        int pidfd = start(path, argv, file);
        if (pidfd < 0 || end(pidfd, 10000) != 0)
            return i;
        out[i] = now() - *stamp;
        close(pidfd);
    }
    return n;
}

long floor_start(const char *path, char *const *argv, long n, int *pidfds)
{
    for (long i = 0; i < n; i++)
        if ((pidfds[i] = start(path, argv, -1)) < 0)
            return i;
    return n;
}

/* TERM to all, then wait for all. */
void floor_end(long n, const int *pidfds)
{
    for (long i = 0; i < n; i++)
        syscall(SYS_pidfd_send_signal, pidfds[i], SIGTERM, NULL, 0);
    for (long i = 0; i < n; i++) {
        end(pidfds[i], -1);
        close(pidfds[i]);
    }
}
