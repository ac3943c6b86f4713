/* Job control and the signals that are meant for the command.
 *
 * In: what signalfd gives us, and main's stops.  Out: the same signal to main, once, or our own stop.
 * We are in main's group, so a signal to the group (the terminal's keys, `kill %1`) has reached main
 * already, while one to us alone (`kill PID`, a caller's terminate()) has not.  siginfo cannot tell
 * them apart, and both mistakes are bad: main hears it twice, or never.  So where there is a terminal
 * a witness lives in the group: a child that shares our memory, blocks everything and sleeps.
 * What went to the group is pending there too.
 */
#define _GNU_SOURCE
#include "run.h"
#include "text.h"

#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

HF_RARELY_USED static char stacks[2][1024];
static int stack_in_use, leads_session;
static uint64_t told;        /* signals that the group had, read from a witness that is gone since */
static uint64_t interrupted; /* INT and QUIT, once the whole group had them */

#define BIT(signo) (1ULL << ((signo) - 1))

/* PERMITTED here: raw calls.  The memory, and with it errno, is the keeper's. */
static int sleep_as_witness(void *keeper)
{
    HF_CALL2(SYS_prctl, PR_SET_PDEATHSIG, SIGKILL);
    HF_CALL2(SYS_prctl, PR_SET_NAME, "hf-witness");
    while (HF_CALL0(SYS_getppid) == (long)(intptr_t)keeper)
        HF_CALL5(SYS_ppoll, NULL, 0, NULL, NULL, 0);
    return 0;
}

/* Two stacks in turn, for the last witness is still there while its successor starts. */
static void start_witness(void)
{
    stack_in_use = !stack_in_use;
    int pid = clone(sleep_as_witness, stacks[stack_in_use] + sizeof stacks[0], CLONE_VM | CLONE_FS | CLONE_FILES,
                    (void *)(intptr_t)getpid());
    hf_tree.helper = pid > 0 ? pid : 0; /* without one (EAGAIN) we guess, see group_had */
}

static void end_witness(int pid)
{
    siginfo_t info;
    if (pid == 0)
        return;
    kill(pid, SIGKILL); /* our child, not reaped: the number is its own */
    hf_waitid(P_PID, pid, &info, WEXITED | HF_WALL, NULL);
}

/* The signals that are pending for a whole process; 0 where that cannot be read. */
static uint64_t pending_of(int pid)
{
    char path[32];
    struct hf_text t = {path, path + sizeof path - 1};
    put(&t, "/proc/");
    put_signed(&t, pid);
    put(&t, "/status");
    *t.at = 0;
    int fd = hf_proc_is_ours() ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0)
        return 0;
    ssize_t n = read(fd, hf_run_buffer, sizeof hf_run_buffer - 1);
    close(fd);
    hf_run_buffer[n > 0 ? n : 0] = 0;
    const char *line = strstr(hf_run_buffer, "\nShdPnd:");
    return line ? strtoull(line + 8, NULL, 16) : 0;
}

/* Did the whole group get it?  The kernel tells a group from its newest member to its oldest, so the
 * witness has it before we do.  What it has seen it keeps for ever: the next one starts afresh. */
static int group_had(int signo, int code)
{
    if (hf_tree.helper == 0) {
        int key = signo == SIGINT || signo == SIGQUIT || signo == SIGWINCH || (signo == SIGHUP && !leads_session);
        return code == SI_KERNEL && key;
    }
    uint64_t seen = pending_of(hf_tree.helper);
    if (seen) {
        int old = hf_tree.helper;
        start_witness();
        end_witness(old);
        told |= seen;
    }
    int had = (told & BIT(signo)) != 0;
    told &= ~BIT(signo);
    return had;
}

void hf_terminal_begin(void)
{
    struct hf_stat self;
    if (hf_read_stat(getpid(), &self) < 0 || self.tty == 0)
        return;
    leads_session = self.session == getpid();
    start_witness();
}

void hf_terminal_end(void)
{
    end_witness(hf_tree.helper);
    hf_tree.helper = 0;
}

/* Does a shell with job control look on?  It is our parent, in our session but in another group. */
static int under_job_control(void)
{
    struct hf_stat self, parent;
    return hf_read_stat(getpid(), &self) == 0 && self.tty != 0 && hf_read_stat(self.ppid, &parent) == 0 &&
           parent.session == self.session && parent.pgrp != self.pgrp;
}

/* Raised while it is blocked: pending, until it is let in. */
static void raise_default(int signo)
{
    struct sigaction fallback;
    memset(&fallback, 0, sizeof fallback);
    fallback.sa_handler = SIG_DFL;
    sigaction(signo, &fallback, NULL); /* KILL has no other; the error is no matter */
    kill(getpid(), signo);
}

/* Main was stopped from the terminal: stop too, so that the shell takes its terminal back.  Not for
 * SIGSTOP (somebody meant main alone), not without a terminal, not where no shell would notice. */
void hf_terminal_stop_with_main(void)
{
    int signo = hf_run.stopped_by;
    struct hf_stat main_stat;
    hf_run.stopped_by = 0;
    if ((signo != SIGTSTP && signo != SIGTTIN && signo != SIGTTOU) || hf_stop.phase != STOP_NONE ||
        !under_job_control())
        return;
    /* 1. Pending first, for it is blocked still.  From here on every CONT (the shell's, the deadline's
     *    timer, the death of the caller) takes it away again; one that came before is gone with it, so
     * 2. look now at what each of them stands for.  If there was one the signal is read and dropped. */
    raise_default(signo);
    if (hf_read_stat(hf_tree.main_pid, &main_stat) < 0 || main_stat.state != 'T' ||
        (hf_run.deadline_ns && hf_clock_ns(CLOCK_MONOTONIC) >= hf_run.deadline_ns) ||
        (hf_run.parent_pidfd >= 0 && getppid() != hf_run.parent))
        return;
    hf_set_signal_mask(~BIT(signo)); /* here we stop ... */
    hf_block_all_signals();          /* ... and here we go on */
}

/* Ours are: CHLD, what stops and continues (main's own stops tell us), and what our own writes raise. */
void hf_terminal_forward(const struct signalfd_siginfo *info)
{
    int signo = (int)info->ssi_signo;
    if (signo == SIGCHLD || signo == SIGCONT || signo == SIGTSTP || signo == SIGTTIN || signo == SIGTTOU ||
        (info->ssi_code == SI_USER && (int)info->ssi_pid == getpid()))
        return;
    if (group_had(signo, info->ssi_code)) {
        if (signo == SIGINT || signo == SIGQUIT)
            interrupted |= BIT(signo);
        return;
    }
    if (hf_tree.main_ended)
        return;
    hf_note_signal("passing on signal ", signo);
    hf_tree_signal(signo, HF_SCOPE_MAIN);
}

/* A shell looks at *how* its command ended: after Ctrl-C it leaves its loop or script only when the
 * command died of it (130 alone means that it chose to end), and under job control it puts the
 * terminal's modes right after a death by signal.  For it 128+n and the signal are one exit code. */
void hf_terminal_die_with_main(void)
{
    int signo = hf_run.main_info.si_status;
    if (hf_run.timed_out || !hf_tree.main_ended || hf_run.main_info.si_code == CLD_EXITED ||
        !((interrupted & BIT(signo)) || under_job_control()))
        return;
    prctl(PR_SET_DUMPABLE, 0); /* the core is main's to leave */
    raise_default(signo);
    hf_set_signal_mask(~BIT(signo));
}
