/* What an owner says to a keeper.  Nothing in here waits. */
#define _GNU_SOURCE
#include "native.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

int hf_send_packet(int sock, const char *packet, size_t size, const void *more, size_t more_size,
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
int hf_send_spawn(int sock, int hello_flags, const char *body, size_t size, const int *fds, int n_fds)
{
    char packet[64];
    size_t at = 0;
    if (hello_flags >= 0) {
        struct hf_hello hello = {HF_WIRE_VERSION, (uint32_t)hello_flags};
        hf_wire_put(packet, sizeof packet, &at, HF_HELLO, &hello, sizeof hello);
    }
    if (size == 0)
        return hf_send_packet(sock, packet, at, NULL, 0, NULL, 0);
    if (size <= HF_INLINE_MAX) {
        struct hf_record record = {.tag = HF_SPAWN, .length = (uint32_t)size};
        memcpy(packet + at, &record, sizeof record);
        int r = hf_send_packet(sock, packet, at + sizeof record, body, size, fds, n_fds);
        if (r != -EMSGSIZE) /* net.core.wmem_default is set below 64 KiB: then as if it were long */
            return r;
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
        r = hf_send_packet(sock, packet, at, NULL, 0, all, n_fds + 1);
    }
    close(memfd);
    return r;
}

/* send(socket, tag, body) */
PyObject *hf_request_send(PyObject *self, PyObject *args)
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
        r = hf_send_packet(sock, packet, at, NULL, 0, NULL, 0);
    if (r < 0)
        return hf_raise(r);
    Py_RETURN_NONE;
}

/* send_spawn(socket, body, fds): the request alone, answered in the reports; does not block */
PyObject *hf_request_send_spawn(PyObject *self, PyObject *args)
{
    (void)self;
    int sock, fds[HF_FDS_MAX];
    const char *body;
    Py_ssize_t size;
    PyObject *fd_list;
    if (!PyArg_ParseTuple(args, "iy#O", &sock, &body, &size, &fd_list))
        return NULL;
    int n_fds = hf_get_fds(fd_list, fds, HF_FDS_MAX);
    if (n_fds < 0)
        return NULL;
    int r = hf_send_spawn(sock, -1, body, (size_t)size, fds, n_fds);
    if (r < 0) {
        struct hf_child_result failed = {r == -EBADF ? HF_STAGE_FDS : HF_STAGE_LAUNCH, -r};
        return hf_raise_stage(&failed);
    }
    Py_RETURN_NONE;
}
