/* holdfast-keeper: parent, subreaper, reaper, stopper and guard of one process tree.
 *
 *   holdfast-keeper                      kept: descriptor 3 is the control socket, 4 a pidfd of the owner
 *   holdfast-keeper run KEY=VALUE... -- COMMAND...      stand-alone: what `holdfast run` execs into
 *   holdfast-keeper anchor [fds=N,...] -- COMMAND...    anchor: what `holdfast up` execs into
 *   holdfast-keeper procdesc PID [keep]  parent and guard of a child that pdfork has made (csrc/spawn/procdesc.c)
 *
 * Start-up order: 1. all signals blocked, before anything can be lost or kill us half-way;
 * 2. SIGCHLD to default, for with SIG_IGN the kernel would reap behind our back and no pid of a
 * child would be stable; 3. the descriptor limit up, the child gets the old one back;
 * 4. the mode takes over.  Nothing is allocated, at any time.
 */
#define _GNU_SOURCE
#include "keeper.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

const struct hf_mode *hf_mode;
hf_sigmask hf_original_mask;
int hf_sigchld_was_ignored;
uint64_t hf_original_nofile = ~0ULL;

int hf_signalfd(hf_sigmask mask)
{
    long fd = HF_CALL4(SYS_signalfd4, -1, &mask, sizeof mask, SFD_CLOEXEC | SFD_NONBLOCK);
    return (int)fd;
}

int hf_poll_until(struct pollfd *fds, unsigned n, uint64_t deadline_ns)
{
    struct timespec left = {0, 0}, *timeout = NULL;
    if (deadline_ns) {
        uint64_t now = hf_clock_ns(CLOCK_MONOTONIC);
        uint64_t ns = deadline_ns > now ? deadline_ns - now : 0;
        left.tv_sec = (time_t)(ns / 1000000000);
        left.tv_nsec = (long)(ns % 1000000000);
        timeout = &left;
    }
    int r = ppoll(fds, n, timeout, NULL);
    return r < 0 ? -errno : r;
}

void hf_give_back(void *memory, size_t size)
{
    if (getauxval(AT_PAGESZ) == HF_PAGE) /* larger ones are not one variable's alone */
        madvise(memory, size / HF_PAGE * HF_PAGE, MADV_DONTNEED);
}

void hf_occupy_standard_descriptors(void)
{
    for (int fd = 0; fd < 3; fd++)
        if (fcntl(fd, F_GETFD) < 0)
            open("/dev/null", O_RDWR | O_CLOEXEC);
}

void hf_close_all_but(const int *own, size_t n)
{
    for (int from = 3; from >= 0;) {
        int next = -1; /* the lowest of ours that is not below from */
        for (size_t i = 0; i < n; i++)
            if (own[i] >= from && (next < 0 || own[i] < next))
                next = own[i];
        unsigned last = next < 0 ? ~0U : (unsigned)next - 1;
        if ((next < 0 || from < next) && HF_CALL3(HF_SYS_close_range, from, last, 0) < 0)
            for (int fd = from; fd < 65536 && (unsigned)fd <= last; fd++) /* before 5.9 */
                close(fd);
        from = next < 0 ? -1 : next + 1;
    }
}

static void handle_sigchld(void (*handler)(int), struct sigaction *old)
{
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = handler;
    sigaction(SIGCHLD, &action, old);
}

void hf_lend_original_state(int lend)
{
    struct { uint64_t soft, hard; } limit;
    if (hf_sigchld_was_ignored)
        handle_sigchld(lend ? SIG_IGN : SIG_DFL, NULL);
    if (hf_original_nofile != ~0ULL && HF_CALL4(SYS_prlimit64, 0, RLIMIT_NOFILE, NULL, &limit) == 0) {
        limit.soft = lend ? hf_original_nofile : limit.hard;
        HF_CALL4(SYS_prlimit64, 0, RLIMIT_NOFILE, &limit, NULL);
    }
}

int main(int argc, char **argv, char **envp)
{
    hf_original_mask = hf_block_all_signals();
    struct sigaction old = {.sa_handler = SIG_DFL};
    handle_sigchld(SIG_DFL, &old);
    hf_sigchld_was_ignored = old.sa_handler == SIG_IGN;
    struct { uint64_t soft, hard; } limit, raised;
    if (HF_CALL4(SYS_prlimit64, 0, RLIMIT_NOFILE, NULL, &limit) == 0 && limit.soft < limit.hard) {
        raised.soft = raised.hard = limit.hard;
        if (HF_CALL4(SYS_prlimit64, 0, RLIMIT_NOFILE, &raised, NULL) == 0)
            hf_original_nofile = limit.soft;
    }
    if (argc == 1)
        return hf_kept_main();
    if (strcmp(argv[1], "run") == 0)
        return hf_run_main(argv + 2, envp);
    if (strcmp(argv[1], "anchor") == 0)
        return hf_anchor_main(argv + 2, envp);
    if (strcmp(argv[1], "procdesc") == 0 && argc > 2)
        return hf_procdesc_main(argv + 2);
    static const char usage[] = "holdfast-keeper is started by holdfast: see `holdfast --help`\n";
    ssize_t ignored = write(2, usage, sizeof usage - 1);
    (void)ignored;
    return 125;
}
