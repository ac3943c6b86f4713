/* The log writer: log.c reads the pipes and cuts their bytes into lines, log_stamp.c puts
 * the time before them, log_files.c puts them into files.  docs/logs.md says what an operator sees of both. */
#ifndef HF_LOG_H
#define HF_LOG_H

#include "keeper.h"

#include <poll.h>
#include <sys/types.h>

enum {
    LOG_STREAMS = 2,
    LOG_CHUNK = 262144,        /* read at once, and the longest line that is held until its end is there */
    LOG_QUIET_MS = 100,        /* an unfinished line waits so long for its end, buffers for another use */
    LOG_AGAIN_MS = 1000,       /* between two looks at what others did to the files, and between two reports */
    LOG_PIPE_USUAL = 65536,    /* what the kernel gives */
    LOG_PIPE_GROWN = 1048576,  /* a pipe that each read finds full is made so large */
};

/* ---- log.c: kept.c calls these --------------------------------------------------------------- */

/* LOG: the next spawn's output is ours.  A request that is wrong makes that spawn fail. */
void hf_log_request(const struct hf_record *record, const char *body, const int *fds, int n_fds);
/* Put pipes into the plan, if there was a LOG; 0 or -errno.  Then, when the start has been tried: */
int hf_log_begin(struct hf_plan *plan);
void hf_log_started(int pid); /* 0: it failed */
/* Main has ended: what it wrote is read to its end, then the files say how it went. */
void hf_log_main_ended(const siginfo_t *info);
/* The tree is gone: what lies in the pipes is written, all is closed. */
void hf_log_end(void);
void hf_log_watch(struct pollfd fds[LOG_STREAMS]);
/* Write what came, at most one chunk a stream.  Sets hf_reports.log when the owner should know. */
void hf_log_step(const struct pollfd fds[LOG_STREAMS]);
uint64_t hf_log_deadline(void); /* 0: none */
/* Where what is typed goes, a terminal or the pipe of its stdin; -1: nowhere. */
int hf_log_input(void);
/* Nobody sits at the terminal any more: what Ctrl-S has stopped goes on. */
void hf_log_flow(void);
/* The last lines of the log as it is now, up to `room` bytes: how many; -1: there is no log. */
ssize_t hf_log_recent(char *to, size_t room);
/* Nobody reads that pipe any more. */
void hf_log_close_input(void);
/* The state of the last log; 0: there was none. */
int hf_log_state(struct hf_log_state *state);
/* What hf_log_state gave is told. */
void hf_log_told(const struct hf_log_state *state);

/* ---- log_files.c: one set of files a stream --------------------------------------------------- */

struct hf_log_file {
    const char *name, *prefix; /* "current" and "", "stderr" and "stderr." */
    int fd, error;             /* fd -1: not open, and why; it is tried again with the next data */
    uint64_t size, next;       /* bytes in the file; the number that it will get */
    uint64_t looked_ns;        /* when the directory was last asked whether this is still our file */
    int mid_line;              /* it ends in the middle of a line that what comes next goes on */
    int cut;                   /* it ends in the middle of a line that nothing goes on */
    int skipping;              /* the start of the line that comes was lost: so is the rest */
    uint64_t gap;              /* bytes that are missing here since the last marker ... */
    int gap_error;             /* ... because of this errno, or LOG_OVER_CAP */
};
enum { LOG_OVER_CAP = -1 };

/* What both streams share. */
struct hf_log_set {
    int directory;             /* -1: no log */
    struct hf_log plan;
    struct hf_log_state state;
    uint64_t total, counted_ns; /* bytes of all files in the directory, and when they were last counted */
    uint64_t now_ns;           /* monotonic, of this round */
};
extern struct hf_log_set hf_log_set;

void hf_log_file_open(struct hf_log_file *file);
/* Whole lines, and at most once in a call the start, a middle part or the end of one. */
void hf_log_file_put(struct hf_log_file *file, const char *data, size_t size);
/* A line of our own, ended by a newline; it starts on a fresh line. */
void hf_log_file_mark(struct hf_log_file *file, const char *line, size_t size);
void hf_log_file_close(struct hf_log_file *file);
/* Give back the memory that is needed for moments. */
void hf_log_files_rest(void);

/* ---- log_stamp.c ------------------------------------------------------------------------------ */

enum { LOG_STAMP = 28 };
/* The time as a line of ours starts with it, if lines carry it: its size, LOG_STAMP or 0. */
size_t hf_log_stamp(char *to);
/* hf_log_file_put, each line with the time. */
void hf_log_put_stamped(struct hf_log_file *file, const char *data, size_t size);
void hf_log_stamp_rest(void);

#endif
