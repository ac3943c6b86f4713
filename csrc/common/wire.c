/* Decoding trusts nothing: the peer has our uid, but it may be another version, or broken.
 * tests/fuzz feeds this file. */
#include "wire.h"

#include <errno.h>
#include <string.h>

int hf_wire_next(const char *packet, size_t size, size_t *at, struct hf_record *record, const char **body)
{
    if (*at >= size)
        return 0;
    if (size - *at < sizeof *record)
        return -EBADMSG;
    memcpy(record, packet + *at, sizeof *record);
    size_t left = size - *at - sizeof *record;
    if (record->length > left)
        return -EBADMSG;
    *body = packet + *at + sizeof *record;
    size_t padded = hf_align8(record->length);
    *at += sizeof *record + (padded < left ? padded : left);
    return 1;
}

int hf_wire_put(char *packet, size_t room, size_t *at, uint16_t tag, const void *body, size_t size)
{
    struct hf_record record = {.tag = tag, .length = (uint32_t)size};
    size_t padded = hf_align8(size);
    if (*at > room || room - *at < sizeof record + padded)
        return -EMSGSIZE;
    memcpy(packet + *at, &record, sizeof record);
    if (size)
        memcpy(packet + *at + sizeof record, body, size);
    memset(packet + *at + sizeof record + size, 0, padded - size);
    *at += sizeof record + padded;
    return 0;
}

int hf_wire_get(const struct hf_record *record, const char *body, void *out, size_t size)
{
    if (record->length < size)
        return -EBADMSG;
    memcpy(out, body, size);
    return 0;
}

/* Reserve an array of count elements at *at; NULL when it does not fit. */
static char *take(char *body, size_t size, size_t *at, size_t count, size_t element)
{
    char *start = body + *at;
    if (count > (size - *at) / element)
        return NULL;
    size_t next = hf_align8(*at + count * element);
    if (next > size)
        return NULL;
    *at = next;
    return start;
}

static int relocate(char *body, size_t size, size_t strings, char *area, uint32_t count)
{
    for (uint32_t i = 0; i <= count; i++) {
        uint64_t offset;
        memcpy(&offset, area + i * sizeof offset, sizeof offset);
        char *pointer = NULL;
        if (i < count) {
            if (offset < strings || offset >= size)
                return -EBADMSG;
            pointer = body + offset;
        } else if (offset) {
            return -EBADMSG;
        }
        /* A pointer is never wider than the offset that it replaces, so writing upwards does not
         * overtake reading, on 32-bit machines too. */
        memcpy(area + i * sizeof pointer, &pointer, sizeof pointer);
    }
    return 0;
}

/* A sender that is older than we are sends less, and what it does not know is 0; a newer one more. */
static int take_more(const char *body, size_t size, size_t first, size_t offset, struct hf_more *more)
{
    uint32_t given;
    memset(more, 0, sizeof *more);
    if (!offset)
        return 0;
    if (offset < first || offset % 8 || offset > size || size - offset < sizeof given)
        return -EBADMSG;
    memcpy(&given, body + offset, sizeof given);
    if (given < 2 * sizeof(uint32_t) || given > size - offset)
        return -EBADMSG;
    memcpy(more, body + offset, given < sizeof *more ? given : sizeof *more);
    if ((more->flags & ~(uint32_t)HF_MORE_ALL) || (more->flags & HF_MORE_CPUS && more->cpus < first) ||
        more->cpus > size || more->cpus_size > size - more->cpus || more->cpus_size > HF_CPUS_BYTES_MAX)
        return -EBADMSG;
    return 0;
}

int hf_wire_spawn(char *body, size_t size, struct hf_plan *plan, struct hf_policy *policy)
{
    struct hf_spawn s;
    size_t at = hf_align8(sizeof s);
    /* A zero as the very last byte ends every string that starts inside. */
    if (size < at || size != hf_align8(size) || body[size - 1] != 0)
        return -EBADMSG;
    memcpy(&s, body, sizeof s);
    if ((s.options & ~(uint32_t)HF_OPTIONS_ALL) || s.n_fds > HF_FDS_MAX || s.n_groups > HF_GROUPS_MAX ||
        s.n_rlimits > HF_RLIMITS_MAX || s.n_argv == 0 ||
        s.n_argv >= INT32_MAX || s.n_env >= INT32_MAX || /* as many as execve counts */
        s.stop_scope > HF_SCOPE_TREE || s.closed_std > 7 ||
        s.on_owner_loss > HF_LOSS_KEEP || s.stop_signal < 1 || s.stop_signal > HF_NSIG || s.umask > 0777)
        return -EBADMSG;
    char *groups = take(body, size, &at, s.n_groups, sizeof(uint32_t));
    char *rlimits = groups ? take(body, size, &at, s.n_rlimits, sizeof(struct hf_rlimit)) : NULL;
    char *fds = rlimits ? take(body, size, &at, s.n_fds, sizeof(int32_t)) : NULL;
    char *argv = fds ? take(body, size, &at, (size_t)s.n_argv + 1, sizeof(uint64_t)) : NULL;
    char *envp = argv ? take(body, size, &at, (size_t)s.n_env + 1, sizeof(uint64_t)) : NULL;
    if (!envp)
        return -EBADMSG;
    uint32_t n_cgroups = 0;
    for (uint32_t i = 0; i < s.n_fds; i++) {
        int32_t target;
        memcpy(&target, fds + i * sizeof target, sizeof target);
        n_cgroups += target >= HF_TARGET_CGROUP;
        if (target < 0 || target >= HF_TARGET_END || (n_cgroups && target < HF_TARGET_CGROUP))
            return -EBADMSG;
    }
    if (s.executable < at || s.executable >= size || (s.cwd && (s.cwd < at || s.cwd >= size)))
        return -EBADMSG;
    struct hf_more more;
    if (take_more(body, size, at, s.more, &more) < 0)
        return -EBADMSG;
    if (relocate(body, size, at, argv, s.n_argv) || relocate(body, size, at, envp, s.n_env))
        return -EBADMSG;
    *plan = (struct hf_plan){
        .options = s.options, .pgid = s.pgid, .umask = s.umask, .uid = s.uid, .gid = s.gid, .nice = s.nice,
        .mask = s.mask, .n_groups = s.n_groups, .n_rlimits = s.n_rlimits, .n_fds = s.n_fds - n_cgroups,
        .n_cgroups = n_cgroups,
        .groups = (const uint32_t *)groups, .rlimits = (const struct hf_rlimit *)rlimits,
        .fd_targets = (const int32_t *)fds, .cgroup_targets = (const int32_t *)fds + (s.n_fds - n_cgroups),
        .closed_std = s.closed_std,
        .argv = (char *const *)argv, .envp = (char *const *)envp,
        .executable = body + s.executable, .cwd = s.cwd ? body + s.cwd : NULL, .restore_nofile = ~0ULL,
        .more = more, .cpus = body + more.cpus,
    };
    *policy = (struct hf_policy){
        .on_owner_loss = s.on_owner_loss, .stop_scope = s.stop_scope, .stop_signal = s.stop_signal,
        .grace_ms = s.grace_ms,
    };
    return 0;
}
