/* From a task's wakeup, or from its being preempted, to its next instant on a CPU. See sched.py. */

#define KINDS 1
#define TASK_FIELDS u64 queued_ns, queued_clock_ns, queued_open_ns, latency_ns, delay_ns, open_ns, waits;

#include "lost.h"
#include "histogram.h"
#include "tasks.h"

#define FAIR 100  /* MAX_RT_PRIO: priorities from here on are of the fair class */
#define IDLE 1000
#define PROMPT_NS 100000 /* a wakeup that preempts is followed by the switch this soon; a tick comes at any time */

/* What the kernel's run-queue clock shows, as far as tracepoints tell: see "The kernel's own account" in sched.py. */
struct runqueue {
    u64 clock_ns; /* when it was last read */
    u32 woken;    /* last task woken on it since the last switch */
    u32 frozen;   /* whether the next switch will not read it again */
    int priority; /* of the task that runs */
    u32 padding;
};

BPF_ARRAY(runqueues, struct runqueue, CPUS);

static inline void woken(u64 now_ns, u32 tid, int priority, u32 cpu)
{
    struct runqueue *queue = runqueues.lookup(&cpu);
    struct task *task = task_of(tid);

    if (queue) {
        queue->clock_ns = now_ns;
        queue->woken = tid;
        if (queue->priority == IDLE || (priority < FAIR && priority < queue->priority))
            queue->frozen = 1;
    }
    if (task && !task->queued_ns) {
        task->queued_ns = now_ns;
        task->queued_clock_ns = now_ns;
        task->queued_open_ns = 0;
    }
}

TRACEPOINT_PROBE(sched, sched_switch)
{
    u64 now_ns = bpf_ktime_get_ns(), clock_ns = now_ns;
    u32 cpu = bpf_get_smp_processor_id();
    /* 0 is TASK_RUNNING; 0x100 (TASK_REPORT_MAX) marks a preempted task, whatever its state was about to be. */
    int runnable = args->prev_state == 0 || (args->prev_state & 0x100);
    struct runqueue *queue = runqueues.lookup(&cpu);
    struct task *task;

    if (queue) {
        int preempted = runnable && queue->woken == args->next_pid && now_ns - queue->clock_ns < PROMPT_NS;

        if (queue->frozen || preempted)
            clock_ns = queue->clock_ns;
        queue->frozen = 0;
        queue->woken = 0;
        queue->priority = args->next_pid ? args->next_prio : IDLE;
    }

    task = task_of(args->prev_pid);
    if (task) {
        task->queued_ns = runnable ? now_ns : 0;
        task->queued_clock_ns = clock_ns;
        task->queued_open_ns = now_ns - clock_ns;
    }

    task = task_of(args->next_pid);
    if (task) {
        if (task->queued_ns) {
            u64 latency_ns = now_ns - task->queued_ns;

            task->waits++;
            task->latency_ns += latency_ns;
            if (clock_ns > task->queued_clock_ns)
                task->delay_ns += clock_ns - task->queued_clock_ns;
            task->open_ns += now_ns - clock_ns + task->queued_open_ns;
            task->queued_ns = 0;
            record(task->dimension, 0, latency_ns);
        }
    }
    return 0;
}

TRACEPOINT_PROBE(sched, sched_wakeup)
{
    u64 now_ns = bpf_ktime_get_ns();

    woken(now_ns, args->pid, args->prio, args->target_cpu);
    return 0;
}

TRACEPOINT_PROBE(sched, sched_wakeup_new)
{
    u64 now_ns = bpf_ktime_get_ns();

    woken(now_ns, args->pid, args->prio, args->target_cpu);
    return 0;
}
