#!/usr/bin/python3
"""Backs up a protected disk by copying only what its replica does not have yet.

    incremental-backup.py URI BASE BACKUP

URI     of the export, e.g. nbd+unix:///web01.raw?socket=/run/web01.sock
BASE    an image at the last acknowledged cut or a later one: the replica's, e.g. /mnt/second/web01/web01.raw.raw
BACKUP  the image to make; replaced when it is there

The context secondsite:dirty names the ranges that were written since the last acknowledged cut. It is asked first and BASE
is copied after that: a cycle that ends in between makes BASE newer, never older, than what the ranges are told against. So
BACKUP has all that was on the disk when this began. Of what a guest writes meanwhile it may have a part: let the guest
sync and pause, or take it as what a power loss would leave.

Needs Debian's package python3-libnbd.
"""

import os
import subprocess
import sys

import nbd

CONTEXT = "secondsite:dirty"
STATUS_BYTES_MAX = 1 << 30
READ_BYTES_MAX = 1 << 20


def dirty_ranges(disk):
    """Yields (offset, length in bytes) of what is dirty, in order."""
    offset, end = 0, disk.get_size()
    while offset < end:
        extents = []

        def collect(context, _, entries, error):
            if context == CONTEXT:
                extents.extend(zip(entries[::2], entries[1::2]))

        disk.block_status(min(STATUS_BYTES_MAX, end - offset), offset, collect)
        for length, flags in extents:
            if flags & 1:
                yield offset, min(length, end - offset)
            offset += length


def pieces(ranges):
    for offset, length in ranges:
        for start in range(offset, offset + length, READ_BYTES_MAX):
            yield start, min(READ_BYTES_MAX, offset + length - start)


def main(uri, base, backup):
    disk = nbd.NBD()
    disk.add_meta_context(CONTEXT)
    disk.connect_uri(uri)
    if not disk.can_meta_context(CONTEXT):
        sys.exit(f"{uri} does not know {CONTEXT}: not the export of a protected disk")
    ranges = list(dirty_ranges(disk))
    subprocess.run(["cp", "--sparse=always", "--reflink=auto", base, backup], check=True)
    with open(backup, "r+b") as image:
        for offset, length in pieces(ranges):
            image.seek(offset)
            image.write(disk.pread(length, offset))
        image.flush()
        os.fsync(image.fileno())
    disk.shutdown()
    print(f"copied {sum(length for _, length in ranges)} of {os.path.getsize(backup)} bytes")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
