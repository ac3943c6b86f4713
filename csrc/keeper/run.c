/* Stand-alone mode: what `holdfast run` execs into.
 *
 * The command stays in our group, session and terminal, so the shell's job control works as if we
 * were not there; we stop when it is stopped and exit as it exited.  Python has parsed the options:
 *     timeout_ms=N grace_ms=N signal=N parent=PID report=1 verbose=1 json=FILE -- COMMAND ARG...
 * Exit codes: the command's; 128+n by signal; 124 timed out; 125 we failed; 126 not runnable; 127 not found.
 */
#define _GNU_SOURCE
#include "run.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

struct hf_run hf_run = {.json_fd = -1, .parent_pidfd = -1};
HF_RARELY_USED char hf_run_buffer[16384];

/* ---- what the tree tells us ------------------------------------------------------------------ */

static void on_exited(const siginfo_t *info, const struct hf_usage *usage, int is_main)
{
    if (is_main) {
        hf_run.main_info = *info;
        hf_run.main_usage = *usage;
        hf_run.ended_ns = hf_clock_ns(CLOCK_MONOTONIC);
        hf_terminal_end(); /* before the question whether any child is left */
    }
    hf_note(is_main ? "command ended, pid " : "reaped pid ", info->si_pid);
}

static void on_stopped(int pid, int signo, int is_main)
{
    (void)pid;
    if (is_main)
        hf_run.stopped_by = signo;
}

static void on_continued(int pid, int is_main)
{
    (void)pid;
    if (is_main)
        hf_run.stopped_by = 0;
}

static const struct hf_mode run_mode = {on_exited, on_stopped, on_continued};

/* ---- start ----------------------------------------------------------------------------------- */

/* What the caller left open is the command's.  We must not hold a pipe open that the command has
 * closed, so everything but stderr (for the report) and our own goes. */
static void let_go_of_inherited(int signals)
{
    const int own[] = {signals, hf_tree.main_pidfd, hf_run.parent_pidfd, hf_run.json_fd};
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    for (int fd = 0; fd < 2; fd++)
        if (null >= 0)
            dup2(null, fd);
        else
            close(fd);
    hf_close_all_but(own, sizeof own / sizeof *own);
}

static int parse(char **arguments)
{
    for (; *arguments && strcmp(*arguments, "--") != 0; arguments++) {
        char *value = strchr(*arguments, '=');
        if (!value)
            return -1;
        size_t n = (size_t)(value++ - *arguments);
#define IS(name) (n == sizeof name - 1 && memcmp(*arguments, name, n) == 0)
        if (IS("timeout_ms")) hf_run.timeout_ms = strtoull(value, NULL, 10);
        else if (IS("grace_ms")) hf_run.grace_ms = strtoull(value, NULL, 10);
        else if (IS("signal")) hf_run.signo = atoi(value);
        else if (IS("parent")) hf_run.parent = atoi(value);
        else if (IS("report")) hf_run.report = 1;
        else if (IS("verbose")) hf_run.verbose = 1;
        else if (IS("json")) hf_run.json = value;
        else return -1;
#undef IS
    }
    if (!*arguments || !arguments[1])
        return -1;
    hf_run.command = arguments + 1;
    return hf_run.signo >= 1 && hf_run.signo <= HF_NSIG ? 0 : -1;
}

/* A handle of the caller, if it is still the one that called: a number read before and after.  While we
 * are stopped we cannot look at it, so its death also continues us. */
static int hold_parent(void)
{
    hf_run.parent_pidfd = hf_pidfd_open(hf_run.parent);
    prctl(PR_SET_PDEATHSIG, SIGCONT);
    if (getppid() != hf_run.parent)
        return hf_complain(125, "the caller has ended already; nothing was started", NULL, 0);
    if (hf_run.parent_pidfd < 0)
        return hf_complain(125, "cannot watch the caller", NULL, -hf_run.parent_pidfd);
    return 0;
}

/* A stopped process waits for nothing, and who stops the whole group does not ask us before: so the
 * time limit also continues us, by a timer that sends CONT.  Raw calls: libc's bring its threads along. */
static void arm_deadline(void)
{
    int timer;
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGCONT};
    hf_run.deadline_ns = hf_run.began_ns + hf_run.timeout_ms * NS_PER_MS;
    struct itimerspec when = {.it_value = {(time_t)(hf_run.deadline_ns / 1000000000),
                                           (long)(hf_run.deadline_ns % 1000000000)}};
    if (HF_CALL3(SYS_timer_create, CLOCK_MONOTONIC, &event, &timer) == 0)
        HF_CALL4(SYS_timer_settime, timer, TIMER_ABSTIME, &when, NULL);
}

/* ---- loop ------------------------------------------------------------------------------------ */

static void forward_signals(int signals)
{
    struct signalfd_siginfo info;
    while (read(signals, &info, sizeof info) == sizeof info)
        hf_terminal_forward(&info);
}

static void stop_tree(void)
{
    hf_stop_begin(0, hf_run.signo, HF_SCOPE_GROUP, hf_run.grace_ms);
}

static void loop(int signals)
{
    while (!hf_tree.empty && hf_stop.phase != STOP_DONE) {
        uint64_t stop_at = hf_stop_deadline(), wake = hf_run.deadline_ns;
        if (stop_at && (!wake || stop_at < wake))
            wake = stop_at;
        struct pollfd fds[3] = {{.fd = signals, .events = POLLIN}, {.fd = hf_run.parent_pidfd, .events = POLLIN},
                                {.fd = hf_tree.left - 1, .events = POLLIN}};
        hf_poll_until(fds, 3, wake); /* its only failure is EINTR, after a stop: look at everything */
        forward_signals(signals);
        int main_had_ended = hf_tree.main_ended;
        hf_tree_reap();
        uint64_t now = hf_clock_ns(CLOCK_MONOTONIC);
        if (hf_run.deadline_ns && now >= hf_run.deadline_ns) {
            hf_run.deadline_ns = 0;
            if (!hf_tree.main_ended) {
                hf_run.timed_out = 1;
                hf_note("time limit reached, stopping pid ", hf_tree.main_pid);
                stop_tree();
            }
        }
        if (fds[1].revents) {
            close(hf_run.parent_pidfd);
            hf_run.parent_pidfd = -1;
            hf_note("the caller has ended, stopping pid ", hf_tree.main_pid);
            stop_tree();
        }
        if (hf_tree.main_ended && !main_had_ended) {
            hf_run.deadline_ns = 0;
            if (!hf_tree.empty && hf_stop.phase == STOP_NONE)
                stop_tree();
        }
        hf_stop_step(now);
        if (hf_run.stopped_by && !hf_tree.main_ended)
            hf_terminal_stop_with_main();
    }
    forward_signals(signals); /* the key that ended main may have come with its end */
}

int hf_run_main(char **arguments, char **envp)
{
    hf_mode = &run_mode;
    hf_occupy_standard_descriptors();
    if (parse(arguments) < 0)
        return hf_complain(125, "bad arguments: the keeper is started by `holdfast run`", NULL, 0);
    char **command = hf_run.command;
    if (hf_run.json) {
        hf_set_signal_mask(hf_original_mask); /* a FIFO may block, and Ctrl-C shall end that */
        hf_run.json_fd = open(hf_run.json, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
        int error = errno;
        hf_block_all_signals();
        if (hf_run.json_fd < 0)
            return hf_complain(125, "cannot write the report to", hf_run.json, error);
    }
    if (hf_run.parent && hold_parent() != 0)
        return 125;
    int signals = hf_signalfd(~0ULL);
    if (signals < 0)
        return hf_complain(125, "signalfd", NULL, -signals);
    if (hf_tree_note_strangers() < 0)
        return hf_complain(125, "the caller has too many children of its own; nothing was started", NULL, 0);
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
    struct hf_plan plan = {
        .options = HF_RESTORE_SIGNALS | HF_PDEATHSIG, .mask = hf_original_mask, .argv = command,
        .envp = envp, .executable = command[0], .restore_nofile = ~0ULL,
    };
    struct hf_child_result result;
    hf_terminal_begin();
    /* A key pressed until now was meant for a command that is not there yet: it does to us what it
     * would have done to that. */
    hf_set_signal_mask(hf_original_mask);
    hf_block_all_signals();
    hf_run.began_ns = hf_clock_ns(CLOCK_MONOTONIC);
    if (hf_run.timeout_ms)
        arm_deadline();
    if (hf_tree_spawn(&plan, hf_run_buffer, &result) < 0) {
        hf_terminal_end();
        int found = result.stage == HF_STAGE_EXEC;
        hf_run.not_started = !found ? 125 : result.error == ENOENT ? 127 : 126;
        hf_complain(0, found ? "cannot run" : "cannot start", command[0], result.error);
    } else {
        hf_note("started pid ", hf_tree.main_pid);
        let_go_of_inherited(signals);
        loop(signals);
        if (hf_run.report || hf_run.verbose || hf_run.timed_out || hf_stop.report.survivors)
            hf_report_line();
    }
    if (hf_run.json_fd >= 0)
        hf_report_json();
    hf_terminal_die_with_main();
    return hf_exit_code();
}
