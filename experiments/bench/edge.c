/*
 * edge: how late do pinned waiters run when one publisher wakes them all on one planned edge?
 *
 * The peer of `vcg bench edge`: the same shape as the runtime, without the runtime. One publisher sleeps to absolute
 * times on CLOCK_MONOTONIC, every PERIOD_NS, and wakes all waiters with a single FUTEX_WAKE_BITSET. The waiters are
 * processes, each pinned to one CPU, SCHED_FIFO, with its own bit; each takes the time as its first act after the futex.
 * Lateness is that time less the *planned* edge, so the publisher's own lateness counts.
 *
 * Usage:  edge PERIOD_NS EDGES PUBLISHER_CPU:PRIORITY WAITER_CPU:PRIORITY...
 * Output: one line "WAITER EDGE LATENESS_NS" for each waiter and edge; none where the waiter was still busy with an
 *         earlier edge.
 *
 * Needs root (SCHED_FIFO, mlockall, /dev/cpu_dma_latency). Build: gcc -O2 -Wall -Wextra -Werror -o edge edge.c
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MAX_WAITERS 31
#define NS_PER_S INT64_C(1000000000)
#define SETTLE_NS (NS_PER_S / 20) /* between the last waiter's readiness and the first edge */

/* Written by the publisher; the futex word counts published edges. */
struct shared {
	_Atomic uint32_t published;
	_Atomic uint32_t ready;
	_Atomic int64_t planned_ns;
};

struct place {
	int cpu;
	int priority;
};

static void die(const char *what)
{
	perror(what);
	exit(EXIT_FAILURE);
}

static int64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * NS_PER_S + now.tv_nsec;
}

static void sleep_until(int64_t when_ns)
{
	struct timespec when = { .tv_sec = when_ns / NS_PER_S, .tv_nsec = when_ns % NS_PER_S };

	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &when, NULL) == EINTR)
		;
}

static void settle_on(struct place place)
{
	struct sched_param param = { .sched_priority = place.priority };
	cpu_set_t cpus;

	CPU_ZERO(&cpus);
	CPU_SET(place.cpu, &cpus);
	if (sched_setaffinity(0, sizeof(cpus), &cpus))
		die("sched_setaffinity");
	if (sched_setscheduler(0, SCHED_FIFO, &param))
		die("sched_setscheduler");
	if (mlockall(MCL_CURRENT | MCL_FUTURE))
		die("mlockall");
}

/* Record the lateness of every edge; an edge that was published while this waiter was busy stays at INT64_MIN. */
static void wait_for_edges(struct shared *shared, uint32_t bit, uint32_t edges, int64_t *lateness_ns)
{
	uint32_t seen = 0;

	atomic_fetch_add(&shared->ready, 1);
	while (seen < edges) {
		uint32_t published = atomic_load(&shared->published);

		if (published == seen) {
			if (syscall(SYS_futex, &shared->published, FUTEX_WAIT_BITSET, seen, NULL, NULL, bit) &&
			    errno != EAGAIN && errno != EINTR)
				die("FUTEX_WAIT_BITSET");
			continue;
		}
		int64_t woken_ns = now_ns();

		lateness_ns[published - 1] = woken_ns - atomic_load(&shared->planned_ns);
		seen = published;
	}
}

static void publish(struct shared *shared, int64_t period_ns, uint32_t edges, uint32_t waiters)
{
	while (atomic_load(&shared->ready) < waiters)
		sleep_until(now_ns() + NS_PER_S / 1000);

	int64_t planned_ns = now_ns() + SETTLE_NS;

	for (uint32_t edge = 1; edge <= edges; edge++, planned_ns += period_ns) {
		sleep_until(planned_ns);
		atomic_store(&shared->planned_ns, planned_ns);
		atomic_store(&shared->published, edge);
		if (syscall(SYS_futex, &shared->published, FUTEX_WAKE_BITSET, INT_MAX, NULL, NULL,
			    FUTEX_BITSET_MATCH_ANY) < 0)
			die("FUTEX_WAKE_BITSET");
	}
}

static void *share(size_t size)
{
	void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED)
		die("mmap");
	return memory;
}

static struct place parse_place(const char *text)
{
	struct place place;

	if (sscanf(text, "%d:%d", &place.cpu, &place.priority) != 2) {
		fprintf(stderr, "%s: expected CPU:PRIORITY\n", text);
		exit(EXIT_FAILURE);
	}
	return place;
}

int main(int argc, char **argv)
{
	int waiters = argc - 4;

	if (waiters < 1 || waiters > MAX_WAITERS) {
		fprintf(stderr, "usage: edge PERIOD_NS EDGES PUBLISHER_CPU:PRIORITY WAITER_CPU:PRIORITY...\n");
		return EXIT_FAILURE;
	}
	int64_t period_ns = strtoll(argv[1], NULL, 10);
	uint32_t edges = strtoul(argv[2], NULL, 10);
	struct shared *shared = share(sizeof(*shared));
	int64_t *lateness_ns = share(sizeof(*lateness_ns) * edges * waiters);

	for (size_t i = 0; i < (size_t)edges * waiters; i++)
		lateness_ns[i] = INT64_MIN;

	int latency = open("/dev/cpu_dma_latency", O_WRONLY | O_CLOEXEC);
	int32_t no_idle_latency = 0;

	if (latency < 0 || write(latency, &no_idle_latency, sizeof(no_idle_latency)) != sizeof(no_idle_latency))
		die("/dev/cpu_dma_latency");

	for (int i = 0; i < waiters; i++) {
		pid_t child = fork();

		if (child < 0)
			die("fork");
		if (child == 0) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			settle_on(parse_place(argv[4 + i]));
			wait_for_edges(shared, UINT32_C(1) << i, edges, lateness_ns + (size_t)edges * i);
			_exit(EXIT_SUCCESS);
		}
	}
	settle_on(parse_place(argv[3]));
	publish(shared, period_ns, edges, waiters);

	int status, failed = 0;

	while (wait(&status) > 0)
		failed |= status;
	if (failed) {
		fprintf(stderr, "a waiter failed\n");
		return EXIT_FAILURE;
	}
	for (int i = 0; i < waiters; i++) {
		for (uint32_t edge = 0; edge < edges; edge++) {
			int64_t lateness = lateness_ns[(size_t)edges * i + edge];

			if (lateness != INT64_MIN)
				printf("%d %u %lld\n", i, edge, (long long)lateness);
		}
	}
	return EXIT_SUCCESS;
}
