/* Kept mode: kept.c obeys and guards, kept_reports.c tells, held.c finds the next owner. */
#ifndef HF_KEPT_H
#define HF_KEPT_H

#include "keeper.h"
#include "launch.h"

#include <stddef.h>
#include <sys/socket.h>

struct hf_kept {
    int control, owner; /* the socket and the owner's pidfd; -1 when the owner is gone */
    uint32_t hello_flags;
    int first_group;    /* the owner's, which we were started in */
};
extern struct hf_kept hf_kept;

/* What is large is needed for moments: it is given back to the kernel once the program runs, for memory
 * and because a request holds an environment, and environments hold secrets.  The *type* is aligned, so
 * its size is whole pages: only those can be given back, for the linker puts other things behind. */
extern struct __attribute__((aligned(HF_PAGE))) hf_scratch {
    char packet[HF_PACKET_MAX]; /* a request, and the plan made of it */
    int fds[253];               /* what came along: SCM_RIGHTS takes no more */
    _Alignas(struct cmsghdr) char ancillary[CMSG_SPACE(253 * sizeof(int))];
    char stack[HF_CHILD_STACK]; /* of the child between clone and exec */
    char out[8192];             /* reports on their way */
} hf_scratch;
_Static_assert(sizeof hf_scratch % HF_PAGE == 0, "the last page is shared with other variables");

/* ---- kept_reports.c ------------------------------------------------------------------------- */

/* What waits to be sent; kept.c and log.c set the first four. */
struct hf_reports {
    int stop, empty, members, log;
    int moved;
    uint32_t members_id;
    int answer, failed;   /* to a request; the last start failed */
    int empty_told;
    uint32_t unacknowledged; /* HF_ACK_*: what a held keeper tells its next owner again */
    uint64_t resend_ns;   /* the kernel had no memory for a packet: when to try again; 0: poll tells */
};
extern struct hf_reports hf_reports;
extern const struct hf_mode hf_kept_mode;

void hf_reports_begin_tree(void);
void hf_reports_spawned(uint64_t started_ns, uint64_t started_at_ns);
void hf_reports_failed(int stage, int error);
/* hf_tree's main is another one than before, or by another rule. */
void hf_reports_moved(int old_pid, enum hf_rule rule);
/* The tree is empty; a stop has come to its end. */
void hf_reports_emptied(void);
void hf_reports_stopped(void);
void hf_reports_acknowledge(uint32_t what);
/* A new owner: everything that he has to know waits for him. */
void hf_reports_greet(void);
/* The whole story as the report file has it, into hf_scratch.out; its size. */
size_t hf_reports_record(void);
void hf_reports_note_adopted(void);
int hf_reports_pending(void);
/* Send what can be sent now; 0, or -errno when nobody hears it any more. */
int hf_reports_flush(void);
void hf_reports_forget(void);
/* Give back the memory of events that are told. */
void hf_reports_rest(void);

/* ---- held.c --------------------------------------------------------------------------------- */

struct hf_holding {
    int listener;  /* -1: this keeper is not held */
    int candidate; /* connected, and has not said HELLO yet */
    uint32_t flags;
};
extern struct hf_holding hf_holding;
/* HELD; 0 or -errno, and then nothing has changed. */
int hf_held_begin(const struct hf_held *held, const int *fds, int n_fds);
int hf_held_poll_fd(void);
/* Connections, and the report file when its time has come. */
void hf_held_step(int connecting, int speaking, uint64_t now_ns);
/* When hf_held_step wants to be called at the latest; 0: no deadline. */
uint64_t hf_held_deadline(void);
int hf_held_finished(void);
int hf_is_packet_socket(int fd);
/* Close a connection so that its other end reads an end of file, whatever it has said meanwhile. */
void hf_hang_up(int fd);

#endif
