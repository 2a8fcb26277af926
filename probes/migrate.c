/* Moves of followed tasks between CPUs and between nodes, and of pages on their behalf. See migrate.py. */

#include <linux/migrate_mode.h>

#define TASK_FIELDS u64 migrations;

#include "lost.h"
#include "tasks.h"

struct moves {
    u64 pages_moved;
    u64 pages_failed;
    u64 tasks[NODES * NODES]; /* from node, to node */
};

BPF_F_TABLE("array", u32, struct moves, moves, CPUS * DIMENSIONS, BPF_F_MMAPABLE);
BPF_ARRAY(node_of_cpu, u32, CPUS);

static inline struct moves *moves_of(u32 dimension)
{
    u32 index = bpf_get_smp_processor_id() * DIMENSIONS + dimension;

    return moves.lookup(&index);
}

TRACEPOINT_PROBE(sched, sched_migrate_task)
{
    u32 from = args->orig_cpu, to = args->dest_cpu, cell;
    struct task *task = task_of(args->pid);
    u32 *from_node, *to_node;
    struct moves *made;

    if (!task || from == to)
        return 0;
    task->migrations++;
    made = moves_of(task->dimension);
    from_node = node_of_cpu.lookup(&from);
    to_node = node_of_cpu.lookup(&to);
    if (!made || !from_node || !to_node)
        return 0;
    cell = *from_node * NODES + *to_node;
    if (cell < NODES * NODES)
        made->tasks[cell]++;
    return 0;
}

TRACEPOINT_PROBE(migrate, mm_migrate_pages)
{
    struct task *task = task_of(bpf_get_current_pid_tgid());
    struct moves *made = task ? moves_of(task->dimension) : 0;

    if (made) {
        made->pages_moved += args->succeeded;
        made->pages_failed += args->failed;
    }
    return 0;
}
