/*
 * The first process of the test guest: loads the modules, opens the control port and runs commands for the host.
 *
 * The port is a virtio serial port, a byte stream of lines; NUMBER is chosen by the host and names a command.
 *
 *   host                          guest
 *                                 ready                      the disks are there, commands are taken
 *   NUMBER run COMMAND            NUMBER line TEXT           a line that COMMAND (a shell command) wrote
 *                                 NUMBER exit STATUS         it has ended; 128 + signal when a signal ended it
 *   NUMBER stop                                              SIGTERM to the command's process group
 *   NUMBER full                                              (guest only) too many commands at once
 *
 * Commands run side by side, so that a write loop can go on while the host asks for other things. When the host is gone
 * the guest switches itself off: no test leaves a QEMU behind.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define COMMAND_COUNT_MAX 16
#define LINE_BYTES_MAX 4096

struct lines {
	char text[LINE_BYTES_MAX];
	size_t length;
};

struct command {
	long number;
	pid_t process;
	int output;
	struct lines lines;
};

static struct command commands[COMMAND_COUNT_MAX];
static struct lines requests;
static int port = -1;

/* Says why on the console, which the host keeps, and ends the guest: a panic of the kernel ends QEMU. */
static void fail(const char *what)
{
	printf("guest agent: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void send_line(const char *format, ...)
{
	char text[LINE_BYTES_MAX + 64];
	va_list arguments;
	va_start(arguments, format);
	int length = vsnprintf(text, sizeof text, format, arguments);
	va_end(arguments);
	for (int sent = 0; sent < length;) {
		ssize_t count = write(port, text + sent, length - sent);
		if (count <= 0)
			return;
		sent += count;
	}
}

static void mount_or_fail(const char *type, const char *path)
{
	mkdir(path, 0755);
	if (mount(type, path, type, 0, NULL) != 0 && errno != EBUSY)
		fail(path);
}

static void load_modules(void)
{
	char name[256];
	FILE *order = fopen("/modules/order", "r");
	if (!order)
		fail("/modules/order");
	while (fscanf(order, "%255s", name) == 1) {
		int module = open(name, O_RDONLY | O_CLOEXEC);
		if (module < 0 || (syscall(SYS_finit_module, module, "", 0) != 0 && errno != EEXIST))
			fail(name);
		close(module);
	}
	fclose(order);
}

/*
 * The driver makes the port's node after a talk with the device, and lets it be opened some time after that; of the second
 * step nothing tells. So it is tried, until the host's patience with the boot ends.
 */
static void open_port(void)
{
	glob_t found;
	while (port < 0) {
		if (glob("/dev/vport*p1", 0, NULL, &found) == 0) {
			port = open(found.gl_pathv[0], O_RDWR | O_CLOEXEC);
			globfree(&found);
		}
		usleep(1000);
	}
}

static struct command *command_of(long number)
{
	for (int i = 0; i < COMMAND_COUNT_MAX; i++)
		if (commands[i].process != 0 && commands[i].number == number)
			return &commands[i];
	return NULL;
}

static struct command *free_command(void)
{
	for (int i = 0; i < COMMAND_COUNT_MAX; i++)
		if (commands[i].process == 0)
			return &commands[i];
	return NULL;
}

static void become_shell(const char *text, int output)
{
	setsid();
	dup2(open("/dev/null", O_RDONLY), 0);
	dup2(output, 1);
	dup2(output, 2);
	execl("/bin/sh", "sh", "-c", text, NULL);
	_exit(127);
}

static void run_command(long number, const char *text)
{
	struct command *command = free_command();
	int ends[2];
	if (!command || pipe2(ends, O_CLOEXEC) != 0) {
		send_line("%ld full\n", number);
		return;
	}
	pid_t process = fork();
	if (process == 0)
		become_shell(text, ends[1]);
	close(ends[1]);
	command->number = number;
	command->process = process;
	command->output = ends[0];
	command->lines.length = 0;
}

static void on_request(char *text)
{
	char *verb;
	long number = strtol(text, &verb, 10);
	struct command *command = command_of(number);
	if (strncmp(verb, " run ", 5) == 0)
		run_command(number, verb + 5);
	else if (strcmp(verb, " stop") == 0 && command)
		kill(-command->process, SIGTERM);
}

/* Takes whole lines out of what has come; a line longer than the buffer is handed on in pieces. */
static char *next_line(struct lines *lines, char *line)
{
	char *end = memchr(lines->text, '\n', lines->length);
	if (!end && lines->length < LINE_BYTES_MAX)
		return NULL;
	size_t length = end ? (size_t)(end - lines->text) : lines->length;
	memcpy(line, lines->text, length);
	line[length] = 0;
	size_t taken = end ? length + 1 : length;
	lines->length -= taken;
	memmove(lines->text, lines->text + taken, lines->length);
	return line;
}

static ssize_t fill(struct lines *lines, int from)
{
	ssize_t count = read(from, lines->text + lines->length, LINE_BYTES_MAX - lines->length);
	if (count > 0)
		lines->length += count;
	return count;
}

static void read_requests(void)
{
	char line[LINE_BYTES_MAX + 1];
	/* No sync: with the host its disks may have gone, and a sync would wait for them. */
	if (fill(&requests, port) <= 0)
		reboot(RB_POWER_OFF);
	while (next_line(&requests, line))
		on_request(line);
}

/* A shell that has left a child behind is not waited for: the end of the output is the end of the command. */
static void end_command(struct command *command)
{
	int status = 0;
	if (command->lines.length > 0)
		send_line("%ld line %.*s\n", command->number, (int)command->lines.length, command->lines.text);
	close(command->output);
	waitpid(command->process, &status, 0);
	int code = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
	send_line("%ld exit %d\n", command->number, code);
	command->process = 0;
}

static void read_output(struct command *command)
{
	char line[LINE_BYTES_MAX + 1];
	if (fill(&command->lines, command->output) <= 0) {
		end_command(command);
		return;
	}
	while (next_line(&command->lines, line))
		send_line("%ld line %s\n", command->number, line);
}

static void serve(void)
{
	struct pollfd waits[1 + COMMAND_COUNT_MAX];
	waits[0] = (struct pollfd){ .fd = port, .events = POLLIN };
	for (int i = 0; i < COMMAND_COUNT_MAX; i++)
		waits[1 + i] = (struct pollfd){ .fd = commands[i].process ? commands[i].output : -1, .events = POLLIN };
	if (poll(waits, 1 + COMMAND_COUNT_MAX, -1) < 0)
		return;
	for (int i = 0; i < COMMAND_COUNT_MAX; i++)
		if (waits[1 + i].revents)
			read_output(&commands[i]);
	if (waits[0].revents)
		read_requests();
}

int main(void)
{
	setvbuf(stdout, NULL, _IONBF, 0);
	signal(SIGPIPE, SIG_IGN);
	mount_or_fail("proc", "/proc");
	mount_or_fail("sysfs", "/sys");
	mount_or_fail("devtmpfs", "/dev");
	mount_or_fail("tmpfs", "/tmp");
	setenv("PATH", "/sbin:/bin", 1);
	load_modules();
	open_port();
	send_line("ready\n");
	for (;;)
		serve();
}
