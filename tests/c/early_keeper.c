/* Stands for a keeper whose process has ended, with an adopted member, before its launcher could tell the owner
 * of it: SPAWNED and ADOPTED, with a descriptor each, as its first words.  Then it waits for the owner's end. */
#include "launch.h"
#include "wire.h"

#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static void say(uint16_t tag, const void *body, size_t size)
{
    char packet[128];
    size_t at = 0;
    union { char space[CMSG_SPACE(sizeof(int))]; struct cmsghdr align; } ancillary = {{0}};
    hf_wire_put(packet, sizeof packet, &at, tag, body, size);
    struct iovec iov = {packet, at};
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &ancillary,
                             .msg_controllen = sizeof ancillary.space};
    struct cmsghdr *c = CMSG_FIRSTHDR(&message);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(sizeof(int));
    memset(CMSG_DATA(c), 0, sizeof(int)); /* descriptor 0 will do */
    sendmsg(HF_CONTROL_FD, &message, MSG_NOSIGNAL);
}

int main(void)
{
    struct hf_spawned spawned = {.pid = 1};
    struct hf_adopted adopted = {.pid = 2};
    char nothing[16];
    say(HF_SPAWNED, &spawned, sizeof spawned);
    say(HF_ADOPTED, &adopted, sizeof adopted);
    while (recv(HF_CONTROL_FD, nothing, sizeof nothing, 0) > 0)
        continue;
    return 0;
}
