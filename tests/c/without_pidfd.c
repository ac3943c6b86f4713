/* For valgrind, which knows neither clone3 nor pidfd_open nor pidfd_send_signal: the same by other means.
 * Linked with --wrap; the handle is an open directory of /proc, which dies with its process, too.
 *
 * valgrind turns the clone that shares memory into a fork, so a child cannot say why it did not start:
 * under it, only starts that succeed are tried. */
#define _GNU_SOURCE
#include "sys.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int __wrap_hf_pidfd_open(int pid);
int __wrap_hf_pidfd_signal(int pidfd, int signo, unsigned flags);

__attribute__((constructor)) static void begin(void)
{
    hf_forbid_clone3();
}

int __wrap_hf_pidfd_open(int pid)
{
    char path[32];
    snprintf(path, sizeof path, "/proc/%d", pid);
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return fd >= 0 ? fd : errno == ENOENT ? -ESRCH : -errno;
}

int __wrap_hf_pidfd_signal(int pidfd, int signo, unsigned flags)
{
    char path[64], target[128];
    int pid = -1;
    if (flags)
        return -EINVAL; /* as kernels before 6.9 */
    snprintf(path, sizeof path, "/proc/self/fd/%d", pidfd);
    ssize_t n = readlink(path, target, sizeof target - 1);
    target[n > 0 ? n : 0] = 0;
    if (strncmp(target, "/proc/", 6) == 0) {
        pid = atoi(target + 6);
        if (faccessat(pidfd, "stat", F_OK, 0))
            return -ESRCH;
    } else { /* the one that clone(2) made */
        snprintf(path, sizeof path, "/proc/self/fdinfo/%d", pidfd);
        FILE *file = fopen(path, "r");
        while (file && fgets(target, sizeof target, file))
            if (strncmp(target, "Pid:", 4) == 0)
                pid = atoi(target + 4);
        if (file)
            fclose(file);
    }
    if (pid <= 0)
        return pid == 0 || pid == -1 ? -ESRCH : -EBADF;
    return kill(pid, signo) ? -errno : 0;
}
