// Native sparse attention (NSA, arXiv 2502.11089): what a row makes of the means of all blocks behind
// it, of the blocks that these choose, and of the latest tokens, weighed by gates. The formulas are
// told in triptych_kernels/reference_nsa.py.
//
// All of it is the row's own. A mean is a sum of stored keys or values in one order, made when it is
// read; means are visited in tiles aligned to block 0; and to choose is to mask, as in attention.h. So
// neither chunks nor batches, threads or other drafts show in a bit.
#pragma once

#include "attention.h"
#include "linear.h"

namespace triptych {

struct Branches {
    const Linear* gate;  // float32 [heads · 3, hidden]: a head's three lie together
    int block_tokens;    // of a block that is averaged or chosen; the cache's are others
    int top_k;           // blocks that a row reads token by token
    int window;          // positions that a row sees in any case, itself included; 0: no such part
};

// gates [rows, heads · 3], before their sigmoid; out [rows, heads × head_dim]. `shape` has no window,
// and slots are positions: no job skips any. Otherwise as `attend`.
void attend_branches(const Branches& branches, const KvCache& cache, int layer,
                     const AttentionShape& shape, const Job* jobs, int num_jobs,
                     const float* queries, int stride, const float* gates, float* out);

}  // namespace triptych
