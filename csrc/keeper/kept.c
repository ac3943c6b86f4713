/* Kept mode: requests over the control socket, and the guard's duty.
 *
 * The owner is gone when the socket says so or when its pidfd does (a forked copy of the owner may
 * hold the socket open).  Then on_owner_loss rules.
 */
#define _GNU_SOURCE
#include "kept.h"
#include "attach.h"
#include "log.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

struct hf_kept hf_kept = {.control = HF_CONTROL_FD, .owner = HF_OWNER_FD};
HF_RARELY_USED struct hf_scratch hf_scratch;
static struct hf_policy policy;

static void spawn(char *body, size_t size, const int *fds, int n_fds)
{
    struct hf_plan plan;
    struct hf_child_result result = {0, 0};
    /* What the last tree left to tell comes first; a held keeper has one tree in its life. */
    if (hf_tree.main_pid && (!hf_tree.empty || hf_reports.empty || hf_holding.listener >= 0)) {
        hf_reports_failed(HF_STAGE_RECEIVE, EBUSY);
        return;
    }
    if (hf_wire_spawn(body, size, &plan, &policy) < 0 || (int)(plan.n_fds + plan.n_cgroups) != n_fds) {
        hf_reports_failed(HF_STAGE_RECEIVE, EBADMSG);
        return;
    }
    plan.fd_sources = (const int32_t *)fds;
    plan.cgroup_sources = plan.fd_sources + plan.n_fds;
    if (policy.on_owner_loss != HF_LOSS_KEEP)
        plan.options |= HF_PDEATHSIG;
    hf_reports_begin_tree();
    hf_stop_reset();
    hf_stop_hold_cgroup(&plan);
    if (!hf_tree.main_pid) /* not earlier: a template must not adopt what it launches */
        prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
    uint64_t started_ns = hf_clock_ns(CLOCK_MONOTONIC), started_at_ns = hf_clock_ns(CLOCK_REALTIME);
    int r = hf_log_begin(&plan);
    if (r < 0)
        result = (struct hf_child_result){r == -EBADMSG ? HF_STAGE_RECEIVE : HF_STAGE_FDS, -r};
    else
        r = hf_tree_spawn(&plan, hf_scratch.stack, &result);
    hf_log_started(r < 0 ? 0 : hf_tree.main_pid);
    if (r < 0) {
        hf_reports_failed(result.stage, result.error);
        return;
    }
    hf_daemon_begin(&plan);
    hf_reports_spawned(started_ns, started_at_ns);
}

/* The plan is too long for a packet: it lies in a memfd that nobody can change under us. */
static void spawn_mapped(const struct hf_record *record, const char *body, const int *fds, int n_fds)
{
    struct hf_spawn_map map;
    struct stat st;
    int seals, wanted = F_SEAL_SHRINK | F_SEAL_WRITE;
    if (hf_wire_get(record, body, &map, sizeof map) < 0 || n_fds < 1 || fstat(fds[0], &st) ||
        (uint64_t)st.st_size != map.size || map.size == 0 || map.size > SIZE_MAX ||
        (seals = fcntl(fds[0], F_GET_SEALS)) < 0 || (seals & wanted) != wanted) {
        hf_reports_failed(HF_STAGE_RECEIVE, EBADMSG);
        return;
    }
    char *area = mmap(NULL, map.size, PROT_READ | PROT_WRITE, MAP_PRIVATE, fds[0], 0);
    if (area == MAP_FAILED) {
        hf_reports_failed(HF_STAGE_RECEIVE, errno);
        return;
    }
    spawn(area, map.size, fds + 1, n_fds - 1);
    munmap(area, map.size);
}

/* For a template: a new keeper on the descriptor that came along.  Everything about it, a failure too, is
 * told there and not here. */
static void launch(const int *fds, int n_fds)
{
    struct hf_child_result result;
    if (!(hf_kept.hello_flags & HF_KEEPER_TEMPLATE) || n_fds != 1 || hf_kept.owner < 0) {
        hf_reports_failed(HF_STAGE_RECEIVE, EBADMSG);
        return;
    }
    const char *program = (const char *)getauxval(AT_EXECFN); /* how we were started: works without /proc */
    /* It shall find what we found at our own start, or its children would not get it back. */
    hf_lend_original_state(1);
    long pid = hf_launch(program ? program : "/proc/self/exe", fds[0], hf_kept.owner, &result);
    hf_lend_original_state(0);
    if (pid < 0) {
        struct hf_failed failed = {(uint32_t)result.stage, result.error};
        size_t at = 0;
        hf_wire_put(hf_scratch.out, sizeof hf_scratch.out, &at, HF_FAILED, &failed, sizeof failed);
        send(fds[0], hf_scratch.out, at, MSG_DONTWAIT | MSG_NOSIGNAL); /* unsent, the end of file says enough */
    }
}

/* A report that the owner has not taken yet makes room for the new stop's, which will hold for both. */
static void begin_stop(uint32_t id, int signo, uint32_t scope, uint64_t grace_ms)
{
    hf_stop_begin(id, signo, scope, grace_ms);
    hf_reports_acknowledge(HF_ACK_STOP_REPORT);
}

static void obey(char *request, size_t size, const int *fds, int n_fds)
{
    size_t at = 0;
    struct hf_record record;
    const char *body;
    union { struct hf_hello hello; struct hf_signal signal; struct hf_stop stop; struct hf_query query;
            struct hf_loss loss; struct hf_held held; struct hf_ack ack; struct hf_main main; struct hf_log_state log; } u;
    while (hf_wire_next(request, size, &at, &record, &body) == 1) {
        /* There is one place for an answer: a packet may hold one request that has one. */
        if (hf_reports.answer && (record.tag == HF_SPAWN || record.tag == HF_SPAWN_MAP || record.tag == HF_LAUNCH))
            continue;
        switch (record.tag) {
        case HF_HELLO:
            if (hf_wire_get(&record, body, &u, sizeof u.hello) == 0 && hf_holding.listener < 0)
                hf_kept.hello_flags = u.hello.flags;
            break;
        case HF_SPAWN:
            spawn(request + (body - request), record.length, fds, n_fds);
            break;
        case HF_SPAWN_MAP:
            spawn_mapped(&record, body, fds, n_fds);
            break;
        case HF_SIGNAL:
            if (hf_wire_get(&record, body, &u, sizeof u.signal) == 0 && u.signal.signo > 0 &&
                u.signal.signo <= HF_NSIG && u.signal.scope <= HF_SCOPE_TREE && hf_tree.main_pid)
                hf_tree_signal(u.signal.signo, u.signal.scope);
            break;
        case HF_STOP:
            if (hf_wire_get(&record, body, &u, sizeof u.stop) == 0 && u.stop.signo > 0 &&
                u.stop.signo <= HF_NSIG && u.stop.scope <= HF_SCOPE_TREE && hf_tree.main_pid)
                begin_stop(u.stop.id, u.stop.signo, u.stop.scope, u.stop.grace_ms);
            break;
        case HF_QUERY:
            if (hf_wire_get(&record, body, &u, sizeof u.query) == 0) {
                hf_reports_note_adopted();
                hf_daemon_look();
                hf_reports.members_id = u.query.id;
                hf_reports.members = 1;
                hf_reports.log = hf_log_state(&u.log);
            }
            break;
        case HF_ON_OWNER_LOSS:
            if (hf_wire_get(&record, body, &u, sizeof u.loss) == 0 && u.loss.on_owner_loss <= HF_LOSS_KEEP)
                policy.on_owner_loss = u.loss.on_owner_loss;
            break;
        case HF_LAUNCH:
            launch(fds, n_fds);
            break;
        case HF_HELD: {
            int r = hf_wire_get(&record, body, &u, sizeof u.held);
            if (r == 0)
                r = hf_held_begin(&u.held, fds, n_fds);
            if (r < 0)
                hf_reports_failed(HF_STAGE_RECEIVE, -r);
            break;
        }
        case HF_ACK:
            if (hf_wire_get(&record, body, &u, sizeof u.ack) == 0 && hf_holding.listener >= 0)
                hf_reports_acknowledge(u.ack.what);
            break;
        case HF_MAIN:
            if (hf_wire_get(&record, body, &u, sizeof u.main) == 0)
                hf_daemon_ask(u.main.pid);
            break;
        case HF_LOG:
            hf_log_request(&record, body, fds, n_fds);
            break;
        case HF_ATTACH:
            hf_attach_begin(fds, n_fds);
            break;
        default:
            break; /* a later version's: skipped, as the wire says */
        }
    }
}

/* One packet of the owner's: 1; none is there: 0; -errno: the owner is lost. */
static int receive(void)
{
    int *fds = hf_scratch.fds, n_fds = 0;
    struct iovec iov = {.iov_base = hf_scratch.packet, .iov_len = sizeof hf_scratch.packet};
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = hf_scratch.ancillary,
                             .msg_controllen = sizeof hf_scratch.ancillary};
    ssize_t n;
    do /* ECONNRESET: the owner left reports unread.  Told once, ahead of the requests that it made. */
        n = recvmsg(hf_kept.control, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    while (n < 0 && (errno == EINTR || errno == ECONNRESET));
    if (n < 0)
        return errno == EAGAIN ? 0 : -errno;
    if (n == 0)
        return -EPIPE;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&message); c; c = CMSG_NXTHDR(&message, c))
        if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS)
            for (size_t i = 0; i < (c->cmsg_len - CMSG_LEN(0)) / sizeof(int) && n_fds < 253; i++)
                memcpy(&fds[n_fds++], CMSG_DATA(c) + i * sizeof(int), sizeof(int));
    /* A held keeper that has had its start gets descriptors of clients alone: no room for one fails no start. */
    int started = hf_holding.listener >= 0 && hf_tree.main_pid;
    if ((message.msg_flags & MSG_CTRUNC) && !started)
        hf_reports_failed(HF_STAGE_RECEIVE, EMFILE);
    else if (message.msg_flags & MSG_TRUNC)
        hf_reports_failed(HF_STAGE_RECEIVE, EMSGSIZE);
    else if (!(message.msg_flags & MSG_CTRUNC))
        obey(hf_scratch.packet, (size_t)n, fds, n_fds);
    for (int i = 0; i < n_fds; i++)
        close(fds[i]);
    return 1;
}

static void owner_lost(void)
{
    while (receive() > 0) /* its last words count: it may have released the tree */
        continue;
    close(hf_kept.control);
    if (hf_kept.owner >= 0)
        close(hf_kept.owner);
    hf_kept.control = hf_kept.owner = -1;
    if (hf_holding.listener >= 0)
        hf_reports_forget(); /* the next one is told from the beginning */
    if (hf_tree.main_pid == 0 || hf_tree.empty || policy.on_owner_loss == HF_LOSS_KEEP)
        return;
    if (policy.on_owner_loss == HF_LOSS_KILL)
        hf_stop_begin(0, SIGKILL, HF_SCOPE_TREE, 0);
    else
        hf_stop_begin(0, policy.stop_signal, policy.stop_scope, policy.grace_ms);
}

/* Nothing left to hold, nobody left to tell: the keeper ends. */
static int is_finished(void)
{
    if (hf_holding.listener >= 0)
        return hf_held_finished();
    if (hf_kept.control < 0)
        return hf_tree.main_pid == 0 || hf_tree.empty ||
               (policy.on_owner_loss != HF_LOSS_KEEP && hf_stop.phase == STOP_DONE);
    if (hf_kept.hello_flags & (HF_KEEPER_REUSED | HF_KEEPER_TEMPLATE))
        return 0;
    if (hf_tree.main_pid == 0)
        return hf_reports.failed && !hf_reports.answer;
    return hf_reports.empty_told;
}

static void reap(void)
{
    int had_ended = hf_tree.main_ended;
    hf_tree_reap();
    if (hf_tree.empty) {
        hf_log_end();
        hf_reports_emptied();
    } else if (hf_stop.phase != STOP_KILL && hf_kept.control >= 0)
        hf_reports_note_adopted();
    hf_daemon_look();
    /* A stop that is under way takes care of the rest by itself. */
    if ((hf_holding.flags & HF_HELD_STOP_REST) && hf_tree.main_ended && !had_ended && !hf_tree.empty &&
        hf_stop.phase != STOP_GRACE && hf_stop.phase != STOP_KILL)
        begin_stop(0, policy.stop_signal, HF_SCOPE_TREE, policy.grace_ms);
}

static uint64_t earlier(uint64_t a, uint64_t b)
{
    return !a || (b && b < a) ? b : a;
}

/* A held keeper may stay for years: what the last packets and walks needed goes back. */
static void rest(void)
{
    hf_give_back(&hf_scratch, sizeof hf_scratch);
    hf_reports_rest();
    hf_stop_rest();
    hf_tree_rest();
}

/* The order of poll's array, in which it looks: held.c says why the listener is first.  It may not be longer than the
 * limit for descriptors, so at its end is what is not always there. */
enum {
    LISTENER, CANDIDATE, CONTROL, OWNER, SIGNALS, LOGS, LEFT = LOGS + LOG_STREAMS, CLIENTS,
    N_FDS = CLIENTS + ATTACH_FDS,
};

int hf_kept_main(void)
{
    hf_mode = &hf_kept_mode;
    /* Launch had to leave 3 and 4 open; the process must not get them: it could speak as its owner. */
    hf_close_on_exec_from(HF_CONTROL_FD);
    hf_kept.first_group = getpgrp();
    setpgid(0, 0); /* a signal to the owner's group is not meant for its keeper */
    int signals = hf_signalfd(1ULL << (SIGCHLD - 1));
    if (signals < 0)
        return 125;
    int used = 0;
    while (!is_finished()) {
        if (used && hf_holding.listener >= 0 && !hf_reports_pending() && !hf_stop_deadline()) {
            rest();
            used = 0;
        }
        uint64_t wake = earlier(earlier(hf_stop_deadline(), hf_reports.resend_ns),
                                earlier(hf_held_deadline(), hf_log_deadline()));
        /* No new request before the last answer is out: its place would be needed again. */
        int events = (hf_reports.answer ? 0 : POLLIN) | (hf_reports_pending() && !hf_reports.resend_ns ? POLLOUT : 0);
        struct pollfd fds[N_FDS] = {
            [LISTENER] = {.fd = hf_held_poll_fd(), .events = POLLIN},
            [CANDIDATE] = {.fd = hf_holding.candidate, .events = POLLIN},
            [CONTROL] = {.fd = hf_kept.control, .events = (short)events},
            [OWNER] = {.fd = hf_kept.owner, .events = POLLIN},
            [SIGNALS] = {.fd = signals, .events = POLLIN},
            [LEFT] = {.fd = hf_tree.left - 1, .events = POLLIN},
        };
        hf_log_watch(fds + LOGS);
        int clients = hf_attach_watch(fds + CLIENTS);
        int r = hf_poll_until(fds, clients ? N_FDS : hf_tree.left ? CLIENTS : LEFT, wake);
        if (r < 0 && r != -EINTR)
            return 125; /* cannot happen: all are valid, or -1 */
        for (int i = 0; i < N_FDS; i++)
            used |= i < LOGS || i >= LEFT ? fds[i].revents : 0; /* log.c gives back its own */
        int lost = 0;
        if (hf_kept.control >= 0 && (fds[CONTROL].revents & (POLLIN | POLLHUP | POLLERR | POLLNVAL)))
            lost = receive() < 0 || (hf_holding.listener >= 0 && (fds[CONTROL].revents & POLLHUP));
        if (hf_kept.owner >= 0 && fds[OWNER].revents)
            lost = 1;
        if (fds[SIGNALS].revents) {
            char record[128]; /* SIGCHLD alone is read here, and it does not queue: one record */
            ssize_t ignored = read(signals, record, sizeof record);
            (void)ignored;
        }
        if ((fds[SIGNALS].revents || fds[LEFT].revents) && hf_tree.main_pid && !hf_tree.empty)
            reap();
        hf_log_step(fds + LOGS);
        hf_attach_step(fds + CLIENTS);
        if (lost && hf_kept.control >= 0)
            owner_lost();
        int was_done = hf_stop.phase == STOP_DONE;
        hf_stop_step(hf_clock_ns(CLOCK_MONOTONIC));
        if (hf_stop.phase == STOP_DONE && !was_done)
            hf_reports_stopped();
        if (hf_holding.listener >= 0) /* after the stop, whose report belongs into the file */
            hf_held_step(fds[LISTENER].revents, fds[CANDIDATE].revents, hf_clock_ns(CLOCK_MONOTONIC));
        int failed = hf_kept.control >= 0 ? hf_reports_flush() : 0;
        if (failed == -EPIPE || failed == -ECONNRESET)
            hf_reports_forget(); /* nobody hears them; requests sent before the end are still read */
        else if (failed < 0)
            owner_lost();
    }
    hf_log_end(); /* a tree that was given up may go on writing, but to nobody */
    /* Our own end takes longer than telling of main's: where owner and keeper share a core, the owner's
     * wait returns first. */
    sched_yield();
    return 0;
}
