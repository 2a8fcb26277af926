/* Which tasks belong to which dimension, followed through fork, exec and exit inside the kernel.
 *
 * A hash leads from the task's id to a slot of an array that the reader has mapped, so that a snapshot takes no
 * system call on a map (see histogram.h). A task runs on one CPU at a time, so its slot has one writer at a time.
 *
 * Needs TASKS, and TASK_FIELDS: the probe's own fields of a slot, all u64.
 */

struct task {
    u32 tid;        /* 0: the slot is free */
    u32 dimension;
    u64 since_ns;   /* when it began to be followed; tells two tasks with the same id apart */
    TASK_FIELDS
};

BPF_HASH(slots, u32, u32, TASKS);
BPF_QUEUE(free_slots, u32, TASKS);
BPF_F_TABLE("array", u32, struct task, tasks, TASKS, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, u64, exits, DIMENSIONS, BPF_F_MMAPABLE);

static inline struct task *task_of(u32 tid)
{
    u32 *slot = slots.lookup(&tid);

    return slot ? tasks.lookup(slot) : 0;
}

TRACEPOINT_PROBE(sched, sched_process_fork)
{
    u32 child = args->child_pid, slot = 0;
    struct task *parent = task_of(args->parent_pid), *task;

    if (!parent)
        return 0;
    if (free_slots.pop(&slot)) {
        count_lost();
        return 0;
    }
    task = tasks.lookup(&slot);
    if (!task)
        return 0;
    __builtin_memset(task, 0, sizeof(*task));
    task->dimension = parent->dimension;
    task->since_ns = bpf_ktime_get_ns();
    task->tid = child;
    if (slots.update(&child, &slot)) {
        task->tid = 0;
        free_slots.push(&slot, 0);
        count_lost();
    }
    return 0;
}

/* A thread that execs takes over the id of the thread group's leader, which has exited before this. */
TRACEPOINT_PROBE(sched, sched_process_exec)
{
    u32 before = args->old_pid, after = args->pid, slot;
    u32 *known;
    struct task *task;

    if (before == after)
        return 0;
    known = slots.lookup(&before);
    if (!known)
        return 0;
    slot = *known;
    slots.delete(&before);
    task = tasks.lookup(&slot);
    if (!task)
        return 0;
    task->tid = after;
    if (slots.update(&after, &slot)) {
        task->tid = 0;
        free_slots.push(&slot, 0);
        count_lost();
    }
    return 0;
}

TRACEPOINT_PROBE(sched, sched_process_exit)
{
    u32 tid = args->pid, slot, dimension;
    u32 *known = slots.lookup(&tid);
    struct task *task;
    u64 *exited;

    if (!known)
        return 0;
    slot = *known;
    slots.delete(&tid);
    task = tasks.lookup(&slot);
    if (!task)
        return 0;
    task->tid = 0;
    dimension = task->dimension;
    exited = exits.lookup(&dimension);
    if (exited)
        __sync_fetch_and_add(exited, 1);
    free_slots.push(&slot, 0);
    return 0;
}
