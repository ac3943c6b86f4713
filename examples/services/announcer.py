"""Takes a moment to start, says so by sd_notify, and tells now and then how it is."""

import os
import socket
import time


def notify(text: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect(os.environ["NOTIFY_SOCKET"])
        sock.send(text.encode())


notify("STATUS=warming up")
time.sleep(0.7)
notify("READY=1\nSTATUS=nothing done yet")
number = 0
while True:
    time.sleep(3)
    number += 1
    print("round", number)
    notify(f"STATUS={number} rounds done")
