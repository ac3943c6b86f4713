/* What the supervisors in the benchmark supervise: a static program without libc that says when it began.
 *
 *   service FIFO i          says BEGAN as its first act, then waits to be killed
 *   service FIFO l LINES    the same, and writes so many lines of 100 bytes before it waits
 *   service FIFO x          says BEGAN, exits with 1
 *   service FIFO g          says BEGAN, then TERM at each TERM, which it ignores otherwise
 *   service FIFO w GO BYTES for each byte that comes out of the FIFO called GO: says WRITING, writes so many bytes of
 *                           100-byte lines in blocks, says WRITTEN
 *
 * What it says is `struct word`.  A FIFO and no socket: it takes 4,096 words without anybody reading, so no
 * service waits for the one who measures; and as everybody keeps it open, its hangup is the death of the last.
 */
#include <fcntl.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>

#include "bare.h"

enum { BEGAN = 1, TERM = 2, WRITING = 3, WRITTEN = 4 };
enum { SIGTERM = 15, LINE = 100, BLOCK = 640 * LINE };

struct word { uint64_t ns; uint32_t pid, what; };

static uint64_t now(void)
{
    struct timespec t;
    call(SYS_clock_gettime, CLOCK_MONOTONIC, (long)&t, 0, 0, 0, 0);
    return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

static void leave(int code)
{
    call(SYS_exit_group, code, 0, 0, 0, 0, 0);
}

static void say(long fifo, uint64_t ns, uint32_t what)
{
    struct word word = {ns, (uint32_t)call(SYS_getpid, 0, 0, 0, 0, 0, 0), what};
    if (call(SYS_write, fifo, (long)&word, sizeof word, 0, 0, 0) != sizeof word)
        leave(3);
}

/* A block of lines, each with its number within the block. */
static char *lines(void)
{
    char *block = (char *)call(SYS_mmap, 0, BLOCK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (int i = 0; i < BLOCK; i++)
        block[i] = i % LINE == LINE - 1 ? '\n' : (char)('a' + i % LINE % 26);
    for (int i = 0; i < BLOCK / LINE; i++)
        for (int digit = 0, rest = i; digit < 4; digit++, rest /= 10)
            block[i * LINE + 3 - digit] = (char)('0' + rest % 10);
    return block;
}

static void put(const char *block, long bytes)
{
    long at = 0;
    while (bytes > 0) {
        long part = BLOCK - at < bytes ? BLOCK - at : bytes;
        long n = call(SYS_write, 1, (long)(block + at), part, 0, 0, 0);
        if (n <= 0)
            leave(1);
        bytes -= n;
        at = (at + n) % BLOCK;
    }
}

static void write_on_demand(long fifo, const char *go, long bytes)
{
    long fd = call(SYS_openat, AT_FDCWD, (long)go, O_RDWR, 0, 0, 0);
    const char *block = lines();
    char byte;
    while (call(SYS_read, fd, (long)&byte, 1, 0, 0, 0) == 1) {
        say(fifo, now(), WRITING);
        put(block, bytes);
        say(fifo, now(), WRITTEN);
    }
}

static void wait_for_terms(long fifo)
{
    uint64_t set = 1ull << (SIGTERM - 1);
    call(SYS_rt_sigprocmask, 0, (long)&set, 0, sizeof set, 0, 0);
    say(fifo, now(), BEGAN);
    while (call(SYS_rt_sigtimedwait, (long)&set, 0, 0, sizeof set, 0, 0) == SIGTERM)
        say(fifo, now(), TERM);
}

__attribute__((used)) void begin(long *stack)
{
    uint64_t began = now();
    const char **argv = (const char **)(stack + 1);
    long fifo = stack[0] > 2 ? call(SYS_openat, AT_FDCWD, (long)argv[1], O_WRONLY, 0, 0, 0) : -1;
    if (fifo < 0)
        leave(2);
    char mode = argv[2][0];
    if (mode != 'g')
        say(fifo, began, BEGAN);
    if (mode == 'x')
        leave(1);
    /* Nothing of a run that was broken off stays; only now, for it is not what a service's start consists of. */
    call(SYS_prctl, PR_SET_PDEATHSIG, 9, 0, 0, 0, 0);
    if (mode == 'l')
        put(lines(), number(argv[3]) * LINE);
    else if (mode == 'w')
        write_on_demand(fifo, argv[3], number(argv[4]));
    else if (mode == 'g')
        wait_for_terms(fifo);
    call(SYS_ppoll, 0, 0, 0, 0, 0, 0);
    leave(0);
}
