/* SIGCHLD for children that are held by their numbers: the handler of the self-pipe rung, and signalfd(2).
 *
 * The handler tells who waits for a child by writing to that child's own descriptor once it has ended, so nobody has
 * to be there to read, and what is readable says exactly one thing.  Standard signals coalesce: one may stand for
 * many ends, so it looks at every child that is watched (0.3 us each).
 *
 * PERMITTED in on_sigchld and below: raw system calls, atomics on the table, the handler that was there before.
 */
#define _GNU_SOURCE
#include "native.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/signalfd.h>
#include <sys/wait.h>

enum { FREE = 0, LOOKING = -1, TOLD = -2, CHUNK = 256 }; /* states of a slot beside a pid */

struct slot {
    atomic_int pid;
    int fd;
};

/* Chunks are added and never given back: the handler may be in any of them. */
struct chunk {
    struct slot slots[CHUNK];
    struct chunk *_Atomic next;
};

/* Handlers that were there before ours, each one once: ours may still be about to call it. */
struct before {
    struct sigaction action;
    struct before *next;
};

static struct chunk first;
static atomic_uint asked;               /* looks that are due; who raises it from 0 looks, for the others too */
static struct before *known;
static struct before *_Atomic before;
static _Thread_local int inside __attribute__((tls_model("initial-exec")));

static int is_handler(const struct sigaction *a)
{
    return a->sa_flags & SA_SIGINFO || (a->sa_handler != SIG_DFL && a->sa_handler != SIG_IGN);
}

static int has_ended(int pid)
{
    siginfo_t info;
    int r = hf_waitid(P_PID, pid, &info, WEXITED | WNOHANG | WNOWAIT, NULL);
    return r == -ECHILD || (r == 0 && info.si_pid); /* ECHILD: somebody else has waited for it */
}

static void tell(int fd)
{
    uint64_t one = 1;
    HF_CALL3(SYS_write, fd, &one, sizeof one);
}

static void look_at(struct slot *s)
{
    int pid = atomic_load(&s->pid);
    if (pid <= 0 || !atomic_compare_exchange_strong(&s->pid, &pid, LOOKING))
        return;
    int ended = has_ended(pid);
    if (ended)
        tell(s->fd);
    atomic_store(&s->pid, ended ? TOLD : pid);
}

static void look(void)
{
    if (atomic_fetch_add(&asked, 1) != 0)
        return; /* another thread is at it, and begins anew */
    for (unsigned seen = 1;; seen = atomic_load(&asked)) {
        for (struct chunk *c = &first; c; c = atomic_load(&c->next))
            for (int i = 0; i < CHUNK; i++)
                look_at(&c->slots[i]);
        if (atomic_compare_exchange_strong(&asked, &seen, 0))
            return;
    }
}

static void on_sigchld(int signo, siginfo_t *info, void *context)
{
    int saved = errno;
    struct before *b = atomic_load(&before);
    look();
    if (!inside) { /* else the handler that we call calls the one before it, us */
        inside = 1;
        if (b && b->action.sa_flags & SA_SIGINFO)
            b->action.sa_sigaction(signo, info, context);
        else if (b && is_handler(&b->action))
            b->action.sa_handler(signo);
        inside = 0;
    }
    errno = saved;
}

/* In a forked child: its table has nobody in it, for these are its parent's children. */
static void forget_all(void)
{
    for (struct chunk *c = &first; c; c = atomic_load(&c->next))
        for (int i = 0; i < CHUNK; i++)
            atomic_store(&c->slots[i].pid, FREE);
    atomic_store(&asked, 0);
    inside = 0;
}

static struct before *remember(const struct sigaction *action)
{
    struct before *b;
    for (b = known; b; b = b->next)
        if (b->action.sa_sigaction == action->sa_sigaction && b->action.sa_flags == action->sa_flags)
            return b;
    b = malloc(sizeof *b);
    if (b) {
        b->action = *action;
        b->next = known;
        known = b;
    }
    return b;
}

/* sigchld_install(): the handler of SIGCHLD is ours from now on, if it is not already; the one there is called by it,
 * with its own flags.  OSError EINVAL: SIGCHLD is ignored, so the kernel reaps and nobody could tell. */
PyObject *hf_sigchld_install(PyObject *self, PyObject *args)
{
    (void)self, (void)args;
    static int at_fork;
    struct sigaction old, ours = {.sa_sigaction = on_sigchld, .sa_flags = SA_SIGINFO | SA_RESTART | SA_NOCLDSTOP};
    if (sigaction(SIGCHLD, NULL, &old) < 0)
        return hf_raise(-errno);
    if (old.sa_flags & SA_SIGINFO && old.sa_sigaction == on_sigchld)
        Py_RETURN_NONE;
    if (old.sa_flags & SA_NOCLDWAIT || (!(old.sa_flags & SA_SIGINFO) && old.sa_handler == SIG_IGN))
        return hf_raise(-EINVAL);
    if (!at_fork) {
        int error = pthread_atfork(NULL, NULL, forget_all);
        if (error)
            return hf_raise(-error);
        at_fork = 1;
    }
    if (is_handler(&old)) { /* it shall notice no difference: what it interrupts, what it blocks, what it hears of */
        ours.sa_flags = old.sa_flags | SA_SIGINFO;
        ours.sa_mask = old.sa_mask;
    }
    struct before *b = remember(&old);
    if (!b)
        return PyErr_NoMemory();
    atomic_store(&before, b);
    if (sigaction(SIGCHLD, &ours, NULL) < 0)
        return hf_raise(-errno);
    Py_RETURN_NONE;
}

/* sigchld_watch(pid, fd) -> watch: when the child has ended, or has already, 8 bytes are written to fd, once. */
PyObject *hf_sigchld_watch(PyObject *self, PyObject *args)
{
    (void)self;
    int pid, fd;
    if (!PyArg_ParseTuple(args, "ii", &pid, &fd))
        return NULL;
    long at = 0;
    for (struct chunk *c = &first;; c = atomic_load(&c->next)) {
        for (int i = 0; i < CHUNK; i++, at++)
            if (atomic_load(&c->slots[i].pid) == FREE) { /* with the interpreter's lock held: nobody else takes it */
                struct slot *s = &c->slots[i];
                s->fd = fd;
                atomic_store(&s->pid, pid);
                /* Its signal may have been before that.  A handler that looks now sees it too, and tells. */
                int state = pid;
                if (has_ended(pid) && atomic_compare_exchange_strong(&s->pid, &state, TOLD))
                    tell(fd);
                return PyLong_FromLong(at);
            }
        if (!atomic_load(&c->next)) {
            struct chunk *more = calloc(1, sizeof *more);
            if (!more)
                return PyErr_NoMemory();
            atomic_store(&c->next, more);
        }
    }
}

/* sigchld_forget(watch): nothing is written to its descriptor from now on, so it may be closed. */
PyObject *hf_sigchld_forget(PyObject *self, PyObject *args)
{
    (void)self;
    long at;
    if (!PyArg_ParseTuple(args, "l", &at))
        return NULL;
    struct chunk *c = &first;
    for (; at >= CHUNK && c; at -= CHUNK)
        c = atomic_load(&c->next);
    if (!c || at < 0) {
        PyErr_SetString(PyExc_ValueError, "no such watch");
        return NULL;
    }
    for (int pid = atomic_load(&c->slots[at].pid);;) {
        if (pid == LOOKING) { /* the handler, in another thread: a moment */
            sched_yield();
            pid = atomic_load(&c->slots[at].pid);
        } else if (atomic_compare_exchange_strong(&c->slots[at].pid, &pid, FREE)) {
            Py_RETURN_NONE;
        }
    }
}

hf_sigmask hf_blocked_by_us;

/* sigchld_descriptor(block) -> a signalfd of SIGCHLD, close-on-exec and non-blocking.  It is to be blocked in every
 * thread; block: in this one that is done here, and what we start does not inherit it. */
PyObject *hf_sigchld_descriptor(PyObject *self, PyObject *args)
{
    (void)self;
    int block;
    sigset_t set, old;
    if (!PyArg_ParseTuple(args, "p", &block))
        return NULL;
    sigemptyset(&set);
    sigaddset(&set, SIGCHLD);
    int fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    if (fd < 0)
        return hf_raise(-errno);
    if (block && pthread_sigmask(SIG_BLOCK, &set, &old) == 0 && !sigismember(&old, SIGCHLD))
        hf_blocked_by_us |= 1ULL << (SIGCHLD - 1);
    return PyLong_FromLong(fd);
}
