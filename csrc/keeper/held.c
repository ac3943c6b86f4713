/* A held keeper: it outlives its owner, and a new one finds it by its socket.
 *
 * In: HELD, with a bound socket to listen on and the directory of the report file.  Out: at most one owner
 * at a time in hf_kept; the report file when the tree is empty and nobody is there.  Never: waiting for
 * anybody.  Who connects is a candidate until he has said HELLO, and has a moment for that.
 *
 * What the order of things promises:
 *   1. The owner's end is looked at after the listener (poll looks in the order of its array) and dealt with
 *      before a connection: who connects after the last owner's death is never turned away for his sake.
 *   2. The report file is complete under its name before the listener closes: who is not greeted finds it.
 *   3. A candidate holds the report back: who is greeted is told everything, and there is no file.
 */
#define _GNU_SOURCE
#include "kept.h"
#include "text.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum {
    BACKLOG_MAX = 8,
    CANDIDATE_LIMIT_MS = 1000, /* how long a connection may take to say HELLO */
    RETRY_MS = 2000,           /* a report that cannot be written, a connection that cannot be taken */
};

struct hf_holding hf_holding = {.listener = -1, .candidate = -1};
static int directory;
static char report_name[sizeof ((struct hf_held *)0)->report];
static int report_written;
static uint64_t candidate_end_ns, report_again_ns, accept_again_ns;

int hf_is_packet_socket(int fd)
{
    int domain = 0, type = 0;
    socklen_t size = sizeof domain;
    return getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &size) == 0 && domain == AF_UNIX &&
           getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) == 0 && type == SOCK_SEQPACKET;
}

int hf_held_begin(const struct hf_held *held, const int *fds, int n_fds)
{
    struct stat st;
    if (hf_holding.listener >= 0 || hf_tree.main_pid)
        return -EBUSY;
    if (hf_kept.hello_flags || n_fds != 2 || !hf_is_packet_socket(fds[0]) || fstat(fds[1], &st) || !S_ISDIR(st.st_mode) ||
        !held->report[0] || held->report[0] == '.' || held->report[sizeof held->report - 1] || strchr(held->report, '/'))
        return -EBADMSG;
    int listener = fcntl(fds[0], F_DUPFD_CLOEXEC, 3), dir = fcntl(fds[1], F_DUPFD_CLOEXEC, 3);
    /* Who made the socket may listen already, so that nobody is told meanwhile that there is no keeper. */
    if (listener < 0 || dir < 0 || fcntl(listener, F_SETFL, O_NONBLOCK) || listen(listener, BACKLOG_MAX)) {
        int error = errno;
        close(listener);
        close(dir);
        return -error;
    }
    hf_holding.listener = listener;
    hf_holding.flags = held->flags;
    directory = dir;
    memcpy(report_name, held->report, sizeof report_name);
    /* A session of our own.  A group's leader cannot have one: back into the owner's group for a moment. */
    if (setpgid(0, hf_kept.first_group) == 0 && setsid() < 0)
        setpgid(0, 0);
    return 0;
}

/* Turned away: an end of file, not a reset that would hit what he may still read.  1. shutdown, so that
 * nothing more can come; 2. take out what has come, for closing over unread words is a reset. */
void hf_hang_up(int fd)
{
    char nothing[8];
    shutdown(fd, SHUT_RDWR);
    while (recv(fd, nothing, sizeof nothing, MSG_DONTWAIT) > 0)
        continue;
    close(fd);
}

/* A pidfd of who connected; -1: he is gone. */
static int peer_pidfd(int fd, int pid)
{
    int pidfd = -1;
    socklen_t size = sizeof pidfd;
    if (getsockopt(fd, SOL_SOCKET, HF_SO_PEERPIDFD, &pidfd, &size) == 0)
        return pidfd;
    if (errno != ENOPROTOOPT)
        return -1;
    /* Before 6.5.  Should the number be another's by now, the end of the socket still tells. */
    return hf_pidfd_open(pid);
}

/* The candidate has said something, or nothing for too long. */
static void look_at_candidate(uint64_t now_ns)
{
    struct { struct hf_record record; struct hf_hello hello; } first;
    struct ucred peer;
    socklen_t size = sizeof peer;
    int fd = hf_holding.candidate;
    /* Only a look: the packet is read like any other once its sender is the owner. */
    ssize_t n = recv(fd, &first, sizeof first, MSG_PEEK | MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR) && now_ns < candidate_end_ns)
        return;
    hf_holding.candidate = -1;
    int owner = -1;
    if (n == (ssize_t)sizeof first && first.record.tag == HF_HELLO && first.record.length >= sizeof first.hello &&
        getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0)
        owner = peer_pidfd(fd, peer.pid);
    if (owner < 0) {
        hf_hang_up(fd);
        return;
    }
    hf_kept.control = fd;
    hf_kept.owner = owner;
    hf_reports_greet();
}

static void take_connection(uint64_t now_ns)
{
    struct ucred peer;
    socklen_t size = sizeof peer;
    int fd = accept4(hf_holding.listener, NULL, NULL, SOCK_CLOEXEC);
    if (fd < 0) { /* no room in a table: the connection waits, and poll would name it again and again */
        if (errno != EAGAIN && errno != EINTR)
            accept_again_ns = now_ns + RETRY_MS * NS_PER_MS;
        return;
    }
    if (hf_kept.control >= 0 || getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) || peer.uid != geteuid()) {
        hf_hang_up(fd);
        return;
    }
    hf_holding.candidate = fd;
    candidate_end_ns = now_ns + CANDIDATE_LIMIT_MS * NS_PER_MS;
    look_at_candidate(now_ns);
}

/* One at a time: while a candidate thinks, others wait in the kernel. */
int hf_held_poll_fd(void)
{
    return hf_holding.candidate >= 0 || accept_again_ns ? -1 : hf_holding.listener;
}

static int nothing_to_hold(void)
{
    return hf_tree.main_pid ? hf_tree.empty : hf_reports.failed;
}

/* 0 or -errno.  The temporary name has our pid: another keeper may end at the same address, one that was undone
 * late beside the one that was started after it.  It begins with a dot, as no report and no address does. */
static int write_report(void)
{
    char temporary[sizeof report_name + 16];
    struct hf_text t = {temporary, temporary + sizeof temporary - 1};
    size_t size = hf_reports_record();
    put(&t, ".");
    put(&t, report_name);
    put(&t, ".");
    put_signed(&t, getpid());
    *t.at = 0;
    int fd = openat(directory, temporary, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0)
        return -errno;
    ssize_t n = write(fd, hf_scratch.out, size);
    int error = n == (ssize_t)size ? 0 : n < 0 ? errno : ENOSPC;
    if (close(fd) && !error)
        error = errno;
    if (!error && renameat(directory, temporary, directory, report_name))
        error = errno == ENOENT ? EAGAIN : errno; /* somebody tidied up: the next try tells what is left of the place */
    if (error)
        unlinkat(directory, temporary, 0);
    return -error;
}

void hf_held_step(int connecting, int speaking, uint64_t now_ns)
{
    if (hf_held_finished())
        return; /* whoever connects now meets the end */
    if (accept_again_ns && now_ns >= accept_again_ns)
        accept_again_ns = 0;
    if (connecting)
        take_connection(now_ns);
    else if (hf_holding.candidate >= 0 && (speaking || now_ns >= candidate_end_ns))
        look_at_candidate(now_ns);
    if (hf_kept.control >= 0 || hf_holding.candidate >= 0 || report_written || !nothing_to_hold() ||
        !(hf_reports.unacknowledged & HF_ACK_EMPTY) || now_ns < report_again_ns)
        return;
    int r = write_report();
    /* ENOENT: the directory was removed, and with it the way to us.  Otherwise (a full disk) the next owner
     * hears it from us, or the file is written later. */
    report_written = r == 0 || r == -ENOENT;
    report_again_ns = report_written ? 0 : now_ns + RETRY_MS * NS_PER_MS;
}

uint64_t hf_held_deadline(void)
{
    uint64_t wake = accept_again_ns;
    if (hf_holding.candidate >= 0 && (!wake || candidate_end_ns < wake))
        wake = candidate_end_ns;
    if (hf_kept.control < 0 && hf_holding.candidate < 0 && report_again_ns && (!wake || report_again_ns < wake))
        wake = report_again_ns;
    return wake;
}

int hf_held_finished(void)
{
    if (!nothing_to_hold()) /* without a process and without an owner there is no purpose */
        return !hf_tree.main_pid && hf_kept.control < 0;
    return report_written || !(hf_reports.unacknowledged & HF_ACK_EMPTY);
}
