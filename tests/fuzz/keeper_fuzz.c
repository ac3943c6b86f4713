/* Feeds a whole keeper, but for the processes: packets with descriptors arrive at its socket as an owner's,
 * owners come and go, a process that there is not writes, forks and ends.  What the keeper says must read
 * well and come in its order; a report file must be whole.
 *
 * An input is a series of steps: one byte says which, and what follows is for it.
 */
#define _GNU_SOURCE
#include "sys.h"
#define hf_pidfd_open(pid) fake_pidfd(pid) /* of processes that there are not */
static int fake_pidfd(int pid);
#include "../../csrc/keeper/attach.c" /* with everything that they keep to themselves: each input starts anew */
#include "../../csrc/keeper/daemon.c"
#include "../../csrc/keeper/held.c"
#include "../../csrc/keeper/kept.c"
#include "../../csrc/keeper/kept_reports.c"
#include "../../csrc/keeper/log.c"

#include <assert.h>
#include <dirent.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/un.h>

enum { FAKE_PID = 1 << 30 };

/* ---- in place of tree.c, launch.c and main.c: a tree of one process that only seems to run */

struct hf_tree hf_tree;
const struct hf_mode *hf_mode = &hf_kept_mode;
static int out = -1; /* its stdout */
static int adopted_now;
static int null_fd, quiet_fd; /* the one is always readable, the other never */

int hf_proc_is_ours(void) { return 0; }
int hf_read_stat(int pid, struct hf_stat *stat)
{
    *stat = (struct hf_stat){.ppid = getpid(), .state = 'S', .threads = 1, .pgrp = pid, .session = pid % 3, .start = 5,
                             .name = "fake"};
    return pid >= FAKE_PID ? 0 : -ENOENT;
}
static int fake_pidfd(int pid) { return pid >= FAKE_PID ? fcntl(quiet_fd, F_DUPFD_CLOEXEC, 3) : (hf_pidfd_open)(pid); }
uint32_t hf_tree_walk(hf_visit *visit)
{
    struct hf_stat stat = {.state = 'S', .threads = 1, .pgrp = FAKE_PID, .start = 5, .name = "fake"};
    for (int i = 0; i <= adopted_now; i++)
        visit(FAKE_PID + i, -1, &stat);
    return (uint32_t)adopted_now + 1;
}
uint32_t hf_tree_adopted(const int **list)
{
    static int pids[256];
    uint32_t n = 0;
    for (int i = 0; i < adopted_now; i++)
        if (FAKE_PID + 1 + i != hf_tree.main_pid)
            pids[n++] = FAKE_PID + 1 + i;
    *list = pids;
    return n;
}
int hf_tree_signal_group(int signo) { (void)signo; return -ENOTSUP; }
void hf_tree_look_up_group(void) {}
int hf_tree_signal(int signo, enum hf_scope scope)
{
    assert(signo >= 1 && signo <= HF_NSIG && scope <= HF_SCOPE_TREE && hf_tree.main_pid);
    return 0;
}
void hf_tree_reap(void) {}
void hf_tree_rest(void) {}
int hf_tree_spawn(struct hf_plan *plan, char *stack, struct hf_child_result *result)
{
    (void)stack;
    assert(plan->argv[0] && plan->executable && plan->n_fds <= HF_FDS_MAX + 3);
    if (plan->argv[0][0] == 'f') {
        *result = (struct hf_child_result){HF_STAGE_EXEC, ENOENT};
        return -ENOENT;
    }
    for (uint32_t i = 0; i < plan->n_fds; i++) {
        assert(fcntl(plan->fd_sources[i], F_GETFD) >= 0);
        if (plan->fd_targets[i] == 1 && out < 0) {
            out = fcntl(plan->fd_sources[i], F_DUPFD_CLOEXEC, 3);
            fcntl(out, F_SETFL, fcntl(out, F_GETFL) | O_NONBLOCK);
        }
    }
    if (hf_tree.main_pid)
        close(hf_tree.main_pidfd);
    hf_tree = (struct hf_tree){.main_pid = FAKE_PID, .main_pidfd = fcntl(null_fd, F_DUPFD_CLOEXEC, 3)};
    return 0;
}
long hf_launch(const char *path, int control_fd, int owner_pidfd, struct hf_child_result *result)
{
    (void)path, (void)owner_pidfd;
    assert(fcntl(control_fd, F_GETFD) >= 0);
    *result = (struct hf_child_result){HF_STAGE_LAUNCH, EAGAIN};
    return -EAGAIN;
}
void hf_lend_original_state(int lend) { (void)lend; }
int hf_signalfd(hf_sigmask mask) { (void)mask; return -1; }
int hf_poll_until(struct pollfd *fds, unsigned n, uint64_t deadline_ns) { (void)deadline_ns; return poll(fds, n, 0); }
void hf_give_back(void *memory, size_t size) { madvise(memory, size / HF_PAGE * HF_PAGE, MADV_DONTNEED); }

/* ---- the owner */

static int owner_end = -1, directory_fd, said_empty;
static char where[96], address[108];

static void hear(void)
{
    char packet[16384];
    union { char space[CMSG_SPACE(sizeof(int))]; struct cmsghdr align; } ancillary;
    for (;;) {
        struct iovec iov = {packet, sizeof packet};
        struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &ancillary,
                                 .msg_controllen = sizeof ancillary};
        ssize_t n = recvmsg(owner_end, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
        if (n <= 0)
            return;
        assert(!(message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)));
        struct cmsghdr *c = CMSG_FIRSTHDR(&message);
        if (c)
            close(*(int *)(void *)CMSG_DATA(c));
        struct hf_record record;
        const char *body;
        size_t at = 0;
        int r;
        while ((r = hf_wire_next(packet, (size_t)n, &at, &record, &body)) == 1) {
            assert(record.tag >= HF_KEEPER_HELLO && record.tag <= HF_MOVED);
            assert(!said_empty || record.tag == HF_MEMBERS || record.tag == HF_LOG_STATE || record.tag == HF_STOP_REPORT ||
                   record.tag == HF_FAILED || record.tag == HF_KEEPER_HELLO || record.tag == HF_LOST ||
                   hf_kept.hello_flags);
            said_empty |= record.tag == HF_EMPTY;
        }
        assert(r == 0);
    }
}

/* ---- a client: one of ATTACH, whose other end we have */

static int client = -1, client_listens;

static void hear_as_client(void)
{
    static char packet[2 * ATTACH_PIECE_MAX];
    static int told_skipped;
    while (client_listens) {
        struct hf_record record;
        const char *body;
        size_t at = 0;
        ssize_t n = recv(client, packet, sizeof packet, MSG_DONTWAIT);
        if (n <= 0)
            return;
        assert(hf_wire_next(packet, (size_t)n, &at, &record, &body) == 1);
        assert(record.tag >= HF_ATTACHED && record.tag <= HF_REFUSED && record.length && at >= (size_t)n);
        assert(!told_skipped || record.tag != HF_SKIPPED);
        told_skipped = record.tag == HF_SKIPPED;
    }
}

static void client_says(const uint8_t *data, size_t size)
{
    if (size == 0) {
        shutdown(client, SHUT_WR);
    } else if (size < 4) {
        close(client);
        client = -1;
    } else if (size < 6) {
        client_listens = !client_listens;
    } else {
        send(client, data, size, MSG_NOSIGNAL | MSG_DONTWAIT);
    }
}

static void leave(void)
{
    if (owner_end >= 0)
        close(owner_end);
    owner_end = -1;
    if (out >= 0)
        close(out);
    out = -1;
}

static void come(int says_hello)
{
    static const struct { struct hf_record record; struct hf_hello hello; } hello = {
        {.tag = HF_HELLO, .length = sizeof(struct hf_hello)}, {HF_WIRE_VERSION, 0}};
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    strcpy(name.sun_path, address);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (owner_end >= 0 || connect(fd, (struct sockaddr *)&name, sizeof name)) {
        close(fd);
        return;
    }
    owner_end = fd;
    said_empty = 0;
    if (says_hello)
        send(fd, &hello, sizeof hello, MSG_NOSIGNAL | MSG_DONTWAIT);
}

static void say(const uint8_t *data, size_t size, unsigned n_fds, int listener)
{
    int fds[4] = {directory_fd, directory_fd, null_fd, null_fd}, pair[2] = {-1, -1};
    union { char space[CMSG_SPACE(sizeof fds)]; struct cmsghdr align; } ancillary;
    char *packet = malloc(size ? size : 1);
    memcpy(packet, data, size);
    struct iovec iov = {packet, size};
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1};
    if (n_fds == 2)
        fds[0] = listener; /* what HELD wants */
    if (n_fds == 1 && size && packet[0] == HF_ATTACH && socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) == 0)
        fds[0] = pair[0];
    if (n_fds) {
        memset(&ancillary, 0, sizeof ancillary);
        message.msg_control = &ancillary;
        message.msg_controllen = CMSG_SPACE(sizeof(int) * n_fds);
        struct cmsghdr *c = &ancillary.align;
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(sizeof(int) * n_fds);
        memcpy(CMSG_DATA(c), fds, sizeof(int) * n_fds);
    }
    if (owner_end >= 0 && size)
        sendmsg(owner_end, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    free(packet);
    if (pair[0] < 0)
        return;
    close(pair[0]);
    if (client >= 0)
        close(client);
    client = pair[1];
    client_listens = 1;
}

/* ---- a round of the keeper's loop */

static void end_main(int status)
{
    siginfo_t info = {.si_code = status & 1 ? CLD_KILLED : CLD_EXITED};
    struct hf_usage usage = {0};
    info.si_pid = hf_tree.main_pid;
    info.si_status = status >> 1;
    if (!hf_tree.main_pid || hf_tree.main_ended)
        return;
    if (hf_daemon_follow(&info, 1)) {
        hf_tree.reaped++;
        hf_mode->exited(&info, &usage, 0);
        return;
    }
    hf_tree.main_ended = 1;
    hf_tree.reaped++;
    hf_mode->exited(&info, &usage, 1);
}

static void step(void)
{
    struct pollfd fds[N_FDS] = {
        [LISTENER] = {.fd = hf_held_poll_fd(), .events = POLLIN}, [CANDIDATE] = {.fd = hf_holding.candidate, .events = POLLIN},
        [CONTROL] = {.fd = hf_kept.control, .events = hf_reports.answer ? 0 : POLLIN},
        [OWNER] = {.fd = -1}, [SIGNALS] = {.fd = -1}, [LEFT] = {.fd = -1},
    };
    hf_attach_watch(fds + CLIENTS);
    hf_log_watch(fds + LOGS);
    poll(fds, N_FDS, 0);
    int lost = 0;
    if (hf_kept.control >= 0 && fds[CONTROL].revents)
        lost = receive() < 0 || (hf_holding.listener >= 0 && (fds[CONTROL].revents & POLLHUP));
    if (hf_tree.main_pid && !hf_tree.empty)
        reap();
    hf_log_step(fds + LOGS);
    hf_attach_step(fds + CLIENTS);
    if (lost)
        owner_lost();
    int was_done = hf_stop.phase == STOP_DONE;
    hf_stop_step(hf_clock_ns(CLOCK_MONOTONIC));
    if (hf_stop.phase == STOP_DONE && !was_done)
        hf_reports_stopped();
    if (hf_holding.listener >= 0)
        hf_held_step(fds[LISTENER].revents, fds[CANDIDATE].revents, hf_clock_ns(CLOCK_MONOTONIC));
    if (hf_kept.control >= 0 && hf_reports_flush() < 0)
        hf_reports_forget();
    if (hf_holding.listener >= 0 && !hf_reports_pending() && !hf_stop_deadline())
        rest();
    if (owner_end >= 0)
        hear();
    if (client >= 0)
        hear_as_client();
}

static void check_report(void)
{
    char text[16384];
    int fd = openat(directory_fd, "1.report", O_RDONLY);
    if (fd < 0)
        return;
    ssize_t n = read(fd, text, sizeof text);
    struct hf_record record;
    const char *body;
    size_t at = 0;
    assert(n > 0 && hf_wire_next(text, (size_t)n, &at, &record, &body) == 1 && record.tag == HF_KEEPER_HELLO);
    while (hf_wire_next(text, (size_t)n, &at, &record, &body) == 1)
        continue;
    assert(at == (size_t)n);
    close(fd);
}

static void clean_up(void)
{
    DIR *d = opendir(where);
    for (struct dirent *e; (e = readdir(d));)
        if (e->d_name[0] != '.')
            unlinkat(directory_fd, e->d_name, 0);
    closedir(d);
}

static uint64_t open_numbers(void)
{
    uint64_t set = 0;
    for (int fd = 0; fd < 64; fd++)
        set |= (uint64_t)(fcntl(fd, F_GETFD) >= 0) << fd;
    return set;
}

static void reset(void)
{
    hf_holding = (struct hf_holding){.listener = -1, .candidate = -1};
    report_written = 0;
    candidate_end_ns = report_again_ns = accept_again_ns = 0;
    memset(&hf_tree, 0, sizeof hf_tree);
    memset(&hf_reports, 0, sizeof hf_reports);
    memset(&stop_copy, 0, sizeof stop_copy);
    memset(&reply, 0, sizeof reply);
    memset(&choice, 0, sizeof choice);
    memset(&last_move, 0, sizeof last_move);
    hello_sent = exited_pending = n_adopted = 0;
    asked = refused = active = was_used = ended = n_clients = 0;
    hf_log_set = (struct hf_log_set){.directory = -1};
    memset(streams, 0, sizeof streams);
    hf_stop_reset();
    clean_up();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc, (void)argv;
    signal(SIGPIPE, SIG_IGN); /* for the process that there is not */
    const char *base = getenv("TMPDIR");
    snprintf(where, sizeof where, "%s/XXXXXX", base && strlen(base) < sizeof where - 8 ? base : "/tmp");
    if (!mkdtemp(where))
        abort();
    snprintf(address, sizeof address, "%s/1.sock", where);
    directory_fd = open(where, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    quiet_fd = eventfd(0, EFD_CLOEXEC);
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    int pair[2];
    uint64_t open_before = open_numbers();
    int listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    strcpy(name.sun_path, address);
    if (bind(listener, (struct sockaddr *)&name, sizeof name) || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
        abort();
    hf_kept = (struct hf_kept){.control = pair[0], .owner = hf_pidfd_open(getpid())};
    owner_end = pair[1];
    said_empty = adopted_now = 0;
    for (size_t at = 0; at < size;) {
        unsigned what = data[at++];
        size_t left = size - at, length = 0;
        switch (what & 7) {
        case 0: case 1: case 2: /* a packet, and so many descriptors */
            if (left < 2)
                break;
            length = (size_t)(data[at] | data[at + 1] << 8);
            at += 2;
            left -= 2;
            length = length < left ? length : left;
            say(data + at, length, what & 7 ? (what & 7) : what >> 6, listener);
            break;
        case 3: /* output, or what a client types */
            length = what >> 3 < left ? what >> 3 : left;
            if (what & 128 && client >= 0) {
                length = 2 * (what >> 3 & 15) < left ? 2 * (what >> 3 & 15) : left;
                client_says(data + at, length);
                break;
            }
            if (out >= 0 && length && write(out, data + at, length) < 0)
                break;
            break;
        case 4:
            end_main((int)what >> 3);
            break;
        case 5:
            if (hf_tree.main_ended && !adopted_now && !hf_tree.empty) {
                hf_tree.empty = 1;
                hf_log_end();
                hf_reports_emptied();
            }
            break;
        case 6:
            adopted_now = (int)what >> 3;
            break;
        default:
            if (what & 8)
                leave();
            else
                come(what & 16);
        }
        at += length;
        step();
        if (is_finished())
            break;
    }
    check_report();
    if (client >= 0)
        close(client);
    client = -1;
    /* The end, whatever the state: then nothing may be open that was not before. */
    leave();
    if (active)
        hf_log_end();
    else if (hf_log_set.directory >= 0)
        close(hf_log_set.directory); /* a LOG that waited for its SPAWN */
    policy.on_owner_loss = HF_LOSS_KEEP;
    if (hf_kept.control >= 0)
        owner_lost();
    hf_reports_forget();
    if (hf_holding.candidate >= 0)
        close(hf_holding.candidate);
    if (hf_holding.listener >= 0) {
        close(hf_holding.listener);
        close(directory);
    }
    if (hf_tree.main_pid)
        close(hf_tree.main_pidfd);
    close(listener);
    assert(open_numbers() == open_before);
    reset();
    return 0;
}
