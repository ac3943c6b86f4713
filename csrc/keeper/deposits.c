#define _GNU_SOURCE
#include "deposits.h"
#include "keeper.h"

#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* Dense: of the rest no page is ever touched. */
HF_RARELY_USED static struct { int fd; char key[HF_DEPOSIT_KEY]; } deposits[HF_DEPOSITS_MAX];
static uint32_t n_deposits;

static uint32_t find(const char *key)
{
    uint32_t at = 0;
    while (at < n_deposits && strcmp(deposits[at].key, key) != 0)
        at++;
    return at;
}

static void keep(const char *key, int *fd)
{
    uint32_t at = find(key);
    if (*fd < 0 || at == HF_DEPOSITS_MAX)
        return;
    if (at < n_deposits)
        close(deposits[at].fd);
    else
        n_deposits++;
    memcpy(deposits[at].key, key, sizeof deposits[at].key);
    deposits[at].fd = *fd;
    *fd = -1;
}

static void drop(const char *key)
{
    uint32_t at = find(key);
    if (at == n_deposits)
        return;
    close(deposits[at].fd);
    deposits[at] = deposits[--n_deposits];
}

static void give(uint32_t at, int channel)
{
    struct { struct hf_record record; struct hf_deposited body; } answer = {
        {.tag = HF_DEPOSITED, .length = sizeof answer.body}, {.index = at},
    };
    union { struct cmsghdr align; char space[CMSG_SPACE(sizeof(int))]; } ancillary = {0};
    struct iovec piece = {&answer, sizeof answer};
    struct msghdr message = {.msg_iov = &piece, .msg_iovlen = 1};
    if (at < n_deposits) {
        memcpy(answer.body.key, deposits[at].key, sizeof answer.body.key);
        message.msg_control = ancillary.space;
        message.msg_controllen = sizeof ancillary.space;
        struct cmsghdr *c = CMSG_FIRSTHDR(&message);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(c), &deposits[at].fd, sizeof(int));
    }
    ssize_t n = sendmsg(channel, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    (void)n;
}

void hf_deposits_obey(const struct hf_record *record, const char *body, int *fd, int channel)
{
    struct hf_deposit named; /* WITHDRAW is the same */
    struct hf_take take;
    if (record->tag == HF_TAKE && hf_wire_get(record, body, &take, sizeof take) == 0)
        give(take.index, channel);
    if ((record->tag != HF_DEPOSIT && record->tag != HF_WITHDRAW) ||
        hf_wire_get(record, body, &named, sizeof named) < 0 || !named.key[0] || named.key[HF_DEPOSIT_KEY - 1])
        return;
    if (record->tag == HF_DEPOSIT)
        keep(named.key, fd);
    else
        drop(named.key);
}
