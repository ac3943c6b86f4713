/* Which process is main, of a program that forks a daemon and ends.
 *
 * In: what was reaped, and who is our child then.  Out: hf_tree's main, and hf_reports_moved().
 *
 * Main is at first the process that was started.  When it ends with code 0, main moves to one of those that
 * it has left to us: of our living children
 *   1. NAME      the oldest with the name that main is to have, if one was given; else
 *   2. ONLY      the only one: all others descend from it; else
 *   3. SESSION   the oldest of those that have left the session which the start was made in; else
 *   4. TOGETHER  the oldest, for all of them.
 * From then on the same happens when main ends with code 0 and leaves somebody, for that is how a daemon forks once
 * more, or starts its next version; and of those that are main together, however one ends.  Any other end of main is
 * the end.  During a stop nothing moves.
 *
 * The kernel gives us a dead process's children before it shows us that it is dead (exit_notify), so who looks when
 * main was reaped sees all that it has left.  Our children's numbers are their own until we reap them.
 */
#define _GNU_SOURCE
#include "kept.h"

#include <poll.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static struct {
    int forking;
    int started_in;    /* the session */
    int moved;         /* at least once: the one that was started has done its part */
    uint64_t moved_ns; /* when, CLOCK_MONOTONIC */
    enum hf_rule rule;
    int failed_code, failed_status; /* of the last one that was reaped before main had forked the next; 0: none */
    char name[sizeof ((struct hf_more *)0)->main_name]; /* empty: none was given */
} choice;

struct candidate { int pid; uint64_t start; };

void hf_daemon_begin(const struct hf_plan *plan)
{
    memset(&choice, 0, sizeof choice);
    choice.forking = (plan->options & HF_FORKING) != 0;
    choice.started_in = plan->options & HF_NEW_SESSION ? hf_tree.main_pid : getsid(0);
    memcpy(choice.name, plan->more.main_name, sizeof choice.name - 1);
}

/* A child of ours: does it live, and what is it?  Where /proc hides it (hidepid, and it is another user's) it lives, too. */
static int lives(int pid, struct hf_stat *stat)
{
    struct pollfd fd = {.fd = hf_pidfd_open(pid), .events = POLLIN};
    if (fd.fd < 0)
        return 0;
    int dead = poll(&fd, 1, 0) == 1;
    close(fd.fd);
    if (!dead && hf_read_stat(pid, stat) < 0)
        *stat = (struct hf_stat){.session = choice.started_in};
    return !dead;
}

static int is_called(const struct hf_stat *stat)
{
    return choice.name[0] && strncmp(stat->name, choice.name, sizeof choice.name) == 0;
}

static void keep_oldest(struct candidate *oldest, int pid, uint64_t start)
{
    if (!oldest->pid || start < oldest->start || (start == oldest->start && pid < oldest->pid))
        *oldest = (struct candidate){pid, start};
}

/* The one that is to be main, beside the present one; 0: nobody. */
static int choose(enum hf_rule *rule)
{
    struct candidate oldest = {0, 0}, apart = {0, 0}, called = {0, 0};
    const int *pids;
    uint32_t n = hf_tree_adopted(&pids), living = 0;
    for (uint32_t i = 0; i < n; i++) {
        struct hf_stat stat;
        if (!lives(pids[i], &stat))
            continue;
        living++;
        keep_oldest(&oldest, pids[i], stat.start);
        if (stat.session != choice.started_in)
            keep_oldest(&apart, pids[i], stat.start);
        if (is_called(&stat))
            keep_oldest(&called, pids[i], stat.start);
    }
    *rule = called.pid ? HF_RULE_NAME : living == 1 ? HF_RULE_ONLY : apart.pid ? HF_RULE_SESSION : HF_RULE_TOGETHER;
    return called.pid ? called.pid : *rule == HF_RULE_SESSION ? apart.pid : oldest.pid;
}

static int move(int pid, int pidfd, enum hf_rule rule)
{
    int old = hf_tree.main_pid;
    if (pidfd < 0)
        return 0; /* no descriptor is left, and without one nobody can be main */
    close(hf_tree.main_pidfd);
    hf_tree.main_pid = pid;
    hf_tree.main_pidfd = pidfd;
    hf_tree_look_up_group();
    choice.moved = 1;
    choice.failed_code = 0;
    choice.moved_ns = hf_clock_ns(CLOCK_MONOTONIC);
    choice.rule = rule;
    hf_reports_moved(old, rule);
    return 1;
}

/* A main that ends with code 0 so soon has only forked once more, and was not the daemon. */
#define FORKING_NS UINT64_C(1000000000)

static int is_still_forking(void)
{
    return !choice.moved || hf_clock_ns(CLOCK_MONOTONIC) - choice.moved_ns < FORKING_NS;
}

/* The daemon came, and has ended before the one that has forked it: how is worth more than "nobody is left".
 * 1: it is the next to be reaped, and main by now; 0: what is to be told of `ended` is said there. */
static int has_failed(siginfo_t *ended)
{
    const int *pids;
    uint32_t n = hf_tree_adopted(&pids);
    for (uint32_t i = 0; i < n; i++) {
        siginfo_t info = {.si_pid = 0};
        if (hf_waitid(P_PID, pids[i], &info, WEXITED | WNOHANG | WNOWAIT | HF_WALL, NULL) == 0 &&
            info.si_pid == pids[i] && (info.si_code != CLD_EXITED || info.si_status)) {
            hf_tree.main_pid = pids[i]; /* it is reaped next, in the round that goes on */
            return 1;
        }
    }
    if (choice.failed_code) {
        ended->si_code = choice.failed_code;
        ended->si_status = choice.failed_status;
    }
    return 0;
}

static int may_move(void)
{
    return choice.forking && hf_stop.phase == STOP_NONE;
}

int hf_daemon_follow(siginfo_t *ended, int is_main)
{
    int well = ended->si_code == CLD_EXITED && ended->si_status == 0;
    if (!is_main && !well) {
        choice.failed_code = ended->si_code;
        choice.failed_status = ended->si_status;
    }
    if (!is_main || !may_move() || !(well || choice.rule == HF_RULE_TOGETHER))
        return 0;
    enum hf_rule rule;
    int pid = choose(&rule), pidfd = pid ? hf_pidfd_open(pid) : -1;
    if (hf_kept.control >= 0)
        hf_reports_note_adopted(); /* not before: it may take all descriptors that are left */
    if (pid)
        return move(pid, pidfd, rule);
    return is_still_forking() && has_failed(ended);
}

void hf_daemon_look(void)
{
    struct hf_stat stat;
    if (!choice.name[0] || !may_move() || !choice.moved || hf_tree.main_ended ||
        choice.rule == HF_RULE_NAME || choice.rule == HF_RULE_ASKED)
        return;
    if (hf_read_stat(hf_tree.main_pid, &stat) == 0 && is_called(&stat)) {
        choice.rule = HF_RULE_NAME; /* it has taken the name */
        hf_reports_moved(hf_tree.main_pid, choice.rule);
        return;
    }
    enum hf_rule rule;
    int pid = choose(&rule);
    if (pid && rule == HF_RULE_NAME)
        move(pid, hf_pidfd_open(pid), rule);
}

void hf_daemon_ask(int pid)
{
    struct hf_stat stat;
    if (!may_move() || !choice.moved || hf_tree.main_ended || pid <= 0)
        return;
    if (pid == hf_tree.main_pid && choice.rule != HF_RULE_ASKED) {
        choice.rule = HF_RULE_ASKED;
        hf_reports_moved(pid, choice.rule);
        return;
    }
    const int *pids;
    uint32_t n = hf_tree_adopted(&pids);
    for (uint32_t i = 0; i < n; i++)
        if (pids[i] == pid) {
            if (lives(pid, &stat))
                move(pid, hf_pidfd_open(pid), HF_RULE_ASKED);
            return;
        }
}
