/* Lines into files: rotation, the cap, what others do to the files, and disks that are full.
 *
 * A file is closed at a line's end, when the next line would make it longer than rotate_size.  A line that
 * has begun in a file ends in it, up to 2 x rotate_size: only there a line is split.  Bytes that cannot be
 * written are counted and dropped up to a line's end, never kept: the service does not wait for a disk.
 */
#define _GNU_SOURCE
#include "log.h"
#include "text.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { REMOVED_AT_ONCE = 64, NAME_SIZE = 40, RENAME_TRIES = 8 };

struct hf_log_set hf_log_set = {.directory = -1};
HF_RARELY_USED static struct __attribute__((aligned(HF_PAGE))) {
    uint64_t count, highest, lowest[REMOVED_AT_ONCE]; /* of a stream's numbered files */
    unsigned n;
    _Alignas(8) char entries[3072];
} found;

static void number_name(char *name, const struct hf_log_file *file, uint64_t number)
{
    struct hf_text t = {name, name + NAME_SIZE - 1};
    put(&t, file->prefix);
    for (uint64_t place = 10000000; place > number && place > 1; place /= 10)
        put(&t, "0");
    put_number(&t, number);
    *t.at = 0;
}

/* The number in a name; 0: it is none of ours.  Something may follow it (00000007.gz): then the number is
 * taken, but the file is not ours to remove. */
static uint64_t number_in(const char *name, const char *prefix, int *plain)
{
    size_t length = strlen(prefix), digits = 0;
    uint64_t number = 0;
    if (strncmp(name, prefix, length) != 0)
        return 0;
    for (name += length; name[digits] >= '0' && name[digits] <= '9' && digits < 18; digits++)
        number = number * 10 + (uint64_t)(name[digits] - '0');
    *plain = !name[digits];
    return digits >= 8 && (*plain || name[digits] == '.') ? number : 0;
}

static void note_number(uint64_t number)
{
    unsigned at = found.n < REMOVED_AT_ONCE ? found.n++ : REMOVED_AT_ONCE - 1;
    if (found.count++ >= REMOVED_AT_ONCE && found.lowest[at] < number)
        return;
    for (; at > 0 && found.lowest[at - 1] > number; at--)
        found.lowest[at] = found.lowest[at - 1];
    found.lowest[at] = number;
}

/* Count the bytes of all files, and this stream's numbered ones. */
static void look_through(const struct hf_log_file *file)
{
    struct entry { uint64_t ino; int64_t off; uint16_t length; uint8_t type; char name[]; };
    uint64_t total = 0;
    found.count = found.highest = found.n = 0;
    hf_log_set.counted_ns = hf_log_set.now_ns;
    if (lseek(hf_log_set.directory, 0, SEEK_SET) < 0)
        return;
    for (;;) {
        long n = HF_CALL3(SYS_getdents64, hf_log_set.directory, found.entries, sizeof found.entries);
        if (n < 0)
            return; /* the old count is better than a part of the new one */
        if (n == 0)
            break;
        for (long at = 0; at < n;) {
            struct entry *e = (struct entry *)(void *)(found.entries + at);
            struct stat st;
            int plain = 0;
            at += e->length;
            uint64_t number = number_in(e->name, file->prefix, &plain);
            if (number > found.highest)
                found.highest = number;
            if (fstatat(hf_log_set.directory, e->name, &st, AT_SYMLINK_NOFOLLOW) || !S_ISREG(st.st_mode))
                continue;
            total += (uint64_t)st.st_size;
            if (number && plain)
                note_number(number);
        }
    }
    hf_log_set.total = total;
}

void hf_log_files_rest(void)
{
    hf_give_back(&found, sizeof found);
}

static void remove_oldest(const struct hf_log_file *file)
{
    look_through(file);
    uint64_t keep = hf_log_set.plan.rotate_count;
    for (unsigned i = 0; i < found.n && found.count > keep; i++, found.count--) {
        char name[NAME_SIZE];
        struct stat st;
        number_name(name, file, found.lowest[i]);
        if (fstatat(hf_log_set.directory, name, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
            unlinkat(hf_log_set.directory, name, 0) == 0)
            hf_log_set.total -= (uint64_t)st.st_size < hf_log_set.total ? (uint64_t)st.st_size : hf_log_set.total;
    }
}

/* Open the file that has our name now.  The old one stays until the new one is there; an old one that
 * nobody can find any more would only hide the loss. */
static int reopen(struct hf_log_file *file)
{
    struct stat st;
    int fd = openat(hf_log_set.directory, file->name,
                    O_RDWR | O_APPEND | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY, 0640);
    file->error = fd < 0 ? errno : 0;
    if (fd >= 0 && (fstat(fd, &st) || !S_ISREG(st.st_mode))) {
        file->error = EINVAL;
        close(fd);
        fd = -1;
    }
    if (fd < 0) {
        if (file->fd >= 0 && (fstat(file->fd, &st) || st.st_nlink == 0)) {
            close(file->fd);
            file->fd = -1;
        }
        return -1;
    }
    char last = '\n';
    if (st.st_size > 0 && pread(fd, &last, 1, st.st_size - 1) != 1)
        last = '\n';
    if (file->fd >= 0)
        close(file->fd);
    file->fd = fd;
    file->size = (uint64_t)st.st_size;
    file->cut = last != '\n';
    return 0;
}

/* Others may have renamed, removed or truncated it. */
static void look_again(struct hf_log_file *file)
{
    struct stat st, ours;
    if (file->fd >= 0 && hf_log_set.now_ns - file->looked_ns < LOG_AGAIN_MS * NS_PER_MS)
        return;
    file->looked_ns = hf_log_set.now_ns;
    if (file->fd < 0 || fstatat(hf_log_set.directory, file->name, &st, AT_SYMLINK_NOFOLLOW) ||
        fstat(file->fd, &ours) || st.st_ino != ours.st_ino || st.st_dev != ours.st_dev)
        reopen(file);
    else
        file->size = (uint64_t)st.st_size;
}

/* The open file gets its number, a new one takes its place.  -1: the old one goes on. */
static int rotate(struct hf_log_file *file)
{
    struct stat st, ours;
    char name[NAME_SIZE];
    if (fstatat(hf_log_set.directory, file->name, &st, AT_SYMLINK_NOFOLLOW) == 0 && fstat(file->fd, &ours) == 0 &&
        st.st_ino == ours.st_ino && st.st_dev == ours.st_dev) {
        int r = -1;
        errno = EEXIST;
        for (int i = 0; r && errno == EEXIST && i < RENAME_TRIES; i++) {
            number_name(name, file, file->next++);
            long moved = HF_CALL5(SYS_renameat2, hf_log_set.directory, file->name, hf_log_set.directory, name, 1);
            r = moved < 0 ? -1 : 0; /* 1: RENAME_NOREPLACE, which some file systems do not know */
            errno = (int)-moved;
            if (r && errno == EINVAL)
                r = renameat(hf_log_set.directory, file->name, hf_log_set.directory, name);
        }
        if (r) {
            file->next--;
            return -1;
        }
    }
    if (reopen(file))
        return -1;
    file->looked_ns = hf_log_set.now_ns;
    remove_oldest(file);
    return 0;
}

/* Where the last line ends within the first `within` bytes: after its newline; 0: nowhere. */
static size_t last_line_end(const char *data, size_t within)
{
    const char *end = within ? memrchr(data, '\n', within) : NULL;
    return end ? (size_t)(end - data) + 1 : 0;
}

/* How many of the bytes belong into this file; 0: rotate first. */
static size_t fitting(const struct hf_log_file *file, const char *data, size_t size)
{
    uint64_t limit = hf_log_set.plan.rotate_size;
    if (limit == 0 || (file->size < limit && size <= limit - file->size))
        return size;
    size_t lines = file->size < limit ? last_line_end(data, (size_t)(limit - file->size)) : 0;
    if (lines)
        return lines;
    if (!file->mid_line && file->size > 0)
        return 0;
    const char *end = memchr(data, '\n', size);
    size_t line = end ? (size_t)(end - data) + 1 : size;
    if (file->size >= 2 * limit)
        return 0;
    return line <= 2 * limit - file->size ? line : (size_t)(2 * limit - file->size);
}

/* How many bytes may be added at all, if not all of `size`. */
static uint64_t room_below_cap(const struct hf_log_file *file, uint64_t size)
{
    struct hf_log_set *s = &hf_log_set;
    uint64_t cap = s->plan.cap;
    if (cap == 0 || (s->total < cap && size <= cap - s->total))
        return size;
    if (s->now_ns - s->counted_ns >= LOG_AGAIN_MS * NS_PER_MS)
        look_through(file); /* somebody may have made room */
    uint64_t room = s->total < cap ? cap - s->total : 0;
    return size < room ? size : room;
}

static size_t within_cap(const struct hf_log_file *file, const char *data, size_t size)
{
    size_t room = (size_t)room_below_cap(file, size);
    return room == size ? size : last_line_end(data, room);
}

/* Into the open file.  How many bytes went in; when fewer, *why is an errno or LOG_OVER_CAP. */
static size_t append(struct hf_log_file *file, const char *data, size_t size, int *why)
{
    size_t may = within_cap(file, data, size), done = 0;
    *why = LOG_OVER_CAP;
    while (done < may) {
        ssize_t n = file->fd >= 0 ? write(file->fd, data + done, may - done) : -1;
        if (n < 0 && file->fd >= 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            *why = file->fd < 0 ? file->error : n < 0 ? errno : EIO;
            break;
        }
        done += (size_t)n;
    }
    file->size += done;
    hf_log_set.total += done;
    hf_log_set.state.written_bytes += done;
    if (done)
        file->mid_line = data[done - 1] != '\n';
    return done;
}

static size_t place(struct hf_log_file *file, const char *data, size_t size, int *why)
{
    size_t done = 0;
    uint64_t limit = hf_log_set.plan.rotate_size;
    if (file->cut && file->fd >= 0 && limit && file->size >= 2 * limit)
        rotate(file);
    if (file->cut) {
        if (!append(file, "\n", 1, why))
            return 0;
        file->cut = 0;
    }
    while (done < size) {
        size_t part = file->fd >= 0 ? fitting(file, data + done, size - done) : size - done;
        if (part == 0 && rotate(file) == 0)
            continue;
        if (part == 0)
            part = size - done; /* better too long than lost */
        size_t n = append(file, data + done, part, why);
        done += n;
        if (n < part)
            break;
    }
    return done;
}

static void lose(struct hf_log_file *file, size_t size, int ends_line, int why)
{
    *(why == LOG_OVER_CAP ? &hf_log_set.state.dropped_bytes : &hf_log_set.state.lost_bytes) += size;
    file->gap += size;
    file->gap_error = why;
    file->skipping = !ends_line;
    file->cut |= file->mid_line;
    file->mid_line = 0;
}

/* Say what is missing, before what comes after it: `next` bytes at least, which must have room, too. */
static int mend(struct hf_log_file *file, size_t next, int *why)
{
    char line[160];
    if (!file->gap)
        return 0;
    struct hf_text t = {line + hf_log_stamp(line), line + sizeof line - 1};
    put(&t, "--- holdfast: ");
    put_number(&t, file->gap);
    put(&t, " bytes lost: ");
    put(&t, file->gap_error == LOG_OVER_CAP ? "log cap reached" : strerror(file->gap_error));
    *t.at++ = '\n';
    size_t size = (size_t)(t.at - line);
    size_t all = size + next + 1; /* a newline may have to end a cut line */
    *why = LOG_OVER_CAP;
    if (room_below_cap(file, all) < all)
        return -1;
    if (place(file, line, size, why) < size) {
        file->cut |= file->mid_line;
        file->mid_line = 0;
        return -1;
    }
    file->gap = 0;
    file->gap_error = 0;
    return 0;
}

void hf_log_file_put(struct hf_log_file *file, const char *data, size_t size)
{
    int why = 0;
    if (file->skipping) {
        const char *end = memchr(data, '\n', size);
        size_t rest = end ? (size_t)(end - data) + 1 : size;
        lose(file, rest, end != NULL, file->gap_error ? file->gap_error : LOG_OVER_CAP);
        data += rest;
        size -= rest;
    }
    if (size == 0)
        return;
    look_again(file);
    const char *end = memchr(data, '\n', size);
    size_t first = end ? (size_t)(end - data) + 1 : size;
    size_t done = mend(file, first, &why) ? 0 : place(file, data, size, &why);
    if (done < size)
        lose(file, size - done, data[size - 1] == '\n', why);
}

void hf_log_file_mark(struct hf_log_file *file, const char *line, size_t size)
{
    file->cut |= file->mid_line;
    file->mid_line = file->skipping = 0;
    hf_log_file_put(file, line, size);
}

void hf_log_file_open(struct hf_log_file *file)
{
    file->fd = -1;
    file->mid_line = file->skipping = 0;
    file->gap = 0;
    file->gap_error = 0;
    look_through(file);
    file->next = found.highest + 1;
    reopen(file);
    file->looked_ns = hf_log_set.now_ns;
}

void hf_log_file_close(struct hf_log_file *file)
{
    int why;
    if (file->gap) {
        look_again(file);
        mend(file, 0, &why);
    }
    if (file->fd >= 0)
        close(file->fd);
    file->fd = -1;
    file->gap = 0;
}
