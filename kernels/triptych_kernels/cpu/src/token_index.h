// DeepSeek-V3.2's indexer: a small scorer chooses the tokens that a row attends to; see
// triptych/models/token_index.py.
//
// Position s is worth Σ_j weight[j] · ReLU(query[j] · key[s]) to a row. Each such sum is its row's and its
// position's own: keys are visited in tiles aligned to position 0, the heads are lanes, and lanes are
// added in one order. So a choice depends neither on chunks nor on the batch, threads or other drafts.
#pragma once

#include <vector>

#include "attention.h"
#include "linear.h"

namespace triptych {

// A layer's weights. J heads, D wide; their first rope_dim numbers are turned.
struct TokenIndex {
    const Linear *query, *key, *weights;  // [J·D, query rank], [D, hidden], float32 [J, hidden]
    const float *key_norm, *key_norm_bias;  // float32 [D], of a layer norm
    float eps, scale;                       // scale: of all weights
    int heads, dim, top_k;
};

// What some rows bring, one behind the other: queries [rows, J·D], keys [rows, D], weights [rows, J].
struct IndexRows {
    float *queries, *keys, *weights;
};

// Norms and turns a row's key and turns its queries, in place, and stores the key in its slot.
void finish_index(const TokenIndex& index, const KvCache& cache, int layer, const IndexRows& rows,
                  std::size_t row, int block, int offset, const float* cosines,
                  const float* sines, int rope_dim);

// By job what its rows attend to, the `top_k` visible slots that are worth most, the first of equal
// ones. The rows' own keys are stored. Valid until the next call in this thread.
const std::vector<Chosen>& choose_tokens(const TokenIndex& index, const KvCache& cache, int layer,
                                         const Job* jobs, int num_jobs, const IndexRows& rows);

}  // namespace triptych
