// Paged attention for any number of query rows: prompt chunks, decode and verification alike.
//
// Sixteen (row, query head) pairs that read the same KV head are the lanes of every vector. Each
// lane's result is its own: keys are visited in tiles of 128 positions aligned to position 0, tiles
// are folded into splits of 1,024, splits are merged in position order, and what a lane must not
// see adds an exact zero. So neither the chunking of a prompt, nor the batch, nor the number of
// threads that share the splits shows in a bit.
#pragma once

#include "kv_cache.h"
#include "linear.h"

namespace triptych {

// What was left out of a job's attention in a layer. A tile counts once for each group of lanes.
struct SkipCount {
    std::int64_t tiles, skipped;
    float omitted;  // the largest ε of a row and head; see skipping.h
};

// How a job leaves out tiles; see skipping.h.
struct Skipping {
    float scale;   // λ of a row is this over the positions that it sees; 0: it weighs all of them
    float budget;  // the largest ε of a row and head; infinite: any
    SkipCount* counts;  // [layers], added to; or null
    float* omitted;     // [layers, rows, heads], ε of each; or null
};

struct PageChoice;  // in page_choice.h

// Rows of one sequence. Row i's KV lies in slot start + i of the blocks. Without parents the rows
// stand one behind the other and a slot is a position. With them they are a tree of drafts:
// parents[i] < i is the row before row i, -1 the last position before `start`; a row sees all
// positions before `start` and its own path, at the positions that the path would have alone.
//
// A job may read a part of its sequence: tables that hold fewer blocks, others in each layer and KV
// head if need be, but as many, and all with the blocks that the rows' own KV goes to. Slots then
// count what is read, and a position is `skipped` more than its slot.
struct Job {
    std::int32_t first_row, rows;  // in the batch
    std::int32_t start;
    std::int32_t skipped;
    const std::int32_t* blocks;
    const std::int32_t* parents;               // or null
    std::int32_t layer_stride, head_stride;    // between tables of blocks; 0: one serves all
    float* page_scores;                        // or null; see page_scores.h
    std::int32_t scored_rows;                  // the last ones
    const Skipping* skipping;                  // or null: attention is dense
    // Jobs of the same bundle (0: of none) have the first `shared` slots, all before `start`, in the same
    // blocks. Where none of them leaves out anything or has a window, they are read once for all.
    std::int32_t bundle, shared;
    const PageChoice* pages;                   // or null: the rows read all that they see

    const std::int32_t* blocks_of(int layer, int head) const {
        return blocks + static_cast<std::size_t>(layer) * layer_stride + head * head_stride;
    }
};

// The slots that a job's rows attend to, of those that they see.
struct Chosen {
    std::uint64_t* bits = nullptr;  // [rows, heads, words], a bit of each slot; null: all
    int words = 0;
    int heads = 1;  // KV heads that choose apart from each other; 1: all of them alike

    std::uint64_t* row(int i, int head) const {
        return bits + (static_cast<std::size_t>(i) * heads + (heads > 1 ? head : 0)) * words;
    }
    bool has(int i, int head, int slot) const { return row(i, head)[slot / 64] >> slot % 64 & 1; }

    static int words_for(const Job& job) { return (job.start + job.rows + 63) / 64; }
    static void mark(std::uint64_t* row, int slot) { row[slot / 64] |= std::uint64_t{1} << slot % 64; }
};

// Of row `row` of the job, in slots: what it sees lies before.
int position_of(const Job& job, int row);

struct AttentionShape {
    int heads;      // query heads, a multiple of the cache's KV heads
    float scale;
    float softcap;  // 0: none
    int window;     // positions that a row sees, itself included; 0: all
    int value_dim;  // of a head's result: values may be narrower than keys, with zeros behind; 0:
                    // as wide
    // [heads] or null: a logit of each head that takes its share of the softmax and adds nothing.
    // A row meets it once, when all its splits are merged.
    const float* sinks;

    int result_dim(const KvCache& cache) const {
        return value_dim > 0 ? value_dim : cache.head_dim;
    }
};

// Whether attention writes the operand of a layer itself, when a head's result is so wide.
bool writes_operand(const Linear& next, int result_dim);

// queries: [rows, stride] float32, a row's heads one after the other. The results go into `out`,
// the operand of the layer that follows, or, where that is null, into `floats` [rows, heads ×
// result_dim]. chosen: by job; null: the rows attend to all that they see.
void attend(const KvCache& cache, int layer, const AttentionShape& shape, const Job* jobs,
            int num_jobs, const float* queries, int stride, Operand* out, float* floats,
            const Chosen* chosen = nullptr);

}  // namespace triptych
