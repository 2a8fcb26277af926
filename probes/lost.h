/* Events that could not be recorded because a map was full: one count for the program. */

BPF_F_TABLE("array", u32, u64, lost, 1, BPF_F_MMAPABLE);

static inline void count_lost(void)
{
    u32 zero = 0;
    u64 *events = lost.lookup(&zero);

    if (events)
        __sync_fetch_and_add(events, 1);
}
