/* holdfast._native: what Python cannot do by itself, and nothing that it could. */
#ifndef HF_NATIVE_H
#define HF_NATIVE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "launch.h"
#include "wire.h"

/* OSError with errno, and for a failed start SpawnError's (errno, stage) in its args. */
PyObject *hf_raise(long negative_errno);
PyObject *hf_raise_stage(const struct hf_child_result *result);
/* Fill at most max descriptor numbers from a sequence; -1 with an exception. */
int hf_get_fds(PyObject *sequence, int *fds, int max);
PyObject *hf_usage_tuple(const struct hf_usage *usage);

/* plan.c */
PyObject *hf_spawn_body(PyObject *self, PyObject *args);
/* requests.c: both give 0 or -errno */
int hf_send_packet(int sock, const char *packet, size_t size, const void *more, size_t more_size, const int *fds,
                   int n_fds);
/* HELLO unless hello_flags is -1, and SPAWN unless size is 0: inside the packet or, when long, in a memfd. */
int hf_send_spawn(int sock, int hello_flags, const char *body, size_t size, const int *fds, int n_fds);
PyObject *hf_request_send(PyObject *self, PyObject *args);
PyObject *hf_request_send_spawn(PyObject *self, PyObject *args);
/* channel.c */
PyObject *hf_channel_launch(PyObject *self, PyObject *args);
PyObject *hf_channel_launch_from(PyObject *self, PyObject *args);
PyObject *hf_channel_launch_on(PyObject *self, PyObject *args);
PyObject *hf_channel_start(PyObject *self, PyObject *args);
PyObject *hf_channel_hang_up(PyObject *self, PyObject *args);
PyObject *hf_channel_receive(PyObject *self, PyObject *args);
/* procdesc.c */
PyObject *hf_pdfork(PyObject *self, PyObject *args);
PyObject *hf_pdname(PyObject *self, PyObject *args);
/* reports.c */
/* A packet's records as a list of tuples; ValueError when it is malformed. */
PyObject *hf_decode(const char *packet, size_t size);
PyObject *hf_wire_decode(PyObject *self, PyObject *args);
/* sigchld.c */
extern hf_sigmask hf_blocked_by_us; /* what we have blocked for ourselves, and nobody shall inherit */
PyObject *hf_sigchld_install(PyObject *self, PyObject *args);
PyObject *hf_sigchld_watch(PyObject *self, PyObject *args);
PyObject *hf_sigchld_forget(PyObject *self, PyObject *args);
PyObject *hf_sigchld_descriptor(PyObject *self, PyObject *args);
/* watch.c */
PyObject *hf_watch_open(PyObject *self, PyObject *args);
PyObject *hf_watch_add(PyObject *self, PyObject *args);
PyObject *hf_watch_remove(PyObject *self, PyObject *args);

#endif
