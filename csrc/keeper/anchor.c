/* Anchor mode: what `holdfast up` execs into.  Starts the supervisor, and starts it again when it dies.
 *
 *     holdfast-keeper anchor [fds=4,5,6] [once=7] -- COMMAND ARG...
 *
 * The listed descriptors (lock, listening sockets) stay open here, so that they outlive every supervisor; each
 * gets them at the same numbers, those of `once` only the first.  Descriptor 3 of a supervisor is its end of a
 * socket to us, over which it may leave more descriptors here (deposits.h).  Keepers whose supervisor died are our children; whatever else falls to us is reaped, also as
 * PID 1.  No policy and no services here: even a stop goes through a supervisor, for only that one
 * knows what has to be stopped.
 *
 * A supervisor starts with the signals that we pass on blocked and opens them when it is ready: so none can
 * kill it half-way, and one that the terminal gave to the whole group waits there.
 */
#define _GNU_SOURCE
#include "anchor_wire.h"
#include "deposits.h"
#include "run.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
    ANCHOR_FDS_MAX = 16,
    SHORT_LIFE_MS = 1000,   /* who lived less is started again after a pause only */
    PAUSE_FIRST_MS = 100,   /* doubled each time, up to: */
    PAUSE_LIMIT_MS = 5000,
};

#define BIT(signo) (1ULL << ((signo) - 1))
#define ENDINGS (BIT(SIGINT) | BIT(SIGQUIT) | BIT(SIGTERM)) /* what asks for our end */
#define PASSED (ENDINGS | BIT(SIGHUP) | BIT(SIGUSR1) | BIT(SIGUSR2))
#define JOB_CONTROL (BIT(SIGTSTP) | BIT(SIGTTIN) | BIT(SIGTTOU)) /* stop us as they stop the supervisor */

static struct {
    int fds[ANCHOR_FDS_MAX + 1]; /* those that every supervisor gets, then those of the first alone */
    int n_fds, n_once;
    char **command, **envp;
    int channel;                 /* our end of the living supervisor's socket; -1: none */
    int alive, ready, ever_ready, farewell, status;
    int answer;                  /* the end of an answer waits for room in the socket */
    uint32_t restarts;
    uint64_t waiting;            /* signals to pass on when the next READY comes */
    uint64_t repeat;             /* signals that the living one has, and that count for its successor too */
    uint64_t began_at_ns, started_ns, restart_ns, pause_ms;
    siginfo_t end;
} anchor = {.channel = -1};

/* An answer under way, in hf_run_buffer. */
static struct { struct hf_record record; struct hf_members head; struct hf_member members[HF_MEMBERS_MAX]; } *const
    answer = (void *)hf_run_buffer;
_Static_assert(sizeof *answer <= sizeof hf_run_buffer, "an answer fits into the buffer");

/* ---- what the tree tells us ------------------------------------------------------------------ */

static void on_exited(const siginfo_t *info, const struct hf_usage *usage, int is_main)
{
    (void)usage;
    if (is_main)
        anchor.end = *info;
}

static void on_stopped(int pid, int signo, int is_main) { (void)pid, (void)signo, (void)is_main; }
static void on_continued(int pid, int is_main) { (void)pid, (void)is_main; }

static const struct hf_mode anchor_mode = {on_exited, on_stopped, on_continued};

/* ---- signals --------------------------------------------------------------------------------- */

/* The kernel gave it to the whole group because of a key or because the terminal has gone; HUP goes to the
 * leader of the session alone.  The supervisor is in our group unless it left it. */
static int group_had(const struct signalfd_siginfo *info)
{
    int signo = (int)info->ssi_signo;
    if (info->ssi_code != SI_KERNEL || getpgid(hf_tree.main_pid) != getpgrp())
        return 0;
    return signo == SIGINT || signo == SIGQUIT || (signo == SIGHUP && getsid(0) != getpid());
}

static void pass_on(uint64_t signals)
{
    for (int signo = 1; signo <= HF_NSIG; signo++)
        if (signals & BIT(signo))
            hf_pidfd_signal(hf_tree.main_pidfd, signo, 0);
}

/* One that asks for our end is repeated to each successor: had it died with the one that was told, the
 * services would run on and nobody would know why. */
static void take_signal(const struct signalfd_siginfo *info)
{
    uint64_t bit = BIT(info->ssi_signo);
    if (!(bit & PASSED))
        return;
    if (anchor.alive && group_had(info)) {
        anchor.repeat |= anchor.ready ? bit & ENDINGS : bit; /* not ready: pending there, and lost with it */
    } else if (anchor.ready) {
        anchor.repeat |= bit & ENDINGS;
        pass_on(bit);
    } else {
        anchor.waiting |= bit;
    }
    if (!anchor.alive && (bit & ENDINGS))
        anchor.restart_ns = 0; /* no pause: somebody waits for the end, and only a supervisor can make it */
}

/* ---- the supervisor's socket ----------------------------------------------------------------- */

static void close_channel(void)
{
    if (anchor.channel >= 0)
        close(anchor.channel);
    anchor.channel = -1;
    anchor.answer = 0;
}

/* 0, or -EAGAIN: no room now.  Of what else may go wrong there is nobody to tell. */
static int send_answer(void)
{
    size_t body = sizeof answer->head + answer->head.n_members * sizeof(struct hf_member);
    answer->record = (struct hf_record){.tag = HF_MEMBERS, .length = (uint32_t)body};
    ssize_t n = send(anchor.channel, answer, sizeof answer->record + body, MSG_DONTWAIT | MSG_NOSIGNAL);
    return n < 0 && errno == EAGAIN ? -EAGAIN : 0;
}

static void list_member(int pid, int pidfd, const struct hf_stat *stat)
{
    if (hf_is_dead(pidfd, stat))
        return;
    struct hf_member *m = &answer->members[answer->head.n_members++];
    *m = (struct hf_member){.pid = pid};
    memcpy(m->name, stat->name, sizeof m->name);
    if (pid == hf_tree.main_pid && !hf_tree.main_ended)
        m->flags = HF_IS_MAIN;
    else if (stat->pgrp != hf_tree.main_group)
        m->flags = HF_LEFT_GROUP;
    if (answer->head.n_members < HF_MEMBERS_MAX)
        return;
    if (send_answer() < 0) /* the supervisor does not read: what the socket cannot hold is counted */
        answer->head.unlisted += HF_MEMBERS_MAX;
    answer->head.n_members = 0;
}

static void finish_answer(void)
{
    anchor.answer = send_answer() == -EAGAIN;
    if (!anchor.answer)
        hf_give_back(hf_run_buffer, sizeof hf_run_buffer);
}

static void obey(const char *request, size_t size, int *fd)
{
    size_t at = 0;
    struct hf_record record;
    const char *body;
    struct hf_farewell farewell;
    struct hf_anchor_query query;
    while (hf_wire_next(request, size, &at, &record, &body) == 1) {
        if (record.tag == HF_READY && !anchor.ready) {
            anchor.ready = anchor.ever_ready = 1;
            pass_on(anchor.waiting);
            anchor.repeat = (anchor.repeat | anchor.waiting) & ENDINGS;
            anchor.waiting = 0;
        } else if (record.tag == HF_FAREWELL && hf_wire_get(&record, body, &farewell, sizeof farewell) == 0) {
            anchor.farewell = 1;
            anchor.status = farewell.status;
        } else if (record.tag == HF_ANCHOR_QUERY && !anchor.answer &&
                   hf_wire_get(&record, body, &query, sizeof query) == 0) {
            answer->head = (struct hf_members){.id = query.id};
            hf_tree_walk(list_member);
            finish_answer();
        } else {
            hf_deposits_obey(&record, body, fd, anchor.channel);
        }
    }
}

/* Everything that is there.  An end of file is no end of the supervisor: only its exit is. */
static void receive(void)
{
    char request[1024]; /* more than a packet of ours has; what is cut off is malformed, and so skipped */
    while (anchor.channel >= 0 && !anchor.answer) {
        union { struct cmsghdr align; char space[CMSG_SPACE(sizeof(int))]; } ancillary;
        int fds[2] = {-1, -1}; /* padding makes room for another */
        struct iovec piece = {request, sizeof request};
        struct msghdr message = {.msg_iov = &piece, .msg_iovlen = 1, .msg_control = ancillary.space,
                                 .msg_controllen = sizeof ancillary.space};
        ssize_t n = recvmsg(anchor.channel, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
        if (n < 0 && (errno == EINTR || errno == ECONNRESET)) /* it left something unread; told once */
            continue;
        if (n < 0 && errno == EAGAIN)
            return;
        struct cmsghdr *c = n > 0 ? CMSG_FIRSTHDR(&message) : NULL;
        if (c && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS && c->cmsg_len <= CMSG_LEN(sizeof fds))
            memcpy(fds, CMSG_DATA(c), c->cmsg_len - CMSG_LEN(0));
        if (n <= 0)
            close_channel();
        else
            obey(request, (size_t)n, fds);
        for (int i = 0; i < 2; i++)
            if (fds[i] >= 0)
                close(fds[i]);
    }
}

/* ---- life and death of a supervisor ---------------------------------------------------------- */

/* 0, or the exit code that this failure means. */
static int start(void)
{
    int pair[2], targets[ANCHOR_FDS_MAX + 1], error;
    struct hf_child_result result = {HF_STAGE_FDS, 0};
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
        return hf_complain(125, "cannot start the supervisor", NULL, errno);
    /* In the socket before anybody reads it: a supervisor knows at once whether it has an anchor. */
    struct hf_anchor_hello hello = {.version = HF_WIRE_VERSION, .pid = getpid(), .restarts = anchor.restarts,
                                    .deposits = HF_DEPOSITS_MAX, .started_at_ns = anchor.began_at_ns};
    char packet[64];
    size_t size = 0;
    hf_wire_put(packet, sizeof packet, &size, HF_ANCHOR_HELLO, &hello, sizeof hello);
    ssize_t sent = send(pair[0], packet, size, MSG_DONTWAIT | MSG_NOSIGNAL);
    (void)sent; /* an empty socket takes it */
    memcpy(targets, anchor.fds, sizeof targets);
    anchor.fds[anchor.n_fds] = pair[1];
    targets[anchor.n_fds] = 3;
    struct hf_plan plan = {
        /* PDEATHSIG: without us there is nobody to hold it; the services run on until the next `up`. */
        .options = HF_RESTORE_SIGNALS | HF_PDEATHSIG | HF_CLOSE_FDS, .mask = hf_original_mask | PASSED,
        .n_fds = (uint32_t)anchor.n_fds + 1, .fd_targets = targets, .fd_sources = anchor.fds,
        .argv = anchor.command, .envp = anchor.envp, .executable = anchor.command[0], .restore_nofile = ~0ULL,
    };
    error = hf_tree_spawn(&plan, hf_run_buffer, &result);
    hf_give_back(hf_run_buffer, sizeof hf_run_buffer);
    close(pair[1]);
    if (error < 0) {
        close(pair[0]);
        int found = result.stage == HF_STAGE_EXEC;
        hf_complain(0, "cannot start the supervisor", anchor.command[0], result.error);
        return !found ? 125 : result.error == ENOENT ? 127 : 126;
    }
    anchor.channel = pair[0];
    anchor.alive = 1;
    anchor.started_ns = hf_clock_ns(CLOCK_MONOTONIC);
    for (; anchor.n_once > 0; anchor.n_once--)
        close(anchor.fds[--anchor.n_fds]);
    return 0;
}

static void schedule_restart(uint64_t lived_ns)
{
    if (lived_ns >= SHORT_LIFE_MS * NS_PER_MS)
        anchor.pause_ms = 0;
    else if (anchor.pause_ms == 0)
        anchor.pause_ms = PAUSE_FIRST_MS;
    else
        anchor.pause_ms = anchor.pause_ms * 2 < PAUSE_LIMIT_MS ? anchor.pause_ms * 2 : PAUSE_LIMIT_MS;
    anchor.restart_ns = hf_clock_ns(CLOCK_MONOTONIC) + anchor.pause_ms * NS_PER_MS;
}

/* It has been reaped.  1: that was the end of us too. */
static int ended(void)
{
    anchor.answer = 0;
    receive(); /* its last words are all there, for it is dead */
    close_channel();
    anchor.alive = anchor.ready = 0;
    if (anchor.farewell)
        return 1;
    /* By its own decision, and before it ever worked: who started us wants to know.  One that was killed may
     * have taken over services by then, or started some. */
    if (!anchor.ever_ready && anchor.end.si_code == CLD_EXITED) {
        anchor.status = anchor.end.si_status;
        return 1;
    }
    anchor.waiting |= anchor.repeat;
    anchor.repeat = 0;
    anchor.restarts++;
    schedule_restart(hf_clock_ns(CLOCK_MONOTONIC) - anchor.started_ns);
    hf_report_restart(hf_tree.main_pid, &anchor.end, anchor.pause_ms);
    return 0;
}

/* Until the supervisor has said farewell and ended, or never came to life. */
static void loop(int signals)
{
    for (;;) {
        struct pollfd fds[2] = {
            {.fd = signals, .events = POLLIN},
            {.fd = anchor.channel, .events = anchor.answer ? POLLOUT : POLLIN},
        };
        if (anchor.alive || anchor.restart_ns)
            hf_poll_until(fds, 2, anchor.alive ? 0 : anchor.restart_ns); /* EINTR, after a stop: look at everything */
        struct signalfd_siginfo info;
        while (read(signals, &info, sizeof info) == sizeof info)
            take_signal(&info);
        if (anchor.answer && fds[1].revents)
            finish_answer();
        receive();
        hf_tree_reap();
        if (anchor.alive && hf_tree.main_ended && ended())
            return;
        if (!anchor.alive && hf_clock_ns(CLOCK_MONOTONIC) >= anchor.restart_ns && start() != 0)
            schedule_restart(0); /* no memory, no process: better times may come */
    }
}

/* ---- start ----------------------------------------------------------------------------------- */

static int parse_fds(const char *list, int *count)
{
    for (;;) {
        char *end;
        long fd = strtol(list, &end, 10);
        if (end == list || fd < 4 || fd > 65535 || anchor.n_fds == ANCHOR_FDS_MAX || fcntl((int)fd, F_GETFD) < 0)
            return -1;
        anchor.fds[anchor.n_fds++] = (int)fd;
        ++*count;
        if (!*end)
            return 0;
        if (*end != ',')
            return -1;
        list = end + 1;
    }
}

static int parse(char **arguments)
{
    int always = 0;
    for (; *arguments && strcmp(*arguments, "--") != 0; arguments++) {
        if (strncmp(*arguments, "fds=", 4) == 0 && !anchor.n_fds) {
            if (parse_fds(*arguments + 4, &always) < 0)
                return -1;
        } else if (strncmp(*arguments, "once=", 5) == 0 && !anchor.n_once) { /* after fds=: at the end of the list */
            if (parse_fds(*arguments + 5, &anchor.n_once) < 0)
                return -1;
        } else {
            return -1;
        }
    }
    if (!*arguments || !arguments[1])
        return -1;
    anchor.command = arguments + 1;
    return 0;
}

int hf_anchor_main(char **arguments, char **envp)
{
    hf_mode = &anchor_mode;
    hf_occupy_standard_descriptors();
    if (parse(arguments) < 0)
        return hf_complain(125, "bad arguments: the anchor is started by `holdfast up`", NULL, 0);
    anchor.envp = envp;
    anchor.began_at_ns = hf_clock_ns(CLOCK_REALTIME);
    hf_close_all_but(anchor.fds, (size_t)anchor.n_fds);
    hf_close_on_exec_from(3);
    for (int fd = 0; fd < 3; fd++)
        fcntl(fd, F_SETFD, 0); /* a supervisor finds all three open: it shall not get a socket as its stderr */
    /* All of them: what nobody reads would wait here for ever, and real-time signals would pile up. */
    int signals = hf_signalfd(~JOB_CONTROL);
    if (signals < 0)
        return hf_complain(125, "signalfd", NULL, -signals);
    if (hf_tree_note_strangers() < 0)
        return hf_complain(125, "the caller has too many children of its own; nothing was started", NULL, 0);
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
    prctl(PR_SET_NAME, "holdfast-anchor");
    hf_sigchld_was_ignored = 0; /* a supervisor needs the statuses of its children, whatever our caller did */
    hf_set_signal_mask(~JOB_CONTROL);
    int failed = start();
    if (failed)
        return failed;
    loop(signals);
    return anchor.status & 0xff;
}
