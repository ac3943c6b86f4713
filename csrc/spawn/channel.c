/* The owner's end of a keeper's socket: launching, and waiting for what the keeper says. */
#define _GNU_SOURCE
#include "native.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { FD_ROOM = 16 };
struct packet {
    ssize_t size; /* 0: the keeper is gone */
    int n_fds, fds[FD_ROOM];
    char data[12288];
};

/* How long a keeper may take to report the end of its process: it needs microseconds, if it is not frozen. */
#define PATIENCE_NS 1000000000LL

/* Wait for one packet.  1: it is there; 0: the time is over, or the process of `pidfd` (-1: none) has
 * ended and the keeper has not said so in time; -1: exception. */
static int receive(int sock, int keeper_pidfd, int pidfd, long long timeout_ns, struct packet *p)
{
    union { char space[CMSG_SPACE(FD_ROOM * sizeof(int))]; struct cmsghdr align; } ancillary;
    struct pollfd fds[3] = {{.fd = sock, .events = POLLIN}, {.fd = keeper_pidfd, .events = POLLIN},
                            {.fd = pidfd, .events = POLLIN}};
    uint64_t deadline = timeout_ns > 0 ? hf_clock_ns(CLOCK_MONOTONIC) + (uint64_t)timeout_ns : 0;
    p->n_fds = 0;
    for (;;) {
        struct timespec left = {0, 0}, *wait = &left;
        if (timeout_ns < 0) {
            wait = NULL;
        } else if (timeout_ns > 0) {
            uint64_t now = hf_clock_ns(CLOCK_MONOTONIC), ns = now < deadline ? deadline - now : 0;
            left = (struct timespec){(time_t)(ns / 1000000000), (long)(ns % 1000000000)};
        }
        int r, error;
        Py_BEGIN_ALLOW_THREADS
        r = ppoll(fds, 3, wait, NULL);
        error = errno;
        Py_END_ALLOW_THREADS
        if (r < 0) {
            if (error != EINTR) {
                hf_raise(-error);
                return -1;
            }
            if (PyErr_CheckSignals() < 0)
                return -1;
            continue;
        }
        if (r == 0)
            return 0;
        struct iovec iov = {p->data, sizeof p->data};
        struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &ancillary,
                                 .msg_controllen = sizeof ancillary.space};
        if (fds[0].revents || fds[1].revents) {
            p->size = recvmsg(sock, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
            /* ECONNRESET: the keeper ended before it read our last request.  The kernel tells that once,
             * ahead of what the keeper had said before, and that is still to be read. */
            if (p->size < 0 && errno == ECONNRESET)
                continue;
            if (p->size < 0 && errno == EAGAIN && fds[1].revents)
                p->size = 0; /* the keeper is gone, whoever else may still hold a copy of its socket */
            if (p->size < 0 && errno != EAGAIN && errno != EINTR) {
                hf_raise(-errno);
                return -1;
            }
            if (p->size >= 0) {
                for (struct cmsghdr *c = p->size ? CMSG_FIRSTHDR(&message) : NULL; c; c = CMSG_NXTHDR(&message, c))
                    if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS)
                        for (size_t i = 0; i < (c->cmsg_len - CMSG_LEN(0)) / sizeof(int) && p->n_fds < FD_ROOM; i++)
                            memcpy(&p->fds[p->n_fds++], CMSG_DATA(c) + i * sizeof(int), sizeof(int));
                return 1;
            }
        }
        if (fds[2].revents) { /* ended: whatever the limit was, the word is about to come */
            fds[2].fd = -1;
            timeout_ns = PATIENCE_NS;
            deadline = hf_clock_ns(CLOCK_MONOTONIC) + PATIENCE_NS;
        }
    }
}

static void close_fds(struct packet *p)
{
    while (p->n_fds > 0)
        close(p->fds[--p->n_fds]);
}

static PyObject *fd_list_of(const struct packet *p)
{
    PyObject *list = PyList_New(p->n_fds);
    for (int i = 0; list && i < p->n_fds; i++)
        PyList_SetItem(list, i, PyLong_FromLong(p->fds[i]));
    return list;
}

/* Append (records, fds) to inbox; records is None at the end.  -1: exception, and the descriptors are closed. */
static int deliver(struct packet *p, PyObject *inbox)
{
    PyObject *records = p->size ? hf_decode(p->data, (size_t)p->size) : Py_NewRef(Py_None);
    PyObject *fds = records ? fd_list_of(p) : NULL;
    PyObject *letter = fds ? Py_BuildValue("OO", records, fds) : NULL;
    int r = letter ? PyList_Append(inbox, letter) : -1;
    Py_XDECREF(letter);
    Py_XDECREF(fds);
    Py_XDECREF(records);
    if (r < 0)
        close_fds(p);
    return r;
}

/* receive(socket, keeper_pidfd, pidfd, timeout_ns, inbox) -> whether (records, fds) was appended to inbox:
 * as a result it would be lost when a signal handler raises on the way back.
 * Waits until the keeper says something, until it is gone (records is then None), or until the time is
 * over or the keeper has kept silent for a second about the end of pidfd's process (False; -1: no process).
 * timeout_ns -1: no limit; 0: do not wait. */
PyObject *hf_channel_receive(PyObject *self, PyObject *args)
{
    (void)self;
    int sock, keeper_pidfd, pidfd;
    long long timeout_ns;
    struct packet p;
    PyObject *inbox;
    if (!PyArg_ParseTuple(args, "iiiLO!", &sock, &keeper_pidfd, &pidfd, &timeout_ns, &PyList_Type, &inbox))
        return NULL;
    int r = receive(sock, keeper_pidfd, pidfd, timeout_ns, &p);
    if (r < 0 || (r == 1 && deliver(&p, inbox) < 0))
        return NULL;
    return PyBool_FromLong(r);
}

#define TEMPLATE_LIMIT_S 10 /* a template that is silent for this long is frozen */

struct started {
    int process; /* one is to be started; 0: a keeper alone */
    int keeper_pidfd, pidfd;
    struct hf_spawned spawned;
    PyObject *early; /* the inbox of reports that came ahead of the keeper's pidfd: a process may end at once */
};

/* For one thread alone, as nobody else may read this socket yet: wait until the keeper's pidfd is known
 * and, if a process was asked for, until it runs.  0, or -1 with an exception; the descriptors that have
 * come are the caller's in both cases. */
static int await_start(int sock, long long timeout_ns, struct started *s)
{
    struct hf_child_result failed = {HF_STAGE_LAUNCH, EIO}; /* it ended without a word */
    struct packet p;
    int told = 0, full = 0;
    /* The keeper's pidfd is waited for after a failure as well: it may have to be reaped. */
    while (!full && (s->keeper_pidfd < 0 || (s->process && s->pidfd < 0 && !told))) {
        int r = receive(sock, s->keeper_pidfd, -1, timeout_ns, &p);
        if (r < 0)
            return -1;
        if (r == 0)
            failed.error = ETIMEDOUT;
        if (r == 0 || p.size == 0)
            break;
        struct hf_record record;
        const char *body;
        size_t at = 0;
        int early = s->pidfd >= 0;
        while (hf_wire_next(p.data, (size_t)p.size, &at, &record, &body) == 1) {
            struct hf_failed answer;
            early = early && record.tag != HF_LAUNCHED;
            int spawned = record.tag == HF_SPAWNED && hf_wire_get(&record, body, &s->spawned, sizeof s->spawned) == 0;
            if (spawned || record.tag == HF_LAUNCHED) { /* a packet carries one descriptor */
                if (p.n_fds == 0) {
                    failed = (struct hf_child_result){HF_STAGE_RECEIVE, EMFILE}; /* no room in our table */
                    told = full = 1;
                } else {
                    *(spawned ? &s->pidfd : &s->keeper_pidfd) = p.fds[--p.n_fds];
                }
            } else if (record.tag == HF_FAILED && hf_wire_get(&record, body, &answer, sizeof answer) == 0) {
                failed = (struct hf_child_result){(int)answer.stage, answer.error};
                told = 1;
            }
        }
        if (early && deliver(&p, s->early) < 0)
            return -1;
        if (!early)
            close_fds(&p); /* of late events of an earlier tenant */
    }
    if (!told && s->keeper_pidfd >= 0 && (s->pidfd >= 0 || !s->process))
        return 0;
    hf_raise_stage(&failed);
    return -1;
}

/* Results that hold descriptors are made into the object that will close them in here: a bare number
 * is lost, and the tree at its other end runs on, when a signal handler raises on the way back. */
static PyObject *make(PyObject *own, PyObject *args)
{
    PyObject *result = args ? PyObject_CallObject(own, args) : NULL;
    Py_XDECREF(args);
    return result;
}

/* Where we are a subreaper or PID 1 the keeper comes back to us and will want to be reaped. */
static int is_child(int pidfd)
{
    siginfo_t info;
    return hf_waitid(HF_P_PIDFD, pidfd, &info, WEXITED | WNOHANG | WNOWAIT, NULL) != -ECHILD;
}

/* The descriptors of reports that nobody will read.  It may run with an exception set, which stays. */
static void drop_inbox(PyObject *inbox)
{
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    for (Py_ssize_t i = 0; inbox && i < PyList_Size(inbox); i++) {
        PyObject *fds = PyTuple_GetItem(PyList_GetItem(inbox, i), 1);
        for (Py_ssize_t j = 0; j < PyList_Size(fds); j++)
            close((int)PyLong_AsLong(PyList_GetItem(fds, j)));
    }
    Py_XDECREF(inbox);
    PyErr_Restore(type, value, trace);
}

/* A hang-up (events 0) or the end of a pidfd's process (POLLIN), which is sure to come unless it is frozen.  No handler
 * runs meanwhile: one that has raised is why this is asked. */
static void await_end(int fd, short events)
{
    struct pollfd p = {.fd = fd, .events = events};
    uint64_t now = hf_clock_ns(CLOCK_MONOTONIC), deadline = now + PATIENCE_NS;
    Py_BEGIN_ALLOW_THREADS
    for (int r = -1; r < 0 && now < deadline; now = hf_clock_ns(CLOCK_MONOTONIC))
        r = poll(&p, 1, (int)((deadline - now) / 1000000) + 1);
    Py_END_ALLOW_THREADS
}

/* Nothing came of a launch: what was started ends, and is gone when this returns, as whoever handles the exception may
 * look; then hang up, and reap the keeper where it is ours. */
static PyObject *give_up(int sock, struct started *s)
{
    char packet[64];
    size_t at = 0;
    struct hf_loss loss = {HF_LOSS_KILL, 0}; /* should the wait be too short */
    struct hf_stop stop = {.id = 1, .signo = SIGKILL, .scope = HF_SCOPE_TREE};
    hf_wire_put(packet, sizeof packet, &at, HF_ON_OWNER_LOSS, &loss, sizeof loss);
    hf_wire_put(packet, sizeof packet, &at, HF_STOP, &stop, sizeof stop);
    hf_send_packet(sock, packet, at, NULL, 0, NULL, 0);
    if (s->process) /* the keeper was launched for that one, and ends with it; its pidfd may not have come yet */
        await_end(sock, 0);
    shutdown(sock, SHUT_RDWR);
    close(sock);
    if (s->pidfd >= 0)
        close(s->pidfd);
    drop_inbox(s->early);
    if (s->keeper_pidfd >= 0) {
        if (is_child(s->keeper_pidfd)) {
            siginfo_t info;
            await_end(s->keeper_pidfd, POLLIN);
            hf_waitid(HF_P_PIDFD, s->keeper_pidfd, &info, WEXITED | WNOHANG, NULL);
        }
        close(s->keeper_pidfd);
    }
    return NULL;
}

/* hang_up(socket, keeper_pidfd=-1): the owner is gone, whoever else holds a copy of our end: a program forked off while
 * the keeper was launched, or a thread in the middle of a call.  With the pidfd, wait until the keeper has ended. */
PyObject *hf_channel_hang_up(PyObject *self, PyObject *args)
{
    (void)self;
    int sock, keeper_pidfd = -1;
    if (!PyArg_ParseTuple(args, "i|i", &sock, &keeper_pidfd))
        return NULL;
    shutdown(sock, SHUT_RDWR); /* it fails where the keeper is gone */
    if (keeper_pidfd >= 0)
        await_end(keeper_pidfd, POLLIN);
    Py_RETURN_NONE;
}

/* The Keeper of a launch that went well, which owns the two descriptors; NULL: they are closed. */
static PyObject *make_keeper(PyObject *own, int sock, struct started *s)
{
    PyObject *child = is_child(s->keeper_pidfd) ? Py_True : Py_False;
    PyObject *keeper = make(own, Py_BuildValue("(iiO)", sock, s->keeper_pidfd, child));
    return keeper ? keeper : give_up(sock, s);
}

/* launch(keeper, hello_flags, body, fds, own_keeper, own_pidfd) ->
 *     (own_keeper(socket, keeper_pidfd, is_child), early, pid, own_pidfd(pidfd), started_ns, started_at_ns)
 * Start a keeper and its first process (body empty: none; the result is the first element alone).  The
 * request waits in the socket before the keeper starts: one round trip less.  early: an inbox. */
PyObject *hf_channel_launch(PyObject *self, PyObject *args)
{
    (void)self;
    const char *path, *body;
    Py_ssize_t size;
    int hello_flags, fds[HF_FDS_MAX], pair[2];
    PyObject *fd_list, *own_keeper, *own_pidfd;
    if (!PyArg_ParseTuple(args, "yiy#OOO", &path, &hello_flags, &body, &size, &fd_list, &own_keeper, &own_pidfd))
        return NULL;
    int n_fds = hf_get_fds(fd_list, fds, HF_FDS_MAX);
    if (n_fds < 0)
        return NULL;
    struct started s = {size > 0, -1, -1, {0}, PyList_New(0)};
    if (!s.early)
        return NULL;
    struct hf_child_result result = {HF_STAGE_LAUNCH, 0};
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair)) {
        result.error = errno;
        Py_DECREF(s.early);
        return hf_raise_stage(&result);
    }
    int r = hf_send_spawn(pair[0], hello_flags, body, (size_t)size, fds, n_fds);
    /* The owner's own pidfd goes along, opened before the clone: a forked copy of the owner may
     * hold the socket open, but nothing holds the owner's death back.  (These two also keep room in
     * our table for the two descriptors that come back.) */
    int owner = r < 0 ? r : hf_pidfd_open(getpid());
    long pid = owner;
    if (owner < 0) {
        result.error = -owner;
        result.stage = r == -EBADF ? HF_STAGE_FDS : HF_STAGE_LAUNCH;
    } else {
        Py_BEGIN_ALLOW_THREADS
        pid = hf_launch(path, pair[1], owner, &result);
        Py_END_ALLOW_THREADS
        close(owner);
    }
    close(pair[1]);
    if (pid < 0)
        hf_raise_stage(&result);
    if (pid < 0 || await_start(pair[0], -1, &s) < 0)
        return give_up(pair[0], &s);
    PyObject *process = s.pidfd < 0 ? Py_NewRef(Py_None) : make(own_pidfd, Py_BuildValue("(i)", s.pidfd));
    if (!process)
        return give_up(pair[0], &s);
    s.pidfd = -1;
    PyObject *keeper = make_keeper(own_keeper, pair[0], &s);
    if (!keeper) {
        Py_DECREF(process);
        return NULL;
    }
    return Py_BuildValue("NNiNKK", keeper, s.early, s.spawned.pid, process, s.spawned.started_ns,
                         s.spawned.started_at_ns);
}

/* launch_on(keeper, socket, low_socket=-1, low_owner=-1) -> pid: a keeper at the other end of a socketpair, in which its
 * requests wait already.  Waits for the exec of the keeper alone; everything else is told in the reports.  Given the low
 * two, both pidfds of this process, it lends the first's number to the socket: hf_launch copies no descriptor above. */
PyObject *hf_channel_launch_on(PyObject *self, PyObject *args)
{
    (void)self;
    const char *path;
    int sock, low = -1, low_owner = -1;
    struct hf_child_result result = {HF_STAGE_LAUNCH, 0};
    if (!PyArg_ParseTuple(args, "yi|ii", &path, &sock, &low, &low_owner))
        return NULL;
    int owner = low < 0 ? hf_pidfd_open(getpid()) : dup3(sock, low, O_CLOEXEC) < 0 ? -errno : low_owner;
    if (owner < 0) {
        result.error = -owner;
        return hf_raise_stage(&result);
    }
    long pid;
    Py_BEGIN_ALLOW_THREADS
    pid = hf_launch(path, low < 0 ? sock : low, owner, &result);
    Py_END_ALLOW_THREADS
    if (low < 0)
        close(owner);
    else
        dup3(low_owner, low, O_CLOEXEC); /* the keeper's end of the socket must not stay open with us */
    return pid < 0 ? hf_raise_stage(&result) : PyLong_FromLong(pid);
}

/* launch_from(template_socket, own_keeper) -> own_keeper(socket, keeper_pidfd, is_child): a new keeper that
 * the template started */
PyObject *hf_channel_launch_from(PyObject *self, PyObject *args)
{
    (void)self;
    int sock, pair[2];
    char packet[32];
    size_t at = 0;
    PyObject *own_keeper;
    struct started s = {0, -1, -1, {0}, NULL};
    struct hf_child_result result = {HF_STAGE_LAUNCH, 0};
    if (!PyArg_ParseTuple(args, "iO", &sock, &own_keeper))
        return NULL;
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair)) {
        result.error = errno;
        return hf_raise_stage(&result);
    }
    hf_wire_put(packet, sizeof packet, &at, HF_LAUNCH, NULL, 0);
    int r = hf_send_spawn(pair[0], HF_KEEPER_REUSED, NULL, 0, NULL, 0);
    if (r == 0)
        r = hf_send_packet(sock, packet, at, NULL, 0, &pair[1], 1);
    close(pair[1]);
    if (r < 0) {
        result.error = -r;
        hf_raise_stage(&result);
    }
    if (r < 0 || await_start(pair[0], TEMPLATE_LIMIT_S * 1000000000LL, &s) < 0)
        return give_up(pair[0], &s);
    return make_keeper(own_keeper, pair[0], &s);
}

/* start(socket, keeper_pidfd, body, fds, own_pidfd) -> (pid, own_pidfd(pidfd), started_ns, started_at_ns)
 * The next process of a runner's empty keeper.  OSError with a stage: it did not start. */
PyObject *hf_channel_start(PyObject *self, PyObject *args)
{
    (void)self;
    int sock, fds[HF_FDS_MAX];
    const char *body;
    Py_ssize_t size;
    PyObject *fd_list, *own_pidfd;
    struct started s = {1, -1, -1, {0}, NULL};
    if (!PyArg_ParseTuple(args, "iiy#OO", &sock, &s.keeper_pidfd, &body, &size, &fd_list, &own_pidfd))
        return NULL;
    int n_fds = hf_get_fds(fd_list, fds, HF_FDS_MAX);
    if (n_fds < 0)
        return NULL;
    /* The answer brings a descriptor: see that there is room for it before anything runs. */
    int room = fcntl(sock, F_DUPFD_CLOEXEC, 0);
    int r = room < 0 ? -errno : hf_send_spawn(sock, -1, body, (size_t)size, fds, n_fds);
    if (room >= 0)
        close(room);
    if (r < 0) {
        struct hf_child_result failed = {r == -EBADF ? HF_STAGE_FDS : HF_STAGE_LAUNCH, -r};
        return hf_raise_stage(&failed);
    }
    if (await_start(sock, -1, &s) < 0)
        return NULL;
    PyObject *process = make(own_pidfd, Py_BuildValue("(i)", s.pidfd));
    if (!process) {
        close(s.pidfd);
        return NULL;
    }
    return Py_BuildValue("iNKK", s.spawned.pid, process, s.spawned.started_ns, s.spawned.started_at_ns);
}
