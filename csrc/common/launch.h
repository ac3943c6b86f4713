/* Starting a keeper that its owner never sees. */
#ifndef HF_LAUNCH_H
#define HF_LAUNCH_H

#include "child.h"

enum { HF_CONTROL_FD = 3, HF_OWNER_FD = 4 };

/* Start the program `path` with control_fd as its descriptor 3 and owner_pidfd as 4, parented away
 * from the caller.  Returns its pid (for printing), or -errno with *result.  The keeper's pidfd comes
 * to the other end of control_fd, with a LAUNCHED record, before or after the keeper's first words.
 * Blocks and restores all signals itself; safe in any thread. */
long hf_launch(const char *path, int control_fd, int owner_pidfd, struct hf_child_result *result);

#endif
