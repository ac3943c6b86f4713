/* The time before each line: 2026-11-21T03:11:14.123456Z and a space.
 *
 * One look at the clock for all lines of a chunk; the date is worked out once a second.
 */
#define _GNU_SOURCE
#include "log.h"

#include <string.h>
#include <time.h>

HF_RARELY_USED static char stamped[LOG_CHUNK + HF_PAGE];
static char stamp[LOG_STAMP + 1];
static uint64_t stamp_second;

static void two(char *to, unsigned n)
{
    to[0] = (char)('0' + n / 10 % 10);
    to[1] = (char)('0' + n % 10);
}

/* Days since 1970 into a date: years start in March here, so that the leap day is the last of one. */
static void write_date(char *to, uint64_t second)
{
    uint64_t days = second / 86400 + 719468, rest = second % 86400;
    uint64_t era = days / 146097, day = days % 146097;
    uint64_t year = (day - day / 1460 + day / 36524 - day / 146096) / 365;
    unsigned of_year = (unsigned)(day - (365 * year + year / 4 - year / 100));
    unsigned month = (5 * of_year + 2) / 153;
    unsigned y = (unsigned)(year + era * 400) + (month >= 10);
    memcpy(to, "0000-00-00T00:00:00.", 20);
    two(to, y / 100);
    two(to + 2, y % 100);
    two(to + 5, month < 10 ? month + 3 : month - 9);
    two(to + 8, of_year - (153 * month + 2) / 5 + 1);
    two(to + 11, (unsigned)(rest / 3600));
    two(to + 14, (unsigned)(rest / 60 % 60));
    two(to + 17, (unsigned)(rest % 60));
}

static void read_clock(void)
{
    uint64_t ns = hf_clock_ns(CLOCK_REALTIME), second = ns / 1000000000;
    unsigned us = (unsigned)(ns % 1000000000 / 1000);
    if (second != stamp_second)
        write_date(stamp, stamp_second = second);
    two(stamp + 20, us / 10000);
    two(stamp + 22, us / 100);
    two(stamp + 24, us);
    memcpy(stamp + 26, "Z ", 2);
}

size_t hf_log_stamp(char *to)
{
    if (!(hf_log_set.plan.flags & HF_LOG_TIMESTAMPS))
        return 0;
    read_clock();
    memcpy(to, stamp, LOG_STAMP);
    return LOG_STAMP;
}

void hf_log_put_stamped(struct hf_log_file *file, const char *data, size_t size)
{
    size_t at = 0;
    int starts = !file->mid_line;
    read_clock();
    while (size) {
        const char *end = memchr(data, '\n', size);
        size_t line = end ? (size_t)(end - data) + 1 : size;
        if (at + LOG_STAMP + line > sizeof stamped) {
            hf_log_file_put(file, stamped, at);
            at = 0;
        }
        if (starts) {
            memcpy(stamped + at, stamp, LOG_STAMP);
            at += LOG_STAMP;
        }
        memcpy(stamped + at, data, line);
        at += line;
        data += line;
        size -= line;
        starts = 1;
    }
    hf_log_file_put(file, stamped, at);
}

void hf_log_stamp_rest(void)
{
    hf_give_back(stamped, sizeof stamped);
}
