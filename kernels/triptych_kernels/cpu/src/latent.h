// Attention whose queries, keys and values come out of low ranks (MLA; DeepSeek-V2, arXiv 2405.04434,
// section 2.1), brought into the heads that all attention here reads: see LatentHeads in
// triptych/models/latent.py.
#pragma once

#include "linear.h"

namespace triptych {

// `down` makes of a row what is kept of it: [query rank | KV rank | rotary key]. `query_up` makes the
// query heads, of the normed first part or, with a query rank of 0, of the row itself; `kv_up` the
// key heads, whose first `rope_dim` numbers are zero, then the value heads.
struct Latent {
    const Linear *down, *query_up, *kv_up;
    const float *query_norm, *kv_norm;  // float32 [rank]
    float eps;
    int query_rank, kv_rank, rope_dim;
};

// compressed [rows, down->out] → heads [rows, stride]: query heads if they have a rank, key heads
// with the rotary key in front of each, not yet turned, and value heads. A head has head_dim numbers.
void expand_latent(const Latent& latent, const float* compressed, int rows, int head_dim,
                   float* heads, int stride);

// The normed first part of compressed rows, [rows, query rank], through `to`: → out [rows, stride].
void expand_queries(const Latent& latent, const Linear& to, const float* compressed, int rows,
                    float* out, int stride);

}  // namespace triptych
