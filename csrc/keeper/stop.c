/* Stopping a tree: the stop signal once, a grace, then KILL until the tree is empty or a limit ends it.
 *
 *   GRACE  the signal, then CONT, to the scope.  When main has ended: the same, once, to every member
 *          that has not had it.  Ends early when the tree is empty.
 *   KILL   passes over the whole tree.  A pass follows when everything that the last one hit has been
 *          reaped, or after a pause of twice the last pass's own length (1 to 64 ms): so a fork bomb
 *          is chased without rest, and a tree that cannot die costs next to nothing.  Where the tree has a cgroup
 *          of version 2, the kernel kills all of it besides, at once.
 *   DONE   empty, or KILL_LIMIT_MS after the first KILL: what is left is named in the report.
 */
#define _GNU_SOURCE
#include "keeper.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

struct hf_stop_state hf_stop;
HF_RARELY_USED struct hf_member hf_stop_members[HF_MEMBERS_MAX];
HF_RARELY_USED static struct __attribute__((aligned(HF_PAGE))) { uint64_t of[HF_MEMBERS_MAX]; } starts;
static uint64_t began_ns, grace_end_ns, kill_end_ns, next_pass_ns;
static uint32_t reaped_at_pass, hit_in_pass, unlisted_in_pass, killed_unlisted_in_pass, killed_unlisted;
static int rest_signalled;
static int cgroup_kill = -1;

static struct hf_member *find(int pid, uint64_t start)
{
    for (uint32_t i = 0; i < hf_stop.report.n_members; i++)
        if (hf_stop_members[i].pid == pid && starts.of[i] == start)
            return &hf_stop_members[i];
    return NULL;
}

/* The entry of a member, made if there is room; flags of a new one say what it is. */
static struct hf_member *enter(int pid, const struct hf_stat *stat)
{
    struct hf_stop_report *r = &hf_stop.report;
    struct hf_member *m = find(pid, stat->start);
    if (m)
        return m;
    if (r->n_members == HF_MEMBERS_MAX) {
        unlisted_in_pass++;
        return NULL;
    }
    starts.of[r->n_members] = stat->start;
    m = &hf_stop_members[r->n_members++];
    *m = (struct hf_member){.pid = pid};
    memcpy(m->name, stat->name, sizeof m->name);
    if (pid == hf_tree.main_pid && !hf_tree.main_ended)
        m->flags |= HF_IS_MAIN;
    else if (stat->pgrp != hf_tree.main_group)
        m->flags |= HF_LEFT_GROUP;
    return m;
}

int hf_is_dead(int pidfd, const struct hf_stat *stat)
{
    struct pollfd fd = {.fd = pidfd, .events = POLLIN};
    return stat->state == 'Z' && poll(&fd, 1, 0) == 1;
}

static void mark_denied(struct hf_member *m, int error)
{
    if (m && error == -EPERM)
        m->flags |= HF_DENIED;
}

static void ask_member(int pid, int pidfd, const struct hf_stat *stat)
{
    if (hf_is_dead(pidfd, stat))
        return;
    struct hf_member *m = enter(pid, stat);
    if (m ? (m->flags & HF_SIGNALLED) != 0 : rest_signalled)
        return; /* once; those that the table has no room for are asked in the first pass only */
    int scope = (int)hf_stop.report.scope;
    int hit = rest_signalled || hf_tree.main_ended || scope == HF_SCOPE_TREE ||
              pid == hf_tree.main_pid || (scope == HF_SCOPE_GROUP && stat->pgrp == hf_tree.main_group);
    if (!hit)
        return;
    int error = hf_pidfd_signal(pidfd, hf_stop.report.signo, 0);
    mark_denied(m, error);
    if (error == 0) {
        hf_pidfd_signal(pidfd, SIGCONT, 0); /* a stopped process would not see it before */
        hf_stop.report.signalled++;
        if (m)
            m->flags |= HF_SIGNALLED;
    }
}

/* The group's members are entered first and signalled together afterwards, so that none can fork
 * between two signals and leave a child that nobody told. */
static void note_group_member(int pid, int pidfd, const struct hf_stat *stat)
{
    if (hf_is_dead(pidfd, stat))
        return;
    struct hf_member *m = enter(pid, stat);
    if (stat->pgrp != hf_tree.main_group)
        return;
    int error = hf_pidfd_signal(pidfd, 0, 0);
    mark_denied(m, error);
    if (error == 0) {
        hf_stop.report.signalled++;
        if (m)
            m->flags |= HF_SIGNALLED;
    }
}

static void kill_member(int pid, int pidfd, const struct hf_stat *stat)
{
    hit_in_pass++;
    int dead = hf_is_dead(pidfd, stat);
    int error = hf_pidfd_signal(pidfd, SIGKILL, 0); /* also to a dead one: its threads */
    if (dead)
        return;
    struct hf_member *m = enter(pid, stat);
    mark_denied(m, error);
    if (error == 0 && m && !(m->flags & HF_KILLED)) {
        m->flags |= HF_KILLED;
        hf_stop.report.killed++;
    } else if (error == 0 && !m) {
        killed_unlisted_in_pass++;
    }
}

static void count_survivor(int pid, int pidfd, const struct hf_stat *stat)
{
    if (hf_is_dead(pidfd, stat))
        return;
    struct hf_member *m = enter(pid, stat);
    hf_stop.report.survivors++;
    if (m)
        m->flags |= HF_SURVIVED;
}

static void list_member(int pid, int pidfd, const struct hf_stat *stat)
{
    if (!hf_is_dead(pidfd, stat))
        enter(pid, stat);
}

static uint32_t walk(hf_visit *visit)
{
    unlisted_in_pass = 0;
    uint32_t visited = hf_tree_walk(visit);
    if (unlisted_in_pass > hf_stop.report.unlisted)
        hf_stop.report.unlisted = unlisted_in_pass;
    return visited;
}

void hf_stop_reset(void)
{
    hf_stop.phase = STOP_NONE;
    killed_unlisted = 0;
    memset(&hf_stop.report, 0, sizeof hf_stop.report);
}

void hf_stop_hold_cgroup(const struct hf_plan *plan)
{
    if (cgroup_kill >= 0)
        close(cgroup_kill);
    cgroup_kill = -1;
    for (uint32_t i = 0; i < plan->n_cgroups; i++)
        if (plan->cgroup_targets[i] == HF_TARGET_CGROUP) /* fails before Linux 5.14 */
            cgroup_kill = openat(plan->cgroup_sources[i], "cgroup.kill", O_WRONLY | O_CLOEXEC);
}

void hf_stop_rest(void)
{
    hf_stop.report.n_members = 0;
    hf_give_back(hf_stop_members, sizeof hf_stop_members);
    hf_give_back(&starts, sizeof starts);
}

void hf_stop_list_members(void)
{
    hf_stop_reset();
    hf_tree_look_up_group();
    walk(list_member);
}

static void kill_pass(uint64_t now_ns)
{
    hit_in_pass = killed_unlisted_in_pass = 0;
    reaped_at_pass = hf_tree.reaped;
    if (!walk(kill_member) && !hf_tree.main_ended) /* no /proc here: main at least is held */
        hf_pidfd_signal(hf_tree.main_pidfd, SIGKILL, 0);
    if (killed_unlisted_in_pass > killed_unlisted) { /* as with `unlisted`: nobody is counted twice */
        hf_stop.report.killed += killed_unlisted_in_pass - killed_unlisted;
        killed_unlisted = killed_unlisted_in_pass;
    }
    /* At once, what was born into the group during the walk.  Not before it: the walk would find them
     * dead, and the report would not say that they needed KILL. */
    hf_tree_signal_group(SIGKILL);
    if (cgroup_kill >= 0 && write(cgroup_kill, "1", 1) < 0) { /* the directory is removed: nobody is in it */
        close(cgroup_kill);
        cgroup_kill = -1;
    }
    uint64_t pause = 2 * (hf_clock_ns(CLOCK_MONOTONIC) - now_ns);
    pause = pause < 1 * NS_PER_MS ? 1 * NS_PER_MS : pause > 64 * NS_PER_MS ? 64 * NS_PER_MS : pause;
    next_pass_ns = hf_clock_ns(CLOCK_MONOTONIC) + pause;
}

static void finish(uint64_t now_ns)
{
    if (!hf_tree.empty && !walk(count_survivor)) {
        /* waitid(2) knows of one at least; without /proc nobody can say which. */
        hf_stop.report.survivors = 1;
        hf_stop.report.unlisted = 1;
    }
    for (uint32_t i = 0; i < hf_stop.report.n_members; i++)
        if (hf_stop_members[i].flags & HF_LEFT_GROUP)
            hf_stop.report.left_group++;
    hf_stop.report.duration_ns = now_ns - began_ns;
    hf_stop.phase = STOP_DONE;
}

void hf_stop_step(uint64_t now_ns)
{
    if (hf_stop.phase == STOP_GRACE && !hf_tree.empty) {
        if (hf_tree.main_ended && !rest_signalled) {
            rest_signalled = 1;
            walk(ask_member);
        }
        if (now_ns >= grace_end_ns) {
            hf_stop.phase = STOP_KILL;
            kill_end_ns = now_ns + KILL_LIMIT_MS * NS_PER_MS;
            kill_pass(now_ns);
            return;
        }
    }
    if (hf_stop.phase == STOP_KILL && now_ns >= kill_end_ns && now_ns > next_pass_ns + 1000 * NS_PER_MS)
        kill_end_ns = now_ns + 1000 * NS_PER_MS; /* the limit passed while we were frozen: try on for a moment */
    if (hf_stop.phase == STOP_KILL && !hf_tree.empty && now_ns < kill_end_ns) {
        if (now_ns >= next_pass_ns || hf_tree.reaped - reaped_at_pass >= hit_in_pass)
            kill_pass(now_ns);
        return;
    }
    if (hf_stop.phase == STOP_KILL || (hf_stop.phase == STOP_GRACE && hf_tree.empty))
        finish(now_ns);
}

void hf_stop_begin(uint32_t id, int signo, enum hf_scope scope, uint64_t grace_ms)
{
    uint64_t now = hf_clock_ns(CLOCK_MONOTONIC);
    /* 10^15 ms is 30,000 years: clamping keeps the sum below inside 64 bits. */
    uint64_t end = now + (grace_ms < 1000000000000ULL ? grace_ms : 1000000000000ULL) * NS_PER_MS;
    if (hf_stop.phase == STOP_GRACE || hf_stop.phase == STOP_KILL) {
        hf_stop.report.id = id; /* a second request shortens the first and shares its report */
        if (hf_stop.phase == STOP_GRACE && end < grace_end_ns)
            grace_end_ns = end;
        return;
    }
    hf_stop_reset();
    hf_stop.report.id = id;
    hf_stop.report.signo = signo;
    hf_stop.report.scope = scope;
    hf_stop.report.grace_ms = grace_ms;
    began_ns = now;
    grace_end_ns = end;
    rest_signalled = hf_tree.main_ended;
    hf_stop.phase = STOP_GRACE;
    if (hf_tree.empty || hf_tree.main_pid == 0)
        return;
    hf_tree_look_up_group();
    if (grace_ms == 0)
        return; /* the first step is the KILL */
    if (scope == HF_SCOPE_GROUP && hf_tree.main_leads_group && !hf_tree.main_ended) {
        walk(note_group_member);
        if (hf_tree_signal_group(signo) == 0)
            hf_tree_signal_group(SIGCONT);
    } else {
        rest_signalled = 0;
        if (!walk(ask_member) && hf_tree_signal(signo, HF_SCOPE_MAIN) == 0) /* no /proc here */
            hf_tree_signal(SIGCONT, HF_SCOPE_MAIN);
        rest_signalled = hf_tree.main_ended;
    }
}

uint64_t hf_stop_deadline(void)
{
    if (hf_stop.phase == STOP_GRACE)
        return grace_end_ns;
    if (hf_stop.phase == STOP_KILL)
        return next_pass_ns < kill_end_ns ? next_pass_ns : kill_end_ns;
    return 0;
}
