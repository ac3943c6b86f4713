"""Real kernels: Debian's cloud kernels under qemu's software emulation, and the process suite inside (`make kernels`).

fetch.py gets kernels with apt's own tools, image.py makes an initramfs of this machine's Python and of what is
installed in .venv, boot.py boots the one with the other, inside.py is what runs there, table.py writes docs/kernels.md.
"""
