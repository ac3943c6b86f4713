/* Procdesc mode: parent of one child that pdfork has made, and the other end of its process descriptor.
 *
 * In: descriptor 3, a socket whose other end is the process descriptor, with all its copies; the child, a child of ours
 * already.  Out: one packet when it has ended.  The last copy closed: KILL, unless told to keep it.  What others write
 * into the socket is never read.
 *
 * The order at the end: 1. the status is looked at and not taken; 2. the packet; 3. shutdown, a hang-up for everybody;
 * 4. the reap.  Until 3 the child's number is its own, so whoever opens a pidfd by that number and sees neither packet
 * nor hang-up afterwards has the right process.
 */
#define _GNU_SOURCE
#include "keeper.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum { SOCKET = 3 };

/* The first four are the record of the CLONE_FD proposal, times in microseconds; holdfast.procdesc reads all of it. */
struct record {
    uint32_t code, status;
    uint64_t user_us, system_us;
    uint64_t max_rss_kib, minor_faults, major_faults, blocks_in, blocks_out, voluntary_switches, involuntary_switches;
};

static uint64_t us(const struct timeval *t)
{
    return (uint64_t)t->tv_sec * 1000000 + (uint64_t)t->tv_usec;
}

static void tell(const siginfo_t *info, const struct rusage *r)
{
    struct record record = {
        (uint32_t)info->si_code, (uint32_t)info->si_status, us(&r->ru_utime), us(&r->ru_stime),
        (uint64_t)r->ru_maxrss, (uint64_t)r->ru_minflt, (uint64_t)r->ru_majflt, (uint64_t)r->ru_inblock,
        (uint64_t)r->ru_oublock, (uint64_t)r->ru_nvcsw, (uint64_t)r->ru_nivcsw,
    };
    send(SOCKET, &record, sizeof record, MSG_NOSIGNAL | MSG_DONTWAIT);
    shutdown(SOCKET, SHUT_RDWR);
}

int hf_procdesc_main(char **arguments)
{
    int pid = atoi(arguments[0]), keeps = arguments[1] != NULL;
    siginfo_t info;
    struct rusage usage;
    struct signalfd_siginfo ignored;
    struct pollfd fds[] = {
        {.fd = hf_signalfd(1ULL << (SIGCHLD - 1)), .events = POLLIN},
        {.fd = SOCKET}, /* POLLHUP alone */
    };
    if (pid <= 1 || fds[0].fd < 0 || chdir("/") < 0)
        return 125;
    for (;;) {
        int r = hf_waitid(P_PID, pid, &info, WEXITED | WNOHANG | WNOWAIT, &usage);
        if (r < 0)
            return 125; /* it is no child of ours */
        if (info.si_pid == pid)
            break;
        hf_poll_until(fds, 2, 0);
        while (read(fds[0].fd, &ignored, sizeof ignored) > 0)
            continue;
        if (fds[1].revents) {
            fds[1].fd = -1;
            if (!keeps)
                kill(pid, SIGKILL); /* its number is its own until we have reaped it */
        }
    }
    tell(&info, &usage);
    hf_waitid(P_PID, pid, &info, WEXITED, NULL);
    return 0;
}
