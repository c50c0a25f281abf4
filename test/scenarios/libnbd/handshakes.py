"""Comes to an export in every way that libnbd knows, and writes, flushes and reads in each of them.

handshakes.py SOCKET NAME prints JSON: for each way what was agreed on, and whether what was read is what was written.
"""

import json
import sys

import nbd

socket, name = sys.argv[1:]
LENGTH = 4096


def old_style(handle):
    """EXPORT_NAME, the only option of a client without fixed newstyle; 124 zeroes follow the answer."""
    handle.set_handshake_flags(0)


def old_style_without_zeroes(handle):
    handle.set_handshake_flags(nbd.HANDSHAKE_FLAG_NO_ZEROES)


def fixed_with_zeroes(handle):
    handle.set_handshake_flags(nbd.HANDSHAKE_FLAG_FIXED_NEWSTYLE)


def simple_replies(handle):
    handle.set_request_structured_replies(False)


def allocation(handle):
    handle.add_meta_context("base:allocation")


def both_contexts(handle):
    handle.add_meta_context("base:allocation")
    handle.add_meta_context("secondsite:dirty")


def foreign_context(handle):
    handle.add_meta_context("qemu:dirty-bitmap:none")


def options_one_by_one(handle):
    handle.set_opt_mode(True)


def usual(handle):
    del handle


WAYS = [
    usual,
    old_style,
    old_style_without_zeroes,
    fixed_with_zeroes,
    simple_replies,
    allocation,
    both_contexts,
    foreign_context,
    options_one_by_one,
]


def agreed(handle):
    contexts = ["base:allocation", "secondsite:dirty", "qemu:dirty-bitmap:none"]
    return {
        "protocol": handle.get_protocol(),
        "isStructured": handle.get_structured_replies_negotiated(),
        "canDf": handle.can_df(),
        "sizeBytes": handle.get_size(),
        "contexts": [context for context in contexts if handle.can_meta_context(context)],
    }


def ask_for_options(handle):
    """LIST, INFO and LIST_META_CONTEXT before GO, as a client that looks around first."""
    told = {"listed": [], "known": []}
    handle.opt_list(lambda export, _: told["listed"].append(export))
    handle.opt_info()
    handle.add_meta_context("base:")
    handle.add_meta_context("secondsite:")
    handle.opt_list_meta_context(lambda context: told["known"].append(context))
    handle.clear_meta_contexts()
    handle.opt_go()
    return told


def try_way(index, way):
    handle = nbd.NBD()
    way(handle)
    handle.set_export_name(name)
    handle.connect_unix(socket)
    told = ask_for_options(handle) if handle.aio_is_negotiating() else {}
    pattern = bytes([index + 1]) * LENGTH
    handle.pwrite(pattern, index * LENGTH, nbd.CMD_FLAG_FUA)
    handle.flush()
    is_same = handle.pread(LENGTH, index * LENGTH) == pattern
    result = {**agreed(handle), **told, "isSame": is_same}
    handle.shutdown()
    return result


print(json.dumps({way.__name__: try_way(index, way) for index, way in enumerate(WAYS)}))
