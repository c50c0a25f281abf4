/*
 * A write load whose every byte is known, and the check of what is left of it.
 *
 *   stamps write DIR [FIRST]        writes stamp FIRST, FIRST + 1, ... until SIGTERM or an error
 *   stamps check DIR [AT_LEAST]     says what is there; fails when it cannot have come about by losing unsynced writes,
 *                                   or when the newest stamp is older than AT_LEAST
 *
 * Stamp n is written in three ways, in this order:
 *
 *   ledger      block n mod 256 is overwritten in place, then fdatasync. So stamp n is begun only when n - 1 is durable.
 *   slot-SS     written as `new`, fsync, renamed over slot n mod 64, fsync of the folder.
 *   loose-SS    truncated and rewritten with no sync at all: may be old, short or absent after a crash, never wrong.
 *
 * "synced n" on standard output comes after the second. The check holds therefore of the disk of a machine at any instant,
 * live, killed or at a recovery point: the ledger has every one of its last 256 stamps, the slots have every one of their
 * last 64, and the slots' newest is the ledger's newest or the one before.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define BLOCK_BYTES 4096
#define SECTOR_BYTES 512
#define LEDGER_COUNT 256
#define SLOT_COUNT 64
#define FILE_BYTES_MAX 32768

static volatile sig_atomic_t is_stopping;
static int wrong_count;

static void stop(int signal)
{
	(void)signal;
	is_stopping = 1;
}

static void fail(const char *what)
{
	printf("stamps: %s: %s\n", what, strerror(errno));
	exit(2);
}

#define WRONG(...) (wrong_count++, printf("wrong: " __VA_ARGS__), printf("\n"))

static uint64_t mix(uint64_t value)
{
	value += 0x9e3779b97f4a7c15u;
	value = (value ^ value >> 30) * 0xbf58476d1ce4e5b9u;
	value = (value ^ value >> 27) * 0x94d049bb133111ebu;
	return value ^ value >> 31;
}

/* The bytes of a stamp: its number, then a sequence that no other stamp (and no other kind) has. */
static void fill(unsigned char *bytes, size_t length, uint64_t stamp, uint64_t kind)
{
	uint64_t state = mix(stamp * 4 + kind);
	memcpy(bytes, &stamp, sizeof stamp);
	for (size_t at = sizeof stamp; at < length; at += sizeof state) {
		state = mix(state);
		memcpy(bytes + at, &state, length - at < sizeof state ? length - at : sizeof state);
	}
}

enum kind { LEDGER, SLOT, LOOSE };

static size_t length_of(uint64_t stamp, enum kind kind)
{
	return sizeof stamp + mix(stamp * 4 + kind) % (FILE_BYTES_MAX - sizeof stamp);
}

/* --- writing --- */

static void write_whole(int file, const void *bytes, size_t length, const char *name)
{
	if (write(file, bytes, length) != (ssize_t)length)
		fail(name);
}

static void write_ledger(int ledger, uint64_t stamp)
{
	unsigned char block[BLOCK_BYTES];
	for (int sector = 0; sector < BLOCK_BYTES / SECTOR_BYTES; sector++)
		fill(block + sector * SECTOR_BYTES, SECTOR_BYTES, stamp, LEDGER);
	if (pwrite(ledger, block, sizeof block, stamp % LEDGER_COUNT * BLOCK_BYTES) != sizeof block)
		fail("ledger");
	if (fdatasync(ledger) != 0)
		fail("fdatasync of the ledger");
}

static void write_file(const char *name, uint64_t stamp, enum kind kind, int is_synced)
{
	static unsigned char bytes[FILE_BYTES_MAX];
	size_t length = length_of(stamp, kind);
	int file = open(name, O_WRONLY | O_CREAT | O_TRUNC, 0644);
	if (file < 0)
		fail(name);
	fill(bytes, length, stamp, kind);
	write_whole(file, bytes, length, name);
	if (is_synced && fsync(file) != 0)
		fail("fsync of a file");
	close(file);
}

static void write_slot(int folder, uint64_t stamp)
{
	char name[32];
	snprintf(name, sizeof name, "slot-%02d", (int)(stamp % SLOT_COUNT));
	write_file("new", stamp, SLOT, 1);
	if (rename("new", name) != 0)
		fail(name);
	if (fsync(folder) != 0)
		fail("fsync of the folder");
}

static void write_loose(uint64_t stamp)
{
	char name[32];
	snprintf(name, sizeof name, "loose-%02d", (int)(stamp % SLOT_COUNT));
	write_file(name, stamp, LOOSE, 0);
}

static int write_stamps(uint64_t stamp)
{
	int folder = open(".", O_RDONLY | O_DIRECTORY);
	int ledger = open("ledger", O_RDWR | O_CREAT, 0644);
	if (folder < 0 || ledger < 0 || posix_fallocate(ledger, 0, LEDGER_COUNT * BLOCK_BYTES) != 0)
		fail("ledger");
	signal(SIGTERM, stop);
	for (; !is_stopping; stamp++) {
		write_ledger(ledger, stamp);
		write_slot(folder, stamp);
		printf("synced %llu\n", (unsigned long long)stamp);
		write_loose(stamp);
	}
	return 0;
}

/* --- checking --- */

static int is_stamp(const unsigned char *bytes, size_t length, uint64_t stamp, enum kind kind)
{
	static unsigned char expected[FILE_BYTES_MAX];
	fill(expected, length, stamp, kind);
	return memcmp(bytes, expected, length) == 0;
}

/* The stamp in a sector of the ledger, 0 when there is none. */
static uint64_t sector_stamp(const unsigned char *sector)
{
	uint64_t stamp;
	memcpy(&stamp, sector, sizeof stamp);
	return stamp != 0 && is_stamp(sector, SECTOR_BYTES, stamp, LEDGER) ? stamp : 0;
}

/* The stamp of a block, 0 when its sectors differ: a write that was under way. */
static uint64_t block_stamp(const unsigned char *block)
{
	uint64_t stamp = sector_stamp(block);
	for (int sector = 1; sector < BLOCK_BYTES / SECTOR_BYTES; sector++)
		if (sector_stamp(block + sector * SECTOR_BYTES) != stamp)
			return 0;
	return stamp;
}

/* Every number from newest - count + 1 on has its place, but for `torn_allowed`, the one begun and not finished. */
static uint64_t check_run(const char *what, const uint64_t *stamps, uint64_t count, uint64_t torn_allowed)
{
	uint64_t newest = 0;
	for (uint64_t i = 0; i < count; i++)
		newest = stamps[i] > newest ? stamps[i] : newest;
	for (uint64_t stamp = newest > count ? newest - count + 1 : 1; stamp <= newest; stamp++) {
		uint64_t found = stamps[stamp % count];
		int is_torn = found == 0 && stamp + count == newest + torn_allowed;
		if (found != stamp && !is_torn)
			WRONG("%s: newest is %llu, but in the place of %llu is %llu", what, (unsigned long long)newest,
			      (unsigned long long)stamp, (unsigned long long)found);
	}
	return newest;
}

static uint64_t check_ledger(void)
{
	static unsigned char blocks[LEDGER_COUNT][BLOCK_BYTES];
	uint64_t stamps[LEDGER_COUNT];
	int ledger = open("ledger", O_RDONLY);
	if (ledger < 0)
		return 0;
	if (read(ledger, blocks, sizeof blocks) != sizeof blocks)
		return 0;
	for (int i = 0; i < LEDGER_COUNT; i++)
		stamps[i] = block_stamp(blocks[i]);
	return check_run("ledger", stamps, LEDGER_COUNT, 1);
}

static ssize_t read_file(const char *name, unsigned char *bytes)
{
	int file = open(name, O_RDONLY);
	if (file < 0)
		return -1;
	ssize_t length = read(file, bytes, FILE_BYTES_MAX);
	if (length < 0)
		fail(name);
	close(file);
	return length;
}

static uint64_t slot_stamp(int slot)
{
	static unsigned char bytes[FILE_BYTES_MAX];
	char name[32];
	uint64_t stamp;
	snprintf(name, sizeof name, "slot-%02d", slot);
	ssize_t length = read_file(name, bytes);
	if (length < 0)
		return 0;
	memcpy(&stamp, bytes, sizeof stamp);
	if (length < (ssize_t)sizeof stamp || (size_t)length != length_of(stamp, SLOT) ||
	    !is_stamp(bytes, length, stamp, SLOT)) {
		WRONG("%s of %zd bytes holds no stamp although it was renamed after a sync", name, length);
		return 0;
	}
	return stamp;
}

static uint64_t check_slots(void)
{
	uint64_t stamps[SLOT_COUNT];
	for (int slot = 0; slot < SLOT_COUNT; slot++)
		stamps[slot] = slot_stamp(slot);
	return check_run("slots", stamps, SLOT_COUNT, 0);
}

static int is_zero(const unsigned char *bytes, size_t length)
{
	for (size_t at = 0; at < length; at++)
		if (bytes[at] != 0)
			return 0;
	return 1;
}

/* Blocks may be missing from a file that was not synced, and then read as zeros; other bytes come from elsewhere. */
static int is_partly(const unsigned char *bytes, size_t length, uint64_t stamp)
{
	static unsigned char expected[FILE_BYTES_MAX];
	fill(expected, sizeof expected, stamp, LOOSE);
	for (size_t at = 0; at < length; at += BLOCK_BYTES) {
		size_t piece = length - at < BLOCK_BYTES ? length - at : BLOCK_BYTES;
		if (memcmp(bytes + at, expected + at, piece) != 0 && !is_zero(bytes + at, piece))
			return 0;
	}
	return 1;
}

/* Without its first block a file does not say which stamp it had; the rest is then left alone. */
static int check_loose(int slot)
{
	static unsigned char bytes[FILE_BYTES_MAX];
	char name[32];
	uint64_t stamp = 0;
	snprintf(name, sizeof name, "loose-%02d", slot);
	ssize_t length = read_file(name, bytes);
	if (length >= (ssize_t)sizeof stamp)
		memcpy(&stamp, bytes, sizeof stamp);
	if (stamp == 0)
		return 0;
	if ((size_t)length > length_of(stamp, LOOSE) || !is_partly(bytes, length, stamp))
		WRONG("%s says stamp %llu and has bytes of something else", name, (unsigned long long)stamp);
	return (size_t)length == length_of(stamp, LOOSE);
}

static int check_stamps(uint64_t at_least)
{
	uint64_t ledger = check_ledger();
	uint64_t slots = check_slots();
	int loose_count = 0;
	for (int slot = 0; slot < SLOT_COUNT; slot++)
		loose_count += check_loose(slot);
	if (slots > ledger || slots + 1 < ledger)
		WRONG("the slots end at %llu, the ledger at %llu", (unsigned long long)slots, (unsigned long long)ledger);
	if (slots < at_least)
		WRONG("lost: %llu was synced, the newest is %llu", (unsigned long long)at_least, (unsigned long long)slots);
	printf("newest %llu\nloose %d\n", (unsigned long long)slots, loose_count);
	return wrong_count > 0;
}

int main(int argc, char **argv)
{
	uint64_t number = argc > 3 ? strtoull(argv[3], NULL, 10) : 0;
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (argc < 3) {
		printf("usage: stamps write|check DIR [NUMBER]\n");
		return 2;
	}
	int is_write = strcmp(argv[1], "write") == 0;
	if (is_write)
		mkdir(argv[2], 0755);
	if (chdir(argv[2]) != 0)
		fail(argv[2]);
	if (is_write)
		return write_stamps(number > 0 ? number : 1);
	return check_stamps(number);
}
