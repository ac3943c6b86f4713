/* What a keeper tells its owner.
 *
 * Sends never block: what cannot be sent now waits in a fixed place.  Main's exit, the stop report
 * and "empty" have a slot each; events of members share a ring, and what falls out of it is counted.
 * On a socketpair a sent report is a delivered one, for nobody else can ever hold the other end.  A held
 * keeper's owner may die between hearing and writing down: what he has not acknowledged is told again.
 */
#define _GNU_SOURCE
#include "kept.h"
#include "log.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { RING = 32, ADOPTED_MAX = 256, ADOPTED_FDS_MAX = 64, PIDFS = 0x50494446 };

struct event { uint16_t tag; int fd; struct hf_exited body; };

struct hf_reports hf_reports;
static int hello_sent, exited_pending;
static struct hf_exited main_exit;
static struct hf_spawned main_start;
static struct hf_moved last_move;
static struct hf_empty tree_end;
/* A held keeper's copy of the last stop's report: a QUERY writes over the original. */
HF_RARELY_USED static struct { struct hf_stop_report report; struct hf_member members[HF_MEMBERS_MAX]; } stop_copy;
HF_RARELY_USED static struct __attribute__((aligned(HF_PAGE))) { struct event at[RING]; } ring;
static unsigned ring_first, ring_count;
static uint64_t ring_lost;
static struct { uint16_t tag; uint16_t size; int fd; union { struct hf_spawned spawned; struct hf_failed failed; } body; } reply;

HF_RARELY_USED static int adopted[ADOPTED_MAX];
static int n_adopted;

static uint64_t identity(int pidfd)
{
    struct stat st;
    struct statfs fs;
    /* Before 6.9 all pidfds share one anonymous inode: not an identity. */
    if (fstat(pidfd, &st) || fstatfs(pidfd, &fs) || fs.f_type != PIDFS)
        return 0;
    return (uint64_t)st.st_ino;
}

static void queue_event(uint16_t tag, const struct hf_exited *body, int fd)
{
    if (hf_kept.control < 0 || ring_count == RING) {
        if (fd >= 0)
            close(fd);
        ring_lost += hf_kept.control >= 0;
        return;
    }
    struct event *e = &ring.at[(ring_first + ring_count++) % RING];
    e->tag = tag;
    e->fd = fd;
    e->body = *body;
}

static void forget_adopted(int pid)
{
    for (int i = 0; i < n_adopted; i++)
        if (adopted[i] == pid)
            adopted[i--] = adopted[--n_adopted];
}

static void on_exited(const siginfo_t *info, const struct hf_usage *usage, int is_main)
{
    struct hf_exited e = {
        .pid = info->si_pid, .flags = (uint32_t)is_main, .code = info->si_code, .status = info->si_status,
        .ended_ns = hf_clock_ns(CLOCK_MONOTONIC), .usage = *usage,
    };
    if (is_main) {
        main_exit = e;
        exited_pending = 1;
        hf_reports.unacknowledged |= HF_ACK_EXITED;
        hf_log_main_ended(info);
        return;
    }
    forget_adopted(e.pid);
    queue_event(HF_EXITED, &e, -1);
}

static void on_change(uint16_t tag, int pid, int signo)
{
    struct hf_exited body = {0};
    struct hf_state_change change = {.pid = pid, .signo = signo};
    memcpy(&body, &change, sizeof change);
    queue_event(tag, &body, -1);
}

static void on_stopped(int pid, int signo, int is_main) { (void)is_main; on_change(HF_STOPPED, pid, signo); }
static void on_continued(int pid, int is_main) { (void)is_main; on_change(HF_CONTINUED, pid, SIGCONT); }

const struct hf_mode hf_kept_mode = {on_exited, on_stopped, on_continued};

/* Adoption itself makes no event (kernel-wide): it is noticed at the next SIGCHLD, query or stop. */
void hf_reports_note_adopted(void)
{
    const int *now;
    uint32_t n = hf_tree_adopted(&now);
    for (uint32_t i = 0; i < n && n_adopted < ADOPTED_MAX; i++) {
        int known = 0;
        for (int j = 0; j < n_adopted; j++)
            known |= adopted[j] == now[i];
        if (known)
            continue;
        adopted[n_adopted++] = now[i];
        /* A direct child that we have not reaped: the number is its own. */
        int fd = n_adopted <= ADOPTED_FDS_MAX ? hf_pidfd_open(now[i]) : -1;
        struct hf_exited body = {0};
        struct hf_adopted a = {.pid = now[i], .identity = fd >= 0 ? identity(fd) : 0};
        memcpy(&body, &a, sizeof a);
        queue_event(HF_ADOPTED, &body, fd);
    }
}

/* One packet; -EAGAIN: the owner does not read, try again when poll says so. */
static int send_packet(size_t size, int fd)
{
    union { char space[CMSG_SPACE(sizeof(int))]; struct cmsghdr align; } ancillary;
    struct iovec iov = {.iov_base = hf_scratch.out, .iov_len = size};
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1};
    if (fd >= 0) {
        memset(&ancillary, 0, sizeof ancillary);
        message.msg_control = &ancillary;
        message.msg_controllen = sizeof ancillary.space;
        struct cmsghdr *c = CMSG_FIRSTHDR(&message);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(sizeof fd);
        memcpy(CMSG_DATA(c), &fd, sizeof fd);
    }
    ssize_t n = sendmsg(hf_kept.control, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n >= 0)
        return 0;
    if (errno == ETOOMANYREFS && fd >= 0) /* too many descriptors in flight: without it, then */
        return send_packet(size, -1);
    return -errno;
}

static size_t event_size(uint16_t tag)
{
    return tag == HF_EXITED ? sizeof(struct hf_exited)
           : tag == HF_ADOPTED ? sizeof(struct hf_adopted) : sizeof(struct hf_state_change);
}

int hf_reports_pending(void)
{
    return hf_reports.answer || ring_count || ring_lost || hf_reports.moved || exited_pending || hf_reports.stop ||
           hf_reports.empty || hf_reports.members || hf_reports.log;
}

static size_t put_members(size_t at, uint16_t tag, const void *head, size_t head_size, const struct hf_member *list,
                          uint32_t n)
{
    size_t members = n * sizeof *list;
    struct hf_record record = {.tag = tag, .length = (uint32_t)(head_size + members)};
    memcpy(hf_scratch.out + at, &record, sizeof record);
    memcpy(hf_scratch.out + at + sizeof record, head, head_size);
    memcpy(hf_scratch.out + at + sizeof record + head_size, list, members);
    return at + sizeof record + head_size + members; /* all multiples of 8 */
}

static size_t put_stop_report(size_t at)
{
    int held = hf_holding.listener >= 0;
    const struct hf_stop_report *report = held ? &stop_copy.report : &hf_stop.report;
    return put_members(at, HF_STOP_REPORT, report, sizeof *report, held ? stop_copy.members : hf_stop_members,
                       report->n_members);
}

static void put_hello(size_t *at)
{
    struct hf_keeper_hello hello = {HF_WIRE_VERSION, getpid()};
    hf_wire_put(hf_scratch.out, sizeof hf_scratch.out, at, HF_KEEPER_HELLO, &hello, sizeof hello);
}

/* Send what waits: at most one descriptor and one long record a packet. */
int hf_reports_flush(void)
{
    hf_reports.resend_ns = 0;
    while (hf_kept.control >= 0 && hf_reports_pending()) {
        size_t at = 0;
        int fd = -1;
        unsigned events = 0;
        int took_reply = 0, took_exit = 0, took_report = 0, took_members = 0, took_empty = 0, took_lost = 0, took_log = 0;
        int took_move = 0;
        struct hf_log_state log;
        if (!hello_sent)
            put_hello(&at);
        if (hf_reports.answer) {
            hf_wire_put(hf_scratch.out, sizeof hf_scratch.out, &at, reply.tag, &reply.body, reply.size);
            fd = reply.fd;
            took_reply = 1;
        }
        while (!took_reply && fd < 0 && events < ring_count) {
            struct event *e = &ring.at[(ring_first + events) % RING];
            hf_wire_put(hf_scratch.out, sizeof hf_scratch.out, &at, e->tag, &e->body, event_size(e->tag));
            fd = e->fd;
            events++;
            if (e->tag == HF_ADOPTED) /* one a packet: with or without a descriptor, it is this one's */
                break;
        }
        /* The answer to a spawn goes alone: its reader looks at nothing else. */
        int more = events < ring_count || took_reply;
        if (!more && ring_lost) {
            struct hf_lost lost = {ring_lost};
            hf_wire_put(hf_scratch.out, sizeof hf_scratch.out, &at, HF_LOST, &lost, sizeof lost);
            took_lost = 1;
        }
        if (!more && hf_reports.moved && !events) { /* an adoption that has no descriptor would take this one */
            hf_wire_put(hf_scratch.out, sizeof hf_scratch.out, &at, HF_MOVED, &last_move, sizeof last_move);
            fd = hf_tree.main_pidfd;
            took_move = 1;
        }
        more |= hf_reports.moved && !took_move; /* its own packet comes first */
        if (!more && exited_pending) {
            hf_wire_put(hf_scratch.out, sizeof hf_scratch.out, &at, HF_EXITED, &main_exit, sizeof main_exit);
            took_exit = 1;
        }
        if (!more && hf_reports.log) {
            took_log = 1;
            if (hf_log_state(&log))
                hf_wire_put(hf_scratch.out, sizeof hf_scratch.out, &at, HF_LOG_STATE, &log, sizeof log);
        }
        if (!more && at < 1024) { /* the long ones: 256 members are 6 KiB */
            if (hf_reports.stop) {
                at = put_stop_report(at);
                took_report = 1;
            } else if (hf_reports.members) {
                if (hf_stop.phase == STOP_NONE || hf_stop.phase == STOP_DONE)
                    hf_stop_list_members(); /* during a stop its own list is the answer */
                struct hf_members head = {hf_reports.members_id, hf_stop.report.n_members, hf_stop.report.unlisted, 0};
                at = put_members(at, HF_MEMBERS, &head, sizeof head, hf_stop_members, head.n_members);
                took_members = 1;
            }
            if (hf_reports.empty && (took_report || !hf_reports.stop)) {
                hf_wire_put(hf_scratch.out, sizeof hf_scratch.out, &at, HF_EMPTY, &tree_end, sizeof tree_end);
                took_empty = 1;
            }
        }
        int r = send_packet(at, fd);
        if (r == -ENOBUFS || r == -ENOMEM) /* poll would say "writable" and we would spin */
            hf_reports.resend_ns = hf_clock_ns(CLOCK_MONOTONIC) + 20 * NS_PER_MS;
        if (r == -EAGAIN || hf_reports.resend_ns)
            return 0;
        if (r < 0)
            return r;
        hello_sent = 1;
        if (took_reply) {
            hf_reports.answer = 0;
            if (!(hf_kept.hello_flags & HF_KEEPER_REUSED)) /* that one would touch it again at once */
                hf_give_back(&hf_scratch, sizeof hf_scratch);
        }
        for (unsigned i = 0; i < events; i++)
            if (ring.at[(ring_first + i) % RING].fd >= 0)
                close(ring.at[(ring_first + i) % RING].fd);
        ring_first = (ring_first + events) % RING;
        ring_count -= events;
        ring_lost = took_lost ? 0 : ring_lost;
        hf_reports.moved &= !took_move;
        exited_pending &= !took_exit;
        hf_reports.stop &= !took_report;
        hf_reports.members &= !took_members;
        if (took_log) {
            hf_reports.log = 0;
            hf_log_told(&log);
        }
        if (took_empty) {
            hf_reports.empty = 0;
            hf_reports.empty_told = 1;
        }
    }
    return 0;
}

void hf_reports_rest(void)
{
    if (!ring_count)
        hf_give_back(&ring, sizeof ring);
}

void hf_reports_forget(void)
{
    for (unsigned i = 0; i < ring_count; i++)
        if (ring.at[(ring_first + i) % RING].fd >= 0)
            close(ring.at[(ring_first + i) % RING].fd);
    ring_count = 0;
    ring_lost = 0;
    hf_reports.answer = hf_reports.moved = exited_pending = hf_reports.stop = hf_reports.members = hf_reports.log =
        hf_reports.empty = 0;
}

void hf_reports_failed(int stage, int error)
{
    reply.tag = HF_FAILED;
    reply.size = sizeof reply.body.failed;
    reply.body.failed = (struct hf_failed){(uint32_t)stage, error};
    reply.fd = -1;
    hf_reports.answer = hf_reports.failed = 1;
    if (!hf_tree.main_pid) /* the last word on a tree that never was */
        hf_reports.unacknowledged |= HF_ACK_EMPTY;
}

static void answer_spawned(void)
{
    reply.tag = HF_SPAWNED;
    reply.size = sizeof reply.body.spawned;
    reply.fd = hf_tree.main_pidfd;
    reply.body.spawned = main_start;
    hf_reports.answer = 1;
}

void hf_reports_spawned(uint64_t started_ns, uint64_t started_at_ns)
{
    main_start = (struct hf_spawned){.pid = hf_tree.main_pid, .identity = identity(hf_tree.main_pidfd),
                                     .started_ns = started_ns, .started_at_ns = started_at_ns};
    answer_spawned();
}

void hf_reports_moved(int old_pid, enum hf_rule rule)
{
    forget_adopted(hf_tree.main_pid);
    main_start.pid = hf_tree.main_pid;
    main_start.identity = identity(hf_tree.main_pidfd);
    last_move = (struct hf_moved){old_pid, main_start.pid, main_start.identity, rule,
                                  last_move.count + (old_pid != main_start.pid)};
    hf_reports.moved = hf_kept.control >= 0;
    if (hf_reports.answer && reply.tag == HF_SPAWNED)
        answer_spawned(); /* not told yet, and its descriptor was the old one's */
}

void hf_reports_begin_tree(void)
{
    memset(&last_move, 0, sizeof last_move);
    hf_reports.moved = 0;
    n_adopted = exited_pending = 0;
    hf_reports.empty_told = hf_reports.empty = hf_reports.stop = 0;
    hf_reports.unacknowledged = 0;
}

void hf_reports_emptied(void)
{
    tree_end = (struct hf_empty){hf_clock_ns(CLOCK_MONOTONIC), hf_tree.reaped, 0, hf_tree.usage};
    hf_reports.empty = hf_kept.control >= 0;
    hf_reports.unacknowledged |= HF_ACK_EMPTY;
}

void hf_reports_stopped(void)
{
    hf_reports.stop = hf_kept.control >= 0;
    hf_reports.unacknowledged |= HF_ACK_STOP_REPORT;
    if (hf_holding.listener >= 0) {
        stop_copy.report = hf_stop.report;
        memcpy(stop_copy.members, hf_stop_members, hf_stop.report.n_members * sizeof *hf_stop_members);
    }
}

void hf_reports_acknowledge(uint32_t what)
{
    hf_reports.unacknowledged &= ~what;
    exited_pending &= !(what & HF_ACK_EXITED);
    hf_reports.stop &= !(what & HF_ACK_STOP_REPORT);
    hf_reports.empty &= !(what & HF_ACK_EMPTY);
}

void hf_reports_greet(void)
{
    uint32_t owed = hf_reports.unacknowledged;
    struct hf_log_state log;
    hello_sent = 0;
    if (hf_tree.main_pid)
        answer_spawned();
    else
        hf_reports.answer = 1; /* the failure that `reply` still holds: else we would have ended */
    hf_reports.moved = last_move.count != 0;
    exited_pending = (owed & HF_ACK_EXITED) != 0;
    hf_reports.stop = (owed & HF_ACK_STOP_REPORT) != 0;
    hf_reports.empty = hf_tree.main_pid && (owed & HF_ACK_EMPTY);
    hf_reports.log = hf_log_state(&log);
    n_adopted = 0; /* he has no descriptor of any of them */
    if (hf_stop.phase != STOP_KILL)
        hf_reports_note_adopted();
}

size_t hf_reports_record(void)
{
    size_t at = 0, room = sizeof hf_scratch.out;
    struct hf_log_state log;
    put_hello(&at);
    if (!hf_tree.main_pid) {
        hf_wire_put(hf_scratch.out, room, &at, HF_FAILED, &reply.body.failed, sizeof reply.body.failed);
        return at;
    }
    hf_wire_put(hf_scratch.out, room, &at, HF_SPAWNED, &main_start, sizeof main_start);
    if (last_move.count)
        hf_wire_put(hf_scratch.out, room, &at, HF_MOVED, &last_move, sizeof last_move);
    hf_wire_put(hf_scratch.out, room, &at, HF_EXITED, &main_exit, sizeof main_exit);
    if (stop_copy.report.signo) /* there was a stop */
        at = put_stop_report(at);
    hf_wire_put(hf_scratch.out, room, &at, HF_EMPTY, &tree_end, sizeof tree_end);
    if (hf_log_state(&log))
        hf_wire_put(hf_scratch.out, room, &at, HF_LOG_STATE, &log, sizeof log);
    return at;
}
