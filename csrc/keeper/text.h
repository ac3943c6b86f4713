/* Text without stdio: a bounded buffer that cuts off and never fails. */
#ifndef HF_TEXT_H
#define HF_TEXT_H

#include <stddef.h>
#include <stdint.h>

struct hf_text { char *at, *end; };

/* Not inlined: reports are written once, and each copy would be code that stays resident. */
#define HF_TEXT static __attribute__((noinline, unused))

HF_TEXT void put(struct hf_text *t, const char *s)
{
    while (*s && t->at < t->end)
        *t->at++ = *s++;
}

HF_TEXT void put_number(struct hf_text *t, uint64_t n)
{
    char digits[20];
    int i = 0;
    do
        digits[i++] = (char)('0' + n % 10);
    while (n /= 10);
    while (i > 0 && t->at < t->end)
        *t->at++ = digits[--i];
}

HF_TEXT void put_signed(struct hf_text *t, int64_t n)
{
    if (n < 0)
        put(t, "-");
    put_number(t, n < 0 ? -(uint64_t)n : (uint64_t)n);
}

/* Microseconds as seconds with all six places: exact, and JSON. */
HF_TEXT void put_seconds(struct hf_text *t, uint64_t us)
{
    put_number(t, us / 1000000);
    put(t, ".");
    for (uint64_t place = 100000; place; place /= 10)
        put_number(t, us / place % 10);
}

/* Seconds as a person writes them: three places at most. */
HF_TEXT void put_rounded(struct hf_text *t, uint64_t ms)
{
    put_number(t, ms / 1000);
    if (ms % 1000) {
        put(t, ".");
        for (uint64_t place = 100; place && ms % (place * 10); place /= 10)
            put_number(t, ms / place % 10);
    }
}

#endif
