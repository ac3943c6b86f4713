/* One keeper, one process tree.  State that several files share; everything is static, nothing is
 * allocated after start-up, and everything runs in one thread. */
#ifndef HF_KEEPER_H
#define HF_KEEPER_H

#include "wire.h"

enum {
    KILL_LIMIT_MS = 5000,    /* how long KILL is repeated before what is left is reported */
    STRANGERS_MAX = 1024,    /* children that a program which execs into us brings along */
    NEVER = -1,
};
/* Large and rarely used: on pages of its own, which cost nothing until they are touched.  pages.ld puts it
 * behind the rest, so what is small and always used lies together on one page. */
#define HF_PAGE 4096
#define HF_RARELY_USED __attribute__((aligned(HF_PAGE), section(".bss.zz_rarely_used")))
#define NS_PER_MS 1000000ULL

struct hf_stat {
    int ppid, pgrp, session, tty, threads;
    char state;
    uint64_t start;  /* clock ticks after boot: with the pid, the identity that a report compares */
    char name[16];
};

/* ---- tree.c: who is in the tree, and signalling them ---------------------------------------- */

struct hf_tree {
    int main_pid;            /* 0: no tree */
    int main_pidfd;
    int main_group;          /* the group that "left the group" compares with */
    int main_leads_group;    /* then main_pidfd is a race-free handle of the group (Linux 6.9) */
    int main_ended;
    int empty;               /* proved: waitid answered ECHILD, or only strangers are left */
    uint32_t reaped;
    struct hf_usage usage;   /* sum over what was reaped; the largest for peak memory */
    int n_strangers;
    int helper;              /* a child that belongs to us and is no member; 0: none */
    int left;                /* 1 + the pidfd of one that main has left, to be polled; 0: none (tree.c) */
};
extern struct hf_tree hf_tree;

int hf_proc_is_ours(void);
int hf_read_stat(int pid, struct hf_stat *stat); /* -ENOENT also where /proc is not ours */
/* Call visit for every member: parents before children, each held by a pidfd while it is visited.
 * Returns how many were visited.  Members that appear during the walk may be missed. */
typedef void hf_visit(int pid, int pidfd, const struct hf_stat *stat);
uint32_t hf_tree_walk(hf_visit *visit);
/* Members that have no parent but us, without main: how many, and their pids, until the next call in here that looks. */
uint32_t hf_tree_adopted(const int **pids);
/* Signal main's group at once; -ENOTSUP where no handle of the group exists. */
int hf_tree_signal_group(int signo);
void hf_tree_look_up_group(void);
int hf_tree_signal(int signo, enum hf_scope scope);
/* Children that are here already are no members.  -E2BIG: more than can be remembered. */
int hf_tree_note_strangers(void);
/* Reap everything that can be reaped; tells the mode through the hooks below. */
void hf_tree_reap(void);
/* Give back the memory that is needed for moments. */
void hf_tree_rest(void);
/* Start the plan and begin its tree; 0 or -errno with *result. */
int hf_tree_spawn(struct hf_plan *plan, char *stack, struct hf_child_result *result);

/* ---- daemon.c: which process is main, where the one that was started forks a daemon and ends -- */

/* The plan's process has been started. */
void hf_daemon_begin(const struct hf_plan *plan);
/* Somebody was reaped.  1: it was main, and another one is main now, so it was not the end.  0: it was not, or it was the
 * end, and `ended` tells how. */
int hf_daemon_follow(siginfo_t *ended, int is_main);
/* Somebody has come or gone: it may have the name that main is to have. */
void hf_daemon_look(void);
/* The owner knows which one is main. */
void hf_daemon_ask(int pid);

/* ---- stop.c: TERM, grace, KILL, report ------------------------------------------------------ */

enum hf_stop_phase { STOP_NONE, STOP_GRACE, STOP_KILL, STOP_DONE };
struct hf_stop_state {
    enum hf_stop_phase phase;
    struct hf_stop_report report;
};
extern struct hf_stop_state hf_stop;
extern struct hf_member hf_stop_members[HF_MEMBERS_MAX]; /* report.n_members of them */

/* Begin a stop, or shorten the one that is under way. */
void hf_stop_begin(uint32_t id, int signo, enum hf_scope scope, uint64_t grace_ms);
/* Something was reaped, or time has passed: take the next step. */
void hf_stop_step(uint64_t now_ns);
/* When hf_stop_step wants to be called at the latest; 0: no deadline. */
uint64_t hf_stop_deadline(void);
/* State Z with threads alive is a living process; its pidfd knows. */
int hf_is_dead(int pidfd, const struct hf_stat *stat);
/* List the members as they are now into hf_stop_members (only while no stop runs). */
void hf_stop_list_members(void);
void hf_stop_reset(void);
/* Keep the cgroup.kill of the plan's directory, if it has one that has that, for the KILL of its tree. */
void hf_stop_hold_cgroup(const struct hf_plan *plan);
/* Give back the memory of the list, which is lost; not while a stop runs. */
void hf_stop_rest(void);

/* ---- the modes implement these; tree.c calls them ------------------------------------------- */

struct hf_mode {
    void (*exited)(const siginfo_t *info, const struct hf_usage *usage, int is_main);
    void (*stopped)(int pid, int signo, int is_main);
    void (*continued)(int pid, int is_main);
};
extern const struct hf_mode *hf_mode;

/* ---- main.c --------------------------------------------------------------------------------- */

extern hf_sigmask hf_original_mask; /* as it was when we were exec'd */
extern int hf_sigchld_was_ignored;
extern uint64_t hf_original_nofile;
/* Put back (1) what main changed of what a child inherits, and change it again (0). */
void hf_lend_original_state(int lend);
int hf_signalfd(hf_sigmask mask);
/* Wait at most until deadline_ns (monotonic, 0: for ever). */
struct pollfd;
int hf_poll_until(struct pollfd *fds, unsigned n, uint64_t deadline_ns);

/* The whole pages of a HF_RARELY_USED variable go back to the kernel; they read as zeros afterwards. */
void hf_give_back(void *memory, size_t size);

/* A caller may have closed 0, 1 or 2.  What we open must not get their numbers: it would be written
 * to as stderr, or replaced.  Close-on-exec, so a child finds them closed as it would without us. */
void hf_occupy_standard_descriptors(void);
/* Close everything from 3 on but these. */
void hf_close_all_but(const int *own, size_t n);

int hf_kept_main(void);
int hf_run_main(char **arguments, char **envp);
int hf_anchor_main(char **arguments, char **envp);
int hf_procdesc_main(char **arguments);

#endif
