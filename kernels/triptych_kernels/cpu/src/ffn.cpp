// The feed-forward half of a layer: one FFN, or a mixture of experts. Whole, or its two ends for
// whoever has the middle computed elsewhere. Both ways give the same bits: rows are rounded as the
// kernels would round them, a mixture's cells to the type in which they travel, and sums have one
// order.
#include <algorithm>
#include <cstring>

#include "export.h"
#include "layer.h"
#include "memory.h"
#include "norms.h"

namespace triptych {
namespace {

// Buffers of a layer, kept by the thread that runs it.
struct Workspace {
    OperandBuffer x, gated;
    Buffer<float> floats, normed, logits, weights, gates, shared, branch;
    Buffer<std::int32_t> ids, places, starts;
    Buffer<Cell> cells;
    Buffer<std::uint8_t> results;
};

Workspace& workspace() {
    static thread_local Workspace own;
    return own;
}

std::size_t size_of(const Pass& pass) {
    return static_cast<std::size_t>(pass.rows) * pass.hidden_size;
}

// Rows [count, in] of float32 as a layer of float32 reads them: in place.
Operand float_rows(const float* rows, int count, int in) {
    return {count, in, in, const_cast<float*>(rows), nullptr};
}

// act(gate(x)) · up(x), as `down` reads it.
const Operand& gated_rows(const Linear& gate_up, const Linear& down, int action, const Operand& x) {
    Workspace& own = workspace();
    Operand& gated = own.gated.take(down, x.rows);
    const auto gate = static_cast<Epilogue::Action>(action);
    if (gated.halves != nullptr) {
        apply(gate_up, x, {gate, nullptr, 0, &gated});
    } else {
        const int stride = gate_up.panels * kLanes;
        float* floats = own.floats.take(static_cast<std::size_t>(x.rows) * stride);
        apply(gate_up, x, {gate, floats, stride, nullptr});
        put_rows(gated, x.rows, floats, stride);
    }
    return gated;
}

void choose_experts(const Mixture& mixture, const float* normed, int rows, int size,
                    std::int32_t* ids, float* weights) {
    const int experts = mixture.routing.experts;
    float* logits = workspace().logits.take(static_cast<std::size_t>(rows) * experts);
    apply(*mixture.router, float_rows(normed, rows, size),
          {Epilogue::Action::kStore, logits, experts});
    route(mixture.routing, logits, rows, ids, weights);
}

// out [rows, hidden]: what the shared expert makes of normed rows, behind its gate.
void run_shared(const Layer& layer, int rows, const float* normed, float* out) {
    const Mixture& mixture = *layer.mixture;
    const Linear &gate_up = *mixture.shared_gate_up, &down = *mixture.shared_down;
    Operand& x = workspace().x.take(gate_up, rows);
    put_rows(x, rows, normed, gate_up.in);
    apply(down, gated_rows(gate_up, down, layer.action, x),
          {Epilogue::Action::kStore, out, down.out});
    if (mixture.shared_gate == nullptr) return;
    float* gates = workspace().gates.take(rows);
    apply(*mixture.shared_gate, float_rows(normed, rows, gate_up.in),
          {Epilogue::Action::kStore, gates, 1});
    for_rows(rows, [&](int row) {
        const V share = set1(1.0f) / (set1(1.0f) + exp(set1(-gates[row])));
        float* to = out + static_cast<std::size_t>(row) * down.out;
        for (int i = 0; i < down.out; ++i) to[i] *= share[0];
    });
}

// All cells of some rows as one shard, sorted by expert; results come back in the rows' order.
Shard sort_cells(const Routing& routing, const std::int32_t* ids, int rows) {
    Workspace& own = workspace();
    const int count = rows * routing.top_k;
    Cell* cells = own.cells.take(count);
    std::int32_t* places = own.places.take(count);
    std::int32_t* starts = own.starts.take(routing.experts + 1);
    std::fill(starts, starts + routing.experts + 1, 0);
    for (int i = 0; i < count; ++i) ++starts[ids[i] + 1];
    for (int expert = 0; expert < routing.experts; ++expert) starts[expert + 1] += starts[expert];
    for (int i = 0; i < count; ++i) {
        const int at = starts[ids[i]]++;
        cells[at] = {static_cast<std::uint16_t>(i / routing.top_k),
                     static_cast<std::uint16_t>(ids[i])};
        places[at] = i;
    }
    Shard shard{};
    shard.cells = cells, shard.places = places;
    shard.num_rows = rows, shard.num_cells = count;
    return shard;
}

// The rows' cells, as they would come back from elsewhere.
const void* run_experts(const Layer& layer, const Pass& pass, const float* normed,
                        const std::int32_t* ids) {
    const Mixture& mixture = *layer.mixture;
    const RowType type = mixture.cell_type;
    const std::size_t size = size_of(pass) * mixture.routing.top_k;
    Shard shard = sort_cells(mixture.routing, ids, pass.rows);
    shard.rows = normed, shard.row_type = static_cast<std::int32_t>(RowType::kFloat);
    shard.out = workspace().results.take(size * (type == RowType::kBf16 ? 2 : 4));
    shard.out_type = static_cast<std::int32_t>(type);
    run_shards(mixture.units, layer.action, &shard, 1);
    return shard.out;
}

void ffn_front(const Layer& layer, const Pass& pass, float* normed, std::int32_t* ids,
               float* weights) {
    norm_hidden(pass, layer.before_ffn, layer.eps, normed);
    if (layer.mixture == nullptr) return;
    choose_experts(*layer.mixture, normed, pass.rows, pass.hidden_size, ids, weights);
}

void ffn_back(const Layer& layer, const Pass& pass, const Branch& branch) {
    if (layer.behind_ffn == nullptr) {
        return combine(branch, pass.rows, layer.branch_scale, pass.hidden);
    }
    float* rows = workspace().branch.take(size_of(pass));
    sum_cells(branch, pass.rows, rows);
    add_rows(layer, pass, rows, layer.behind_ffn);
}

void dense_half(const Layer& layer, const Pass& pass) {
    const Operand& x = normed_rows(pass, layer.before_ffn, layer.eps, *layer.gate_up);
    const Operand& gated = gated_rows(*layer.gate_up, *layer.down, layer.action, x);
    add_branch(layer, pass, *layer.down, gated, layer.behind_ffn);
}

void mixture_half(const Layer& layer, const Pass& pass) {
    Workspace& own = workspace();
    const Mixture& mixture = *layer.mixture;
    const int k = mixture.routing.top_k;
    const std::size_t count = static_cast<std::size_t>(pass.rows) * k;
    float *normed = own.normed.take(size_of(pass)), *weights = own.weights.take(count);
    std::int32_t* ids = own.ids.take(count);
    ffn_front(layer, pass, normed, ids, weights);
    const void* cells = run_experts(layer, pass, normed, ids);
    float* shared = nullptr;
    if (mixture.shared_gate_up != nullptr) {
        shared = own.shared.take(size_of(pass));
        run_shared(layer, pass.rows, normed, shared);
    }
    ffn_back(layer, pass, {cells, weights, shared, mixture.cell_type, k, pass.hidden_size});
}

}  // namespace

void ffn_half(const Layer& layer, const Pass& pass) {
    if (layer.mixture == nullptr) return dense_half(layer, pass);
    mixture_half(layer, pass);
}

}  // namespace triptych

using triptych::Layer;
using triptych::Pass;

extern "C" {

// The FFN half for layers whose units are elsewhere, in three parts. normed [rows, hidden] float32
// are the rows that experts want; ids and weights [rows, top_k] are written for mixtures only.
TK_EXPORT void tk_ffn_front(const Layer* layers, int index, const Pass* pass, float* normed,
                            std::int32_t* ids, float* weights) {
    triptych::ffn_front(layers[index], *pass, normed, ids, weights);
}

// out [rows, hidden] float32: the mixture's shared expert; for mixtures that have one.
TK_EXPORT void tk_shared(const Layer* layers, int index, int rows, const float* normed,
                         float* out) {
    triptych::run_shared(layers[index], rows, normed, out);
}

// Adds what came back; see Branch. Of a dense FFN that is one float32 row for each row.
TK_EXPORT void tk_ffn_back(const Layer* layers, int index, const Pass* pass,
                           const triptych::Branch* branch) {
    triptych::ffn_back(layers[index], *pass, *branch);
}

}  // extern "C"
