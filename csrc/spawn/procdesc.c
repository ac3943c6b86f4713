/* pdfork: this program forks, and the copy is nobody's business but its descriptor's.
 *
 * owner --clone--> outer --clone--> guard --fork--> child; guard execs the keeper, outer exits.
 *
 * 1. outer and guard share our memory and run in our place, on stacks of their own, as in hf_launch: outer has exit
 *    signal 0 and never execs, so neither SIGCHLD nor waitpid(-1) tells of it, and guard becomes an orphan.
 * 2. fork is libc's, with all that libraries have registered for it.  It is called once, in the guard: so the guard,
 *    which execs at once, is the child's parent, and ours is one copy of our memory, not two.
 * 3. The child goes back to where we stand, by longjmp: its stack is a copy of ours, and we have not moved since.
 *    It waits for a byte, which we send when all has gone well: without it the child has never been.
 * 4. Our end of a socketpair is the process descriptor.  The kernel counts its copies, wherever they are; when the
 *    last is closed the guard, which has the other end, sees a hang-up.
 *
 * All signals stay blocked until both are Python again, so no handler runs in outer or guard, which keep ours.
 */
#define _GNU_SOURCE
#undef _FORTIFY_SOURCE /* its longjmp goes up one stack only, and the child comes from another */
#include "native.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
    GUARD_SOCKET = 3,        /* where csrc/keeper/procdesc.c has it */
    GUARD_STACK = 256 << 10, /* libc's fork runs on it, and the handlers of libraries; a thread's may be smaller */
};
/* The name of a process descriptor, in the kernel's abstract space: the pid, and when it was made (ns since the epoch). */
#define NAME "holdfast.procdesc/%d/%llu"

struct fork_away {
    jmp_buf back;
    const char *path;
    int keeps, socket, gate[2], error;
    pid_t guard, child;
    struct sigaction sigchld;
    char *guard_stack;
};

/* Of the thread that forked, and gone with CLONE_VM; what asks for the CPU's number there would get an old one. */
extern const ptrdiff_t __rseq_offset __attribute__((weak));
extern const unsigned int __rseq_size __attribute__((weak));

static void register_rseq(void)
{
#if defined(SYS_rseq) && defined(__x86_64__)
    enum { AREA = 32, SIGNATURE = 0x53053053 };
    if (&__rseq_size && &__rseq_offset && __rseq_size)
        syscall(SYS_rseq, (char *)__builtin_thread_pointer() + __rseq_offset, AREA, 0, SIGNATURE);
#endif
}

static void become_child(struct fork_away *f)
{
    char go;
    close(f->gate[1]);
    if (!f->keeps) {
        prctl(PR_SET_PDEATHSIG, SIGKILL); /* should somebody kill the guard; it has one thread, so its end is the end */
        if (getppid() != f->guard)
            _exit(127);
    }
    if (read(f->gate[0], &go, 1) != 1)
        _exit(127);
    sigaction(SIGCHLD, &f->sigchld, NULL);
    register_rseq();
    longjmp(f->back, 1);
}

static int guard_main(void *raw)
{
    struct fork_away *f = raw;
    char pid[16];
    const char *argv[] = {"holdfast-keeper", "procdesc", pid, f->keeps ? "keep" : NULL, NULL}, *const envp[] = {NULL};
    /* Where it is ignored the kernel would reap the child before anybody has its status. */
    struct sigaction defaults;
    memset(&defaults, 0, sizeof defaults);
    defaults.sa_handler = SIG_DFL;
    sigaction(SIGCHLD, &defaults, &f->sigchld);
    f->guard = getpid();
    pid_t child = fork();
    if (child == 0)
        become_child(f);
    if (child < 0) {
        f->error = errno;
        return 127;
    }
    f->child = child;
    snprintf(pid, sizeof pid, "%d", child);
    setpgid(0, 0); /* the terminal's keys are not for us; the child stays in the group */
    /* Of our copy of the table; it may be full, so what goes makes room for the next. */
    int from, null;
    close(f->gate[0]);
    close(f->gate[1]);
    if ((from = fcntl(f->socket, F_DUPFD_CLOEXEC, GUARD_SOCKET + 1)) >= 0 && close(f->socket) == 0) {
        null = open("/dev/null", O_RDWR | O_CLOEXEC);
        for (int fd = 0; fd < GUARD_SOCKET; fd++)
            dup2(null < 0 ? from : null, fd); /* a chroot without /dev: any descriptor that nobody uses will do */
        if (dup2(from, GUARD_SOCKET) >= 0) {
            hf_close_on_exec_from(GUARD_SOCKET + 1);
            execve(f->path, (char *const *)argv, (char *const *)envp);
        }
    }
    f->error = errno;
    kill(child, SIGKILL); /* ours, and not waited for */
    waitpid(child, NULL, 0);
    return 127;
}

static int outer_main(void *raw)
{
    struct fork_away *f = raw;
    struct hf_clone_request request = {
        .flags = HF_CLONE_AUTOREAP, .exit_signal = SIGCHLD, .fn = guard_main, .arg = f,
        .stack = f->guard_stack, .stack_size = GUARD_STACK,
    };
    long r = hf_clone(&request);
    if (r < 0)
        f->error = (int)-r;
    return 0;
}

/* Not inlined: the stack lies below the frame that the child goes back to. */
__attribute__((noinline)) static void launch(struct fork_away *f)
{
    char outer_stack[8192] __attribute__((aligned(16)));
    struct hf_clone_request request = {
        .exit_signal = 0, .fn = outer_main, .arg = f, .stack = outer_stack, .stack_size = sizeof outer_stack,
    };
    long outer = hf_clone(&request);
    siginfo_t info;
    if (outer < 0)
        f->error = (int)-outer;
    else
        hf_waitid(P_PID, (int)outer, &info, (int)(WEXITED | HF_WCLONE), NULL); /* as in hf_launch */
}

/* 1 in the child, 0 here.  longjmp comes back to this frame, so it must be there as long as outer runs. */
__attribute__((noinline)) static int fork_away(struct fork_away *f)
{
    if (_setjmp(f->back))
        return 1;
    launch(f);
    return 0;
}

static int name_descriptor(int fd, pid_t pid)
{
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    int n = snprintf(name.sun_path + 1, sizeof name.sun_path - 1, NAME, pid,
                     (unsigned long long)hf_clock_ns(CLOCK_REALTIME));
    return bind(fd, (struct sockaddr *)&name, (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)n));
}

/* pdfork(keeper, keeps, held) -> (fd, pid, guard's pidfd), and in the child (-1, 0, -1).  keeps: a last close kills
 * nothing.  The pidfd is -1 unless we are PID 1 or a subreaper, to whom the guard comes back to be reaped.
 * held: a list that gets fd, for a result is lost when a signal handler raises on the way back. */
PyObject *hf_pdfork(PyObject *self, PyObject *args)
{
    (void)self;
    struct fork_away f;
    int pair[2], child;
    PyObject *held;
    memset(&f, 0, sizeof f);
    f.gate[0] = f.gate[1] = -1;
    if (!PyArg_ParseTuple(args, "ypO!", &f.path, &f.keeps, &PyList_Type, &held))
        return NULL;
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
        return hf_raise(-errno);
    f.guard_stack = mmap(NULL, GUARD_STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
    int error = f.guard_stack == MAP_FAILED || pipe2(f.gate, O_CLOEXEC) < 0 ? errno : 0;
    hf_sigmask mask = hf_block_all_signals(); /* what a handler raises in what is registered at fork would be lost */
    if (error || PyErr_CheckSignals() < 0) {
        hf_set_signal_mask(mask);
        if (f.guard_stack != MAP_FAILED)
            munmap(f.guard_stack, GUARD_STACK);
        for (int i = 0; i < 2; i++) {
            close(pair[i]);
            close(f.gate[i]);
        }
        return error ? hf_raise(-error) : NULL;
    }
    f.socket = pair[1];
    PyOS_BeforeFork();
    child = fork_away(&f);
    munmap(f.guard_stack, GUARD_STACK);
    close(pair[1]);
    if (child) {
        close(f.gate[0]);
        close(pair[0]);
        PyOS_AfterFork_Child();
        hf_set_signal_mask(mask);
        return Py_BuildValue("iii", -1, 0, -1);
    }
    PyOS_AfterFork_Parent();
    hf_set_signal_mask(mask);
    if (!f.child && !f.error)
        f.error = EIO; /* somebody killed outer or the guard */
    if (!f.error && name_descriptor(pair[0], f.child) < 0)
        f.error = errno;
    PyObject *fd = NULL;
    if (f.error)
        hf_raise(-f.error);
    else if (PyErr_CheckSignals() == 0) /* of what came meanwhile */
        fd = PyLong_FromLong(pair[0]);
    int good = fd && PyList_Append(held, fd) == 0 && write(f.gate[1], "", 1) == 1; /* our own end keeps SIGPIPE away */
    Py_XDECREF(fd);
    close(f.gate[0]);
    close(f.gate[1]);
    if (good) {
        siginfo_t info;
        int ours = hf_waitid(P_PID, f.guard, &info, WEXITED | WNOHANG | WNOWAIT, NULL) == 0;
        int guard = ours ? hf_pidfd_open(f.guard) : -1;
        return Py_BuildValue("iii", pair[0], f.child, guard < 0 ? -1 : guard);
    }
    close(pair[0]);
    return NULL;
}

/* pdname(fd) -> (pid, ns since the epoch when it was made, uid of who made it).  OSError: no process descriptor.  The kernel
 * vouches for the uid alone. */
PyObject *hf_pdname(PyObject *self, PyObject *args)
{
    (void)self;
    int fd, pid, length = 0;
    unsigned long long made_ns;
    struct { struct sockaddr_un name; char end; } own;
    struct { int32_t pid; uint32_t uid, gid; } maker;
    socklen_t size = sizeof own.name, maker_size = sizeof maker;
    if (!PyArg_ParseTuple(args, "i", &fd))
        return NULL;
    memset(&own, 0, sizeof own);
    if (getsockname(fd, (struct sockaddr *)&own.name, &size) < 0 ||
        getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &maker, &maker_size) < 0)
        return hf_raise(errno == EBADF ? -EBADF : -EINVAL);
    if (own.name.sun_family != AF_UNIX || own.name.sun_path[0] ||
        sscanf(own.name.sun_path + 1, NAME "%n", &pid, &made_ns, &length) != 2 || !length || pid <= 0)
        return hf_raise(-EINVAL);
    return Py_BuildValue("iKk", pid, made_ns, (unsigned long)maker.uid);
}
