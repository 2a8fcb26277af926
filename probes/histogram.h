/* Log-linear histograms, one for each CPU, dimension and kind: the C side of vcg/histogram.py.
 *
 * The array is mapped into the reader's memory. That is why it is not a per-CPU map: reading one of those takes a
 * system call that switches tracing programs off on that CPU while it copies, and loses what happens meanwhile.
 *
 * Needs CPUS, DIMENSIONS, KINDS, BUCKETS, SUB_BITS and TOP_BITS.
 */

struct histogram {
    u64 sum_ns;
    u64 bucket[BUCKETS];
};

BPF_F_TABLE("array", u32, struct histogram, histograms, CPUS * DIMENSIONS * KINDS, BPF_F_MMAPABLE);

static inline u32 bucket_of(u64 value_ns)
{
    if (value_ns < (1 << SUB_BITS))
        return value_ns;
    if (value_ns >> TOP_BITS)
        return BUCKETS - 1;

    u32 octave = 0;
    u64 rest = value_ns;
    if (rest >> 32) { rest >>= 32; octave += 32; }
    if (rest >> 16) { rest >>= 16; octave += 16; }
    if (rest >> 8) { rest >>= 8; octave += 8; }
    if (rest >> 4) { rest >>= 4; octave += 4; }
    if (rest >> 2) { rest >>= 2; octave += 2; }
    if (rest >> 1) { octave += 1; }

    u64 position = (value_ns >> (octave - SUB_BITS)) & ((1 << SUB_BITS) - 1);
    return ((octave - SUB_BITS + 1) << SUB_BITS) + position;
}

static inline void record(u32 dimension, u32 kind, u64 value_ns)
{
    u32 index = (bpf_get_smp_processor_id() * DIMENSIONS + dimension) * KINDS + kind;
    struct histogram *histogram = histograms.lookup(&index);
    u32 bucket = bucket_of(value_ns);

    if (!histogram || bucket >= BUCKETS)
        return;
    histogram->sum_ns += value_ns;
    histogram->bucket[bucket]++;
}
