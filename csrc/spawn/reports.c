/* What a keeper says, as tuples: the record's tag first, then its fields. */
#include "native.h"

#include <string.h>

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
        struct hf_log_state log; struct hf_moved moved;
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
    case HF_MOVED:
        GET(moved);
        return Py_BuildValue("IiiKII", tag, u.moved.old_pid, u.moved.pid, u.moved.identity, u.moved.rule, u.moved.count);
    case HF_LOST:
        GET(lost);
        return Py_BuildValue("IK", tag, u.lost.events);
    case HF_LAUNCHED:
        GET(launched);
        return Py_BuildValue("Ii", tag, u.launched.pid);
    case HF_LOG_STATE:
        GET(log);
        return Py_BuildValue("IKKKi", tag, u.log.written_bytes, u.log.lost_bytes, u.log.dropped_bytes, u.log.error);
    default:
        return Py_BuildValue("(I)", tag);
    }
#undef GET
malformed:
    PyErr_Format(PyExc_ValueError, "malformed record with tag %u", tag);
    return NULL;
}

PyObject *hf_decode(const char *packet, size_t size)
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
    return hf_decode(packet, (size_t)size);
}
