// Page selection as approximate attention (Quest, arXiv 2406.10774): a row reads the first page of its
// context, the latest ones, and those whose keys could be worth most to it.
//
// A page is 32 positions, aligned to position 0, whatever the cache's blocks hold. Of its keys the largest
// and the smallest number of each channel are kept; a page is worth Σ_d max(q[d] · largest[d], q[d] ·
// smallest[d]) to a query head, which no q · k of it exceeds, and to a row the most of the heads that
// share the KV head. All of it is the row's own: a sum runs over d in order, whoever else is there, and
// a page that a row ranks is complete where the row stands. So neither chunks nor batches, threads or
// other drafts show in a choice.
//
// To choose is to mask, see Chosen in attention.h.
#pragma once

#include <vector>

#include "attention.h"

namespace triptych {

constexpr int kPageTokens = 32;
constexpr int kRecentPages = 2;  // that are always read, as is the first one; the row's own included

// How a job's rows choose. Slots are positions: the job skips none.
struct PageChoice {
    std::int32_t first_slot;   // of the row that `kept` begins with
    std::int32_t known;        // pages whose bounds were here before this pass
    std::int32_t capacity;     // pages that there is room for, those of all rows; a multiple of 32
    const std::int32_t* kept;  // [rows], pages that each one reads; 0: all that it sees
    float* bounds;             // [layers][KV heads][capacity][2][head_dim]: largest, smallest
};

// Whether rows choose in layers with this attention: those with a window read little anyway.
bool chooses_pages(const AttentionShape& shape, const Job* jobs, int num_jobs);

// By job what its rows attend to; null bits where all of them read everything. The rows' own keys are
// stored. Completes the bounds of all pages that lie before drafts in trees. Valid until the next call
// in this thread.
const std::vector<Chosen>& choose_pages(const KvCache& cache, int layer, const AttentionShape& shape,
                                        const Job* jobs, int num_jobs, const float* queries, int stride);

}  // namespace triptych
