// A transformer layer and a forward pass through it, as Python describes them.
#pragma once

#include "attention.h"
#include "branches.h"
#include "experts.h"
#include "kv_cache.h"
#include "latent.h"
#include "linear.h"
#include "routing.h"
#include "token_index.h"

namespace triptych {

// What the home of a row does of a mixture of experts, and the experts themselves where they are
// here; see Mixture in triptych/models/layers.py.
struct Mixture {
    Routing routing;
    const Linear* router;  // [experts, hidden] float32
    const Linear *shared_gate_up, *shared_down;  // the expert of all rows, or null
    const Linear* shared_gate;  // [1, hidden] float32, or null
    const Unit* units;          // [experts], or null: they are elsewhere
    RowType cell_type;          // what their answers are rounded to
};

// A layer's weights; see Layer in triptych/models/layers.py. Norms are float32, null where there is
// none; queries', keys' and values' heads are one linear layer, gate and up another.
struct Layer {
    const float *before_attention, *behind_attention, *before_ffn, *behind_ffn;
    const float *query_norm, *key_norm;
    const Linear *qkv, *output, *gate_up, *down;
    AttentionShape attention;
    float eps;
    int action;  // the gate, an Epilogue::Action
    int rope;    // which of the pass's tables
    int rope_dim;            // of a head: its first numbers are turned
    const Latent* latent;    // makes the heads in place of qkv, which is null then; or null
    const Mixture* mixture;  // in place of gate_up and down, which are null then; or null
    float branch_scale;      // of what attention and FFN add to the residual stream
    int norms_whole;  // query_norm and key_norm are of all heads together, else of each
    const TokenIndex* index;  // chooses the tokens that rows attend to, with `latent`; or null
    const Branches* branches;  // attention is in three parts; or null
};

// One forward pass. Tables of cosines and sines are float32 [positions, rope_dim / 2].
struct Pass {
    int rows, num_jobs;
    const Job* jobs;  // every row belongs to exactly one
    const KvCache* cache;
    const float *const *cosines, *const *sines;
    float* hidden;  // [rows, hidden_size], the residual stream, changed in place
    int hidden_size;
    // A copy of it behind some layers [rows, num_states, hidden_size]; null: nobody wants one.
    Bf16* states;
    int num_states;
    const int* state_of;  // by layer: which of the states; -1: none
};

// Both halves of a layer. The second one is in ffn.cpp.
void attention_half(const Layer& layer, int index, const Pass& pass);
void ffn_half(const Layer& layer, const Pass& pass);

// The pass's rows, normed, as `next` reads them. Valid until the next call in this thread.
Operand& normed_rows(const Pass& pass, const float* weight, float eps, const Linear& next);

// The same as float32 [rows, hidden_size].
void norm_hidden(const Pass& pass, const float* weight, float eps, float* out);

// values [rows, stride] float32 as an operand.
void put_rows(Operand& to, int rows, const float* values, int stride);

// hidden += scale · norm(x W): the end of both halves of a layer. norm may be null.
void add_branch(const Layer& layer, const Pass& pass, const Linear& linear, const Operand& x,
                const float* norm);

// hidden += scale · norm(branch), with branch [rows, hidden_size], which is spoilt.
void add_rows(const Layer& layer, const Pass& pass, float* branch, const float* norm);

}  // namespace triptych
