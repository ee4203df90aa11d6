// How much attention each page, a block of a sequence by its place, gets from a job's last rows.
#pragma once

#include "attention.h"

namespace triptych {

// Fills in this layer's part of every job's `page_scores`, float32 [layers][kv heads][pages], where
// it is not null: the share of the softmax that falls on each page, averaged over the job's last
// `scored_rows` rows and the query heads of a KV head (PillarAttn of SparseSpec, arXiv 2512.01278).
// What falls on a sink falls on no page.
// The keys are read again: attention itself has to stay as it is. A layer with a window is left
// out, because what it reads is known. Only chains are scored.
void score_pages(const KvCache& cache, int layer, const AttentionShape& shape, const Job* jobs,
                 int num_jobs, const float* queries, int stride);

}  // namespace triptych
