/* The output of a service: from its pipes into lines.
 *
 * A chunk a round and stream, so signals and stops stay prompt; whole lines go on at once, and what is left
 * of the last one waits in the buffer for its end, at most LOG_QUIET_MS.  Then, if nothing came meanwhile,
 * the buffers' memory goes back to the kernel: a service that is quiet costs no page and no wake-up.
 */
#define _GNU_SOURCE
#include "log.h"
#include "kept.h"
#include "text.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

enum { READS_BEFORE_GROWING = 8 };

static struct stream {
    struct hf_log_file file;
    int fd, writer;         /* the pipe; writer only until the start */
    int pipe_size, full;    /* how many reads in a row found it more than half full */
    size_t held;            /* bytes at the start of the buffer: a line without its end */
    uint64_t settle_ns;     /* when to stop waiting; 0: nothing to settle */
} streams[LOG_STREAMS];

/* The arrays for the plan are needed before the first byte comes, and never again. */
HF_RARELY_USED static union {
    char in[LOG_STREAMS][LOG_CHUNK];
    struct { int32_t targets[HF_FDS_MAX + LOG_STREAMS], sources[HF_FDS_MAX + LOG_STREAMS]; } plan;
} buffers;

static struct hf_log_state told;
static uint64_t tell_ns;    /* not before */
static int asked, refused;  /* a LOG waits for its spawn; it was wrong (errno) */
static int active, was_used; /* a tree's output is ours now, or was */

/* ---- bytes into lines */

static void pass_on(struct stream *s, char *buffer, size_t size)
{
    if (hf_log_set.plan.flags & HF_LOG_TIMESTAMPS)
        hf_log_put_stamped(&s->file, buffer, size);
    else
        hf_log_file_put(&s->file, buffer, size);
}

static void pass_on_held(struct stream *s)
{
    if (s->held)
        pass_on(s, buffers.in[s - streams], s->held);
    s->held = 0;
}

/* A pipe that is full whenever we come costs a switch of processes for each 64 KiB. */
static void grow_pipe(struct stream *s, size_t came)
{
    s->full = 2 * came >= (size_t)s->pipe_size ? s->full + 1 : 0;
    if (s->full < READS_BEFORE_GROWING || s->pipe_size >= LOG_PIPE_GROWN)
        return;
    s->full = 0;
    int size = fcntl(s->fd, F_SETPIPE_SZ, LOG_PIPE_GROWN);
    s->pipe_size = size > 0 ? size : LOG_PIPE_GROWN; /* not allowed: not asked again */
}

/* An unprivileged user has 64 MiB of pipes; beyond that, new ones are a page long. */
static void shrink_pipe(struct stream *s)
{
    int size = s->fd >= 0 && s->pipe_size >= LOG_PIPE_GROWN ? fcntl(s->fd, F_SETPIPE_SZ, LOG_PIPE_USUAL) : 0;
    if (size > 0)
        s->pipe_size = size;
}

/* One chunk.  How many bytes came; 0: none is there now, or none will come. */
static size_t take(struct stream *s)
{
    char *buffer = buffers.in[s - streams];
    ssize_t n = read(s->fd, buffer + s->held, LOG_CHUNK - s->held);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return 0;
    if (n <= 0) { /* nobody can write any more */
        pass_on_held(s);
        close(s->fd);
        s->fd = -1;
        return 0;
    }
    grow_pipe(s, (size_t)n);
    size_t size = s->held + (size_t)n;
    const char *end = memrchr(buffer + s->held, '\n', (size_t)n);
    size_t lines = end ? (size_t)(end - buffer) + 1 : size == LOG_CHUNK ? size : 0;
    if (lines || !s->held) /* a line that grows does not wait longer for that */
        s->settle_ns = hf_log_set.now_ns + LOG_QUIET_MS * NS_PER_MS;
    if (lines) {
        pass_on(s, buffer, lines);
        memmove(buffer, buffer + lines, size - lines);
    }
    s->held = size - lines;
    return (size_t)n;
}

/* What is in the pipe now; what is written meanwhile is left to later rounds. */
static void drain(struct stream *s)
{
    int left = 0;
    if (s->fd >= 0 && ioctl(s->fd, FIONREAD, &left) == 0)
        while (left > 0 && s->fd >= 0) {
            size_t n = take(s);
            if (n == 0)
                break;
            left -= n < (size_t)left ? (int)n : left;
        }
    pass_on_held(s);
}

static void give_back_memory(void)
{
    for (int i = 0; i < LOG_STREAMS; i++)
        if (!streams[i].held)
            hf_give_back(buffers.in[i], LOG_CHUNK);
    hf_log_stamp_rest();
    hf_log_files_rest();
}

/* ---- the start */

void hf_log_request(const struct hf_record *record, const char *body, const int *fds, int n_fds)
{
    struct hf_log plan;
    if (active)
        return; /* too late for this tree, too early for the next */
    if (hf_log_set.directory >= 0)
        close(hf_log_set.directory);
    hf_log_set.directory = -1;
    asked = 1;
    if (hf_wire_get(record, body, &plan, sizeof plan) < 0 || n_fds != 1 || plan.label[sizeof plan.label - 1]) {
        refused = EBADMSG;
        return;
    }
    hf_log_set.plan = plan;
    if (plan.rotate_size > INT64_MAX / 2)
        hf_log_set.plan.rotate_size = INT64_MAX / 2; /* so that twice as much is a number, too */
    /* Opened again: reading a directory moves a position, and that of fds[0] is the owner's as well. */
    hf_log_set.directory = openat(fds[0], ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    refused = hf_log_set.directory < 0 ? errno : 0;
}

static void forget(void)
{
    for (int i = 0; i < LOG_STREAMS; i++) {
        struct stream *s = &streams[i];
        if (s->fd >= 0)
            close(s->fd);
        if (s->writer >= 0)
            close(s->writer);
        s->fd = s->writer = -1;
        s->settle_ns = 0;
    }
    if (hf_log_set.directory >= 0)
        close(hf_log_set.directory);
    hf_log_set.directory = -1;
    active = 0;
}

static int make_pipe(struct stream *s, const struct hf_plan *plan)
{
    int ends[2];
    if (pipe2(ends, O_CLOEXEC))
        return -errno;
    s->fd = ends[0];
    s->writer = ends[1];
    s->held = 0;
    s->full = 0;
    s->settle_ns = 0;
    fcntl(s->fd, F_SETFL, O_NONBLOCK);
    s->pipe_size = fcntl(s->fd, F_GETPIPE_SZ);
    if ((plan->options & HF_SET_UID) && fchown(s->writer, plan->uid, (gid_t)-1)) {
        /* Without it the process cannot open its own /dev/stdout by name; it can still write. */
    }
    return 0;
}

int hf_log_begin(struct hf_plan *plan)
{
    if (!asked)
        return 0;
    asked = 0;
    for (int i = 0; i < LOG_STREAMS; i++)
        streams[i].fd = streams[i].writer = streams[i].file.fd = -1;
    if (refused)
        return -refused;
    int n_streams = hf_log_set.plan.flags & HF_LOG_MERGE ? 1 : 2, n = 0;
    for (int i = 0; i < n_streams; i++) {
        int r = make_pipe(&streams[i], plan);
        if (r < 0) {
            forget();
            return r;
        }
    }
    for (uint32_t i = 0; i < plan->n_fds; i++)
        if (plan->fd_targets[i] != 1 && plan->fd_targets[i] != 2) {
            buffers.plan.targets[n] = plan->fd_targets[i];
            buffers.plan.sources[n++] = plan->fd_sources[i];
        }
    for (int fd = 1; fd <= 2; fd++) {
        buffers.plan.targets[n] = fd;
        buffers.plan.sources[n++] = streams[(fd - 1) % n_streams].writer;
    }
    plan->fd_targets = buffers.plan.targets;
    plan->fd_sources = buffers.plan.sources;
    plan->n_fds = (uint32_t)n;
    plan->closed_std &= ~6U;
    active = 1;
    return 0;
}

static void mark(const char *text, int64_t number)
{
    char line[LOG_STAMP + sizeof hf_log_set.plan.label + 80];
    struct hf_text t = {line + hf_log_stamp(line), line + sizeof line - 1};
    put(&t, "--- holdfast: ");
    put(&t, hf_log_set.plan.label);
    put(&t, text);
    put_signed(&t, number);
    *t.at++ = '\n';
    hf_log_file_mark(&streams[0].file, line, (size_t)(t.at - line));
}

void hf_log_started(int pid)
{
    if (!active)
        return;
    if (pid == 0) {
        give_back_memory();
        forget();
        return;
    }
    memset(&hf_log_set.state, 0, sizeof hf_log_set.state);
    memset(&told, 0, sizeof told);
    was_used = 1;
    tell_ns = 0;
    hf_log_set.now_ns = hf_clock_ns(CLOCK_MONOTONIC);
    for (int i = 0; i < LOG_STREAMS; i++) {
        if (streams[i].fd < 0)
            continue;
        close(streams[i].writer);
        streams[i].writer = -1;
        streams[i].file.name = i ? "stderr" : "current";
        streams[i].file.prefix = i ? "stderr." : "";
        hf_log_file_open(&streams[i].file);
    }
    mark(" started, pid ", pid);
    give_back_memory();
}

/* ---- while it runs */

void hf_log_watch(struct pollfd fds[LOG_STREAMS])
{
    for (int i = 0; i < LOG_STREAMS; i++)
        fds[i] = (struct pollfd){.fd = active ? streams[i].fd : -1, .events = POLLIN};
}

int hf_log_state(struct hf_log_state *state)
{
    *state = hf_log_set.state;
    for (int i = 0; i < LOG_STREAMS; i++)
        if (streams[i].file.gap && streams[i].file.gap_error > 0)
            state->error = streams[i].file.gap_error;
    return was_used;
}

static int has_news(void)
{
    struct hf_log_state now;
    return hf_log_state(&now) && (now.lost_bytes != told.lost_bytes || now.dropped_bytes != told.dropped_bytes ||
                                  now.error != told.error);
}

void hf_log_told(const struct hf_log_state *state)
{
    if (has_news()) /* the answer to a query holds nothing back */
        tell_ns = hf_clock_ns(CLOCK_MONOTONIC) + LOG_AGAIN_MS * NS_PER_MS;
    told = *state;
}

uint64_t hf_log_deadline(void)
{
    uint64_t first = has_news() && hf_kept.control >= 0 && !hf_reports.log ? tell_ns : 0;
    for (int i = 0; i < LOG_STREAMS; i++)
        if (streams[i].settle_ns && (!first || streams[i].settle_ns < first))
            first = streams[i].settle_ns;
    return first;
}

void hf_log_step(const struct pollfd fds[LOG_STREAMS])
{
    if (!active && !has_news())
        return;
    uint64_t now = hf_log_set.now_ns = hf_clock_ns(CLOCK_MONOTONIC);
    int settled = 0;
    for (int i = 0; i < LOG_STREAMS; i++) {
        struct stream *s = &streams[i];
        if (active && s->fd >= 0 && fds[i].fd == s->fd && fds[i].revents)
            take(s);
        if (s->settle_ns && now >= s->settle_ns) {
            pass_on_held(s);
            shrink_pipe(s);
            s->settle_ns = 0;
            settled = 1;
        }
    }
    if (settled)
        give_back_memory();
    if (now >= tell_ns && has_news())
        hf_reports.log = hf_kept.control >= 0;
}

/* ---- the end */

void hf_log_main_ended(const siginfo_t *info)
{
    if (!active)
        return;
    hf_log_set.now_ns = hf_clock_ns(CLOCK_MONOTONIC);
    for (int i = 0; i < LOG_STREAMS; i++)
        drain(&streams[i]);
    mark(info->si_code == CLD_EXITED ? " exited with code " : " killed by signal ", info->si_status);
}

void hf_log_end(void)
{
    if (!active)
        return;
    hf_log_set.now_ns = hf_clock_ns(CLOCK_MONOTONIC);
    for (int i = 0; i < LOG_STREAMS; i++) {
        drain(&streams[i]);
        hf_log_file_close(&streams[i].file);
    }
    forget();
    give_back_memory();
    if (has_news())
        hf_reports.log = hf_kept.control >= 0;
}
