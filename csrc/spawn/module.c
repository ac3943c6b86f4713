/* The module's table, direct children, and what is asked of a pidfd. */
#define _GNU_SOURCE
#include "native.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

PyObject *hf_raise(long negative_errno)
{
    errno = (int)-negative_errno;
    return PyErr_SetFromErrno(PyExc_OSError);
}

/* (errno, text, stage) in an OSError: Python makes a SpawnError of it, with the file names. */
PyObject *hf_raise_stage(const struct hf_child_result *result)
{
    PyObject *args = Py_BuildValue("isOOi", result->error, strerror(result->error), Py_None, Py_None, result->stage);
    if (args) {
        PyErr_SetObject(PyExc_OSError, args);
        Py_DECREF(args);
    }
    return NULL;
}

int hf_get_fds(PyObject *sequence, int *fds, int max)
{
    Py_ssize_t n = PySequence_Size(sequence);
    if (n < 0)
        return -1;
    if (n > max) {
        PyErr_Format(PyExc_ValueError, "at most %d descriptors can be passed", max);
        return -1;
    }
    for (Py_ssize_t i = 0; i < n; i++) {
        PyObject *item = PySequence_GetItem(sequence, i);
        long value = item ? PyLong_AsLong(item) : -1;
        Py_XDECREF(item);
        if (value == -1 && PyErr_Occurred())
            return -1;
        if (value < 0 || value >= HF_TARGET_END) {
            PyErr_Format(PyExc_ValueError, "not a descriptor: %ld", value);
            return -1;
        }
        fds[i] = (int)value;
    }
    return (int)n;
}

PyObject *hf_usage_tuple(const struct hf_usage *u)
{
    return Py_BuildValue("KKKKKKKKK", u->user_us, u->system_us, u->max_rss_kib, u->minor_faults, u->major_faults,
                         u->blocks_in, u->blocks_out, u->voluntary_switches, u->involuntary_switches);
}

/* spawn_direct(body, fds, own, auto_reap=False, by_number=False) -> (pid, own(pidfd)): a child of the calling process
 * itself; auto_reap: where the kernel can, it reaps the child itself, and kills it for a body with on_owner_loss "kill";
 * by_number: without a pidfd, own(pid). */
static PyObject *spawn_direct(PyObject *self, PyObject *args)
{
    (void)self;
    const char *given;
    Py_ssize_t size;
    PyObject *fd_list, *own;
    int fds[HF_FDS_MAX], pidfd, auto_reap = 0, by_number = 0;
    if (!PyArg_ParseTuple(args, "y#OO|pp", &given, &size, &fd_list, &own, &auto_reap, &by_number))
        return NULL;
    int n_fds = hf_get_fds(fd_list, fds, HF_FDS_MAX);
    if (n_fds < 0)
        return NULL;
    char *body = PyMem_Malloc((size_t)size); /* offsets become pointers in place */
    if (!body)
        return PyErr_NoMemory();
    memcpy(body, given, (size_t)size);
    struct hf_plan plan;
    struct hf_policy policy;
    if (hf_wire_spawn(body, (size_t)size, &plan, &policy) < 0 || (int)(plan.n_fds + plan.n_cgroups) != n_fds) {
        PyMem_Free(body);
        PyErr_SetString(PyExc_ValueError, "malformed spawn body");
        return NULL;
    }
    plan.fd_sources = (const int32_t *)fds;
    plan.cgroup_sources = plan.fd_sources + plan.n_fds;
    plan.auto_reap = auto_reap;
    plan.auto_kill = policy.on_owner_loss == HF_LOSS_KILL;
    struct hf_child_result result;
    char stack[HF_CHILD_STACK] __attribute__((aligned(16)));
    long pid;
    Py_BEGIN_ALLOW_THREADS
    pid = hf_spawn(&plan, stack, by_number ? NULL : &pidfd, &result);
    Py_END_ALLOW_THREADS
    PyMem_Free(body);
    if (pid < 0)
        return hf_raise_stage(&result);
    PyObject *number = Py_BuildValue("(i)", by_number ? (int)pid : pidfd);
    PyObject *descriptor = number ? PyObject_CallObject(own, number) : NULL;
    Py_XDECREF(number);
    if (!descriptor) { /* interrupted: nobody would ever know of it */
        siginfo_t info;
        if (by_number) {
            kill((pid_t)pid, SIGKILL);
            hf_waitid(P_PID, (int)pid, &info, WEXITED, NULL);
            return NULL;
        }
        hf_pidfd_signal(pidfd, SIGKILL, 0);
        hf_waitid(HF_P_PIDFD, pidfd, &info, WEXITED, NULL);
        close(pidfd);
        return NULL;
    }
    return Py_BuildValue("lN", pid, descriptor);
}

/* wait_status(pidfd) -> None (still running), or (code, status, usage): si_code, si_status, rusage.
 * ChildProcessError: not our child, or reaped by somebody else. */
static PyObject *wait_status(PyObject *self, PyObject *args)
{
    (void)self;
    int pidfd;
    siginfo_t info;
    struct rusage r;
    if (!PyArg_ParseTuple(args, "i", &pidfd))
        return NULL;
    int error = hf_waitid(HF_P_PIDFD, pidfd, &info, WEXITED | WNOHANG, &r);
    if (error < 0)
        return hf_raise(error);
    if (info.si_pid == 0)
        Py_RETURN_NONE;
    struct hf_usage u = {
        (uint64_t)r.ru_utime.tv_sec * 1000000 + (uint64_t)r.ru_utime.tv_usec,
        (uint64_t)r.ru_stime.tv_sec * 1000000 + (uint64_t)r.ru_stime.tv_usec,
        (uint64_t)r.ru_maxrss, (uint64_t)r.ru_minflt, (uint64_t)r.ru_majflt, (uint64_t)r.ru_inblock,
        (uint64_t)r.ru_oublock, (uint64_t)r.ru_nvcsw, (uint64_t)r.ru_nivcsw,
    };
    return Py_BuildValue("iiN", info.si_code, info.si_status, hf_usage_tuple(&u));
}

/* exit_info(pidfd) -> wait(2) status, or None where the kernel does not tell (before 6.15) or the
 * process is not reaped yet.  Ask after POLLHUP: after POLLIN alone it may be missing. */
static PyObject *exit_info(PyObject *self, PyObject *args)
{
    (void)self;
    int pidfd;
    struct hf_pidfd_info info = {.mask = HF_PIDFD_INFO_EXIT};
    if (!PyArg_ParseTuple(args, "i", &pidfd))
        return NULL;
    if (ioctl(pidfd, HF_PIDFD_GET_INFO, &info) < 0 || !(info.mask & HF_PIDFD_INFO_EXIT))
        Py_RETURN_NONE;
    return PyLong_FromLong(info.exit_code);
}

static PyObject *pidfd_open(PyObject *self, PyObject *args)
{
    (void)self;
    int pid;
    if (!PyArg_ParseTuple(args, "i", &pid))
        return NULL;
    int fd = hf_pidfd_open(pid);
    return fd < 0 ? hf_raise(fd) : PyLong_FromLong(fd);
}

static PyObject *pidfd_signal(PyObject *self, PyObject *args)
{
    (void)self;
    int pidfd, signo;
    unsigned flags = 0;
    if (!PyArg_ParseTuple(args, "ii|I", &pidfd, &signo, &flags))
        return NULL;
    int r = hf_pidfd_signal(pidfd, signo, flags);
    if (r < 0)
        return hf_raise(r);
    Py_RETURN_NONE;
}

/* poll(fd, events, timeout_ns) -> revents; 0 at the time limit.  timeout_ns -1: no limit. */
static PyObject *poll_one(PyObject *self, PyObject *args)
{
    (void)self;
    int fd;
    short events;
    long long timeout_ns;
    if (!PyArg_ParseTuple(args, "ihL", &fd, &events, &timeout_ns))
        return NULL;
    struct pollfd p = {.fd = fd, .events = events};
    uint64_t deadline = timeout_ns > 0 ? hf_clock_ns(CLOCK_MONOTONIC) + (uint64_t)timeout_ns : 0;
    for (;;) {
        struct timespec left = {0, 0}, *wait = &left;
        if (timeout_ns > 0) {
            uint64_t now = hf_clock_ns(CLOCK_MONOTONIC), ns = now < deadline ? deadline - now : 0;
            left = (struct timespec){(time_t)(ns / 1000000000), (long)(ns % 1000000000)};
        } else if (timeout_ns < 0) {
            wait = NULL;
        }
        int r, error;
        Py_BEGIN_ALLOW_THREADS
        r = ppoll(&p, 1, wait, NULL);
        error = errno;
        Py_END_ALLOW_THREADS
        if (r >= 0)
            return PyLong_FromLong(r ? p.revents : 0);
        if (error != EINTR)
            return hf_raise(-error);
        if (PyErr_CheckSignals() < 0)
            return NULL;
    }
}

/* identity(status_fd, ns_fd) -> bytes that are equal as long as this process's ids, groups, capabilities,
 * no_new_privs, seccomp mode and namespaces are.  The descriptors are /proc/self/status and /proc/self/ns,
 * kept open: 4 us for everything. */
static PyObject *identity(PyObject *self, PyObject *args)
{
    (void)self;
    static const char *const fields[] = {"Uid:", "Gid:", "Groups:", "CapInh:", "CapPrm:", "CapEff:", "CapBnd:",
                                         "CapAmb:", "NoNewPrivs:", "Seccomp:"};
    static const char *const namespaces[] = {"cgroup", "ipc", "mnt", "net", "pid_for_children", "user", "uts"};
    int fd, ns_fd;
    if (!PyArg_ParseTuple(args, "ii", &fd, &ns_fd))
        return NULL;
    char text[8192], result[4096];
    size_t at = 0;
    ssize_t n = pread(fd, text, sizeof text - 1, 0);
    if (n < 0)
        return hf_raise(-errno);
    text[n] = 0;
    for (char *line = text; line && *line;) {
        char *end = strchr(line, '\n');
        size_t length = end ? (size_t)(end - line) : strlen(line);
        for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
            if (*line == *fields[i] && strncmp(line, fields[i], strlen(fields[i])) == 0 && at + length < sizeof result - 256) {
                memcpy(result + at, line, length);
                at += length;
            }
        line = end ? end + 1 : NULL;
    }
    for (size_t i = 0; i < sizeof namespaces / sizeof *namespaces; i++) {
        ssize_t length = readlinkat(ns_fd, namespaces[i], result + at, sizeof result - at);
        at += length > 0 ? (size_t)length : 0;
    }
    return PyBytes_FromStringAndSize(result, (Py_ssize_t)at);
}

/* closed_std() -> bit n: descriptor n of 0, 1, 2 is closed, or will be at exec: where the program started
 * without one of them, its number may be that of any file since, of a keeper's socket for instance */
static PyObject *closed_std(PyObject *self, PyObject *args)
{
    (void)self, (void)args;
    long bits = 0;
    for (int fd = 0; fd < 3; fd++)
        if (fcntl(fd, F_GETFD) != 0)
            bits |= 1 << fd;
    return PyLong_FromLong(bits);
}

static PyObject *forbid_clone3(PyObject *self, PyObject *args)
{
    (void)self, (void)args;
    hf_forbid_clone3();
    Py_RETURN_NONE;
}

static PyObject *has_clone3(PyObject *self, PyObject *args)
{
    (void)self, (void)args;
    return PyBool_FromLong(hf_has_clone3());
}

static PyObject *has_autoreap(PyObject *self, PyObject *args)
{
    (void)self, (void)args;
    return PyBool_FromLong(hf_has_autoreap());
}

static PyMethodDef methods[] = {
    {"spawn_body", hf_spawn_body, METH_VARARGS, NULL},
    {"launch", hf_channel_launch, METH_VARARGS, NULL},
    {"launch_from", hf_channel_launch_from, METH_VARARGS, NULL},
    {"launch_on", hf_channel_launch_on, METH_VARARGS, NULL},
    {"send_spawn", hf_request_send_spawn, METH_VARARGS, NULL},
    {"hang_up", hf_channel_hang_up, METH_VARARGS, NULL},
    {"start", hf_channel_start, METH_VARARGS, NULL},
    {"spawn_direct", spawn_direct, METH_VARARGS, NULL},
    {"send", hf_request_send, METH_VARARGS, NULL},
    {"receive", hf_channel_receive, METH_VARARGS, NULL},
    {"wire_decode", hf_wire_decode, METH_VARARGS, NULL},
    {"pdfork", hf_pdfork, METH_VARARGS, NULL},
    {"pdname", hf_pdname, METH_VARARGS, NULL},
    {"wait_status", wait_status, METH_VARARGS, NULL},
    {"exit_info", exit_info, METH_VARARGS, NULL},
    {"pidfd_open", pidfd_open, METH_VARARGS, NULL},
    {"pidfd_signal", pidfd_signal, METH_VARARGS, NULL},
    {"poll", poll_one, METH_VARARGS, NULL},
    {"closed_std", closed_std, METH_NOARGS, NULL},
    {"identity", identity, METH_VARARGS, NULL},
    {"forbid_clone3", forbid_clone3, METH_NOARGS, NULL},
    {"has_clone3", has_clone3, METH_NOARGS, NULL},
    {"has_autoreap", has_autoreap, METH_NOARGS, NULL},
    {"sigchld_install", hf_sigchld_install, METH_NOARGS, NULL},
    {"sigchld_watch", hf_sigchld_watch, METH_VARARGS, NULL},
    {"sigchld_forget", hf_sigchld_forget, METH_VARARGS, NULL},
    {"sigchld_descriptor", hf_sigchld_descriptor, METH_VARARGS, NULL},
    {"watch_open", hf_watch_open, METH_NOARGS, NULL},
    {"watch_add", hf_watch_add, METH_VARARGS, NULL},
    {"watch_remove", hf_watch_remove, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_native", "The C half of holdfast.process; private.", 0, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__native(void)
{
    return PyModuleDef_Init(&module);
}
