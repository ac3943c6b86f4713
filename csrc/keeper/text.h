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

/* A JSON string.  A byte outside ASCII is written as the code point of its number (Latin-1): valid
 * JSON whatever the encoding of a name is, and nothing is lost. */
HF_TEXT void put_json_char(struct hf_text *t, unsigned char c)
{
    static const char hex[] = "0123456789abcdef";
    char text[] = {'\\', 'u', '0', '0', hex[c >> 4], hex[c & 15], 0};
    if (c == '"' || c == '\\') {
        text[1] = (char)c;
        text[2] = 0;
    } else if (c >= 0x20 && c < 0x7f) {
        text[0] = (char)c;
        text[1] = 0;
    }
    put(t, text);
}

HF_TEXT void put_json(struct hf_text *t, const char *s)
{
    put(t, "\"");
    for (; *s; s++)
        put_json_char(t, (unsigned char)*s);
    put(t, "\"");
}

#endif
