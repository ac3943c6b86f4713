/* spawn_body(): Python's arguments become the body of HF_SPAWN, one bytes object that the keeper
 * and the direct spawn read alike.  All checks of content happen here, before anything is started. */
#include "native.h"

#include <string.h>

extern char **environ;

/* Two passes over the same calls: first sizes (base == NULL), then bytes. */
struct area { char *base; size_t at; };

static void add_string(struct area *a, const char *s, size_t n)
{
    if (a->base) {
        memcpy(a->base + a->at, s, n);
        a->base[a->at + n] = 0;
    }
    a->at += n + 1;
}

static void set_offset(struct area *a, size_t slot, uint64_t offset)
{
    if (a->base)
        memcpy(a->base + slot, &offset, sizeof offset);
}

/* A str or path becomes bytes in the file system's encoding; a NUL inside is a ValueError. */
static PyObject *to_bytes(PyObject *value)
{
    PyObject *bytes = NULL;
    if (!PyUnicode_FSConverter(value, &bytes))
        return NULL;
    return bytes;
}

/* A new list of bytes objects from a sequence of str/bytes/path. */
static PyObject *to_bytes_list(PyObject *sequence)
{
    Py_ssize_t n = PySequence_Size(sequence);
    PyObject *list = n < 0 ? NULL : PyList_New(n);
    for (Py_ssize_t i = 0; list && i < n; i++) {
        PyObject *item = PySequence_GetItem(sequence, i);
        PyObject *bytes = item ? to_bytes(item) : NULL;
        Py_XDECREF(item);
        if (!bytes)
            Py_CLEAR(list);
        else
            PyList_SetItem(list, i, bytes);
    }
    return list;
}

/* KEY=VALUE from a mapping. */
static PyObject *to_environment(PyObject *mapping)
{
    PyObject *items = PyMapping_Items(mapping);
    Py_ssize_t n = items ? PyList_Size(items) : 0;
    PyObject *list = items ? PyList_New(n) : NULL;
    for (Py_ssize_t i = 0; list && i < n; i++) {
        PyObject *pair = PyList_GetItem(items, i);
        if (!PyTuple_Check(pair) || PyTuple_Size(pair) != 2) { /* not a mapping after all */
            PyErr_SetString(PyExc_TypeError, "env must be a mapping of names to values");
            Py_CLEAR(list);
            break;
        }
        PyObject *key = to_bytes(PyTuple_GetItem(pair, 0));
        PyObject *value = key ? to_bytes(PyTuple_GetItem(pair, 1)) : NULL;
        PyObject *entry = NULL;
        if (value && (PyBytes_Size(key) == 0 || strchr(PyBytes_AsString(key), '='))) {
            PyErr_Format(PyExc_ValueError, "illegal environment variable name: %R", PyTuple_GetItem(pair, 0));
        } else if (value) {
            size_t k = (size_t)PyBytes_Size(key), v = (size_t)PyBytes_Size(value);
            entry = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(k + v + 1));
            if (entry) {
                char *p = PyBytes_AsString(entry);
                memcpy(p, PyBytes_AsString(key), k);
                p[k] = '=';
                memcpy(p + k + 1, PyBytes_AsString(value), v);
            }
        }
        Py_XDECREF(key);
        Py_XDECREF(value);
        if (!entry)
            Py_CLEAR(list);
        else
            PyList_SetItem(list, i, entry);
    }
    Py_XDECREF(items);
    return list;
}

struct request {
    struct hf_spawn head;
    PyObject *argv, *env /* NULL: environ */, *executable, *cwd;
    const char *more; /* an hf_more, packed by the caller */
    Py_ssize_t more_size;
    uint32_t groups[HF_GROUPS_MAX];
    struct hf_rlimit rlimits[HF_RLIMITS_MAX];
    int32_t fds[HF_FDS_MAX];
};

static void lay_out(struct area *a, const struct request *r)
{
    struct hf_spawn head = r->head;
    a->at = hf_align8(sizeof head);
    const struct { const void *from; size_t size; } arrays[] = {
        {r->groups, head.n_groups * sizeof *r->groups},
        {r->rlimits, head.n_rlimits * sizeof *r->rlimits},
        {r->fds, head.n_fds * sizeof *r->fds},
    };
    for (int i = 0; i < 3; i++) {
        if (a->base)
            memcpy(a->base + a->at, arrays[i].from, arrays[i].size);
        a->at = hf_align8(a->at + arrays[i].size);
    }
    size_t argv = a->at, env = argv + (head.n_argv + 1) * sizeof(uint64_t);
    a->at = env + (head.n_env + 1) * sizeof(uint64_t);
    if (r->more_size) {
        head.more = (uint32_t)a->at;
        if (a->base) {
            memcpy(a->base + a->at, r->more, (size_t)r->more_size);
            /* The mask of CPUs follows the struct: the caller counts from its start. */
            struct hf_more *more = (struct hf_more *)(a->base + a->at);
            more->cpus += head.more;
        }
        a->at = hf_align8(a->at + (size_t)r->more_size);
    }
    for (uint32_t i = 0; i < head.n_argv; i++) {
        PyObject *item = PyList_GetItem(r->argv, i);
        set_offset(a, argv + i * sizeof(uint64_t), a->at);
        add_string(a, PyBytes_AsString(item), (size_t)PyBytes_Size(item));
    }
    for (uint32_t i = 0; i < head.n_env; i++) {
        set_offset(a, env + i * sizeof(uint64_t), a->at);
        if (r->env) {
            PyObject *item = PyList_GetItem(r->env, i);
            add_string(a, PyBytes_AsString(item), (size_t)PyBytes_Size(item));
        } else {
            add_string(a, environ[i], strlen(environ[i]));
        }
    }
    head.executable = a->at;
    add_string(a, PyBytes_AsString(r->executable), (size_t)PyBytes_Size(r->executable));
    if (r->cwd) {
        head.cwd = a->at;
        add_string(a, PyBytes_AsString(r->cwd), (size_t)PyBytes_Size(r->cwd));
    }
    a->at = hf_align8(a->at);
    if (a->base)
        memcpy(a->base, &head, sizeof head);
}

static int get_rlimits(PyObject *sequence, struct request *r)
{
    Py_ssize_t n = PySequence_Size(sequence);
    if (n < 0 || n > HF_RLIMITS_MAX) {
        PyErr_Format(PyExc_ValueError, "at most %d rlimits", HF_RLIMITS_MAX);
        return -1;
    }
    for (Py_ssize_t i = 0; i < n; i++) {
        unsigned long long soft, hard;
        unsigned int which;
        PyObject *item = PySequence_GetItem(sequence, i);
        int ok = item && PyArg_ParseTuple(item, "IKK", &which, &soft, &hard);
        Py_XDECREF(item);
        if (!ok)
            return -1;
        r->rlimits[i] = (struct hf_rlimit){.which = which, .soft = soft, .hard = hard};
    }
    return (int)n;
}

static int get_groups(PyObject *sequence, struct request *r)
{
    Py_ssize_t n = PySequence_Size(sequence), max = (Py_ssize_t)(sizeof r->groups / sizeof *r->groups);
    if (n < 0 || n > max) {
        PyErr_Format(PyExc_ValueError, "at most %zd extra groups", max);
        return -1;
    }
    for (Py_ssize_t i = 0; i < n; i++) {
        PyObject *item = PySequence_GetItem(sequence, i);
        unsigned long value = item ? PyLong_AsUnsignedLong(item) : 0;
        Py_XDECREF(item);
        if (PyErr_Occurred())
            return -1;
        r->groups[i] = (uint32_t)value;
    }
    return (int)n;
}

/* spawn_body(argv, env, executable, cwd, options, pgid, umask, uid, gid, nice, groups, rlimits,
 *            fd_targets, closed_std, on_owner_loss, stop_signal, stop_scope, grace_ms, more=b"") -> bytes */
PyObject *hf_spawn_body(PyObject *self, PyObject *args)
{
    (void)self;
    struct request r;
    memset(&r.head, 0, sizeof r.head);
    r.argv = r.env = r.executable = r.cwd = NULL;
    r.more = NULL;
    r.more_size = 0;
    PyObject *argv, *env, *executable, *cwd, *groups, *rlimits, *fds, *result = NULL;
    unsigned long long grace_ms;
    if (!PyArg_ParseTuple(args, "OOOOIiIIIiOOOIIiIK|y#", &argv, &env, &executable, &cwd, &r.head.options, &r.head.pgid,
                          &r.head.umask, &r.head.uid, &r.head.gid, &r.head.nice, &groups, &rlimits, &fds,
                          &r.head.closed_std, &r.head.on_owner_loss, &r.head.stop_signal, &r.head.stop_scope,
                          &grace_ms, &r.more, &r.more_size))
        return NULL;
    r.head.grace_ms = grace_ms;
    if (r.more_size && r.more_size < (Py_ssize_t)sizeof(struct hf_more)) {
        PyErr_SetString(PyExc_ValueError, "more is too short");
        return NULL;
    }
    HF_CALL4(SYS_rt_sigprocmask, SIG_BLOCK, NULL, &r.head.mask, sizeof r.head.mask);
    r.head.mask &= ~hf_blocked_by_us;
    int n_groups = get_groups(groups, &r), n_rlimits = n_groups < 0 ? -1 : get_rlimits(rlimits, &r);
    int n_fds = n_rlimits < 0 ? -1 : hf_get_fds(fds, r.fds, HF_FDS_MAX);
    if (n_fds < 0)
        return NULL;
    r.head.n_groups = (uint32_t)n_groups;
    r.head.n_rlimits = (uint32_t)n_rlimits;
    r.head.n_fds = (uint32_t)n_fds;
    if (!(r.argv = to_bytes_list(argv)) || !(r.executable = to_bytes(executable)))
        goto out;
    if (PyList_Size(r.argv) == 0) {
        PyErr_SetString(PyExc_ValueError, "the command is empty");
        goto out;
    }
    if (cwd != Py_None && !(r.cwd = to_bytes(cwd)))
        goto out;
    r.head.n_argv = (uint32_t)PyList_Size(r.argv);
    if (env != Py_None) {
        if (!(r.env = to_environment(env)))
            goto out;
        r.head.n_env = (uint32_t)PyList_Size(r.env);
    } else {
        while (environ && environ[r.head.n_env])
            r.head.n_env++;
    }
    struct area area = {NULL, 0};
    lay_out(&area, &r);
    result = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)area.at);
    if (result) {
        area.base = PyBytes_AsString(result);
        memset(area.base, 0, area.at); /* gaps, last slots, padding */
        lay_out(&area, &r);
    }
out:
    Py_XDECREF(r.argv);
    Py_XDECREF(r.env);
    Py_XDECREF(r.executable);
    Py_XDECREF(r.cwd);
    return result;
}
