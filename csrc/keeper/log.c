/* The output of a service: from its pipes, or its terminal, into lines; and the way of what is typed.
 *
 * A chunk a round and stream, so signals and stops stay prompt; whole lines go on at once, and what is left
 * of the last one waits in the buffer for its end, at most LOG_QUIET_MS.  Then, if nothing came meanwhile,
 * the buffers' memory goes back to the kernel: a service that is quiet costs no page and no wake-up.
 */
#define _GNU_SOURCE
#include "log.h"
#include "attach.h"
#include "kept.h"
#include "text.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

enum { READS_BEFORE_GROWING = 8 };

static struct stream {
    struct hf_log_file file;
    int fd, writer;         /* the pipe, writer only until the start; or both ends of a terminal */
    int pipe_size, full;    /* how many reads in a row found it more than half full */
    size_t held;            /* bytes at the start of the buffer: a line without its end */
    uint64_t settle_ns;     /* when to stop waiting; 0: nothing to settle */
} streams[LOG_STREAMS];

/* The arrays for the plan are needed before the first byte comes, and never again. */
HF_RARELY_USED static union {
    char in[LOG_STREAMS][LOG_CHUNK];
    struct { int32_t targets[HF_FDS_MAX + 3], sources[HF_FDS_MAX + 3]; } plan;
} buffers;

static struct hf_log_state told;
static uint64_t tell_ns;    /* not before */
static int asked, refused;  /* a LOG waits for its spawn; it was wrong (errno) */
static int active, was_used; /* a tree's output is ours now, or was */
static int input = -1, input_reader = -1; /* the pipe of its stdin; the reader only until the start */

static int has_terminal(void)
{
    return active && (hf_log_set.plan.flags & HF_LOG_TERMINAL);
}

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

/* A terminal makes "\r\n" of each newline: a newline again, from `from` on.  The new size. */
static size_t without_returns(char *data, size_t from, size_t size)
{
    size_t to = from;
    for (size_t i = from; i < size; i++) {
        if (data[i] == '\n' && to > 0 && data[to - 1] == '\r')
            to--;
        data[to++] = data[i];
    }
    return to;
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
    hf_attach_output(buffer + s->held, (size_t)n);
    grow_pipe(s, (size_t)n);
    size_t size = s->held + (size_t)n, seen = s->held;
    if (has_terminal()) {
        size = without_returns(buffer, s->held, size);
        seen -= seen > 0; /* a return that waited there may be a newline now */
    }
    const char *end = memrchr(buffer + seen, '\n', size - seen);
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

/* What is in the pipe now; what is written meanwhile is left to later rounds.  A terminal does not know how much
 * that is (what was written may be on its way still, only a read fetches it), but it is less than a chunk. */
static void drain(struct stream *s)
{
    int left = LOG_CHUNK;
    if (s->fd >= 0 && (has_terminal() || ioctl(s->fd, FIONREAD, &left) == 0))
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
    hf_attach_end();
    for (int i = 0; i < LOG_STREAMS; i++) {
        struct stream *s = &streams[i];
        if (s->fd >= 0)
            close(s->fd);
        if (s->writer >= 0)
            close(s->writer);
        s->fd = s->writer = -1;
        s->settle_ns = 0;
    }
    hf_log_close_input();
    if (input_reader >= 0)
        close(input_reader);
    input_reader = -1;
    if (hf_log_set.directory >= 0)
        close(hf_log_set.directory);
    hf_log_set.directory = -1;
    active = 0;
}

int hf_log_input(void)
{
    return has_terminal() ? streams[0].fd : input;
}

void hf_log_close_input(void)
{
    if (input >= 0)
        close(input);
    input = -1;
}

/* Else the next write of the service would wait for ever.  Only what was stopped by the first can the second start,
 * and a Ctrl-Q would be input where the service has no such keys. */
void hf_log_flow(void)
{
    if (has_terminal() && ioctl(streams[0].writer, TCXONC, TCOOFF) == 0)
        ioctl(streams[0].writer, TCXONC, TCOON);
}

/* ends[0] is ours, ends[1] the process's; 0 or -errno. */
static int make_terminal(int ends[2])
{
    static const struct winsize usual = {.ws_row = 24, .ws_col = 80};
    int locked = 0, error;
    ends[0] = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (ends[0] < 0)
        return -errno;
    /* Not by name: what lies at /dev/pts may belong to another mount. */
    if (ioctl(ends[0], TIOCSPTLCK, &locked) || ioctl(ends[0], TIOCSWINSZ, &usual) ||
        (ends[1] = ioctl(ends[0], TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC)) < 0) {
        error = errno;
        close(ends[0]);
        return -error;
    }
    return 0;
}

/* We never wait for it; and it may open its own stdin and stdout by name.  Without that it can still use them. */
static void prepare(int ours, int theirs, const struct hf_plan *plan)
{
    fcntl(ours, F_SETFL, O_NONBLOCK);
    int ignored = plan->options & HF_SET_UID ? fchown(theirs, plan->uid, (gid_t)-1) : 0;
    (void)ignored;
}

static int make_output(struct stream *s, const struct hf_plan *plan)
{
    int ends[2], r = 0;
    if (hf_log_set.plan.flags & HF_LOG_TERMINAL)
        r = make_terminal(ends);
    else if (pipe2(ends, O_CLOEXEC))
        r = -errno;
    if (r < 0)
        return r;
    s->fd = ends[0];
    s->writer = ends[1];
    s->held = 0;
    s->full = 0;
    s->settle_ns = 0;
    prepare(s->fd, s->writer, plan);
    s->pipe_size = fcntl(s->fd, F_GETPIPE_SZ);
    return 0;
}

static int make_input(const struct hf_plan *plan)
{
    int ends[2];
    if (pipe2(ends, O_CLOEXEC))
        return -errno;
    input_reader = ends[0];
    input = ends[1];
    prepare(input, input_reader, plan);
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
    uint32_t flags = hf_log_set.plan.flags;
    int terminal = (flags & HF_LOG_TERMINAL) != 0;
    int n_streams = (flags & HF_LOG_MERGE) || terminal ? 1 : 2, n = 0, r = 0;
    int first = terminal || (flags & HF_LOG_INPUT) ? 0 : 1; /* of descriptors 0 to 2, what is ours to give */
    if (terminal && !(plan->options & HF_NEW_SESSION))
        r = -EBADMSG; /* only a session can have one */
    for (int i = 0; i < n_streams && r == 0; i++)
        r = make_output(&streams[i], plan);
    if (r == 0 && (flags & HF_LOG_INPUT) && !terminal)
        r = make_input(plan);
    if (r < 0) {
        forget();
        return r;
    }
    for (uint32_t i = 0; i < plan->n_fds; i++)
        if (plan->fd_targets[i] < first || plan->fd_targets[i] > 2) {
            buffers.plan.targets[n] = plan->fd_targets[i];
            buffers.plan.sources[n++] = plan->fd_sources[i];
        }
    for (int fd = first; fd <= 2; fd++) {
        buffers.plan.targets[n] = fd;
        buffers.plan.sources[n++] = fd || terminal ? streams[(fd + 1) % n_streams].writer : input_reader;
    }
    plan->fd_targets = buffers.plan.targets;
    plan->fd_sources = buffers.plan.sources;
    plan->n_fds = (uint32_t)n;
    plan->closed_std &= first ? ~6U : ~7U;
    plan->options |= terminal ? HF_TERMINAL : 0;
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
        if (!has_terminal()) { /* its other end stays open: it is a terminal as long as there is a tree */
            close(streams[i].writer);
            streams[i].writer = -1;
        }
        streams[i].file.name = i ? "stderr" : "current";
        streams[i].file.prefix = i ? "stderr." : "";
        hf_log_file_open(&streams[i].file);
    }
    if (input_reader >= 0)
        close(input_reader);
    input_reader = -1;
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

ssize_t hf_log_recent(char *to, size_t room)
{
    struct hf_log_file *file = &streams[0].file;
    if (!active)
        return -1;
    hf_log_set.now_ns = hf_clock_ns(CLOCK_MONOTONIC);
    for (int i = 0; i < LOG_STREAMS; i++)
        pass_on_held(&streams[i]); /* a prompt, which is what one wants to see */
    uint64_t from = file->size > room ? file->size - room : 0;
    ssize_t n = file->fd >= 0 ? pread(file->fd, to, room, (off_t)from) : 0;
    const char *start = from && n > 0 ? memchr(to, '\n', (size_t)n) : NULL;
    if (start) {
        n -= ++start - to;
        memmove(to, start, (size_t)n);
    }
    return n > 0 ? n : 0;
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
    hf_attach_main_ended(info);
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
