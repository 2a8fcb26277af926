/* Requests of watched block devices: from their making to their issue to their completion. See block.py. */

#define READ 0
#define WRITE 1
#define DISCARD 2
#define FLUSH 3
#define OPERATIONS 4
#define EMPTY_FLUSH 4 /* a write without data that asks for a flush; it is never issued itself */
#define OTHER 5

#define ISSUE_TO_COMPLETE 0
#define QUEUE_TO_COMPLETE OPERATIONS
#define KINDS (2 * OPERATIONS)

#define SEQUENCE_ON_PREFLUSH 1
#define SEQUENCE_ON_FUA 2

#include "lost.h"
#include "histogram.h"

struct watched {
    u32 dimension;
    u32 slot;
    u32 sequence_on; /* which flags make the kernel turn a write into a sequence of flush, data and flush */
};

struct inflight_key {
    u32 device;
    u32 operation;
    u64 sector;
};

struct inflight {
    u64 queued_ns;
    u64 issued_ns;
    u32 sectors_left;
    u32 others;   /* requests in flight with the same key, besides this one */
    u32 sequence; /* a write in a flush sequence: it completes once more, without data, at the end */
    u32 requeued; /* its next issue is not its first */
};

struct io {
    u64 requests[OPERATIONS];
    u64 bytes[OPERATIONS];
    u64 completions; /* seen, of reads, writes and discards */
    u64 unmatched;
    u64 ambiguous;
    u64 requeued;
};

BPF_HASH(watched, u32, struct watched, DEVICES);
/* Least recently used first out: what never completes before our eyes must not fill it up. */
BPF_TABLE("lru_hash", struct inflight_key, struct inflight, inflight, REQUESTS);
BPF_F_TABLE("array", u32, struct io, ios, CPUS * DEVICES, BPF_F_MMAPABLE);

static inline struct watched *watched_device(u32 device)
{
    return watched.lookup(&device);
}

static inline struct io *io_of(struct watched *device)
{
    u32 index = bpf_get_smp_processor_id() * DEVICES + device->slot;

    return ios.lookup(&index);
}

/* rwbs (blk_fill_rwbs): F for a preflush, the operation's letter, then its flags, among them F for FUA. */
static inline u32 operation_of(char first, char second)
{
    char letter = first == 'F' ? second : first;

    if (letter == 'R')
        return READ;
    if (letter == 'W' || letter == 'N') /* N: write zeroes, which /sys/block counts as a write */
        return WRITE;
    if (letter == 'D')
        return DISCARD;
    if (letter == 'F')
        return FLUSH;
    return OTHER;
}

/* The device's own flush has no place; it shows as sector 0 at its issue and as -1 at its completion. */
#define KEY(tracepoint, op) \
    { .device = (tracepoint)->dev, .operation = (op), .sector = (op) == FLUSH ? 0 : (tracepoint)->sector }

static inline void forget(struct inflight_key *key)
{
    struct inflight *request = inflight.lookup(key);

    if (!request)
        return;
    if (request->others)
        request->others--;
    else
        inflight.delete(key);
}

static inline void rename(struct inflight_key *key, u64 sector, u32 sectors_left)
{
    struct inflight *request = inflight.lookup(key);
    struct inflight moved;

    if (!request)
        return;
    moved = *request;
    moved.others = 0;
    moved.sectors_left = sectors_left;
    forget(key);
    key->sector = sector;
    if (inflight.update(key, &moved))
        count_lost();
}

TRACEPOINT_PROBE(block, block_getrq)
{
    u64 now_ns = bpf_ktime_get_ns();
    struct watched *device = watched_device(args->dev);
    char first = args->rwbs[0], second = args->rwbs[1], third = args->rwbs[2];
    u32 operation = operation_of(first, second);
    int preflush = first == 'F', fua = (preflush ? third : second) == 'F';

    if (!device || operation == OTHER)
        return 0;
    if (operation == WRITE && preflush && args->nr_sector == 0)
        operation = EMPTY_FLUSH;

    struct inflight_key key = KEY(args, operation);
    struct inflight *known = inflight.lookup(&key), made = {};
    struct io *io = io_of(device);

    if (!io)
        return 0;
    if (operation == EMPTY_FLUSH)
        io->requests[WRITE]++;
    if (known) {
        known->others++;
        known->queued_ns = now_ns;
        known->issued_ns = 0;
        io->ambiguous++;
        return 0;
    }
    made.queued_ns = now_ns;
    made.sequence = operation == WRITE && ((preflush && device->sequence_on & SEQUENCE_ON_PREFLUSH)
                                           || (fua && device->sequence_on & SEQUENCE_ON_FUA));
    if (inflight.update(&key, &made))
        count_lost();
    return 0;
}

/* A bio was put in front of a request, which begins earlier from now on. */
TRACEPOINT_PROBE(block, block_bio_frontmerge)
{
    u32 operation = operation_of(args->rwbs[0], args->rwbs[1]);
    struct inflight_key key = KEY(args, operation);

    if (!watched_device(args->dev))
        return 0;
    key.sector += args->nr_sector;
    rename(&key, args->sector, 0);
    return 0;
}

/* A request was merged into its neighbour and ceases to be. */
TRACEPOINT_PROBE(block, block_rq_merge)
{
    u32 operation = operation_of(args->rwbs[0], args->rwbs[1]);
    struct inflight_key key = KEY(args, operation);

    if (watched_device(args->dev))
        forget(&key);
    return 0;
}

TRACEPOINT_PROBE(block, block_rq_issue)
{
    u64 now_ns = bpf_ktime_get_ns();
    struct watched *device = watched_device(args->dev);
    u32 operation = operation_of(args->rwbs[0], args->rwbs[1]), sectors = args->nr_sector;

    if (!device || operation >= OPERATIONS)
        return 0;

    struct inflight_key key = KEY(args, operation);
    struct inflight *request = inflight.lookup(&key), made = {};
    struct io *io = io_of(device);

    if (!io)
        return 0;
    if (request && request->requeued) {
        request->requeued = 0;
    } else {
        io->requests[operation]++;
        io->bytes[operation] += (u64)sectors << 9;
    }
    if (request) {
        request->issued_ns = now_ns;
        request->sectors_left = sectors;
        return 0;
    }
    made.issued_ns = now_ns;
    made.sectors_left = sectors;
    if (inflight.update(&key, &made))
        count_lost();
    return 0;
}

TRACEPOINT_PROBE(block, block_rq_requeue)
{
    struct watched *device = watched_device(args->dev);
    u32 operation = operation_of(args->rwbs[0], args->rwbs[1]);
    struct inflight_key key = KEY(args, operation);
    struct inflight *request = inflight.lookup(&key);
    struct io *io = device ? io_of(device) : 0;

    if (!io)
        return 0;
    io->requeued++;
    if (request)
        request->requeued = 1;
    return 0;
}

TRACEPOINT_PROBE(block, block_rq_complete)
{
    u64 now_ns = bpf_ktime_get_ns();
    struct watched *device = watched_device(args->dev);
    u32 operation = operation_of(args->rwbs[0], args->rwbs[1]), sectors = args->nr_sector, asked = operation;

    if (!device || operation >= OPERATIONS)
        return 0;

    struct inflight_key key = KEY(args, operation);
    struct inflight *request = inflight.lookup(&key);
    struct io *io = io_of(device);

    if (!io)
        return 0;
    /* By the time it completes, an empty flush has lost its F and looks like a write of nothing. */
    if (operation == WRITE && sectors == 0 && !(request && request->sequence)) {
        key.operation = EMPTY_FLUSH;
        asked = FLUSH;
        request = inflight.lookup(&key);
    }
    if (request && sectors && sectors < request->sectors_left) {
        rename(&key, key.sector + sectors, request->sectors_left - sectors);
        return 0;
    }
    if (request && request->issued_ns && (sectors || operation == FLUSH))
        record(device->dimension, ISSUE_TO_COMPLETE + operation, now_ns - request->issued_ns);
    if (request && request->sequence && sectors)
        return 0;
    if (operation != FLUSH)
        io->completions++;
    if (!request) {
        io->unmatched++;
        return 0;
    }
    if (request->queued_ns)
        record(device->dimension, QUEUE_TO_COMPLETE + asked, now_ns - request->queued_ns);
    forget(&key);
    return 0;
}
