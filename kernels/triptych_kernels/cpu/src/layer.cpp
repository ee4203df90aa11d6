// A transformer layer over a batch of rows, and runs of layers: what one step of the engine is.
#include "layer.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "export.h"
#include "memory.h"
#include "norms.h"
#include "page_choice.h"
#include "page_scores.h"
#include "pool.h"

namespace triptych {

namespace {

// Buffers of a pass, kept by the thread that runs it.
struct Workspace {
    OperandBuffer normed, mixed;
    Buffer<float> qkv, floats, branch, index_queries, index_keys, index_weights, gates;
};

Workspace& workspace() {
    static thread_local Workspace own;
    return own;
}

template <class Number>
void norm_rows(const Number* x, int x_stride, int rows, int size, const float* weight, float eps,
               float* out, int out_stride) {
    for_rows(rows, [&](int row) {
        const std::size_t at = row;
        rms_norm(x + at * x_stride, size, weight, eps, out + at * out_stride);
    });
}

// Some heads of a row in place, together or each by itself. norm may be null.
void norm_heads(const Layer& layer, const float* norm, float* heads, int count, int dim) {
    if (norm == nullptr) return;
    const int size = layer.norms_whole ? count * dim : dim;
    for (int at = 0; at < count * dim; at += size) {
        rms_norm(heads + at, size, norm, layer.eps, heads + at);
    }
}

// Norms and rotates queries and keys of a row in place, and stores key and value.
void finish_row(const Layer& layer, int index, const Pass& pass, const Job& job, int i,
                float* heads, const IndexRows& index_rows) {
    const KvCache& cache = *pass.cache;
    const int dim = cache.head_dim;
    const std::size_t position = position_of(job, i) + job.skipped;
    const std::size_t at_position = position * (layer.rope_dim / 2);
    const float* cosines = pass.cosines[layer.rope] + at_position;
    const float* sines = pass.sines[layer.rope] + at_position;
    float* keys = heads + layer.attention.heads * dim;
    norm_heads(layer, layer.query_norm, heads, layer.attention.heads, dim);
    norm_heads(layer, layer.key_norm, keys, cache.kv_heads, dim);
    for (int head = 0; head < layer.attention.heads + cache.kv_heads; ++head) {
        rotate_halves(heads + head * dim, layer.rope_dim, cosines, sines);
    }
    const int slot = job.start + i;
    for (int head = 0; head < cache.kv_heads; ++head) {
        const int block = job.blocks_of(index, head)[slot / cache.block_tokens];
        put_kv(cache, index, block, head, slot % cache.block_tokens, keys + head * dim,
               keys + (cache.kv_heads + head) * dim);
    }
    if (layer.index != nullptr) {
        finish_index(*layer.index, cache, index, index_rows, job.first_row + i,
                     job.blocks[slot / cache.block_tokens], slot % cache.block_tokens, cosines, sines,
                     layer.rope_dim);
    }
}

// Rows of a job that lie in one part of the cache: one thread has to write them.
struct Piece {
    const Job* job;
    int begin, end;
};

std::vector<Piece> pieces_of(const Pass& pass) {
    std::vector<Piece> pieces;
    for (const Job* job = pass.jobs; job < pass.jobs + pass.num_jobs; ++job) {
        for (int i = 0; i < job->rows;) {
            const int slot = (job->start + i) % pass.cache->block_tokens;
            const int end = std::min(job->rows, i + kPartTokens - slot % kPartTokens);
            pieces.push_back({job, i, end});
            i = end;
        }
    }
    return pieces;
}

}  // namespace

Operand& normed_rows(const Pass& pass, const float* weight, float eps, const Linear& next) {
    Operand& to = workspace().normed.take(next, pass.rows);
    for_rows(pass.rows, [&](int row) {
        static thread_local Buffer<float> memory;
        float* normed = memory.take(pass.hidden_size);
        rms_norm(pass.hidden + static_cast<std::size_t>(row) * pass.hidden_size, pass.hidden_size,
                 weight, eps, normed);
        put_row(to, row, normed);
    });
    return to;
}

void norm_hidden(const Pass& pass, const float* weight, float eps, float* out) {
    norm_rows(pass.hidden, pass.hidden_size, pass.rows, pass.hidden_size, weight, eps, out,
              pass.hidden_size);
}

void put_rows(Operand& to, int rows, const float* values, int stride) {
    for_rows(rows, [&](int row) {
        put_row(to, row, values + static_cast<std::size_t>(row) * stride);
    });
}

void add_branch(const Layer& layer, const Pass& pass, const Linear& linear, const Operand& x,
                const float* norm) {
    if (norm == nullptr && layer.branch_scale == 1.0f) {
        return apply(linear, x, {Epilogue::Action::kAdd, pass.hidden, pass.hidden_size});
    }
    float* branch =
        workspace().branch.take(static_cast<std::size_t>(pass.rows) * pass.hidden_size);
    apply(linear, x, {Epilogue::Action::kStore, branch, pass.hidden_size});
    add_rows(layer, pass, branch, norm);
}

void add_rows(const Layer& layer, const Pass& pass, float* branch, const float* norm) {
    for_rows(pass.rows, [&](int row) {
        const std::size_t at = static_cast<std::size_t>(row) * pass.hidden_size;
        if (norm != nullptr) {
            rms_norm(branch + at, pass.hidden_size, norm, layer.eps, branch + at);
        }
        for (int i = 0; i < pass.hidden_size; ++i) {
            pass.hidden[at + i] += layer.branch_scale * branch[at + i];
        }
    });
}

namespace {

// The normed rows through a linear layer: [rows, stride].
void project(const Layer& layer, const Pass& pass, const Linear& linear, float* to, int stride) {
    apply(linear, normed_rows(pass, layer.before_attention, layer.eps, linear),
          {Epilogue::Action::kStore, to, stride});
}

// What all rows bring to choose their tokens, as the projections give it.
IndexRows make_index(const Layer& layer, const Pass& pass, const float* compressed) {
    Workspace& own = workspace();
    const TokenIndex& index = *layer.index;
    const std::size_t rows = pass.rows;
    const int size = index.heads * index.dim;
    IndexRows made{own.index_queries.take(rows * size), own.index_keys.take(rows * index.dim),
                   own.index_weights.take(rows * index.heads)};
    expand_queries(*layer.latent, *index.query, compressed, pass.rows, made.queries, size);
    project(layer, pass, *index.key, made.keys, index.dim);
    project(layer, pass, *index.weights, made.weights, index.heads);
    return made;
}

// Heads of queries, keys and values of all rows, as the projections give them: [rows, stride]; and
// `index`, where there is one.
void make_heads(const Layer& layer, const Pass& pass, float* heads, int stride, IndexRows& index) {
    if (layer.latent == nullptr) return project(layer, pass, *layer.qkv, heads, stride);
    const Latent& latent = *layer.latent;
    const int width = latent.down->out;
    float* compressed = workspace().floats.take(static_cast<std::size_t>(pass.rows) * width);
    project(layer, pass, *latent.down, compressed, width);
    if (latent.query_rank == 0) project(layer, pass, *latent.query_up, heads, stride);
    expand_latent(latent, compressed, pass.rows, pass.cache->head_dim, heads, stride);
    if (layer.index != nullptr) index = make_index(layer, pass, compressed);
}

// Attention in three parts.
void mix_branches(const Layer& layer, int index, const Pass& pass, const float* heads, int stride,
                  Operand& mixed) {
    Workspace& own = workspace();
    const std::size_t rows = pass.rows;
    const int size = layer.attention.heads * pass.cache->head_dim;
    const int num_gates = layer.branches->gate->out;
    float* gates = own.gates.take(rows * num_gates);
    project(layer, pass, *layer.branches->gate, gates, num_gates);
    float* floats = own.floats.take(rows * size);
    attend_branches(*layer.branches, *pass.cache, index, layer.attention, pass.jobs, pass.num_jobs,
                    heads, stride, gates, floats);
    put_rows(mixed, pass.rows, floats, size);
}

}  // namespace

void attention_half(const Layer& layer, int index, const Pass& pass) {
    Workspace& own = workspace();
    const KvCache& cache = *pass.cache;
    const int stride = (layer.attention.heads + 2 * cache.kv_heads) * cache.head_dim;
    float* heads = own.qkv.take(static_cast<std::size_t>(pass.rows) * stride);
    IndexRows index_rows{};
    make_heads(layer, pass, heads, stride, index_rows);
    const std::vector<Piece> pieces = pieces_of(pass);
    parallel_for(static_cast<int>(pieces.size()), [&](int p) {
        const Job& job = *pieces[p].job;
        for (int i = pieces[p].begin; i < pieces[p].end; ++i) {
            const std::size_t row = job.first_row + i;
            finish_row(layer, index, pass, job, i, heads + row * stride, index_rows);
        }
    });
    const Chosen* chosen = nullptr;
    if (layer.index != nullptr) {
        chosen = choose_tokens(*layer.index, cache, index, pass.jobs, pass.num_jobs, index_rows).data();
    } else if (chooses_pages(layer.attention, pass.jobs, pass.num_jobs)) {
        chosen = choose_pages(cache, index, layer.attention, pass.jobs, pass.num_jobs, heads, stride).data();
    }
    Operand& mixed = own.mixed.take(*layer.output, pass.rows);
    const int dim = layer.attention.result_dim(cache), size = layer.attention.heads * dim;
    if (layer.branches != nullptr) {
        mix_branches(layer, index, pass, heads, stride, mixed);
    } else if (writes_operand(*layer.output, dim)) {
        attend(cache, index, layer.attention, pass.jobs, pass.num_jobs, heads, stride, &mixed,
               nullptr, chosen);
    } else {
        float* floats = own.floats.take(static_cast<std::size_t>(pass.rows) * size);
        attend(cache, index, layer.attention, pass.jobs, pass.num_jobs, heads, stride, nullptr,
               floats, chosen);
        put_rows(mixed, pass.rows, floats, size);
    }
    score_pages(cache, index, layer.attention, pass.jobs, pass.num_jobs, heads, stride);
    add_branch(layer, pass, *layer.output, mixed, layer.behind_attention);
}

namespace {

// What stands in the residual stream behind a layer, for whoever asked for that.
void copy_state(const Pass& pass, int layer) {
    if (pass.states == nullptr || pass.state_of[layer] < 0) return;
    for_rows(pass.rows, [&](int row) {
        const float* from = pass.hidden + static_cast<std::size_t>(row) * pass.hidden_size;
        const std::size_t place = static_cast<std::size_t>(row) * pass.num_states;
        Bf16* to = pass.states + (place + pass.state_of[layer]) * pass.hidden_size;
        for (int i = 0; i < pass.hidden_size; i += kLanes) {
            const std::size_t count = std::min(kLanes, pass.hidden_size - i);
            V values{};
            std::memcpy(&values, from + i, count * sizeof(float));
            const VHalf halves = to_bf16(values);
            std::memcpy(to + i, &halves, count * sizeof(Bf16));
        }
    });
}

}  // namespace
}  // namespace triptych

using triptych::Layer;
using triptych::Pass;

extern "C" {

// Layers [first, end), whole.
TK_EXPORT void tk_layers(const Layer* layers, int first, int end, const Pass* pass) {
    for (int index = first; index < end; ++index) {
        triptych::attention_half(layers[index], index, *pass);
        triptych::ffn_half(layers[index], *pass);
        triptych::copy_state(*pass, index);
    }
}

// The two halves apart, for layers whose FFN may run elsewhere.
TK_EXPORT void tk_attention_half(const Layer* layers, int index, const Pass* pass) {
    triptych::attention_half(layers[index], index, *pass);
}

TK_EXPORT void tk_ffn_half(const Layer* layers, int index, const Pass* pass) {
    triptych::ffn_half(layers[index], *pass);
}

// Rows of out = RMS norm of rows of x, bfloat16 or float, times weight [size]. Rows lie as far apart
// as the strides say, in numbers. May work in place.
TK_EXPORT void tk_norm_rows(const void* x, int is_bf16, int x_stride, int rows, int size,
                            const float* weight, float eps, float* out, int out_stride) {
    using triptych::norm_rows;
    if (is_bf16) {
        norm_rows(static_cast<const triptych::Bf16*>(x), x_stride, rows, size, weight, eps, out,
                  out_stride);
    } else {
        norm_rows(static_cast<const float*>(x), x_stride, rows, size, weight, eps, out, out_stride);
    }
}

}  // extern "C"
