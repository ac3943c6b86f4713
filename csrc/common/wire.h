/* Version 1 of what owner and keeper say to each other: docs/wire.md in C.
 *
 * A packet (one SOCK_SEQPACKET message) is a sequence of records: tag, length of the body, body,
 * zero padding to 8 bytes.  Little-endian.  A tag is never reused and a field never moves; a body
 * may grow at its end; unknown tags are skipped.  tests/wire/ holds golden bytes of version 1.
 */
#ifndef HF_WIRE_H
#define HF_WIRE_H

#include "child.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the wire is little-endian and this machine is not"
#endif

enum { HF_WIRE_VERSION = 1 };
enum {
    HF_PACKET_MAX = 65536 + 1024, /* above HF_INLINE_MAX a plan travels in a sealed memfd */
    HF_INLINE_MAX = 65536,
    HF_FDS_MAX = 240,             /* SCM_RIGHTS takes 253 */
    HF_GROUPS_MAX = 1024,
    HF_RLIMITS_MAX = 32,
    HF_MEMBERS_MAX = 256,         /* members named in a report; more are counted */
    HF_INPUT_MAX = 4096,          /* bytes that a client types in one packet */
};

enum hf_tag {
    /* owner to keeper */
    HF_HELLO = 1, HF_SPAWN = 2, HF_SPAWN_MAP = 3, HF_SIGNAL = 4, HF_STOP = 5, HF_QUERY = 6,
    HF_ON_OWNER_LOSS = 7, HF_LAUNCH = 8, HF_HELD = 9, HF_LOG = 10, HF_ACK = 11, HF_ATTACH = 13, HF_MAIN = 14,
    /* keeper to owner */
    HF_KEEPER_HELLO = 64, HF_SPAWNED = 65, HF_FAILED = 66, HF_EXITED = 67, HF_ADOPTED = 68,
    HF_STOPPED = 69, HF_CONTINUED = 70, HF_EMPTY = 71, HF_STOP_REPORT = 72, HF_MEMBERS = 73,
    HF_LOST = 74, HF_LAUNCHED = 75, HF_LOG_STATE = 76, HF_MOVED = 77,
    /* client to keeper */
    HF_INPUT = 40, HF_WINDOW = 41,
    /* keeper to client */
    HF_ATTACHED = 48, HF_RECENT = 49, HF_OUTPUT = 50, HF_SKIPPED = 51, HF_ENDED = 52, HF_REFUSED = 53,
};

enum hf_hello_flag { HF_KEEPER_REUSED = 1, HF_KEEPER_TEMPLATE = 2 };
enum hf_scope { HF_SCOPE_MAIN = 0, HF_SCOPE_GROUP = 1, HF_SCOPE_TREE = 2 };
enum hf_on_owner_loss { HF_LOSS_STOP = 0, HF_LOSS_KILL = 1, HF_LOSS_KEEP = 2 };
enum hf_held_flag { HF_HELD_STOP_REST = 1 };
enum hf_log_flag { HF_LOG_TIMESTAMPS = 1, HF_LOG_MERGE = 2, HF_LOG_TERMINAL = 4, HF_LOG_INPUT = 8 };
enum hf_attached_flag { HF_HAS_TERMINAL = 1, HF_HAS_INPUT = 2 };
enum hf_ack_what { HF_ACK_EXITED = 1, HF_ACK_EMPTY = 2, HF_ACK_STOP_REPORT = 4 };
enum hf_rule { /* why a process is main: daemon.c */
    HF_RULE_STARTED = 0, HF_RULE_NAME = 1, HF_RULE_ONLY = 2, HF_RULE_SESSION = 3, HF_RULE_TOGETHER = 4, HF_RULE_ASKED = 5,
};
enum hf_member_flag {
    HF_IS_MAIN = 1,      /* the process that was started, or what it has left in its place */
    HF_SIGNALLED = 2,    /* got the stop signal */
    HF_LEFT_GROUP = 4,   /* was no longer in main's process group when the stop began */
    HF_KILLED = 8,       /* needed SIGKILL */
    HF_SURVIVED = 16,    /* was still there at the end of the stop */
    HF_DENIED = 32,      /* we may not signal it (EPERM) */
};

struct hf_record { uint16_t tag, zero; uint32_t length; };

struct hf_hello { uint32_t version, flags; };
struct hf_spawn {
    uint32_t options;
    int32_t pgid;
    uint32_t umask, uid, gid;
    int32_t nice;
    uint64_t mask;
    uint32_t on_owner_loss;
    int32_t stop_signal;
    uint32_t stop_scope, closed_std; /* bit n: descriptor n (0..2) is closed in the child */
    uint64_t grace_ms;
    uint32_t n_groups, n_rlimits, n_fds, n_argv, n_env;
    uint32_t more; /* offset of an hf_more behind the offsets of env; 0: there is none */
    uint64_t executable, cwd; /* offsets from the start of the body; cwd 0: stay */
    /* then, each starting at a multiple of 8:
     *   u32 groups[n_groups]; hf_rlimit rlimits[n_rlimits]; i32 fd_targets[n_fds];
     *   u64 argv[n_argv + 1]; u64 env[n_env + 1]   offsets, the last one 0;
     *   the strings, each ended by a zero byte; the body's last byte is zero */
};
struct hf_spawn_map { uint64_t size; };
struct hf_signal { int32_t signo; uint32_t scope; };
struct hf_stop { uint32_t id; int32_t signo; uint32_t scope, zero; uint64_t grace_ms; };
struct hf_query { uint32_t id, zero; };
struct hf_loss { uint32_t on_owner_loss, zero; };
struct hf_held { uint32_t flags, zero; char report[64]; };
struct hf_log { uint32_t flags, rotate_count; uint64_t rotate_size, cap; char label[160]; };
struct hf_ack { uint32_t what, zero; };
struct hf_main { int32_t pid; uint32_t zero; };

struct hf_usage {
    uint64_t user_us, system_us, max_rss_kib, minor_faults, major_faults, blocks_in, blocks_out,
        voluntary_switches, involuntary_switches;
};
struct hf_keeper_hello { uint32_t version; int32_t pid; };
struct hf_spawned { int32_t pid; uint32_t zero; uint64_t identity, started_ns, started_at_ns; };
struct hf_failed { uint32_t stage; int32_t error; };
struct hf_exited { int32_t pid; uint32_t flags; int32_t code, status; uint64_t ended_ns; struct hf_usage usage; };
struct hf_adopted { int32_t pid; uint32_t zero; uint64_t identity; };
struct hf_state_change { int32_t pid, signo; };
struct hf_moved { int32_t old_pid, pid; uint64_t identity; uint32_t rule, count; };
struct hf_empty { uint64_t at_ns; uint32_t reaped, zero; struct hf_usage usage; };
struct hf_member { int32_t pid; uint32_t flags; char name[16]; };
struct hf_stop_report {
    uint32_t id; int32_t signo; uint32_t scope, zero;
    uint64_t grace_ms, duration_ns;
    uint32_t signalled, left_group, killed, survivors, unlisted, n_members;
};
struct hf_members { uint32_t id, n_members, unlisted, zero; };
struct hf_lost { uint64_t events; };
struct hf_launched { int32_t pid; uint32_t zero; };
struct hf_log_state { uint64_t written_bytes, lost_bytes, dropped_bytes; int32_t error; uint32_t zero; };

struct hf_window { uint32_t rows, columns; };
struct hf_attached { uint32_t flags; int32_t pid; };
struct hf_skipped { uint64_t bytes; };
struct hf_ended { int32_t code, status; };
struct hf_refused { int32_t error; uint32_t zero; };

/* What of a spawn request is the keeper's and not the child's. */
struct hf_policy { uint32_t on_owner_loss, stop_scope; int32_t stop_signal; uint64_t grace_ms; };

/* Step to the record at *at; 1 and *at moved on, 0 at the end, -EBADMSG when the packet lies. */
int hf_wire_next(const char *packet, size_t size, size_t *at, struct hf_record *record, const char **body);
/* Append one record; -EMSGSIZE (and nothing appended) when it does not fit. */
int hf_wire_put(char *packet, size_t room, size_t *at, uint16_t tag, const void *body, size_t size);
/* Copy a fixed body; -EBADMSG when it is shorter than the version-1 struct. */
int hf_wire_get(const struct hf_record *record, const char *body, void *out, size_t size);
/* Turn the body of HF_SPAWN into a plan: every offset and count is checked, then offsets become
 * pointers in place, so body must be writable, 8-aligned and live as long as the plan.
 * 0 or -EBADMSG.  fd_sources and cgroup_sources stay NULL: the caller knows what came over SCM_RIGHTS. */
int hf_wire_spawn(char *body, size_t size, struct hf_plan *plan, struct hf_policy *policy);

static inline size_t hf_align8(size_t n) { return (n + 7) & ~(size_t)7; }

#endif
