"""Writes increasing stamps across the disks of a machine, each answered before the next is sent.

stamps.py SOCKET SLOT_COUNT NAME... writes stamp S as the sector at slot (S // disks) % SLOT_COUNT of disk
(5 * S + S // disks) % disks, prints S now and then, and ends with "last S" when its standard input ends.
"""

import select
import struct
import sys

import nbd

SECTOR_BYTES = 512
REPORT_INTERVAL = 64


def connect(socket, name):
    handle = nbd.NBD()
    handle.set_export_name(name)
    handle.connect_unix(socket)
    return handle


def is_told_to_end():
    return bool(select.select([sys.stdin], [], [], 0)[0])


def main(socket, slot_count, names):
    disks = [connect(socket, name) for name in names]
    stamp = 0
    while not is_told_to_end():
        for stamp in range(stamp + 1, stamp + 1 + REPORT_INTERVAL):
            line = stamp // len(disks)
            disk = disks[(5 * stamp + line) % len(disks)]
            sector = struct.pack("<Q", stamp) * (SECTOR_BYTES // 8)
            disk.pwrite(sector, line % slot_count * SECTOR_BYTES)
        print(stamp, flush=True)
    print(f"last {stamp}", flush=True)


main(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
