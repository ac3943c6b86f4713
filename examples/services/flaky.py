"""Lives for a few seconds, then ends in one of three ways."""

import os
import random
import signal
import sys
import time

time.sleep(random.uniform(3, 8))
end = random.choice(["an error", "a crash", "the end"])
print("this time it is", end)
if end == "an error":
    sys.exit("something that was needed was not there")
if end == "a crash":
    os.kill(os.getpid(), signal.SIGSEGV)
