/* What the files of the stand-alone mode share: run.c starts and waits, terminal.c knows job control
 * and which signals to pass on, run_report.c says on stderr and in JSON what happened. */
#ifndef HF_RUN_H
#define HF_RUN_H

#include "keeper.h"

#include <sys/signalfd.h>

struct hf_run {
    uint64_t timeout_ms, grace_ms;
    int signo, parent, report, verbose;
    const char *json;
    char **command;
    int json_fd, parent_pidfd;
    int timed_out;
    int not_started;        /* the exit code where the command was never run; 0: it was */
    int stopped_by;         /* main was stopped by this signal and we may have to follow; 0: no */
    uint64_t began_ns, ended_ns, deadline_ns;
    siginfo_t main_info;
    struct hf_usage main_usage;
};
extern struct hf_run hf_run;
extern char hf_run_buffer[16384]; /* the child's stack, later whatever text is made */

/* ---- terminal.c ------------------------------------------------------------------------------ */

void hf_terminal_begin(void);
void hf_terminal_end(void);
void hf_terminal_stop_with_main(void);
void hf_terminal_forward(const struct signalfd_siginfo *info);
/* Main died of a signal and a shell wants to know of which: die of it too, and do not return. */
void hf_terminal_die_with_main(void);

/* ---- run_report.c ---------------------------------------------------------------------------- */

int hf_exit_code(void);
int hf_complain(int code, const char *what, const char *name, int error);
void hf_note(const char *what, int n);
/* For the anchor: the supervisor ended without a farewell. */
void hf_report_restart(int pid, const siginfo_t *end, uint64_t pause_ms);
void hf_note_signal(const char *what, int signo);
void hf_report_line(void);
void hf_report_json(void);

#endif
