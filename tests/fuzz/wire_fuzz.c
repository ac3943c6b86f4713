/* Feeds the wire's decoder: packets record by record as the keeper and the library read them, and
 * each body as the plan of a spawn request.  What comes out must lie inside what went in. */
#include "wire.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void inside(const void *pointer, size_t length, const char *body, size_t size)
{
    const char *p = pointer;
    assert(p >= body && length <= size && p <= body + size - length);
}

static size_t text(const char *s, const char *body, size_t size)
{
    inside(s, 1, body, size);
    size_t n = strlen(s); /* the sanitizer watches where it ends */
    inside(s, n + 1, body, size);
    return n;
}

static void check_spawn(const char *from, size_t size)
{
    char *exact = malloc(size ? size : 1); /* its end is the end of the block */
    struct hf_plan plan;
    struct hf_policy policy;
    size_t total = 0;
    memcpy(exact, from, size);
    if (hf_wire_spawn(exact, size, &plan, &policy) == 0) {
        inside(plan.groups, plan.n_groups * sizeof *plan.groups, exact, size);
        inside(plan.rlimits, plan.n_rlimits * sizeof *plan.rlimits, exact, size);
        inside(plan.fd_targets, plan.n_fds * sizeof *plan.fd_targets, exact, size);
        assert(plan.n_groups <= HF_GROUPS_MAX && plan.n_rlimits <= HF_RLIMITS_MAX && plan.n_fds <= HF_FDS_MAX);
        for (uint32_t i = 0; i < plan.n_rlimits; i++)
            total += plan.rlimits[i].which + (size_t)plan.rlimits[i].soft;
        for (uint32_t i = 0; i < plan.n_groups; i++)
            total += plan.groups[i];
        for (uint32_t i = 0; i < plan.n_fds; i++)
            assert(plan.fd_targets[i] >= 0);
        assert(plan.argv[0]);
        for (int i = 0; i < 2; i++)
            for (char *const *s = i ? plan.envp : plan.argv;; s++) {
                inside(s, sizeof *s, exact, size);
                if (!*s)
                    break;
                total += text(*s, exact, size);
            }
        total += text(plan.executable, exact, size);
        if (plan.cwd)
            total += text(plan.cwd, exact, size);
        if (plan.more.flags & HF_MORE_CPUS) {
            assert(plan.more.cpus_size <= HF_CPUS_BYTES_MAX);
            inside(plan.cpus, plan.more.cpus_size, exact, size);
        }
        assert(policy.stop_signal >= 1 && policy.stop_signal <= HF_NSIG && policy.on_owner_loss <= HF_LOSS_KEEP &&
               policy.stop_scope <= HF_SCOPE_TREE);
    }
    __asm__ volatile("" : : "r"(total)); /* so that no read is left out */
    free(exact);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *packet = (const char *)data, *body;
    struct hf_record record;
    size_t at = 0, before = 0;
    int r;
    while ((r = hf_wire_next(packet, size, &at, &record, &body)) == 1) {
        union { struct hf_stop_report report; struct hf_exited exited; struct hf_hello hello; char raw[128]; } u;
        assert(at > before && at <= size);
        before = at;
        inside(body, record.length, packet, size);
        for (size_t want = 8; want <= sizeof u.raw; want += 8)
            assert((hf_wire_get(&record, body, &u, want) == 0) == (record.length >= want));
        check_spawn(body, record.length);
        /* What is read can be written again, and reads the same. */
        size_t room = sizeof record + hf_align8(record.length), end = 0, again = 0;
        char *copy = malloc(room);
        struct hf_record second;
        const char *second_body;
        assert(hf_wire_put(copy, room - 1, &end, record.tag, body, record.length) < 0 && end == 0);
        assert(hf_wire_put(copy, room, &end, record.tag, body, record.length) == 0 && end == room);
        assert(hf_wire_next(copy, end, &again, &second, &second_body) == 1 && again == room);
        assert(second.tag == record.tag && second.length == record.length);
        assert(memcmp(second_body, body, record.length) == 0);
        free(copy);
    }
    assert(r == 0 ? at == size : at < size);
    check_spawn(packet, size);
    return 0;
}
