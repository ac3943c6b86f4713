/* Descriptors that the anchor keeps for its supervisors, each under a key of theirs: docs/wire.md, "The anchor".
 * What they are for is the supervisors' business. */
#ifndef HF_DEPOSITS_H
#define HF_DEPOSITS_H

#include "anchor_wire.h"

enum { HF_DEPOSITS_MAX = 512 };

/* Obey a record if it is about deposits.  *fd: a descriptor that came along, or -1; -1 again when it was kept.
 * An answer goes to the channel: the supervisor asks for one at a time, so there is room, or it asks again. */
void hf_deposits_obey(const struct hf_record *record, const char *body, int *fd, int channel);

#endif
