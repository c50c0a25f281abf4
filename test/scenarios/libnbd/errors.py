"""Asks an export for what it must refuse, with libnbd's own checks switched off.

errors.py SOCKET NAME READ_ONLY_SOCKET prints JSON: for each request the name of its errno, or "done".
The connection must survive every one of them.
"""

import json
import sys

import nbd

socket, name, read_only_socket = sys.argv[1:]
MIB = 1024 * 1024


def connect(address, export, wants_structured=True):
    handle = nbd.NBD()
    handle.set_strict_mode(0)
    handle.set_request_structured_replies(wants_structured)
    if wants_structured:
        handle.add_meta_context("base:allocation")
    handle.set_export_name(export)
    handle.connect_unix(address)
    return handle


def outcome(request, *arguments):
    try:
        request(*arguments)
        return "done"
    except nbd.Error as error:
        return error.errno


def nothing(*_):
    return 0


def bad_requests(handle):
    end = handle.get_size()
    block = b"x" * 512
    return {
        "read behind the end": outcome(handle.pread, 512, end),
        "read across the end": outcome(handle.pread, 1024, end - 512),
        "write behind the end": outcome(handle.pwrite, block, end),
        "write far behind the end": outcome(handle.pwrite, block, 1 << 62),
        "zero behind the end": outcome(handle.zero, 512, end),
        "trim behind the end": outcome(handle.trim, 512, end),
        "status behind the end": outcome(handle.block_status, 512, end, nothing),
        "read of nothing": outcome(handle.pread, 0, 0),
        "write of nothing": outcome(handle.pwrite, b"", 0),
        "trim of nothing": outcome(handle.trim, 0, 0),
        "read of a part of a sector": outcome(handle.pread, 100, 0),
        "write at a part of a sector": outcome(handle.pwrite, block, 100),
        "read of too much": outcome(handle.pread, 33 * MIB, 0),
        "read of the most": outcome(handle.pread, 32 * MIB, 0),
        "read without fragments": outcome(handle.pread, MIB, 0, nbd.CMD_FLAG_DF),
        "write with a foreign flag": outcome(handle.pwrite, block, 0, nbd.CMD_FLAG_DF),
        "fast zero": outcome(handle.zero, 4096, 0, nbd.CMD_FLAG_FAST_ZERO),
        "read after all of it": outcome(handle.pread, 512, 0),
    }


def writes_to(handle):
    return {
        "write": outcome(handle.pwrite, b"x" * 512, 0),
        "trim": outcome(handle.trim, 512, 0),
        "zero": outcome(handle.zero, 512, 0),
        "read": outcome(handle.pread, 512, 0),
    }


print(
    json.dumps(
        {
            "structured": bad_requests(connect(socket, name)),
            "simple": bad_requests(connect(socket, name, wants_structured=False)),
            "readOnly": writes_to(connect(read_only_socket, name)),
            "unknown name": outcome(connect, socket, "no such disk"),
        }
    )
)
