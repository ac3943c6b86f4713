/* Kept mode: requests and reports over the control socket, and the guard's duty.
 *
 * Sends never block: what cannot be sent now waits in a fixed place.  Main's exit, the stop report
 * and "empty" have a slot each; events of members share a ring, and what falls out of it is counted.
 * On a socketpair a sent report is a delivered one, for nobody else can ever hold the other end.
 *
 * The owner is gone when the socket says so or when its pidfd does (a forked copy of the owner may
 * hold the socket open).  Then on_owner_loss rules.
 */
#define _GNU_SOURCE
#include "keeper.h"
#include "launch.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { RING = 32, ADOPTED_MAX = 256, ADOPTED_FDS_MAX = 64 };

struct event { uint16_t tag; int fd; struct hf_exited body; };

static int control = HF_CONTROL_FD, owner = HF_OWNER_FD;
static uint32_t hello_flags;
static struct hf_policy policy;

/* What waits to be sent. */
static int hello_pending, exited_pending, empty_pending, report_pending, members_pending, reply_pending;
static uint32_t members_id;
static struct hf_exited main_exit;
HF_RARELY_USED static struct event ring[RING];
static unsigned ring_first, ring_count;
static uint64_t ring_lost;
static struct { uint16_t tag; uint16_t size; int fd; union { struct hf_spawned spawned; struct hf_failed failed; } body; } reply;

static uint64_t resend_ns; /* the kernel had no memory for a packet: when to try again; 0: poll tells */

HF_RARELY_USED static int adopted[ADOPTED_MAX];
static int n_adopted;
static int empty_told;

/* What is large is needed for moments: it is given back to the kernel once the program runs, for memory
 * and because a request holds an environment, and environments hold secrets.  The *type* is aligned, so
 * its size is whole pages: madvise rounds up, and would zero whatever the linker put behind. */
HF_RARELY_USED static struct __attribute__((aligned(HF_PAGE))) {
    char packet[HF_PACKET_MAX]; /* a request, and the plan made of it */
    int fds[253];               /* what came along: SCM_RIGHTS takes no more */
    _Alignas(struct cmsghdr) char ancillary[CMSG_SPACE(253 * sizeof(int))];
    char stack[HF_CHILD_STACK]; /* of the child between clone and exec */
    char out[8192];             /* reports on their way */
} scratch;
_Static_assert(sizeof scratch % HF_PAGE == 0, "the last page is shared with other variables");

static uint64_t identity(int pidfd)
{
    struct stat st, self;
    /* Before 6.9 all pidfds share one anonymous inode: not an identity. */
    if (fstat(pidfd, &st) || fstat(owner, &self) || st.st_ino == self.st_ino)
        return 0;
    return (uint64_t)st.st_ino;
}

static void queue_event(uint16_t tag, const struct hf_exited *body, int fd)
{
    if (control < 0 || ring_count == RING) {
        if (fd >= 0)
            close(fd);
        ring_lost += control >= 0;
        return;
    }
    struct event *e = &ring[(ring_first + ring_count++) % RING];
    e->tag = tag;
    e->fd = fd;
    e->body = *body;
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
        return;
    }
    for (int i = 0; i < n_adopted; i++)
        if (adopted[i] == e.pid)
            adopted[i--] = adopted[--n_adopted];
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

static const struct hf_mode kept_mode = {on_exited, on_stopped, on_continued};

/* Adoption itself makes no event (kernel-wide): it is noticed at the next SIGCHLD, query or stop. */
static void note_adopted(void)
{
    int now[ADOPTED_MAX];
    int n = (int)hf_tree_adopted(now, ADOPTED_MAX);
    for (int i = 0; i < n && n_adopted < ADOPTED_MAX; i++) {
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
    struct iovec iov = {.iov_base = scratch.out, .iov_len = size};
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
    ssize_t n = sendmsg(control, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
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

static int anything_pending(void)
{
    return reply_pending || ring_count || ring_lost || exited_pending || report_pending || empty_pending ||
           members_pending;
}

static size_t put_members(size_t at, uint16_t tag, const void *head, size_t head_size)
{
    size_t members = hf_stop.report.n_members * sizeof(struct hf_member);
    struct hf_record record = {.tag = tag, .length = (uint32_t)(head_size + members)};
    memcpy(scratch.out + at, &record, sizeof record);
    memcpy(scratch.out + at + sizeof record, head, head_size);
    memcpy(scratch.out + at + sizeof record + head_size, hf_stop_members, members);
    return at + sizeof record + head_size + members; /* all multiples of 8 */
}

/* Send what waits: at most one descriptor and one long record a packet. */
static int flush(void)
{
    resend_ns = 0;
    while (control >= 0 && anything_pending()) {
        size_t at = 0;
        int fd = -1;
        unsigned events = 0;
        int took_reply = 0, took_exit = 0, took_report = 0, took_members = 0, took_empty = 0, took_lost = 0;
        if (hello_pending) {
            struct hf_keeper_hello hello = {HF_WIRE_VERSION, getpid()};
            hf_wire_put(scratch.out, sizeof scratch.out, &at, HF_KEEPER_HELLO, &hello, sizeof hello);
        }
        if (reply_pending) {
            hf_wire_put(scratch.out, sizeof scratch.out, &at, reply.tag, &reply.body, reply.size);
            fd = reply.fd;
            took_reply = 1;
        }
        while (fd < 0 && events < ring_count) {
            struct event *e = &ring[(ring_first + events) % RING];
            hf_wire_put(scratch.out, sizeof scratch.out, &at, e->tag, &e->body, event_size(e->tag));
            fd = e->fd;
            events++;
            if (e->tag == HF_ADOPTED) /* one a packet: with or without a descriptor, it is this one's */
                break;
        }
        /* The answer to a spawn goes alone: its reader looks at nothing else. */
        int more = events < ring_count || took_reply;
        if (!more && ring_lost) {
            struct hf_lost lost = {ring_lost};
            hf_wire_put(scratch.out, sizeof scratch.out, &at, HF_LOST, &lost, sizeof lost);
            took_lost = 1;
        }
        if (!more && exited_pending) {
            hf_wire_put(scratch.out, sizeof scratch.out, &at, HF_EXITED, &main_exit, sizeof main_exit);
            took_exit = 1;
        }
        if (!more && at < 1024) { /* the long ones: 256 members are 6 KiB */
            if (report_pending) {
                at = put_members(at, HF_STOP_REPORT, &hf_stop.report, sizeof hf_stop.report);
                took_report = 1;
            } else if (members_pending) {
                if (hf_stop.phase == STOP_NONE || hf_stop.phase == STOP_DONE)
                    hf_stop_list_members(); /* during a stop its own list is the answer */
                struct hf_members head = {members_id, hf_stop.report.n_members, hf_stop.report.unlisted, 0};
                at = put_members(at, HF_MEMBERS, &head, sizeof head);
                took_members = 1;
            }
            if (empty_pending && (took_report || !report_pending)) {
                struct hf_empty empty = {hf_clock_ns(CLOCK_MONOTONIC), hf_tree.reaped, 0, hf_tree.usage};
                hf_wire_put(scratch.out, sizeof scratch.out, &at, HF_EMPTY, &empty, sizeof empty);
                took_empty = 1;
            }
        }
        int r = send_packet(at, fd);
        if (r == -ENOBUFS || r == -ENOMEM) /* poll would say "writable" and we would spin */
            resend_ns = hf_clock_ns(CLOCK_MONOTONIC) + 20 * NS_PER_MS;
        if (r == -EAGAIN || resend_ns)
            return 0;
        if (r < 0)
            return r;
        hello_pending = 0;
        if (took_reply) {
            reply_pending = 0;
            /* A reused keeper would touch it again at once.  Larger pages are not ours alone. */
            if (!(hello_flags & HF_KEEPER_REUSED) && getauxval(AT_PAGESZ) == HF_PAGE)
                madvise(&scratch, sizeof scratch, MADV_DONTNEED);
        }
        for (unsigned i = 0; i < events; i++)
            if (ring[(ring_first + i) % RING].fd >= 0)
                close(ring[(ring_first + i) % RING].fd);
        ring_first = (ring_first + events) % RING;
        ring_count -= events;
        ring_lost = took_lost ? 0 : ring_lost;
        exited_pending &= !took_exit;
        report_pending &= !took_report;
        members_pending &= !took_members;
        if (took_empty) {
            empty_pending = 0;
            empty_told = 1;
        }
    }
    return 0;
}

static void forget_reports(void)
{
    for (unsigned i = 0; i < ring_count; i++)
        if (ring[(ring_first + i) % RING].fd >= 0)
            close(ring[(ring_first + i) % RING].fd);
    ring_count = 0;
    ring_lost = 0;
    reply_pending = exited_pending = report_pending = members_pending = empty_pending = 0;
}

static void answer_failed(int stage, int error)
{
    reply.tag = HF_FAILED;
    reply.size = sizeof reply.body.failed;
    reply.body.failed = (struct hf_failed){(uint32_t)stage, error};
    reply.fd = -1;
    reply_pending = 1;
}

static void spawn(char *body, size_t size, const int *fds, int n_fds)
{
    struct hf_plan plan;
    struct hf_child_result result = {0, 0};
    if (hf_tree.main_pid && (!hf_tree.empty || empty_pending)) { /* what the last tree left to tell comes first */
        answer_failed(HF_STAGE_RECEIVE, EBUSY);
        return;
    }
    if (hf_wire_spawn(body, size, &plan, &policy) < 0 || (int)plan.n_fds != n_fds) {
        answer_failed(HF_STAGE_RECEIVE, EBADMSG);
        return;
    }
    plan.fd_sources = (const int32_t *)fds;
    if (policy.on_owner_loss != HF_LOSS_KEEP)
        plan.options |= HF_PDEATHSIG;
    n_adopted = empty_told = exited_pending = empty_pending = report_pending = 0;
    hf_stop_reset();
    if (!hf_tree.main_pid) /* not earlier: a template must not adopt what it launches */
        prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
    uint64_t started_ns = hf_clock_ns(CLOCK_MONOTONIC), started_at_ns = hf_clock_ns(CLOCK_REALTIME);
    int r = hf_tree_spawn(&plan, scratch.stack, &result);
    if (r < 0) {
        answer_failed(result.stage, result.error);
        return;
    }
    reply.tag = HF_SPAWNED;
    reply.size = sizeof reply.body.spawned;
    reply.fd = hf_tree.main_pidfd;
    reply.body.spawned = (struct hf_spawned){.pid = hf_tree.main_pid, .identity = identity(hf_tree.main_pidfd),
                                             .started_ns = started_ns, .started_at_ns = started_at_ns};
    reply_pending = 1;
}

/* The plan is too long for a packet: it lies in a memfd that nobody can change under us. */
static void spawn_mapped(const struct hf_record *record, const char *body, const int *fds, int n_fds)
{
    struct hf_spawn_map map;
    struct stat st;
    int seals, wanted = F_SEAL_SHRINK | F_SEAL_WRITE;
    if (hf_wire_get(record, body, &map, sizeof map) < 0 || n_fds < 1 || fstat(fds[0], &st) ||
        (uint64_t)st.st_size != map.size || map.size == 0 || map.size > SIZE_MAX ||
        (seals = fcntl(fds[0], F_GET_SEALS)) < 0 || (seals & wanted) != wanted) {
        answer_failed(HF_STAGE_RECEIVE, EBADMSG);
        return;
    }
    char *area = mmap(NULL, map.size, PROT_READ | PROT_WRITE, MAP_PRIVATE, fds[0], 0);
    if (area == MAP_FAILED) {
        answer_failed(HF_STAGE_RECEIVE, errno);
        return;
    }
    spawn(area, map.size, fds + 1, n_fds - 1);
    munmap(area, map.size);
}

/* For a template: a new keeper on the descriptor that came along.  Everything about it, a failure too, is
 * told there and not here. */
static void launch(const int *fds, int n_fds)
{
    struct hf_child_result result;
    if (!(hello_flags & HF_KEEPER_TEMPLATE) || n_fds != 1 || owner < 0) {
        answer_failed(HF_STAGE_RECEIVE, EBADMSG);
        return;
    }
    const char *program = (const char *)getauxval(AT_EXECFN); /* how we were started: works without /proc */
    /* It shall find what we found at our own start, or its children would not get it back. */
    hf_lend_original_state(1);
    long pid = hf_launch(program ? program : "/proc/self/exe", fds[0], owner, &result);
    hf_lend_original_state(0);
    if (pid < 0) {
        struct hf_failed failed = {(uint32_t)result.stage, result.error};
        size_t at = 0;
        hf_wire_put(scratch.out, sizeof scratch.out, &at, HF_FAILED, &failed, sizeof failed);
        send(fds[0], scratch.out, at, MSG_DONTWAIT | MSG_NOSIGNAL); /* unsent, the end of file says enough */
    }
}

/* A report that the owner has not taken yet makes room for the new stop's, which will hold for both. */
static void begin_stop(uint32_t id, int signo, uint32_t scope, uint64_t grace_ms)
{
    hf_stop_begin(id, signo, scope, grace_ms);
    report_pending = 0;
}

static void obey(char *request, size_t size, const int *fds, int n_fds)
{
    size_t at = 0;
    struct hf_record record;
    const char *body;
    union { struct hf_hello hello; struct hf_signal signal; struct hf_stop stop; struct hf_query query;
            struct hf_loss loss; } u;
    while (hf_wire_next(request, size, &at, &record, &body) == 1) {
        /* There is one place for an answer: a packet may hold one request that has one. */
        if (reply_pending && (record.tag == HF_SPAWN || record.tag == HF_SPAWN_MAP || record.tag == HF_LAUNCH))
            continue;
        switch (record.tag) {
        case HF_HELLO:
            if (hf_wire_get(&record, body, &u, sizeof u.hello) == 0)
                hello_flags = u.hello.flags;
            break;
        case HF_SPAWN:
            spawn(request + (body - request), record.length, fds, n_fds);
            break;
        case HF_SPAWN_MAP:
            spawn_mapped(&record, body, fds, n_fds);
            break;
        case HF_SIGNAL:
            if (hf_wire_get(&record, body, &u, sizeof u.signal) == 0 && u.signal.signo > 0 &&
                u.signal.signo <= HF_NSIG && u.signal.scope <= HF_SCOPE_TREE && hf_tree.main_pid)
                hf_tree_signal(u.signal.signo, u.signal.scope);
            break;
        case HF_STOP:
            if (hf_wire_get(&record, body, &u, sizeof u.stop) == 0 && u.stop.signo > 0 &&
                u.stop.signo <= HF_NSIG && u.stop.scope <= HF_SCOPE_TREE && hf_tree.main_pid)
                begin_stop(u.stop.id, u.stop.signo, u.stop.scope, u.stop.grace_ms);
            break;
        case HF_QUERY:
            if (hf_wire_get(&record, body, &u, sizeof u.query) == 0) {
                note_adopted();
                members_id = u.query.id;
                members_pending = 1;
            }
            break;
        case HF_ON_OWNER_LOSS:
            if (hf_wire_get(&record, body, &u, sizeof u.loss) == 0 && u.loss.on_owner_loss <= HF_LOSS_KEEP)
                policy.on_owner_loss = u.loss.on_owner_loss;
            break;
        case HF_LAUNCH:
            launch(fds, n_fds);
            break;
        default:
            break; /* a later version's: skipped, as the wire says */
        }
    }
}

/* One packet of the owner's: 1; none is there: 0; -errno: the owner is lost. */
static int receive(void)
{
    int *fds = scratch.fds, n_fds = 0;
    struct iovec iov = {.iov_base = scratch.packet, .iov_len = sizeof scratch.packet};
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = scratch.ancillary,
                             .msg_controllen = sizeof scratch.ancillary};
    ssize_t n;
    do /* ECONNRESET: the owner left reports unread.  Told once, ahead of the requests that it made. */
        n = recvmsg(control, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    while (n < 0 && (errno == EINTR || errno == ECONNRESET));
    if (n < 0)
        return errno == EAGAIN ? 0 : -errno;
    if (n == 0)
        return -EPIPE;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&message); c; c = CMSG_NXTHDR(&message, c))
        if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS)
            for (size_t i = 0; i < (c->cmsg_len - CMSG_LEN(0)) / sizeof(int) && n_fds < 253; i++)
                memcpy(&fds[n_fds++], CMSG_DATA(c) + i * sizeof(int), sizeof(int));
    if (message.msg_flags & MSG_CTRUNC)
        answer_failed(HF_STAGE_RECEIVE, EMFILE);
    else if (message.msg_flags & MSG_TRUNC)
        answer_failed(HF_STAGE_RECEIVE, EMSGSIZE);
    else
        obey(scratch.packet, (size_t)n, fds, n_fds);
    for (int i = 0; i < n_fds; i++)
        close(fds[i]);
    return 1;
}

static void owner_lost(void)
{
    while (receive() > 0) /* its last words count: it may have released the tree */
        continue;
    close(control);
    if (owner >= 0)
        close(owner);
    control = owner = -1;
    if (hf_tree.main_pid == 0 || hf_tree.empty || policy.on_owner_loss == HF_LOSS_KEEP)
        return;
    if (policy.on_owner_loss == HF_LOSS_KILL)
        hf_stop_begin(0, SIGKILL, HF_SCOPE_TREE, 0);
    else
        hf_stop_begin(0, policy.stop_signal, policy.stop_scope, policy.grace_ms);
}

/* Nothing left to hold, nobody left to tell: the keeper ends. */
static int is_finished(void)
{
    if (control < 0)
        return hf_tree.main_pid == 0 || hf_tree.empty ||
               (policy.on_owner_loss != HF_LOSS_KEEP && hf_stop.phase == STOP_DONE);
    if (hello_flags & (HF_KEEPER_REUSED | HF_KEEPER_TEMPLATE))
        return 0;
    if (hf_tree.main_pid == 0)
        return reply.tag == HF_FAILED && !reply_pending;
    return empty_told;
}

int hf_kept_main(void)
{
    hf_mode = &kept_mode;
    hello_pending = 1;
    /* Launch had to leave 3 and 4 open; the process must not get them: it could speak as its owner. */
    hf_close_on_exec_from(HF_CONTROL_FD);
    setpgid(0, 0); /* a signal to the owner's group is not meant for its keeper */
    int signals = hf_signalfd(1ULL << (SIGCHLD - 1));
    if (signals < 0)
        return 125;
    while (!is_finished()) {
        uint64_t wake = hf_stop_deadline();
        if (resend_ns && (!wake || resend_ns < wake))
            wake = resend_ns;
        /* No new request before the last answer is out: its place would be needed again. */
        int events = (reply_pending ? 0 : POLLIN) | (anything_pending() && !resend_ns ? POLLOUT : 0);
        struct pollfd fds[3] = {
            {.fd = control, .events = (short)events},
            {.fd = owner, .events = POLLIN},
            {.fd = signals, .events = POLLIN},
        };
        int r = hf_poll_until(fds, 3, wake);
        if (r < 0 && r != -EINTR)
            return 125; /* cannot happen: three valid descriptors */
        int lost = 0;
        if (control >= 0 && (fds[0].revents & (POLLIN | POLLHUP | POLLERR | POLLNVAL)))
            lost = receive() < 0;
        if (owner >= 0 && fds[1].revents)
            lost = 1;
        if (fds[2].revents) {
            char record[128]; /* SIGCHLD alone is read here, and it does not queue: one record */
            ssize_t ignored = read(signals, record, sizeof record);
            (void)ignored;
            if (hf_tree.main_pid && !hf_tree.empty) {
                hf_tree_reap();
                if (hf_tree.empty)
                    empty_pending = control >= 0;
                else if (hf_stop.phase != STOP_KILL && control >= 0)
                    note_adopted();
            }
        }
        if (lost && control >= 0)
            owner_lost();
        int was_done = hf_stop.phase == STOP_DONE;
        hf_stop_step(hf_clock_ns(CLOCK_MONOTONIC));
        if (hf_stop.phase == STOP_DONE && !was_done)
            report_pending = control >= 0;
        int failed = control >= 0 ? flush() : 0;
        if (failed == -EPIPE || failed == -ECONNRESET)
            forget_reports(); /* nobody hears them; requests sent before the end are still read */
        else if (failed < 0)
            owner_lost();
    }
    return 0;
}
