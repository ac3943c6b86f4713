/* inotify, which Python's library lacks: for followers of logs.  Events are read in Python (daemon/watch.py). */
#define _GNU_SOURCE
#include "native.h"

#include <errno.h>
#include <sys/inotify.h>

/* watch_open() -> a descriptor that is readable when a watched directory has changed */
PyObject *hf_watch_open(PyObject *self, PyObject *args)
{
    (void)self, (void)args;
    int fd = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
    return fd < 0 ? hf_raise(-errno) : PyLong_FromLong(fd);
}

/* watch_add(fd, directory) -> the watch's number; the same one again for the same directory */
PyObject *hf_watch_add(PyObject *self, PyObject *args)
{
    (void)self;
    int fd;
    PyObject *path;
    if (!PyArg_ParseTuple(args, "iO&", &fd, PyUnicode_FSConverter, &path))
        return NULL;
    /* A write to a file, a new name: what a follower waits for. */
    unsigned mask = IN_MODIFY | IN_CREATE | IN_MOVED_TO | IN_ONLYDIR;
    int watch = inotify_add_watch(fd, PyBytes_AsString(path), mask);
    int error = errno;
    Py_DECREF(path);
    return watch < 0 ? hf_raise(-error) : PyLong_FromLong(watch);
}

/* watch_remove(fd, watch): no more of it, but for one last event that says so */
PyObject *hf_watch_remove(PyObject *self, PyObject *args)
{
    (void)self;
    int fd, watch;
    if (!PyArg_ParseTuple(args, "ii", &fd, &watch))
        return NULL;
    if (inotify_rm_watch(fd, watch) < 0)
        return hf_raise(-errno);
    Py_RETURN_NONE;
}
