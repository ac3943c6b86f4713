/* The owner's end of a keeper's socket: launch, requests, reports. */
#define _GNU_SOURCE
#include "native.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int send_packet(int sock, const char *packet, size_t size, const void *more, size_t more_size,
                       const int *fds, int n_fds)
{
    union { char space[CMSG_SPACE(253 * sizeof(int))]; struct cmsghdr align; } ancillary;
    struct iovec iov[2] = {{(char *)packet, size}, {(void *)more, more_size}};
    struct msghdr message = {.msg_iov = iov, .msg_iovlen = more_size ? 2 : 1};
    if (n_fds) {
        memset(&ancillary, 0, CMSG_SPACE(sizeof(int) * (size_t)n_fds));
        message.msg_control = &ancillary;
        message.msg_controllen = CMSG_SPACE(sizeof(int) * (size_t)n_fds);
        struct cmsghdr *c = &ancillary.align; /* the first one, and the only */
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(sizeof(int) * (size_t)n_fds);
        memcpy(CMSG_DATA(c), fds, sizeof(int) * (size_t)n_fds);
    }
    /* The keeper reads as fast as it can; should it be frozen with a full socket, EAGAIN beats a hang. */
    return sendmsg(sock, &message, MSG_NOSIGNAL | MSG_DONTWAIT) < 0 ? -errno : 0;
}

/* The spawn request, inside the packet or, when long, in a memfd that is sealed against changes. */
static int send_spawn(int sock, int hello_flags, const char *body, size_t size, const int *fds, int n_fds)
{
    char packet[64];
    size_t at = 0;
    if (hello_flags >= 0) {
        struct hf_hello hello = {HF_WIRE_VERSION, (uint32_t)hello_flags};
        hf_wire_put(packet, sizeof packet, &at, HF_HELLO, &hello, sizeof hello);
    }
    if (size == 0)
        return send_packet(sock, packet, at, NULL, 0, NULL, 0);
    if (size <= HF_INLINE_MAX) {
        struct hf_record record = {.tag = HF_SPAWN, .length = (uint32_t)size};
        memcpy(packet + at, &record, sizeof record);
        return send_packet(sock, packet, at + sizeof record, body, size, fds, n_fds);
    }
    int all[HF_FDS_MAX + 1];
    int memfd = memfd_create("holdfast-spawn", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (memfd < 0)
        return -errno;
    int r = 0;
    for (size_t done = 0; r == 0 && done < size;) {
        ssize_t n = write(memfd, body + done, size - done);
        if (n <= 0)
            r = n < 0 ? -errno : -EIO;
        else
            done += (size_t)n;
    }
    if (r == 0 && fcntl(memfd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL))
        r = -errno;
    if (r == 0) {
        struct hf_spawn_map map = {size};
        hf_wire_put(packet, sizeof packet, &at, HF_SPAWN_MAP, &map, sizeof map);
        all[0] = memfd;
        memcpy(all + 1, fds, sizeof(int) * (size_t)n_fds);
        r = send_packet(sock, packet, at, NULL, 0, all, n_fds + 1);
    }
    close(memfd);
    return r;
}

/* Results that hold descriptors are made into the object that will close them in here: a bare number
 * is lost, and the tree at its other end runs on, when a signal handler raises on the way back. */
static PyObject *make(PyObject *own, PyObject *args)
{
    PyObject *result = args ? PyObject_CallObject(own, args) : NULL;
    Py_XDECREF(args);
    return result;
}

static PyObject *owned(PyObject *own, int fd)
{
    PyObject *result = make(own, Py_BuildValue("(i)", fd));
    if (!result)
        close(fd);
    return result;
}

/* launch(keeper, hello_flags, body, fds, own) -> own(socket, keeper_pidfd, keeper_is_child)
 * The request waits in the socket before the keeper starts: one round trip less. */
PyObject *hf_channel_launch(PyObject *self, PyObject *args)
{
    (void)self;
    const char *path, *body;
    Py_ssize_t size;
    int hello_flags, fds[HF_FDS_MAX], pair[2], keeper_pidfd = -1;
    PyObject *fd_list, *own;
    if (!PyArg_ParseTuple(args, "yiy#OO", &path, &hello_flags, &body, &size, &fd_list, &own))
        return NULL;
    int n_fds = hf_get_fds(fd_list, fds, HF_FDS_MAX);
    if (n_fds < 0)
        return NULL;
    struct hf_child_result result = {HF_STAGE_LAUNCH, 0};
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair)) {
        result.error = errno;
        return hf_raise_stage(&result);
    }
    int r = send_spawn(pair[0], hello_flags, body, (size_t)size, fds, n_fds);
    /* The owner's own pidfd goes along, opened before the clone: a forked copy of the owner may
     * hold the socket open, but nothing holds the owner's death back. */
    int owner = r < 0 ? r : hf_pidfd_open(getpid());
    long pid = owner;
    if (owner < 0) {
        result.error = -owner;
        result.stage = r == -EBADF ? HF_STAGE_FDS : HF_STAGE_LAUNCH;
    } else {
        Py_BEGIN_ALLOW_THREADS
        pid = hf_launch(path, pair[1], owner, &keeper_pidfd, &result);
        Py_END_ALLOW_THREADS
        close(owner);
    }
    close(pair[1]);
    if (pid < 0) {
        close(pair[0]);
        return hf_raise_stage(&result);
    }
    /* Where we are a subreaper or PID 1 the keeper comes back to us and will want to be reaped. */
    siginfo_t info;
    int is_child = hf_waitid(HF_P_PIDFD, keeper_pidfd, &info, WEXITED | WNOHANG | WNOWAIT, NULL) != -ECHILD;
    PyObject *keeper = make(own, Py_BuildValue("(iiO)", pair[0], keeper_pidfd, is_child ? Py_True : Py_False));
    if (!keeper) {
        close(pair[0]);
        close(keeper_pidfd);
    }
    return keeper;
}

/* launch_from(template_socket, own) -> own(our end) of a new keeper's socket; its pidfd comes as HF_LAUNCHED. */
PyObject *hf_channel_launch_from(PyObject *self, PyObject *args)
{
    (void)self;
    int sock, pair[2];
    char packet[32];
    size_t at = 0;
    struct hf_child_result result = {HF_STAGE_LAUNCH, 0};
    PyObject *own;
    if (!PyArg_ParseTuple(args, "iO", &sock, &own))
        return NULL;
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair)) {
        result.error = errno;
        return hf_raise_stage(&result);
    }
    hf_wire_put(packet, sizeof packet, &at, HF_LAUNCH, NULL, 0);
    int r = send_spawn(pair[0], HF_KEEPER_REUSED, NULL, 0, NULL, 0);
    if (r == 0)
        r = send_packet(sock, packet, at, NULL, 0, &pair[1], 1);
    close(pair[1]);
    if (r < 0) {
        close(pair[0]);
        result.error = -r;
        return hf_raise_stage(&result);
    }
    return owned(own, pair[0]);
}

/* hang_up(socket): the owner is gone, whoever else holds a copy of our end: a program forked off while
 * the keeper was launched, or a thread in the middle of a call. */
PyObject *hf_channel_hang_up(PyObject *self, PyObject *args)
{
    (void)self;
    int sock;
    if (!PyArg_ParseTuple(args, "i", &sock))
        return NULL;
    shutdown(sock, SHUT_RDWR); /* it fails where the keeper is gone */
    Py_RETURN_NONE;
}

/* send(socket, tag, body) */
PyObject *hf_channel_send(PyObject *self, PyObject *args)
{
    (void)self;
    int sock, tag;
    const char *body;
    Py_ssize_t size;
    char packet[128];
    size_t at = 0;
    if (!PyArg_ParseTuple(args, "iiy#", &sock, &tag, &body, &size))
        return NULL;
    int r = hf_wire_put(packet, sizeof packet, &at, (uint16_t)tag, body, (size_t)size);
    if (r == 0)
        r = send_packet(sock, packet, at, NULL, 0, NULL, 0);
    if (r < 0)
        return hf_raise(r);
    Py_RETURN_NONE;
}

/* ---- reports --------------------------------------------------------------------------------- */

static PyObject *decode_members(const char *body, size_t size, uint32_t n)
{
    PyObject *list = n > size / sizeof(struct hf_member) ? NULL : PyList_New(0);
    if (!list && !PyErr_Occurred())
        PyErr_SetString(PyExc_ValueError, "malformed member list");
    for (uint32_t i = 0; list && i < n; i++) {
        struct hf_member m;
        memcpy(&m, body + i * sizeof m, sizeof m);
        m.name[sizeof m.name - 1] = 0;
        PyObject *name = PyUnicode_DecodeFSDefault(m.name);
        PyObject *item = name ? Py_BuildValue("iIN", m.pid, m.flags, name) : NULL;
        if (!item || PyList_Append(list, item) < 0)
            Py_CLEAR(list);
        Py_XDECREF(item);
    }
    return list;
}

/* One report as a tuple, its tag first; an unknown tag gives (tag,). */
static PyObject *decode_record(const struct hf_record *record, const char *body)
{
    union {
        struct hf_keeper_hello hello; struct hf_spawned spawned; struct hf_failed failed; struct hf_exited exited;
        struct hf_adopted adopted; struct hf_state_change change; struct hf_empty empty;
        struct hf_stop_report stop; struct hf_members members; struct hf_lost lost; struct hf_launched launched;
    } u;
    unsigned tag = record->tag;
#define GET(member) if (hf_wire_get(record, body, &u.member, sizeof u.member) < 0) goto malformed
    switch (tag) {
    case HF_KEEPER_HELLO:
        GET(hello);
        return Py_BuildValue("IIi", tag, u.hello.version, u.hello.pid);
    case HF_SPAWNED:
        GET(spawned);
        return Py_BuildValue("IiKKK", tag, u.spawned.pid, u.spawned.identity, u.spawned.started_ns, u.spawned.started_at_ns);
    case HF_FAILED:
        GET(failed);
        return Py_BuildValue("IIi", tag, u.failed.stage, u.failed.error);
    case HF_EXITED:
        GET(exited);
        return Py_BuildValue("IiIiiKN", tag, u.exited.pid, u.exited.flags, u.exited.code, u.exited.status,
                             u.exited.ended_ns, hf_usage_tuple(&u.exited.usage));
    case HF_ADOPTED:
        GET(adopted);
        return Py_BuildValue("IiK", tag, u.adopted.pid, u.adopted.identity);
    case HF_STOPPED:
    case HF_CONTINUED:
        GET(change);
        return Py_BuildValue("Iii", tag, u.change.pid, u.change.signo);
    case HF_EMPTY:
        GET(empty);
        return Py_BuildValue("IKIN", tag, u.empty.at_ns, u.empty.reaped, hf_usage_tuple(&u.empty.usage));
    case HF_STOP_REPORT: {
        GET(stop);
        PyObject *members = decode_members(body + sizeof u.stop, record->length - sizeof u.stop, u.stop.n_members);
        return members ? Py_BuildValue("IIiIKKIIIIIN", tag, u.stop.id, u.stop.signo, u.stop.scope, u.stop.grace_ms,
                                       u.stop.duration_ns, u.stop.signalled, u.stop.left_group, u.stop.killed,
                                       u.stop.survivors, u.stop.unlisted, members) : NULL;
    }
    case HF_MEMBERS: {
        GET(members);
        PyObject *members = decode_members(body + sizeof u.members, record->length - sizeof u.members, u.members.n_members);
        return members ? Py_BuildValue("IIIN", tag, u.members.id, u.members.unlisted, members) : NULL;
    }
    case HF_LOST:
        GET(lost);
        return Py_BuildValue("IK", tag, u.lost.events);
    case HF_LAUNCHED:
        GET(launched);
        return Py_BuildValue("Ii", tag, u.launched.pid);
    default:
        return Py_BuildValue("(I)", tag);
    }
#undef GET
malformed:
    PyErr_Format(PyExc_ValueError, "malformed record with tag %u", tag);
    return NULL;
}

static PyObject *decode(const char *packet, size_t size)
{
    PyObject *list = PyList_New(0);
    struct hf_record record;
    const char *body;
    size_t at = 0;
    int r = 0;
    while (list && (r = hf_wire_next(packet, size, &at, &record, &body)) == 1) {
        PyObject *item = decode_record(&record, body);
        if (!item || PyList_Append(list, item) < 0)
            Py_CLEAR(list);
        Py_XDECREF(item);
    }
    if (list && r < 0) {
        Py_CLEAR(list);
        PyErr_SetString(PyExc_ValueError, "malformed packet");
    }
    return list;
}

PyObject *hf_wire_decode(PyObject *self, PyObject *args)
{
    (void)self;
    const char *packet;
    Py_ssize_t size;
    if (!PyArg_ParseTuple(args, "y#", &packet, &size))
        return NULL;
    return decode(packet, (size_t)size);
}

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
    if (r < 0)
        return NULL;
    if (r == 0)
        Py_RETURN_FALSE;
    PyObject *records = p.size ? decode(p.data, (size_t)p.size) : Py_NewRef(Py_None);
    PyObject *fds = records ? PyList_New(p.n_fds) : NULL;
    for (int i = 0; fds && i < p.n_fds; i++)
        PyList_SetItem(fds, i, PyLong_FromLong(p.fds[i]));
    if (!fds) {
        close_fds(&p);
        Py_XDECREF(records);
        return NULL;
    }
    PyObject *letter = Py_BuildValue("NN", records, fds);
    int failed = !letter || PyList_Append(inbox, letter) < 0;
    Py_XDECREF(letter);
    return failed ? NULL : PyBool_FromLong(1);
}

/* start(socket, keeper_pidfd, body, fds, own) -> (pid, own(pidfd), started_ns, started_at_ns)
 * Send the request (body empty: it went along with the launch) and wait for its answer.  For one
 * thread alone: nobody else may read this socket yet.  OSError with a stage: it did not start. */
PyObject *hf_channel_start(PyObject *self, PyObject *args)
{
    (void)self;
    int sock, keeper_pidfd, fds[HF_FDS_MAX];
    const char *body;
    Py_ssize_t size;
    PyObject *fd_list, *own;
    struct packet p;
    struct hf_child_result failed = {HF_STAGE_LAUNCH, EIO};
    if (!PyArg_ParseTuple(args, "iiy#OO", &sock, &keeper_pidfd, &body, &size, &fd_list, &own))
        return NULL;
    if (size > 0) {
        int n_fds = hf_get_fds(fd_list, fds, HF_FDS_MAX);
        if (n_fds < 0)
            return NULL;
        /* The answer brings a descriptor: see that there is room for it before anything runs. */
        int room = fcntl(sock, F_DUPFD_CLOEXEC, 0);
        int r = room < 0 ? -errno : send_spawn(sock, -1, body, (size_t)size, fds, n_fds);
        if (room >= 0)
            close(room);
        if (r < 0) {
            failed.stage = r == -EBADF ? HF_STAGE_FDS : HF_STAGE_LAUNCH;
            failed.error = -r;
            return hf_raise_stage(&failed);
        }
    }
    for (;;) {
        if (receive(sock, keeper_pidfd, -1, -1, &p) < 0)
            return NULL;
        if (p.size == 0)
            return hf_raise_stage(&failed);
        struct hf_record record;
        const char *record_body;
        size_t at = 0;
        while (hf_wire_next(p.data, (size_t)p.size, &at, &record, &record_body) == 1) {
            struct hf_spawned spawned;
            struct hf_failed answer;
            if (record.tag == HF_SPAWNED && hf_wire_get(&record, record_body, &spawned, sizeof spawned) == 0) {
                if (p.n_fds == 1) { /* an answer that carries a descriptor has no report behind it */
                    PyObject *pidfd = owned(own, p.fds[0]);
                    if (!pidfd)
                        return NULL;
                    return Py_BuildValue("iNKK", spawned.pid, pidfd, spawned.started_ns, spawned.started_at_ns);
                }
                failed = (struct hf_child_result){HF_STAGE_RECEIVE, EMFILE}; /* no room in our table */
                close_fds(&p);
                return hf_raise_stage(&failed);
            }
            if (record.tag == HF_FAILED && hf_wire_get(&record, record_body, &answer, sizeof answer) == 0) {
                close_fds(&p);
                failed = (struct hf_child_result){(int)answer.stage, answer.error};
                return hf_raise_stage(&failed);
            }
        }
        close_fds(&p); /* only late events of an earlier tenant can come before the answer */
    }
}
