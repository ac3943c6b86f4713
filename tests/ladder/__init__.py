"""The notifier ladder: what every rung has to do, and a machine without pidfds."""
