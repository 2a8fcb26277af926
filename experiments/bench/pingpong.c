/*
 * pingpong: how long does a byte take there and back between two processes on one CPU?
 *
 * Each round trip is two wake-ups and two context switches, so it feels whatever hangs on the scheduler's tracepoints.
 *
 * Usage:  pingpong CPU ROUND_TRIPS
 * Output: "PID PID", the two processes; then, after a line on stdin, the mean round trip in ns.
 *
 * Build: gcc -O2 -Wall -Wextra -Werror -o pingpong pingpong.c
 */
#define _GNU_SOURCE
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define NS_PER_S INT64_C(1000000000)
#define WARM_UP 1000

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

static void pass(int from, int to)
{
	char byte;

	if (read(from, &byte, 1) != 1)
		exit(EXIT_SUCCESS); /* the other side is done */
	if (write(to, &byte, 1) != 1)
		die("write");
}

static void travel(int there, int back, long round_trips)
{
	char byte = 0;

	for (long i = 0; i < round_trips; i++)
		if (write(there, &byte, 1) != 1 || read(back, &byte, 1) != 1)
			die("round trip");
}

int main(int argc, char **argv)
{
	int there[2], back[2];
	cpu_set_t cpus;

	if (argc != 3) {
		fprintf(stderr, "usage: pingpong CPU ROUND_TRIPS\n");
		return EXIT_FAILURE;
	}
	CPU_ZERO(&cpus);
	CPU_SET(atoi(argv[1]), &cpus);
	if (sched_setaffinity(0, sizeof(cpus), &cpus))
		die("sched_setaffinity");
	if (pipe(there) || pipe(back))
		die("pipe");

	long round_trips = atol(argv[2]);
	pid_t echo = fork();

	if (echo < 0)
		die("fork");
	if (echo == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		close(there[1]);
		close(back[0]);
		for (;;)
			pass(there[0], back[1]);
	}
	close(there[0]);
	close(back[1]);
	printf("%d %d\n", getpid(), echo);
	fflush(stdout);
	if (getchar() == EOF)
		return EXIT_FAILURE;
	travel(there[1], back[0], WARM_UP);

	int64_t begun_ns = now_ns();

	travel(there[1], back[0], round_trips);
	printf("%.1f\n", (double)(now_ns() - begun_ns) / round_trips);
	close(there[1]);
	return wait(NULL) == echo ? EXIT_SUCCESS : EXIT_FAILURE;
}
