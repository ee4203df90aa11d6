// A transformer layer over a batch of rows, and runs of layers: what one step of the engine is.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "attention.h"
#include "export.h"
#include "linear.h"
#include "memory.h"
#include "page_scores.h"
#include "pool.h"

namespace triptych {

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
};

// One forward pass. Tables of cosines and sines are float32 [positions, head_dim / 2].
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

namespace {

constexpr int kRowsOfTask = 8;

// Buffers of a pass, kept by the thread that runs it.
struct Workspace {
    OperandBuffer normed, mixed, gated;
    Buffer<float> qkv, floats, branch;
};

Workspace& workspace() {
    static thread_local Workspace own;
    return own;
}

// body(row) for all rows; a few are not worth waking anybody.
template <class Body>
void for_rows(int rows, Body&& body) {
    parallel_for((rows + kRowsOfTask - 1) / kRowsOfTask, [&](int task) {
        const int end = std::min(rows, (task + 1) * kRowsOfTask);
        for (int row = task * kRowsOfTask; row < end; ++row) body(row);
    });
}

inline float value_of(float x) { return x; }
inline float value_of(Bf16 x) { return to_float(x); }

template <class Number>
void rms_norm(const Number* x, int size, const float* weight, float eps, float* out) {
    V squares{};
    int i = 0;
    for (; i + kLanes <= size; i += kLanes) squares = fma(load(x + i), load(x + i), squares);
    float sum = sum_lanes(squares);
    for (; i < size; ++i) sum = __builtin_fmaf(value_of(x[i]), value_of(x[i]), sum);
    const float factor = 1.0f / std::sqrt(sum / static_cast<float>(size) + eps);
    for (i = 0; i < size; ++i) out[i] = value_of(x[i]) * factor * weight[i];
}

template <class Number>
void norm_rows(const Number* x, int x_stride, int rows, int size, const float* weight, float eps,
               float* out, int out_stride) {
    for_rows(rows, [&](int row) {
        const std::size_t at = row;
        rms_norm(x + at * x_stride, size, weight, eps, out + at * out_stride);
    });
}

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

// Rotates the two halves of a head (GPT-NeoX).
void rotate(float* head, int dim, const float* cosines, const float* sines) {
    const int half = dim / 2;
    for (int i = 0; i < half; ++i) {
        const float first = head[i], second = head[half + i];
        head[i] = first * cosines[i] - second * sines[i];
        head[half + i] = second * cosines[i] + first * sines[i];
    }
}

// Norms and rotates queries and keys of a row in place, and stores key and value.
void finish_row(const Layer& layer, int index, const Pass& pass, const Job& job, int i,
                float* heads) {
    const KvCache& cache = *pass.cache;
    const int dim = cache.head_dim;
    const std::size_t position = position_of(job, i) + job.skipped;
    const std::size_t at_position = position * (dim / 2);
    const float* cosines = pass.cosines[layer.rope] + at_position;
    const float* sines = pass.sines[layer.rope] + at_position;
    float* keys = heads + layer.attention.heads * dim;
    for (int head = 0; head < layer.attention.heads + cache.kv_heads; ++head) {
        float* at = heads + head * dim;
        const float* norm = at < keys ? layer.query_norm : layer.key_norm;
        if (norm != nullptr) rms_norm(at, dim, norm, layer.eps, at);
        rotate(at, dim, cosines, sines);
    }
    const int slot = job.start + i;
    for (int head = 0; head < cache.kv_heads; ++head) {
        const int block = job.blocks_of(index, head)[slot / cache.block_tokens];
        put_kv(cache, index, block, head, slot % cache.block_tokens, keys + head * dim,
               keys + (cache.kv_heads + head) * dim);
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

// hidden += norm(x W): the end of both halves of a layer.
void add_branch(const Pass& pass, const Linear& linear, const Operand& x, const float* norm,
                float eps) {
    if (norm == nullptr) {
        return apply(linear, x, {Epilogue::Action::kAdd, pass.hidden, pass.hidden_size});
    }
    float* branch =
        workspace().branch.take(static_cast<std::size_t>(pass.rows) * pass.hidden_size);
    apply(linear, x, {Epilogue::Action::kStore, branch, pass.hidden_size});
    for_rows(pass.rows, [&](int row) {
        const std::size_t at = static_cast<std::size_t>(row) * pass.hidden_size;
        rms_norm(branch + at, pass.hidden_size, norm, eps, branch + at);
        for (int i = 0; i < pass.hidden_size; ++i) pass.hidden[at + i] += branch[at + i];
    });
}

void put_rows(Operand& to, int rows, const float* values, int stride) {
    for_rows(rows, [&](int row) {
        put_row(to, row, values + static_cast<std::size_t>(row) * stride);
    });
}

void attention_half(const Layer& layer, int index, const Pass& pass) {
    Workspace& own = workspace();
    const KvCache& cache = *pass.cache;
    const int stride = layer.qkv->out;
    float* heads = own.qkv.take(static_cast<std::size_t>(pass.rows) * stride);
    apply(*layer.qkv, normed_rows(pass, layer.before_attention, layer.eps, *layer.qkv),
          {Epilogue::Action::kStore, heads, stride});
    const std::vector<Piece> pieces = pieces_of(pass);
    parallel_for(static_cast<int>(pieces.size()), [&](int p) {
        const Job& job = *pieces[p].job;
        for (int i = pieces[p].begin; i < pieces[p].end; ++i) {
            const std::size_t row = job.first_row + i;
            finish_row(layer, index, pass, job, i, heads + row * stride);
        }
    });
    Operand& mixed = own.mixed.take(*layer.output, pass.rows);
    const int size = layer.attention.heads * cache.head_dim;
    if (writes_operand(*layer.output, cache.head_dim)) {
        attend(cache, index, layer.attention, pass.jobs, pass.num_jobs, heads, stride, &mixed,
               nullptr);
    } else {
        float* floats = own.floats.take(static_cast<std::size_t>(pass.rows) * size);
        attend(cache, index, layer.attention, pass.jobs, pass.num_jobs, heads, stride, nullptr,
               floats);
        put_rows(mixed, pass.rows, floats, size);
    }
    score_pages(cache, index, layer.attention, pass.jobs, pass.num_jobs, heads, stride);
    add_branch(pass, *layer.output, mixed, layer.behind_attention, layer.eps);
}

void ffn_half(const Layer& layer, const Pass& pass) {
    Workspace& own = workspace();
    const Operand& x = normed_rows(pass, layer.before_ffn, layer.eps, *layer.gate_up);
    Operand& gated = own.gated.take(*layer.down, pass.rows);
    const auto action = static_cast<Epilogue::Action>(layer.action);
    if (gated.halves != nullptr) {
        apply(*layer.gate_up, x, {action, nullptr, 0, &gated});
    } else {
        const int stride = layer.gate_up->panels * kLanes;
        float* floats = own.floats.take(static_cast<std::size_t>(pass.rows) * stride);
        apply(*layer.gate_up, x, {action, floats, stride, nullptr});
        put_rows(gated, pass.rows, floats, stride);
    }
    add_branch(pass, *layer.down, gated, layer.behind_ffn, layer.eps);
}

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
