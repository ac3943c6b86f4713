/* Stand-alone mode: what `holdfast run` execs into.
 *
 * The command stays in our group, session and terminal, so the shell's job control works as if we
 * were not there; we stop when it is stopped and exit as it exited.  Python has parsed the options:
 *     timeout_ms=N grace_ms=N signal=N parent=PID report=1 verbose=1 json=FILE -- COMMAND ARG...
 * Exit codes: the command's; 128+n by signal; 124 timed out; 125 we failed; 126 not runnable; 127 not found.
 */
#define _GNU_SOURCE
#include "keeper.h"
#include "text.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static struct {
    uint64_t timeout_ms, grace_ms;
    int signo, parent, report, verbose;
    const char *json;
} option;

static char **command;
static int json_fd = -1, parent_pidfd = -1, stdin_is_terminal, timed_out;
static uint64_t began_ns, ended_ns, deadline_ns;
static siginfo_t main_info;
static struct hf_usage main_usage;
static int stopped_by; /* main was stopped by this signal and we may have to follow; 0: no */
HF_RARELY_USED static char buffer[16384]; /* the child's stack, later the report */

static void say(struct hf_text *t)
{
    const char *p = buffer;
    while (p < t->at) {
        ssize_t n = write(2, p, (size_t)(t->at - p));
        if (n <= 0)
            return; /* nobody listens: a report is not worth an exit code */
        p += n;
    }
}

static struct hf_text line(void)
{
    struct hf_text t = {buffer, buffer + sizeof buffer - 1};
    put(&t, "holdfast: ");
    return t;
}

static void end_line(struct hf_text *t)
{
    *t->at++ = '\n';
    say(t);
}

static int complain(int code, const char *what, const char *name, int error)
{
    struct hf_text t = line();
    put(&t, what);
    if (name) {
        put(&t, " ");
        put(&t, name);
    }
    if (error) {
        put(&t, ": ");
        put(&t, strerror(error));
    }
    end_line(&t);
    return code;
}

static void note(const char *what, int n, const char *unit)
{
    if (!option.verbose)
        return;
    struct hf_text t = line();
    put(&t, what);
    put_signed(&t, n);
    put(&t, unit);
    end_line(&t);
}

/* ---- what the tree tells us ------------------------------------------------------------------ */

static void on_exited(const siginfo_t *info, const struct hf_usage *usage, int is_main)
{
    if (is_main) {
        main_info = *info;
        main_usage = *usage;
        ended_ns = hf_clock_ns(CLOCK_MONOTONIC);
    }
    note(is_main ? "command ended, pid " : "reaped pid ", info->si_pid, "");
}

static void on_stopped(int pid, int signo, int is_main)
{
    (void)pid;
    if (is_main)
        stopped_by = signo;
}

static void on_continued(int pid, int is_main)
{
    (void)pid;
    if (is_main)
        stopped_by = 0;
}

static const struct hf_mode run_mode = {on_exited, on_stopped, on_continued};

/* ---- terminal -------------------------------------------------------------------------------- */

/* Main was stopped from the terminal: stop too, so that the shell takes its terminal back.  Not for
 * SIGSTOP (somebody meant main alone), not without a terminal, not where no shell would notice:
 * the parent must be in our session but in another group. */
static void stop_with_main(void)
{
    int signo = stopped_by;
    struct hf_stat self, parent, main_stat;
    stopped_by = 0;
    if (signo != SIGTSTP && signo != SIGTTIN && signo != SIGTTOU)
        return;
    if (hf_stop.phase != STOP_NONE || hf_read_stat(getpid(), &self) < 0 || self.tty == 0 ||
        hf_read_stat(self.ppid, &parent) < 0 || parent.session != self.session || parent.pgrp == self.pgrp)
        return;
    if (hf_read_stat(hf_tree.main_pid, &main_stat) < 0 || main_stat.state != 'T')
        return; /* continued since */

    /* A stopped process waits for nothing.  Two alarms that continue us, armed before we stop:
     * 1. the deadline, as a timer that sends CONT; 2. the death of the caller. */
    int timer, armed = 0; /* raw calls: libc's bring its threads along, a third of the program */
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGCONT};
    if (deadline_ns && HF_CALL3(SYS_timer_create, CLOCK_MONOTONIC, &event, &timer) == 0) {
        struct itimerspec when = {.it_value = {(time_t)(deadline_ns / 1000000000), (long)(deadline_ns % 1000000000)}};
        armed = 1;
        HF_CALL4(SYS_timer_settime, timer, TIMER_ABSTIME, &when, NULL);
    }
    if (parent_pidfd >= 0) {
        struct pollfd fd = {.fd = parent_pidfd, .events = POLLIN};
        prctl(PR_SET_PDEATHSIG, SIGCONT);
        if (poll(&fd, 1, 0) > 0) /* died before the prctl: no CONT would come */
            return;
    }
    struct sigaction fallback;
    memset(&fallback, 0, sizeof fallback);
    fallback.sa_handler = SIG_DFL;
    sigaction(signo, &fallback, NULL);
    kill(getpid(), signo);                        /* blocked still: joins one from the terminal */
    hf_set_signal_mask(~(1ULL << (signo - 1)));   /* here we stop ... */
    hf_block_all_signals();                       /* ... and here we go on */
    if (parent_pidfd >= 0)
        prctl(PR_SET_PDEATHSIG, 0);
    if (armed)
        HF_CALL1(SYS_timer_delete, timer);
}

/* What reaches us and is meant for the command is passed on.  What the terminal sends has reached
 * the whole group already; so has what a shell of our own session sends with `kill %1`. */
static void forward(const struct signalfd_siginfo *info)
{
    int signo = (int)info->ssi_signo;
    if (signo == SIGCHLD || signo == SIGCONT || signo == SIGTSTP || signo == SIGTTIN || signo == SIGTTOU ||
        info->ssi_code == SI_KERNEL || hf_tree.main_ended)
        return;
    if (stdin_is_terminal && info->ssi_code == SI_USER && getsid((int)info->ssi_pid) == getsid(0))
        return;
    note("passing on signal ", signo, "");
    hf_tree_signal(signo, HF_SCOPE_MAIN);
}

/* ---- reports --------------------------------------------------------------------------------- */

static int exit_code(void)
{
    if (timed_out)
        return 124;
    if (!hf_tree.main_ended)
        return 125; /* it could not be killed */
    return main_info.si_code == CLD_EXITED ? main_info.si_status : 128 + main_info.si_status;
}

static void put_members(struct hf_text *t, uint32_t flag, uint32_t count)
{
    uint32_t shown = 0;
    put(t, " (");
    for (uint32_t i = 0; i < hf_stop.report.n_members; i++) {
        const struct hf_member *m = &hf_stop_members[i];
        if (!(m->flags & flag))
            continue;
        if (shown == 8) {
            put(t, ", ...");
            break;
        }
        put(t, shown++ ? ", " : "");
        put(t, m->name);
        put(t, "[");
        put_signed(t, m->pid);
        put(t, "]");
        put(t, m->flags & HF_LEFT_GROUP ? " outside the group" : "");
        put(t, m->flags & HF_DENIED ? " which we may not signal" : "");
    }
    put(t, shown == 0 && count ? "unnamed)" : ")");
}

static void report_line(void)
{
    const struct hf_stop_report *r = &hf_stop.report;
    struct hf_text t = line();
    if (timed_out) {
        put(&t, "timed out after ");
        put_rounded(&t, option.timeout_ms);
        put(&t, " s; ");
    }
    if (hf_tree.main_ended) {
        put(&t, main_info.si_code == CLD_EXITED ? "command exited with code " : "command was ended by signal ");
        put_signed(&t, main_info.si_status);
    } else {
        put(&t, "command could not be ended");
    }
    put(&t, " after ");
    put_rounded(&t, ((ended_ns ? ended_ns : hf_clock_ns(CLOCK_MONOTONIC)) - began_ns) / NS_PER_MS);
    put(&t, " s");
    if (r->signalled) {
        put(&t, "; stop signal ");
        put_signed(&t, r->signo);
        put(&t, " to ");
        put_number(&t, r->signalled);
        put_members(&t, HF_SIGNALLED, r->signalled);
    }
    if (r->killed) {
        put(&t, "; KILL to ");
        put_number(&t, r->killed);
        put_members(&t, HF_KILLED, r->killed);
    }
    if (hf_stop.phase == STOP_DONE) {
        if (r->survivors) {
            put(&t, "; STILL THERE: ");
            put_number(&t, r->survivors);
            put_members(&t, HF_SURVIVED, r->survivors);
        } else if (r->n_members) {
            put(&t, "; tree empty ");
            put_rounded(&t, r->duration_ns / NS_PER_MS);
            put(&t, " s after the stop began");
        }
    }
    put(&t, "; exit ");
    put_signed(&t, exit_code());
    end_line(&t);
}

static void put_usage(struct hf_text *t, const struct hf_usage *u)
{
    static const char *const names[] = {"minor_faults", "major_faults", "blocks_in", "blocks_out",
                                        "voluntary_switches", "involuntary_switches"};
    const uint64_t values[] = {u->minor_faults, u->major_faults, u->blocks_in, u->blocks_out,
                               u->voluntary_switches, u->involuntary_switches};
    put(t, "{\"user_seconds\": ");
    put_seconds(t, u->user_us);
    put(t, ", \"system_seconds\": ");
    put_seconds(t, u->system_us);
    put(t, ", \"max_rss_bytes\": ");
    put_number(t, u->max_rss_kib * 1024);
    for (size_t i = 0; i < sizeof values / sizeof *values; i++) {
        put(t, ", \"");
        put(t, names[i]);
        put(t, "\": ");
        put_number(t, values[i]);
    }
    put(t, "}");
}

static void flush_json(struct hf_text *t)
{
    const char *p = buffer;
    while (p < t->at) {
        ssize_t n = write(json_fd, p, (size_t)(t->at - p));
        if (n <= 0) {
            complain(0, "cannot write the report to", option.json, n < 0 ? errno : ENOSPC);
            break;
        }
        p += n;
    }
    t->at = buffer;
}

static void put_flag(struct hf_text *t, const char *name, uint32_t set)
{
    put(t, ", \"");
    put(t, name);
    put(t, set ? "\": true" : "\": false");
}

static void report_json(void)
{
    const struct hf_stop_report *r = &hf_stop.report;
    struct hf_text t = {buffer, buffer + sizeof buffer};
    int by_signal = hf_tree.main_ended && main_info.si_code != CLD_EXITED;
    put(&t, "{\"version\": 1, \"command\": [");
    for (char **a = command; *a; a++) {
        put(&t, a == command ? "\"" : ", \"");
        for (const char *c = *a; *c; c++) { /* of any length */
            put_json_char(&t, (unsigned char)*c);
            if (t.end - t.at < 16)
                flush_json(&t);
        }
        put(&t, "\"");
    }
    flush_json(&t);
    put(&t, "],\n \"exit_code\": ");
    put_signed(&t, exit_code());
    put_flag(&t, "timed_out", (uint32_t)timed_out);
    put(&t, ", \"elapsed_seconds\": ");
    put_seconds(&t, ((ended_ns ? ended_ns : hf_clock_ns(CLOCK_MONOTONIC)) - began_ns) / 1000);
    put(&t, ",\n \"status\": ");
    if (hf_tree.main_ended) {
        put(&t, "{\"pid\": ");
        put_signed(&t, main_info.si_pid);
        put(&t, ", \"code\": ");
        if (by_signal) put(&t, "null"); else put_signed(&t, main_info.si_status);
        put(&t, ", \"signal\": ");
        if (by_signal) put_signed(&t, main_info.si_status); else put(&t, "null");
        put_flag(&t, "core_dumped", main_info.si_code == CLD_DUMPED);
        put(&t, ", \"usage\": ");
        put_usage(&t, &main_usage);
        put(&t, "}");
    } else {
        put(&t, "null");
    }
    put(&t, ",\n \"tree\": {\"reaped\": ");
    put_number(&t, hf_tree.reaped);
    put(&t, ", \"usage\": ");
    put_usage(&t, &hf_tree.usage);
    put(&t, "},\n \"stop\": ");
    if (hf_stop.phase == STOP_DONE && (r->n_members || r->unlisted)) {
        static const char *const scopes[] = {"main", "group", "tree"};
        const char *const names[] = {"signalled", "left_group", "killed", "survivors", "unlisted"};
        const uint32_t counts[] = {r->signalled, r->left_group, r->killed, r->survivors, r->unlisted};
        put(&t, "{\"signal\": ");
        put_signed(&t, r->signo);
        put(&t, ", \"scope\": \"");
        put(&t, scopes[r->scope]);
        put(&t, "\", \"grace_seconds\": ");
        put_seconds(&t, r->grace_ms * 1000);
        put(&t, ", \"duration_seconds\": ");
        put_seconds(&t, r->duration_ns / 1000);
        for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
            put(&t, ", \"");
            put(&t, names[i]);
            put(&t, "\": ");
            put_number(&t, counts[i]);
        }
        put(&t, ",\n  \"members\": [");
        for (uint32_t i = 0; i < r->n_members; i++) {
            const struct hf_member *m = &hf_stop_members[i];
            if (t.end - t.at < 512)
                flush_json(&t);
            put(&t, i ? ",\n   {\"pid\": " : "\n   {\"pid\": ");
            put_signed(&t, m->pid);
            put(&t, ", \"name\": ");
            put_json(&t, m->name);
            put_flag(&t, "main", m->flags & HF_IS_MAIN);
            put_flag(&t, "signalled", m->flags & HF_SIGNALLED);
            put_flag(&t, "left_group", m->flags & HF_LEFT_GROUP);
            put_flag(&t, "killed", m->flags & HF_KILLED);
            put_flag(&t, "survived", m->flags & HF_SURVIVED);
            put_flag(&t, "denied", m->flags & HF_DENIED);
            put(&t, "}");
        }
        put(&t, "]}}\n");
    } else {
        put(&t, "null}\n");
    }
    flush_json(&t);
}

/* ---- start and loop -------------------------------------------------------------------------- */

/* What the caller left open is the command's.  We must not hold a pipe open that the command has
 * closed, so everything but stderr (for the report) goes; ours is close-on-exec, theirs is not. */
static void let_go_of_inherited(void)
{
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    for (int fd = 0; fd < 2; fd++)
        if (null >= 0)
            dup2(null, fd);
        else
            close(fd);
    struct rlimit limit;
    int end = getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < 65536 ? (int)limit.rlim_cur : 65536;
    for (int fd = 3; fd < end; fd++)
        if (fcntl(fd, F_GETFD) == 0)
            close(fd);
    if (null >= 0)
        close(null);
}

static int parse(char **arguments)
{
    for (; *arguments && strcmp(*arguments, "--") != 0; arguments++) {
        char *value = strchr(*arguments, '=');
        if (!value)
            return -1;
        size_t n = (size_t)(value++ - *arguments);
#define IS(name) (n == sizeof name - 1 && memcmp(*arguments, name, n) == 0)
        if (IS("timeout_ms")) option.timeout_ms = strtoull(value, NULL, 10);
        else if (IS("grace_ms")) option.grace_ms = strtoull(value, NULL, 10);
        else if (IS("signal")) option.signo = atoi(value);
        else if (IS("parent")) option.parent = atoi(value);
        else if (IS("report")) option.report = 1;
        else if (IS("verbose")) option.verbose = 1;
        else if (IS("json")) option.json = value;
        else return -1;
#undef IS
    }
    if (!*arguments || !arguments[1])
        return -1;
    command = arguments + 1;
    return option.signo >= 1 && option.signo <= HF_NSIG ? 0 : -1;
}

/* A handle of the caller, if it is still the one that called: a number read before and after. */
static int hold_parent(void)
{
    parent_pidfd = hf_pidfd_open(option.parent);
    return getppid() == option.parent ? 0 : -1;
}

static void loop(int signals)
{
    while (!hf_tree.empty && hf_stop.phase != STOP_DONE) {
        uint64_t stop_at = hf_stop_deadline(), wake = deadline_ns;
        if (stop_at && (!wake || stop_at < wake))
            wake = stop_at;
        struct pollfd fds[2] = {{.fd = signals, .events = POLLIN}, {.fd = parent_pidfd, .events = POLLIN}};
        hf_poll_until(fds, 2, wake); /* its only failure is EINTR, after a stop: look at everything */
        struct signalfd_siginfo info;
        while (read(signals, &info, sizeof info) == sizeof info)
            forward(&info);
        int main_had_ended = hf_tree.main_ended;
        hf_tree_reap();
        uint64_t now = hf_clock_ns(CLOCK_MONOTONIC);
        if (deadline_ns && now >= deadline_ns) {
            deadline_ns = 0;
            if (!hf_tree.main_ended) {
                timed_out = 1;
                note("time limit reached, stopping pid ", hf_tree.main_pid, "");
                hf_stop_begin(0, option.signo, HF_SCOPE_GROUP, option.grace_ms);
            }
        }
        if (fds[1].revents) {
            close(parent_pidfd);
            parent_pidfd = -1;
            note("the caller has ended, stopping pid ", hf_tree.main_pid, "");
            hf_stop_begin(0, option.signo, HF_SCOPE_GROUP, option.grace_ms);
        }
        if (hf_tree.main_ended && !main_had_ended) {
            deadline_ns = 0;
            if (!hf_tree.empty && hf_stop.phase == STOP_NONE)
                hf_stop_begin(0, option.signo, HF_SCOPE_GROUP, option.grace_ms);
        }
        hf_stop_step(now);
        if (stopped_by && !hf_tree.main_ended)
            stop_with_main();
    }
}

int hf_run_main(char **arguments, char **envp)
{
    hf_mode = &run_mode;
    /* What the caller left closed of 0 to 2 stays closed for the command (these are close-on-exec),
     * but none of our descriptors may come to lie there: they are replaced below. */
    int low;
    while ((low = hf_signalfd(0)) >= 0 && low < 3)
        continue;
    close(low);
    if (parse(arguments) < 0)
        return complain(125, "bad arguments: the keeper is started by `holdfast run`", NULL, 0);
    if (option.json) {
        json_fd = open(option.json, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
        if (json_fd < 0)
            return complain(125, "cannot write the report to", option.json, errno);
    }
    if (option.parent && hold_parent() < 0)
        return complain(125, "the caller has ended already; nothing was started", NULL, 0);
    int signals = hf_signalfd(~0ULL);
    if (signals < 0)
        return complain(125, "signalfd", NULL, -signals);
    stdin_is_terminal = isatty(0);
    hf_tree_note_strangers();
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
    struct hf_plan plan = {
        .options = HF_RESTORE_SIGNALS | HF_PDEATHSIG, .mask = hf_original_mask, .argv = command,
        .envp = envp, .executable = command[0], .restore_nofile = ~0ULL,
    };
    struct hf_child_result result;
    began_ns = hf_clock_ns(CLOCK_MONOTONIC);
    if (hf_tree_spawn(&plan, buffer, &result) < 0) {
        if (result.stage != HF_STAGE_EXEC)
            return complain(125, "cannot start", command[0], result.error);
        return complain(result.error == ENOENT ? 127 : 126, "cannot run", command[0], result.error);
    }
    note("started pid ", hf_tree.main_pid, "");
    let_go_of_inherited();
    if (option.timeout_ms)
        deadline_ns = began_ns + option.timeout_ms * NS_PER_MS;
    loop(signals);
    if (option.report || option.verbose || timed_out || hf_stop.report.survivors)
        report_line();
    if (json_fd >= 0)
        report_json();
    return exit_code();
}
