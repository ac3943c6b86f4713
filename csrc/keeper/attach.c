/* Clients at the other end of a service's terminal or stdin.
 *
 * In: connections, by ATTACH.  Out: what the service writes from then on; and what they type goes to it.
 * Nobody is waited for and nothing is stored here.  Output that a client's socket has no room for is skipped for
 * him, and counted; input that the service does not take stays in the client's socket, and so with him.
 */
#define _GNU_SOURCE
#include "attach.h"
#include "kept.h"
#include "log.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

static struct client {
    int fd;           /* -1: none */
    int waiting;      /* for room in what he types into */
    uint32_t taken;   /* bytes of his next packet that are in there already */
    uint64_t skipped; /* bytes of output, since he was told last */
} clients[ATTACH_CLIENTS_MAX] = {{.fd = -1}, {.fd = -1}, {.fd = -1}, {.fd = -1}};

static int n_clients, ended;
static struct hf_ended end;
static unsigned turn; /* whose input goes first */

/* 0, or -errno; -EAGAIN: no room for it, now or in a socket that is this narrow. */
static int tell(int fd, uint16_t tag, const void *body, size_t size)
{
    struct hf_record record = {.tag = tag, .length = (uint32_t)size};
    struct iovec iov[2] = {{&record, sizeof record}, {(void *)(uintptr_t)body, size}};
    struct msghdr message = {.msg_iov = iov, .msg_iovlen = 2};
    if (sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0)
        return 0;
    return errno == ENOBUFS || errno == ENOMEM || errno == EMSGSIZE ? -EAGAIN : -errno;
}

static void let_go(struct client *c)
{
    hf_hang_up(c->fd);
    c->fd = -1;
    if (--n_clients == 0)
        hf_log_flow();
}

/* Say what he is owed. */
static void settle(struct client *c)
{
    struct hf_skipped skipped = {c->skipped};
    int r = c->skipped ? tell(c->fd, HF_SKIPPED, &skipped, sizeof skipped) : 0;
    if (r == 0) {
        c->skipped = 0;
        if (ended)
            r = tell(c->fd, HF_ENDED, &end, sizeof end);
    }
    if ((r < 0 && r != -EAGAIN) || (r == 0 && ended))
        let_go(c);
}

void hf_attach_begin(const int *fds, int n_fds)
{
    if (n_fds != 1 || !hf_is_packet_socket(fds[0]))
        return; /* there is nobody to answer to */
    struct client *c = clients;
    while (c < clients + ATTACH_CLIENTS_MAX && c->fd >= 0)
        c++;
    struct hf_refused refused = {.error = EBUSY};
    ssize_t recent = hf_tree.main_ended ? -1 : hf_log_recent(hf_scratch.out, ATTACH_RECENT_MAX);
    int fd = -1;
    if (recent < 0)
        refused.error = ESRCH;
    else if (c < clients + ATTACH_CLIENTS_MAX && (fd = fcntl(fds[0], F_DUPFD_CLOEXEC, 3)) < 0)
        refused.error = errno;
    if (fd < 0) {
        tell(fds[0], HF_REFUSED, &refused, sizeof refused);
        return;
    }
    struct hf_attached attached = {.pid = hf_tree.main_pid};
    if (hf_log_input() >= 0)
        attached.flags = hf_log_set.plan.flags & HF_LOG_TERMINAL ? HF_HAS_INPUT | HF_HAS_TERMINAL : HF_HAS_INPUT;
    *c = (struct client){.fd = fd};
    n_clients++;
    if (tell(fd, HF_ATTACHED, &attached, sizeof attached) < 0 ||
        (recent && tell(fd, HF_RECENT, hf_scratch.out, (size_t)recent) < 0))
        let_go(c); /* his socket is empty, so he has gone */
}

void hf_attach_output(const char *data, size_t size)
{
    for (struct client *c = clients; n_clients && c < clients + ATTACH_CLIENTS_MAX; c++)
        for (size_t at = 0, n; c->fd >= 0 && at < size; at += n) {
            n = size - at < ATTACH_PIECE_MAX ? size - at : ATTACH_PIECE_MAX;
            /* Once something is missing, nothing follows before he was told. */
            int r = c->skipped ? -EAGAIN : tell(c->fd, HF_OUTPUT, data + at, n);
            if (r == -EAGAIN)
                c->skipped += n;
            else if (r < 0)
                let_go(c);
        }
}

/* As much of what he types as there is room for; 1: that was all of it. */
static int type(struct client *c, const char *data, size_t size)
{
    int fd = hf_log_input();
    ssize_t n = fd >= 0 ? write(fd, data, size) : (ssize_t)size; /* to nobody */
    if (n < 0 && errno != EAGAIN && errno != EINTR) {
        hf_log_close_input();
        n = (ssize_t)size;
    }
    c->taken += n > 0 ? (uint32_t)n : 0;
    c->waiting = n < (ssize_t)size;
    return !c->waiting;
}

static void set_window(const struct hf_record *record, const char *body)
{
    struct hf_window window;
    if (hf_wire_get(record, body, &window, sizeof window) < 0 || window.rows > UINT16_MAX || window.columns > UINT16_MAX)
        return;
    struct winsize size = {.ws_row = (unsigned short)window.rows, .ws_col = (unsigned short)window.columns};
    ioctl(hf_log_input(), TIOCSWINSZ, &size); /* a pipe has none */
}

/* One packet: a look first, for it stays where it is until all of it is taken. */
static void take_packet(struct client *c)
{
    struct hf_record record;
    const char *body;
    size_t at = 0, room = sizeof record + HF_INPUT_MAX;
    ssize_t n = recv(c->fd, hf_scratch.packet, room, MSG_DONTWAIT | MSG_PEEK | MSG_TRUNC);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n <= 0 || (size_t)n > room || hf_wire_next(hf_scratch.packet, (size_t)n, &at, &record, &body) != 1) {
        let_go(c); /* he has said all that he wanted to; or he is no client of ours */
        return;
    }
    if (record.tag == HF_INPUT && record.length > c->taken && !type(c, body + c->taken, record.length - c->taken))
        return;
    if (record.tag == HF_WINDOW)
        set_window(&record, body);
    recv(c->fd, hf_scratch.packet, 1, MSG_DONTWAIT);
    c->taken = 0;
}

int hf_attach_watch(struct pollfd fds[ATTACH_FDS])
{
    int waiting = 0;
    for (int i = 0; i < ATTACH_CLIENTS_MAX; i++) {
        const struct client *c = &clients[i];
        fds[i] = (struct pollfd){.fd = c->fd};
        fds[i].events = (short)((c->waiting ? 0 : POLLIN) | (c->skipped || ended ? POLLOUT : 0));
        waiting |= c->fd >= 0 && c->waiting;
    }
    fds[ATTACH_CLIENTS_MAX] = (struct pollfd){.fd = waiting ? hf_log_input() : -1, .events = POLLOUT};
    return n_clients;
}

void hf_attach_step(const struct pollfd fds[ATTACH_FDS])
{
    if (!n_clients)
        return;
    int room = fds[ATTACH_CLIENTS_MAX].revents || hf_log_input() < 0;
    turn++;
    for (unsigned k = 0; k < ATTACH_CLIENTS_MAX; k++) {
        unsigned i = (k + turn) % ATTACH_CLIENTS_MAX;
        struct client *c = &clients[i];
        if (c->fd < 0 || fds[i].fd != c->fd)
            continue;
        if (fds[i].revents & POLLOUT)
            settle(c);
        if (c->fd >= 0 && c->waiting && (fds[i].revents & POLLHUP))
            let_go(c); /* gone for good, and poll would say that for ever */
        else if (c->fd >= 0 && (c->waiting ? room : fds[i].revents & (POLLIN | POLLHUP | POLLERR)))
            take_packet(c);
    }
}

void hf_attach_main_ended(const siginfo_t *info)
{
    end = (struct hf_ended){info->si_code, info->si_status};
    ended = 1;
    for (struct client *c = clients; c < clients + ATTACH_CLIENTS_MAX; c++)
        if (c->fd >= 0)
            settle(c);
}

void hf_attach_end(void)
{
    for (struct client *c = clients; c < clients + ATTACH_CLIENTS_MAX; c++)
        if (c->fd >= 0)
            let_go(c);
    ended = 0;
}
