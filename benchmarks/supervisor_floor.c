/* The floor: what keeping services running costs when C does nothing else.
 *
 *   supervisor_floor COUNT GRACE_MS LOGS ROTATE_SIZE ROTATE_COUNT COMMAND...
 *
 * COUNT times the same command by clone(VM|VFORK|PIDFD), each started again the moment it ends.  With LOGS (a
 * directory, or `-` for none) each one's output is read and written to LOGS/NUMBER/current, rotated by size.  TERM:
 * all get TERM, after GRACE_MS KILL, and it ends when the last has gone.  USR1: the same, but they are started
 * again.  No names, no configuration, no limits, no state, no trees, nobody to ask: a lower bound, not a rival.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef P_PIDFD
#define P_PIDFD 3
#endif

enum { CHUNK = 65536 };
enum kind { ENDED, OUTPUT, SIGNAL, GRACE };

struct service { int pidfd, pipe[2], directory, file; uint64_t size; unsigned number; };

extern char **environ;
static struct service *services;
static long count, alive, rotate_count;
static uint64_t rotate_size;
static char **command;
static bool with_logs, ending;
static int epoll, nothing, grace_timer;
static struct itimerspec grace;

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static void watch(int fd, enum kind kind, long index)
{
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = (uint64_t)index << 2 | kind};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) < 0)
        fail("epoll_ctl");
}

static int child_main(void *raw)
{
    struct service *s = raw;
    sigset_t none;
    setsid();
    dup2(nothing, 0);
    if (with_logs) {
        dup2(s->pipe[1], 1);
        dup2(s->pipe[1], 2);
    }
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    execve(command[0], command, environ);
    _exit(127);
}

static void start(long index)
{
    static char stack[32768] __attribute__((aligned(16)));
    struct service *s = &services[index];
    if (clone(child_main, stack + sizeof stack, CLONE_VM | CLONE_VFORK | CLONE_PIDFD | SIGCHLD, s, &s->pidfd) < 0)
        fail("clone");
    alive++;
    watch(s->pidfd, ENDED, index);
}

static void ended(long index)
{
    struct service *s = &services[index];
    siginfo_t info;
    if (waitid(P_PIDFD, (id_t)s->pidfd, &info, WEXITED) < 0)
        fail("waitid");
    close(s->pidfd);
    alive--;
    if (!ending)
        start(index);
}

static void open_log(struct service *s)
{
    s->file = openat(s->directory, "current", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (s->file < 0)
        fail("current");
    s->size = 0;
}

static void rotate(struct service *s)
{
    char name[16];
    close(s->file);
    snprintf(name, sizeof name, "%08u", ++s->number);
    renameat(s->directory, "current", s->directory, name);
    if (s->number > rotate_count) {
        snprintf(name, sizeof name, "%08u", s->number - (unsigned)rotate_count);
        unlinkat(s->directory, name, 0);
    }
    open_log(s);
}

static void make_log(long index, const char *logs)
{
    struct service *s = &services[index];
    char path[4096];
    snprintf(path, sizeof path, "%s/%ld", logs, index);
    mkdir(path, 0755);
    s->directory = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (s->directory < 0 || pipe2(s->pipe, O_CLOEXEC) < 0)
        fail(path);
    open_log(s);
    watch(s->pipe[0], OUTPUT, index);
}

static void pump(long index)
{
    static char buffer[CHUNK];
    struct service *s = &services[index];
    ssize_t n = read(s->pipe[0], buffer, sizeof buffer);
    if (n <= 0 || write(s->file, buffer, (size_t)n) != n)
        fail("log");
    s->size += (uint64_t)n;
    if (s->size >= rotate_size)
        rotate(s);
}

static void signal_all(int signo)
{
    for (long i = 0; i < count; i++)
        syscall(SYS_pidfd_send_signal, services[i].pidfd, signo, NULL, 0);
}

static void heard(int signals)
{
    struct signalfd_siginfo info;
    if (read(signals, &info, sizeof info) != sizeof info)
        fail("signalfd");
    ending = info.ssi_signo == SIGTERM;
    signal_all(SIGTERM);
    timerfd_settime(grace_timer, 0, &grace, NULL);
}

static void grace_is_over(void)
{
    uint64_t times;
    if (read(grace_timer, &times, sizeof times) == sizeof times)
        signal_all(SIGKILL);
}

static int open_signals(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, NULL);
    return signalfd(-1, &set, SFD_CLOEXEC);
}

int main(int argc, char **argv)
{
    struct rlimit limit;
    struct epoll_event events[256];
    if (argc < 7)
        return 2;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    count = atol(argv[1]);
    grace.it_value.tv_sec = atol(argv[2]) / 1000;
    grace.it_value.tv_nsec = atol(argv[2]) % 1000 * 1000000;
    with_logs = strcmp(argv[3], "-") != 0;
    rotate_size = strtoull(argv[4], NULL, 10);
    rotate_count = atol(argv[5]);
    command = argv + 6;
    services = calloc((size_t)count, sizeof *services);
    epoll = epoll_create1(EPOLL_CLOEXEC);
    nothing = open("/dev/null", O_RDWR | O_CLOEXEC);
    grace_timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
    int signals = open_signals();
    watch(signals, SIGNAL, 0);
    watch(grace_timer, GRACE, 0);
    for (long i = 0; i < count; i++) {
        if (with_logs)
            make_log(i, argv[3]);
        start(i);
    }
    while (alive || !ending) {
        int n = epoll_wait(epoll, events, 256, -1);
        if (n < 0 && errno != EINTR)
            fail("epoll_wait");
        for (int i = 0; i < n; i++) {
            long index = (long)(events[i].data.u64 >> 2);
            switch ((enum kind)(events[i].data.u64 & 3)) {
            case ENDED: ended(index); break;
            case OUTPUT: pump(index); break;
            case SIGNAL: heard(signals); break;
            case GRACE: grace_is_over(); break;
            }
        }
    }
    return 0;
}
