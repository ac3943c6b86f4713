/* What happened, for a person (one line on stderr) and for a program (JSON).
 *
 * Nobody may be able to hold us up by not reading: while the tree lives a line that does not fit into
 * the pipe at once is dropped, at the end it is waited for a moment.
 */
#define _GNU_SOURCE
#include "run.h"
#include "text.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { PATIENCE_MS = 1000 };

static void say(struct hf_text *t, int patience_ms)
{
    const char *p = hf_run_buffer;
    *t->at++ = '\n'; /* line() has kept the room */
    while (p < t->at) {
        struct pollfd fd = {.fd = 2, .events = POLLOUT};
        ssize_t n = poll(&fd, 1, patience_ms) == 1 ? write(2, p, (size_t)(t->at - p)) : -1;
        if (n <= 0)
            return; /* nobody listens: a report is not worth an exit code */
        p += n;
    }
}

static struct hf_text line(void)
{
    struct hf_text t = {hf_run_buffer, hf_run_buffer + sizeof hf_run_buffer - 1};
    put(&t, "holdfast: ");
    return t;
}

/* A name may hold anything, also what would move a terminal's cursor. */
static void put_name(struct hf_text *t, const char *s)
{
    for (; *s; s++) {
        char c[2] = {(unsigned char)*s < 0x20 || *s == 0x7f ? '?' : *s, 0};
        put(t, c);
    }
}

static void put_signal(struct hf_text *t, int signo)
{
    static const char names[32][8] = { /* by the constants: the numbers differ between machines */
        [SIGHUP] = "HUP", [SIGINT] = "INT", [SIGQUIT] = "QUIT", [SIGILL] = "ILL", [SIGTRAP] = "TRAP",
        [SIGABRT] = "ABRT", [SIGBUS] = "BUS", [SIGFPE] = "FPE", [SIGKILL] = "KILL", [SIGUSR1] = "USR1",
        [SIGSEGV] = "SEGV", [SIGUSR2] = "USR2", [SIGPIPE] = "PIPE", [SIGALRM] = "ALRM", [SIGTERM] = "TERM",
        [SIGCHLD] = "CHLD", [SIGCONT] = "CONT", [SIGSTOP] = "STOP", [SIGTSTP] = "TSTP", [SIGTTIN] = "TTIN",
        [SIGTTOU] = "TTOU", [SIGURG] = "URG", [SIGXCPU] = "XCPU", [SIGXFSZ] = "XFSZ", [SIGVTALRM] = "VTALRM",
        [SIGPROF] = "PROF", [SIGWINCH] = "WINCH", [SIGIO] = "IO", [SIGPWR] = "PWR", [SIGSYS] = "SYS",
    };
    if (signo > 0 && signo < 32 && names[signo][0])
        put(t, names[signo]);
    else
        put_signed(t, signo); /* a real-time signal: its names count from what each libc takes first */
}

int hf_complain(int code, const char *what, const char *name, int error)
{
    struct hf_text t = line();
    put(&t, what);
    if (name) {
        put(&t, " ");
        put_name(&t, name);
    }
    if (error) {
        put(&t, ": ");
        put(&t, strerror(error));
    }
    say(&t, PATIENCE_MS);
    return code;
}

void hf_note(const char *what, int n)
{
    if (!hf_run.verbose)
        return;
    struct hf_text t = line();
    put(&t, what);
    put_signed(&t, n);
    say(&t, 0);
}

void hf_note_signal(const char *what, int signo)
{
    if (!hf_run.verbose)
        return;
    struct hf_text t = line();
    put(&t, what);
    put_signal(&t, signo);
    say(&t, 0);
}

void hf_report_restart(int pid, const siginfo_t *end, uint64_t pause_ms)
{
    struct hf_text t = line();
    put(&t, "the supervisor, pid ");
    put_signed(&t, pid);
    put(&t, end->si_code == CLD_EXITED ? ", has ended unexpectedly (exit code " : ", has ended unexpectedly (signal ");
    if (end->si_code == CLD_EXITED)
        put_signed(&t, end->si_status);
    else
        put_signal(&t, end->si_status);
    put(&t, "); the services run on, and it is started again ");
    if (pause_ms) {
        put(&t, "in ");
        put_rounded(&t, pause_ms);
        put(&t, " s");
    } else {
        put(&t, "now");
    }
    say(&t, 0);
}

static uint64_t elapsed_ns(void)
{
    return (hf_run.ended_ns ? hf_run.ended_ns : hf_clock_ns(CLOCK_MONOTONIC)) - hf_run.began_ns;
}

int hf_exit_code(void)
{
    if (hf_run.not_started)
        return hf_run.not_started;
    if (hf_run.timed_out)
        return 124;
    if (!hf_tree.main_ended)
        return 125; /* it could not be killed */
    return hf_run.main_info.si_code == CLD_EXITED ? hf_run.main_info.si_status : 128 + hf_run.main_info.si_status;
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
        put_name(t, m->name);
        put(t, "[");
        put_signed(t, m->pid);
        put(t, "]");
        put(t, m->flags & HF_LEFT_GROUP ? " outside the group" : "");
        put(t, m->flags & HF_DENIED ? " which we may not signal" : "");
    }
    put(t, shown == 0 && count ? "unnamed)" : ")");
}

/* What matters most comes first: a terminal may be narrow. */
void hf_report_line(void)
{
    const struct hf_stop_report *r = &hf_stop.report;
    struct hf_text t = line();
    int exited = hf_tree.main_ended && hf_run.main_info.si_code == CLD_EXITED;
    if (hf_run.timed_out) {
        put(&t, "timed out after ");
        put_rounded(&t, hf_run.timeout_ms);
        put(&t, " s (exit 124); ");
    }
    if (exited) {
        put(&t, "exited with code ");
        put_signed(&t, hf_run.main_info.si_status);
    } else if (hf_tree.main_ended) {
        put(&t, "ended by signal ");
        put_signal(&t, hf_run.main_info.si_status);
        put(&t, hf_run.main_info.si_code == CLD_DUMPED ? " (core dumped)" : "");
    } else {
        put(&t, "could not be ended");
    }
    put(&t, " after ");
    put_rounded(&t, elapsed_ns() / NS_PER_MS);
    put(&t, " s");
    if (!hf_run.timed_out && !exited) {
        put(&t, " (exit ");
        put_signed(&t, hf_exit_code());
        put(&t, ")");
    }
    if (r->signalled) {
        put(&t, "; stop signal ");
        put_signal(&t, r->signo);
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
    say(&t, PATIENCE_MS);
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

static int json_failed;

static void flush_json(struct hf_text *t)
{
    const char *p = hf_run_buffer;
    while (p < t->at && !json_failed) {
        ssize_t n = write(hf_run.json_fd, p, (size_t)(t->at - p));
        if (n <= 0) {
            json_failed = 1; /* said once; what follows is thrown away */
            hf_complain(0, "cannot write the report to", hf_run.json, n < 0 ? errno : ENOSPC);
        } else {
            p += n;
        }
    }
    t->at = hf_run_buffer;
}

/* How long a valid UTF-8 character is; 0: none starts here.  The zero byte at the end ends every test. */
static int utf8_length(const unsigned char *s)
{
    if (s[0] < 0x80)
        return 1;
    int length = s[0] >= 0xc2 && s[0] <= 0xdf ? 2 : (s[0] & 0xf0) == 0xe0 ? 3 : s[0] >= 0xf0 && s[0] <= 0xf4 ? 4 : 0;
    for (int i = 1; i < length; i++)
        if ((s[i] & 0xc0) != 0x80)
            return 0;
    if ((s[0] == 0xe0 && s[1] < 0xa0) || (s[0] == 0xed && s[1] > 0x9f) || (s[0] == 0xf0 && s[1] < 0x90) ||
        (s[0] == 0xf4 && s[1] > 0x8f))
        return 0; /* too long for what it says, a surrogate, or past the last one */
    return length;
}

/* A string of any length.  A byte that is not UTF-8 becomes the lone surrogate that Python has for it
 * (os.fsencode gives the byte back), so the report is valid and the name is exact. */
static void put_json(struct hf_text *t, const char *string)
{
    static const char hex[] = "0123456789abcdef";
    const unsigned char *s = (const unsigned char *)string;
    put(t, "\"");
    while (*s) {
        int length = utf8_length(s);
        if (t->end - t->at < 8)
            flush_json(t);
        if (length == 0 || *s < 0x20 || *s == 0x7f) {
            const char escape[] = {'\\', 'u', length ? '0' : 'd', length ? '0' : 'c', hex[*s >> 4], hex[*s & 15], 0};
            put(t, escape);
            length = 1;
        } else {
            if (*s == '"' || *s == '\\')
                *t->at++ = '\\';
            memcpy(t->at, s, (size_t)length);
            t->at += length;
        }
        s += length;
    }
    if (t->end - t->at < 512)
        flush_json(t); /* room for what follows a string */
    put(t, "\"");
}

static void put_flag(struct hf_text *t, const char *name, uint32_t set)
{
    put(t, ", \"");
    put(t, name);
    put(t, set ? "\": true" : "\": false");
}

void hf_report_json(void)
{
    const struct hf_stop_report *r = &hf_stop.report;
    struct hf_text t = {hf_run_buffer, hf_run_buffer + sizeof hf_run_buffer};
    int by_signal = hf_tree.main_ended && hf_run.main_info.si_code != CLD_EXITED;
    put(&t, "{\"version\": 1, \"command\": [");
    for (char **a = hf_run.command; *a; a++) {
        put(&t, a == hf_run.command ? "" : ", ");
        put_json(&t, *a);
    }
    flush_json(&t);
    put(&t, "],\n \"exit_code\": ");
    put_signed(&t, hf_exit_code());
    put_flag(&t, "timed_out", (uint32_t)hf_run.timed_out);
    put(&t, ", \"elapsed_seconds\": ");
    put_seconds(&t, elapsed_ns() / 1000);
    put(&t, ",\n \"status\": ");
    if (hf_tree.main_ended) {
        put(&t, "{\"pid\": ");
        put_signed(&t, hf_run.main_info.si_pid);
        put(&t, ", \"code\": ");
        if (by_signal) put(&t, "null"); else put_signed(&t, hf_run.main_info.si_status);
        put(&t, ", \"signal\": ");
        if (by_signal) put_signed(&t, hf_run.main_info.si_status); else put(&t, "null");
        put_flag(&t, "core_dumped", hf_run.main_info.si_code == CLD_DUMPED);
        put(&t, ", \"usage\": ");
        put_usage(&t, &hf_run.main_usage);
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
