/* Clients at the other end of a service's terminal or stdin: `holdfast attach`. */
#ifndef HF_ATTACH_H
#define HF_ATTACH_H

#include "keeper.h"

#include <poll.h>

enum {
    ATTACH_CLIENTS_MAX = 4,
    ATTACH_FDS = ATTACH_CLIENTS_MAX + 1, /* and what they type into, while it is full */
    ATTACH_RECENT_MAX = 4096,            /* of the log, for who comes */
    ATTACH_PIECE_MAX = 16384,            /* of output, in one packet */
};

/* ATTACH: the connection that came along is a client's from now on. */
void hf_attach_begin(const int *fds, int n_fds);
int hf_attach_watch(struct pollfd fds[ATTACH_FDS]); /* 0: there is none */
void hf_attach_step(const struct pollfd fds[ATTACH_FDS]);

/* log.c calls these: what the service wrote, as it wrote it; */
void hf_attach_output(const char *data, size_t size);
/* main has ended, and all that it wrote was passed on; */
void hf_attach_main_ended(const siginfo_t *info);
/* nothing more will come. */
void hf_attach_end(void);

#endif
