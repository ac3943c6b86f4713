/* Who is in the tree.
 *
 * A direct child's pid is ours until we reap it, and we never reap during a walk: it is safe to use.
 * A deeper member's pid may change hands at any moment, so it is used only like this:
 *   1. open a pidfd for the number;
 *   2. read its stat: the parent must be the one we came from, or one above that (adopted meanwhile);
 *   3. check that neither the pidfd's process nor the parent's was reaped: then 2 spoke of them.
 * Whoever passes is our descendant, and only the pidfd is signalled.
 * Emptiness is not read from /proc: waitid(2) answers ECHILD exactly when no child is left.
 */
#define _GNU_SOURCE
#include "keeper.h"
#include "text.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* A level costs a descriptor and, because what needs buffers is not inlined, some 300 bytes of stack. */
enum { DEPTH_MAX = 256, PIDS_MAX = 16384 };
#define NOT_INLINED __attribute__((noinline))

struct hf_tree hf_tree;
HF_RARELY_USED static int pids[PIDS_MAX]; /* one stack for all levels of a walk */
static uint32_t n_pids;
HF_RARELY_USED static int strangers[STRANGERS_MAX];

static void proc_path(char *path, size_t size, int pid, const char *middle, int tid, const char *end)
{
    struct hf_text t = {path, path + size - 1};
    put(&t, "/proc/");
    put_signed(&t, pid);
    put(&t, middle);
    if (tid)
        put_signed(&t, tid);
    put(&t, end);
    *t.at = 0;
}

/* A /proc of another pid namespace (`unshare --pid` without `--mount-proc`) is full of numbers that mean
 * others: believing it once killed a stranger.  It counts as absent. */
int hf_proc_is_ours(void)
{
    char self[16], ours[16];
    struct hf_text t = {ours, ours + sizeof ours};
    put_signed(&t, getpid());
    ssize_t n = readlink("/proc/self", self, sizeof self);
    return n == t.at - ours && memcmp(self, ours, (size_t)n) == 0;
}

/* Small files of /proc come in one read; the result is NUL-terminated. */
static int read_proc(const char *path, char *buffer, size_t size)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    ssize_t n = read(fd, buffer, size - 1);
    int error = errno;
    close(fd);
    if (n < 0)
        return -error;
    buffer[n] = 0;
    return (int)n;
}

NOT_INLINED int hf_read_stat(int pid, struct hf_stat *stat)
{
    char path[32], text[512];
    proc_path(path, sizeof path, pid, "/stat", 0, "");
    if (!hf_proc_is_ours())
        return -ENOENT;
    int n = read_proc(path, text, sizeof text);
    if (n <= 0)
        return n < 0 ? n : -ESRCH;
    /* The name may hold anything, also ')': the last one ends it. */
    char *open_ = strchr(text, '('), *close_ = strrchr(text, ')');
    if (!open_ || !close_ || close_ < open_)
        return -EBADMSG;
    size_t length = (size_t)(close_ - open_ - 1);
    if (length >= sizeof stat->name)
        length = sizeof stat->name - 1;
    memset(stat->name, 0, sizeof stat->name);
    memcpy(stat->name, open_ + 1, length);
    char *p = close_ + 2;
    stat->state = *p++;
    long long field[20] = {0};
    for (int i = 0; i < 19; i++) /* fields 4 (ppid) to 22 (starttime) of proc_pid_stat(5) */
        field[i] = strtoll(p, &p, 10);
    stat->ppid = (int)field[0];
    stat->pgrp = (int)field[1];
    stat->session = (int)field[2];
    stat->tty = (int)field[3];
    stat->threads = (int)field[16];
    stat->start = (uint64_t)field[18];
    return 0;
}

NOT_INLINED static void push_children(int pid, int tid)
{
    char path[48], text[1024];
    proc_path(path, sizeof path, pid, "/task/", tid, "/children");
    if (!hf_proc_is_ours())
        return;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    int value = 0;
    for (;;) {
        ssize_t n = read(fd, text, sizeof text);
        if (n <= 0)
            break;
        for (ssize_t i = 0; i < n; i++) {
            if (text[i] >= '0' && text[i] <= '9')
                value = value * 10 + (text[i] - '0');
            else if (value) {
                if (n_pids < PIDS_MAX)
                    pids[n_pids++] = value;
                value = 0;
            }
        }
    }
    close(fd);
}

/* Each thread has its own list of children. */
NOT_INLINED static void push_children_of_all_threads(int pid)
{
    char path[32];
    char entries[2048] __attribute__((aligned(8)));
    proc_path(path, sizeof path, pid, "/task", 0, "");
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return;
    for (;;) {
        long n = HF_CALL3(SYS_getdents64, fd, entries, sizeof entries);
        if (n <= 0)
            break;
        for (long at = 0; at < n;) {
            struct { uint64_t inode; int64_t offset; uint16_t length; uint8_t type; char name[]; } *e =
                (void *)(entries + at);
            int tid = atoi(e->name); /* "." and ".." give 0 */
            if (tid > 0)
                push_children(pid, tid);
            at += e->length;
        }
    }
    close(fd);
}

static int is_stranger(int pid)
{
    for (int i = 0; i < hf_tree.n_strangers; i++)
        if (strangers[i] == pid)
            return 1;
    return pid == hf_tree.helper;
}

/* The way from us down to where the walk is; every process on it is held (us: -1). */
struct level { int pid, pidfd; const struct level *up; };

/* Is it a child of somebody on the way?  Of the last one, as a rule; of one further up when that one
 * has died since its children were listed: orphans go to the nearest subreaper above. */
NOT_INLINED static int is_member(int pid, int pidfd, const struct level *way, struct hf_stat *stat)
{
    for (int look = 0; look < 3; look++) {
        if (hf_read_stat(pid, stat) < 0)
            return 0;
        const struct level *l = way;
        while (l && l->pid != stat->ppid)
            l = l->up;
        if (!l || hf_pidfd_signal(pidfd, 0, 0) == -ESRCH)
            return 0;
        if (l->pidfd < 0 || hf_pidfd_signal(l->pidfd, 0, 0) != -ESRCH)
            return 1;
        /* The parent was reaped meanwhile: the number may have been another's.  Look again. */
    }
    return 0;
}

/* The pids from `first` up are the children that were listed for the end of the way. */
static uint32_t walk(uint32_t first, const struct level *way, int depth, hf_visit *visit)
{
    uint32_t visited = 0, end = n_pids;
    for (uint32_t i = first; i < end; i++) {
        int pid = pids[i];
        if (depth == 0 && is_stranger(pid))
            continue;
        struct level here = {pid, hf_pidfd_open(pid), way};
        if (here.pidfd < 0)
            continue; /* gone; or out of descriptors: its turn comes when those above are gone */
        struct hf_stat stat;
        if (is_member(pid, here.pidfd, way, &stat)) {
            /* Its children are listed before it is visited: the visit may be its end, and an orphan
             * would be missing in the list of its new parent, which has been read already. */
            if (depth < DEPTH_MAX && stat.threads == 1)
                push_children(pid, pid);
            else if (depth < DEPTH_MAX)
                push_children_of_all_threads(pid);
            visit(pid, here.pidfd, &stat);
            visited += 1 + walk(end, &here, depth + 1, visit);
            n_pids = end;
        }
        close(here.pidfd);
    }
    return visited;
}

uint32_t hf_tree_walk(hf_visit *visit)
{
    struct level us = {getpid(), -1, NULL};
    n_pids = 0;
    push_children(us.pid, us.pid);
    return walk(0, &us, 0, visit);
}

uint32_t hf_tree_adopted(const int **list)
{
    uint32_t n = 0;
    n_pids = 0;
    push_children(getpid(), getpid());
    for (uint32_t i = 0; i < n_pids; i++)
        if (pids[i] != hf_tree.main_pid && !is_stranger(pids[i]))
            pids[n++] = pids[i];
    *list = pids;
    return n;
}

int hf_tree_note_strangers(void)
{
    n_pids = 0;
    push_children(getpid(), getpid());
    if (n_pids > STRANGERS_MAX)
        return -E2BIG;
    hf_tree.n_strangers = (int)n_pids;
    memcpy(strangers, pids, n_pids * sizeof *pids);
    return 0;
}

/* Only strangers left?  They are direct children, so the list is exact. */
static int only_strangers(void)
{
    if (hf_tree.n_strangers == 0)
        return 0;
    n_pids = 0;
    push_children(getpid(), getpid());
    for (uint32_t i = 0; i < n_pids; i++)
        if (!is_stranger(pids[i]))
            return 0;
    return n_pids > 0;
}

int hf_tree_signal_group(int signo)
{
    if (!hf_tree.main_leads_group)
        return -ENOTSUP;
    int r = hf_pidfd_signal(hf_tree.main_pidfd, signo, HF_PIDFD_SIGNAL_PROCESS_GROUP);
    if (r != -EINVAL)
        return r;
    /* Before 6.9 a group has only a number, and it is pinned only while main is not reaped. */
    if (hf_tree.main_ended)
        return -ENOTSUP;
    return kill(-hf_tree.main_pid, signo) ? -errno : 0;
}

/* Main may have moved itself (setsid, a shell's job control): look again before a group is used. */
void hf_tree_look_up_group(void)
{
    struct hf_stat stat;
    if (hf_tree.main_ended || hf_read_stat(hf_tree.main_pid, &stat) < 0)
        return;
    hf_tree.main_group = stat.pgrp;
    hf_tree.main_leads_group = stat.pgrp == hf_tree.main_pid;
}

static int walk_signo, walk_group, walk_error;

static void signal_member(int pid, int pidfd, const struct hf_stat *stat)
{
    if (walk_group && pid != hf_tree.main_pid && stat->pgrp != hf_tree.main_group)
        return;
    int r = hf_pidfd_signal(pidfd, walk_signo, 0);
    if (r == -EPERM)
        walk_error = r;
}

int hf_tree_signal(int signo, enum hf_scope scope)
{
    if (scope == HF_SCOPE_MAIN)
        return hf_tree.main_ended ? -ESRCH : hf_pidfd_signal(hf_tree.main_pidfd, signo, 0);
    if (scope == HF_SCOPE_GROUP)
        hf_tree_look_up_group();
    if (scope == HF_SCOPE_GROUP && hf_tree.main_leads_group) {
        int r = hf_tree_signal_group(signo);
        if (r != -ENOTSUP)
            return r;
    }
    walk_signo = signo;
    walk_group = scope == HF_SCOPE_GROUP;
    walk_error = 0;
    return hf_tree_walk(signal_member) ? walk_error : -ESRCH;
}

static void to_usage(const struct rusage *r, struct hf_usage *u)
{
    *u = (struct hf_usage){
        .user_us = (uint64_t)r->ru_utime.tv_sec * 1000000 + (uint64_t)r->ru_utime.tv_usec,
        .system_us = (uint64_t)r->ru_stime.tv_sec * 1000000 + (uint64_t)r->ru_stime.tv_usec,
        .max_rss_kib = (uint64_t)r->ru_maxrss, .minor_faults = (uint64_t)r->ru_minflt,
        .major_faults = (uint64_t)r->ru_majflt, .blocks_in = (uint64_t)r->ru_inblock,
        .blocks_out = (uint64_t)r->ru_oublock, .voluntary_switches = (uint64_t)r->ru_nvcsw,
        .involuntary_switches = (uint64_t)r->ru_nivcsw,
    };
}

/* Summed member by member: RUSAGE_CHILDREN would remember a runner's earlier tenants. */
static void add_usage(const struct hf_usage *u)
{
    struct hf_usage *t = &hf_tree.usage;
    t->user_us += u->user_us;
    t->system_us += u->system_us;
    if (u->max_rss_kib > t->max_rss_kib)
        t->max_rss_kib = u->max_rss_kib;
    t->minor_faults += u->minor_faults;
    t->major_faults += u->major_faults;
    t->blocks_in += u->blocks_in;
    t->blocks_out += u->blocks_out;
    t->voluntary_switches += u->voluntary_switches;
    t->involuntary_switches += u->involuntary_switches;
}

static void forget_stranger(int pid)
{
    for (int i = 0; i < hf_tree.n_strangers; i++)
        if (strangers[i] == pid)
            strangers[i--] = strangers[--hf_tree.n_strangers];
    if (pid == hf_tree.helper)
        hf_tree.helper = 0; /* somebody killed it */
}

static void reap_all(void)
{
    for (;;) {
        siginfo_t info;
        struct rusage rusage;
        int r = hf_waitid(P_ALL, 0, &info, WEXITED | WSTOPPED | WCONTINUED | WNOHANG | HF_WALL, &rusage);
        if (r == -ECHILD) {
            hf_tree.empty = hf_tree.main_pid != 0;
            return;
        }
        if (r < 0 || info.si_pid == 0)
            break; /* nothing more to tell now; no other error can come from these arguments */
        if (is_stranger(info.si_pid)) {
            if (info.si_code == CLD_EXITED || info.si_code == CLD_KILLED || info.si_code == CLD_DUMPED)
                forget_stranger(info.si_pid);
            continue;
        }
        int is_main = info.si_pid == hf_tree.main_pid && !hf_tree.main_ended;
        if (info.si_code == CLD_STOPPED || info.si_code == CLD_TRAPPED) {
            hf_mode->stopped(info.si_pid, info.si_status, is_main);
        } else if (info.si_code == CLD_CONTINUED) {
            hf_mode->continued(info.si_pid, is_main);
        } else {
            struct hf_usage usage;
            to_usage(&rusage, &usage);
            add_usage(&usage);
            hf_tree.reaped++;
            if (hf_daemon_follow(&info, is_main))
                is_main = 0; /* another one is, by now */
            if (is_main)
                hf_tree.main_ended = 1;
            hf_mode->exited(&info, &usage, is_main);
        }
    }
    hf_tree.empty = hf_tree.main_ended && only_strangers();
}

/* A process that its parent has started with CLONE_AUTOREAP (Linux 7.1) is adopted like any other, but no SIGCHLD tells
 * of its end, so nothing would tell that the tree is empty.  A tree is not empty while one of its processes lives: one of
 * those that main has left is held, and when it ends we look again, and hold another.
 * 0: none could be held, as they end while we look. */
static int watch_one(void)
{
    if (hf_tree.left && hf_pidfd_signal(hf_tree.left - 1, 0, 0) != -ESRCH)
        return 1;
    if (hf_tree.left)
        close(hf_tree.left - 1);
    hf_tree.left = 0;
    if (hf_tree.empty || !hf_tree.main_ended || !hf_has_autoreap())
        return 1;
    const int *list;
    uint32_t n = hf_tree_adopted(&list);
    int pidfd = -1;
    for (uint32_t i = 0; i < n && pidfd < 0; i++)
        pidfd = hf_pidfd_open(list[i]);
    hf_tree.left = pidfd < 0 ? 0 : pidfd + 1;
    return pidfd >= 0;
}

void hf_tree_reap(void)
{
    reap_all();
    for (int looks = 0; looks < 3 && !watch_one(); looks++)
        reap_all();
}

void hf_tree_rest(void)
{
    hf_give_back(pids, sizeof pids);
}

int hf_tree_spawn(struct hf_plan *plan, char *stack, struct hf_child_result *result)
{
    int pidfd;
    plan->restore_nofile = hf_original_nofile;
    if (hf_sigchld_was_ignored)
        plan->options |= HF_IGNORE_SIGCHLD;
    long pid = hf_spawn(plan, stack, &pidfd, result);
    if (pid < 0)
        return (int)pid;
    if (hf_tree.main_pid)
        close(hf_tree.main_pidfd);
    hf_tree.main_pid = (int)pid;
    hf_tree.main_pidfd = pidfd;
    hf_tree.main_ended = hf_tree.empty = 0;
    hf_tree.reaped = 0;
    memset(&hf_tree.usage, 0, sizeof hf_tree.usage);
    hf_tree.main_leads_group = (plan->options & HF_NEW_SESSION) || ((plan->options & HF_SET_PGID) && plan->pgid == 0);
    hf_tree.main_group = hf_tree.main_leads_group ? (int)pid
                         : (plan->options & HF_SET_PGID) ? plan->pgid : getpgid(0);
    return 0;
}
