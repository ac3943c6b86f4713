/* The child between clone and exec.  One plan, one function, used by the keeper for its process
 * and by the extension for direct children: what a child gets does not depend on who starts it. */
#ifndef HF_CHILD_H
#define HF_CHILD_H

#include "sys.h"

/* Where a start failed.  Numbers are part of the wire (docs/wire.md) and are never reused. */
enum hf_stage {
    HF_STAGE_NONE = 0,
    HF_STAGE_LAUNCH = 1,   /* starting the keeper */
    HF_STAGE_RECEIVE = 2,  /* reading the request: malformed, truncated, descriptors missing */
    HF_STAGE_CLONE = 3,
    HF_STAGE_FDS = 4,
    HF_STAGE_CHDIR = 5,
    HF_STAGE_SETSID = 6,
    HF_STAGE_SETPGID = 7,
    HF_STAGE_NICE = 8,
    HF_STAGE_RLIMIT = 9,
    HF_STAGE_SETGROUPS = 10,
    HF_STAGE_SETGID = 11,
    HF_STAGE_SETUID = 12,
    HF_STAGE_PDEATHSIG = 13,
    HF_STAGE_EXEC = 14,
    HF_STAGE_CGROUP = 15,
    HF_STAGE_CPU_AFFINITY = 16,
    HF_STAGE_IOPRIO = 17,
    HF_STAGE_OOM_SCORE_ADJ = 18,
    HF_STAGE_CAPABILITIES = 19,
    HF_STAGE_NO_NEW_PRIVS = 20,
};

enum hf_plan_option {
    HF_NEW_SESSION = 1,
    HF_SET_PGID = 2,
    HF_SET_UMASK = 4,
    HF_SET_UID = 8,
    HF_SET_GID = 16,
    HF_SET_GROUPS = 32,
    HF_SET_NICE = 64,
    HF_PDEATHSIG = 128,     /* SIGKILL when the parent (a single-threaded keeper) dies */
    HF_CLOSE_FDS = 256,     /* everything above 2 that is not passed becomes close-on-exec */
    HF_RESTORE_SIGNALS = 512, /* SIGPIPE and SIGXFSZ, which Python ignores, back to default */
    HF_IGNORE_SIGCHLD = 1024, /* the keeper took SIGCHLD over; the owner had it ignored */
    HF_LISTEN_PID = 2048,   /* the environment's LISTEN_PID, which has room for it, becomes the child's number */
    HF_TERMINAL = 4096,     /* descriptor 0 is a terminal, and becomes that of the new session */
    HF_FORKING = 8192,      /* it ends with code 0 when it has left a daemon, which is main then */
    HF_OPTIONS_ALL = 16383,
};

struct hf_rlimit {
    uint32_t which, zero;
    uint64_t soft, hard;
};

/* What of a plan came later: part of the wire (docs/wire.md), grows at its end and is read by its size. */
enum hf_more_flag {
    HF_MORE_OOM_SCORE_ADJ = 1, HF_MORE_IOPRIO = 2, HF_MORE_NO_NEW_PRIVS = 4, HF_MORE_BOUNDING = 8,
    HF_MORE_AMBIENT = 16, HF_MORE_CPUS = 32, HF_MORE_ALL = 63,
};
enum { HF_CPUS_BYTES_MAX = 1024 }; /* the 8,192 CPUs that a kernel can be built for */
struct hf_more {
    uint32_t size, flags; /* flags say which of the rest are meant */
    int32_t oom_score_adj;
    uint32_t ioprio;            /* as ioprio_set(2) takes it */
    uint64_t bounding, ambient; /* capabilities: bit n is number n */
    uint32_t cpus, cpus_size;   /* where in the body the mask of CPUs lies, and its bytes */
    char main_name[16];         /* of the process that is main, of a daemon; empty: the rule decides */
};

/* Descriptors of a plan that the child does not get: they say which cgroups it starts in.  They stand behind the
 * others, and their numbers are part of the wire (docs/wire.md). */
enum hf_special_target {
    HF_TARGET_CGROUP = 1 << 30,     /* a directory of version 2 */
    HF_TARGET_CGROUP_PROCS,         /* an open cgroup.procs, of version 1: one for each hierarchy */
    HF_TARGET_END,
};

struct hf_plan {
    uint32_t options;
    int32_t pgid;
    uint32_t umask, uid, gid;
    int32_t nice;
    hf_sigmask mask;         /* the owner's, put back last */
    uint32_t n_groups, n_rlimits, n_fds;
    const uint32_t *groups;
    const struct hf_rlimit *rlimits;
    const int32_t *fd_targets;   /* where ... */
    const int32_t *fd_sources;   /* ... what goes */
    uint32_t n_cgroups;          /* where it is started: */
    const int32_t *cgroup_targets; /* of which kind ... */
    const int32_t *cgroup_sources; /* ... each of these is */
    uint32_t closed_std;         /* bit n: descriptor n (0..2) is closed */
    char *const *argv;
    char *const *envp;
    const char *executable;  /* without a slash: looked up along the PATH of envp */
    const char *cwd;         /* NULL: stay */
    uint64_t restore_nofile; /* soft RLIMIT_NOFILE that the keeper had raised, or ~0 */
    struct hf_more more;
    const char *cpus;        /* more.cpus_size bytes */
    int auto_reap;           /* not of the wire: where the kernel can, it shall reap (sys.h) */
    int auto_kill;           /* nor this: with it, the kernel shall kill when the last copy of the pidfd closes */
};

struct hf_child_result {
    int stage, error; /* set by the child in the parent's memory; stage 0: exec succeeded */
};

/* Start the plan's program as a child of the caller, with exit signal SIGCHLD.  Returns the pid (and
 * *pidfd), or -errno with *result saying at which stage; nothing is left behind then.
 * Without pidfd (NULL) the kernel is asked for none: the child is held by its number.
 * Blocks and restores all signals itself.  stack (HF_CHILD_STACK bytes) is the child's, and the
 * caller may use it again afterwards. */
enum { HF_CHILD_STACK = 16384 };
long hf_spawn(const struct hf_plan *plan, char *stack, int *pidfd, struct hf_child_result *result);

#endif
