/* What the anchor and the supervisor say to each other: docs/wire.md, "The anchor", in C.
 *
 * The conventions are those of wire.h: records in packets of a SOCK_SEQPACKET socket, little-endian, no tag
 * used twice.  The supervisor's end is its descriptor 3.
 */
#ifndef HF_ANCHOR_WIRE_H
#define HF_ANCHOR_WIRE_H

#include "wire.h"

enum hf_anchor_tag {
    /* supervisor to anchor */
    HF_READY = 32, HF_FAREWELL = 33, HF_ANCHOR_QUERY = 34, HF_DEPOSIT = 35, HF_WITHDRAW = 36, HF_TAKE = 37,
    /* anchor to supervisor; MEMBERS (73) besides */
    HF_ANCHOR_HELLO = 96, HF_DEPOSITED = 97,
};

struct hf_ready { uint64_t zero; };
struct hf_farewell { int32_t status; uint32_t zero; };
struct hf_anchor_query { uint32_t id, zero; };
struct hf_anchor_hello { uint32_t version; int32_t pid; uint32_t restarts, deposits; uint64_t started_at_ns; };

#define HF_DEPOSIT_KEY 240 /* bytes, filled up with NULs, the last of which is one */
struct hf_deposit { char key[HF_DEPOSIT_KEY]; };
struct hf_withdraw { char key[HF_DEPOSIT_KEY]; };
struct hf_take { uint32_t index, zero; };
struct hf_deposited { uint32_t index, zero; char key[HF_DEPOSIT_KEY]; };

#endif
