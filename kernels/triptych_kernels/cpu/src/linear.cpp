// Packing, dispatch, and what Python sees of linear layers.
#include "linear.h"

#include <algorithm>
#include <memory>

#include "export.h"
#include "pool.h"

namespace triptych {
namespace {

// Rows of a task of a long prompt: their activations stay in the second-level cache while the
// panel's weights stay in the first.
constexpr int kRowsOfTask = 256;
constexpr int kRunsOfThread = 4;  // enough for a thread that is slower to do less

int round_up(int value, int step) { return (value + step - 1) / step * step; }

// Which row of the weight an output column is; -1 where there is none. Gated layers put 16 columns
// of gate beside the same 16 of up.
int source_row(const Linear& linear, bool gated, int column) {
    if (!gated) return column < linear.out ? column : -1;
    const int inner = linear.out / 2;
    const int index = column / kPanel * kLanes + column % kLanes;
    if (index >= inner) return -1;
    return column % kPanel < kLanes ? index : inner + index;
}

void pack_float(Linear& linear, bool gated, const float* weight, int panel) {
    float* to = reinterpret_cast<float*>(linear.weights + panel * linear.panel_bytes);
    for (int column = 0; column < kPanel; ++column) {
        const int row = source_row(linear, gated, panel * kPanel + column);
        const float* from = weight + static_cast<std::size_t>(std::max(row, 0)) * linear.in;
        for (int k = 0; k < linear.in; ++k) to[k * kPanel + column] = row < 0 ? 0.0f : from[k];
    }
}

// Neighbours in K go together, as one word; two tiles at a time, so that both stay in the first
// cache while 32 rows of the weight are read.
void pack_bf16(Linear& linear, bool gated, const Bf16* weight, int panel) {
    const Bf16* from[kPanel];
    for (int column = 0; column < kPanel; ++column) {
        const int row = source_row(linear, gated, panel * kPanel + column);
        from[column] = row < 0 ? nullptr : weight + static_cast<std::size_t>(row) * linear.in;
    }
    auto* to = reinterpret_cast<std::uint32_t*>(linear.weights + panel * linear.panel_bytes);
    for (int k = 0; k < linear.depth; k += kBf16Depth, to += 2 * kRowTile * kLanes) {
        const std::size_t count = std::min(kBf16Depth, linear.in - k);
        for (int column = 0; column < kPanel; ++column) {
            std::uint32_t pairs[kRowTile] = {};
            if (from[column] != nullptr) std::memcpy(pairs, from[column] + k, count * sizeof(Bf16));
            std::uint32_t* tile = to + column / kLanes * kRowTile * kLanes + column % kLanes;
            for (int pair = 0; pair < kRowTile; ++pair) tile[pair * kLanes] = pairs[pair];
        }
    }
}

struct AffineSource {
    const std::uint8_t* q;
    const std::uint16_t *scale, *low;
};

void pack_affine(Linear& linear, bool gated, const AffineSource& from, int panel) {
    const int groups = linear.depth / linear.group;
    std::uint8_t* to = linear.weights + panel * linear.panel_bytes;
    std::memset(to, 0, linear.panel_bytes);
    for (int column = 0; column < kPanel; ++column) {
        const int row = source_row(linear, gated, panel * kPanel + column);
        if (row < 0) continue;
        const std::uint8_t* q = from.q + static_cast<std::size_t>(row) * linear.in;
        const int lane = column % kLanes;
        for (int group = 0; group < groups; ++group) {
            std::uint8_t* half = to + (group * 2 + column / kLanes) * half_bytes(linear);
            const std::size_t at = static_cast<std::size_t>(row) * groups + group;
            std::memcpy(half + lane * 2, from.scale + at, 2);
            std::memcpy(half + 32 + lane * 2, from.low + at, 2);
            const int end = std::min(linear.in, (group + 1) * linear.group);
            for (int k = group * linear.group; k < end; ++k) {
                std::uint8_t* block = half + kScaleBytes +
                                      k % linear.group / kBf16Depth * block_bytes(linear.kind);
                const Place place = place_of(linear.kind, lane, k % kBf16Depth);
                block[place.byte] |= q[k] << (4 * place.nibble);
            }
        }
    }
}

bool all_finite(const std::uint16_t* halves, std::size_t count) {
    return std::all_of(halves, halves + count, [](int half) { return (half & 0x7c00) != 0x7c00; });
}

std::unique_ptr<Linear> shape(Kind kind, int out, int in, int group, bool gated) {
    auto linear = std::make_unique<Linear>();
    const int columns = gated ? 2 * round_up(out / 2, kLanes) : out;
    linear->kind = kind, linear->in = in, linear->out = out, linear->group = group;
    linear->columns = columns;
    linear->panels = round_up(columns, kPanel) / kPanel;
    const std::size_t step = kind == Kind::kFloat ? 1 : kind == Kind::kBf16 ? kBf16Depth : group;
    linear->depth = round_up(in, step);
    const std::size_t values = static_cast<std::size_t>(linear->depth) * kPanel;
    switch (kind) {
        case Kind::kFloat: linear->panel_bytes = values * 4; break;
        case Kind::kBf16: linear->panel_bytes = values * 2; break;
        case Kind::kInt4: linear->panel_bytes = values / 2 + values / group * 4; break;
        case Kind::kInt8: linear->panel_bytes = values + values / group * 4; break;
    }
    linear->weights =
        static_cast<std::uint8_t*>(allocate(linear->panel_bytes * linear->panels));
    return linear;
}

void pack_bias(Linear& linear, bool gated, const float* bias) {
    if (bias == nullptr) return;
    linear.bias = static_cast<float*>(allocate(linear.panels * kPanel * sizeof(float)));
    for (int column = 0; column < linear.panels * kPanel; ++column) {
        const int row = source_row(linear, gated, column);
        linear.bias[column] = row < 0 ? 0.0f : bias[row];
    }
}

}  // namespace

void apply(const Linear& linear, const Operand& x, const Epilogue& epilogue) {
    const auto kernel = linear.kind == Kind::kFloat ? apply_float : apply_bf16;
    const int runs = kRunsOfThread * num_threads();
    const int length = std::max(1, (linear.panels + runs - 1) / runs);
    const int across = (linear.panels + length - 1) / length;
    const int down = (x.rows + kRowsOfTask - 1) / kRowsOfTask;
    parallel_for(across * down, [&](int task) {
        const int first = task % across * length, begin = task / across * kRowsOfTask;
        kernel(linear, x,
               {first, std::min(linear.panels, first + length), begin,
                std::min(x.rows, begin + kRowsOfTask)},
               epilogue);
    });
}

namespace {

float weight_at(const Linear& linear, int row, int k) {
    const std::uint8_t* panel = linear.panel(row / kPanel);
    const int column = row % kPanel, half = column / kLanes, lane = column % kLanes;
    if (linear.kind == Kind::kFloat) {
        return reinterpret_cast<const float*>(panel)[k * kPanel + column];
    }
    if (linear.kind == Kind::kBf16) {
        const int tile = k / kBf16Depth * 2 + half, pair = k % kBf16Depth / 2;
        return to_float(reinterpret_cast<const Bf16*>(
            panel)[((tile * kRowTile + pair) * kLanes + lane) * 2 + k % 2]);
    }
    const std::uint8_t* at = panel + (k / linear.group * 2 + half) * half_bytes(linear);
    const V scale = load_f16(reinterpret_cast<const std::uint16_t*>(at));
    const V low = load_f16(reinterpret_cast<const std::uint16_t*>(at + 32));
    const std::uint8_t* block =
        at + kScaleBytes + k % linear.group / kBf16Depth * block_bytes(linear.kind);
    const Place place = place_of(linear.kind, lane, k % kBf16Depth);
    const int byte = block[place.byte];
    const int q = linear.kind == Kind::kInt8 ? byte : byte >> (4 * place.nibble) & 15;
    Bf16 rounded[kLanes];
    store(rounded, set1(__builtin_fmaf(scale[lane], static_cast<float>(q), low[lane])));
    return to_float(rounded[0]);
}

}  // namespace

void copy_row(const Linear& linear, int row, float* to) {
    if (linear.kind == Kind::kBf16) {
        const int lane = row % kLanes, half = row % kPanel / kLanes;
        const Bf16* at = reinterpret_cast<const Bf16*>(linear.panel(row / kPanel)) + 2 * lane +
                         half * kRowTile * kBf16Depth;
        for (int k = 0; k < linear.in; k += 2, at += 2 * kLanes) {
            if (k > 0 && k % kBf16Depth == 0) at += kRowTile * kBf16Depth;  // the other half
            to[k] = to_float(at[0]);
            if (k + 1 < linear.in) to[k + 1] = to_float(at[1]);
        }
        return;
    }
    for (int k = 0; k < linear.in; ++k) to[k] = weight_at(linear, row, k);
}

}  // namespace triptych

using triptych::Kind;
using triptych::Linear;

extern "C" {

// A packed copy of weight [out, in] (float32 or bfloat16, by kind); bias float32 [out] or null.
TK_EXPORT Linear* tk_linear_dense(int kind, int out, int in, int gated, const void* weight,
                                  const float* bias) {
    auto linear = triptych::shape(static_cast<Kind>(kind), out, in, 0, gated);
    triptych::parallel_for(linear->panels, [&](int panel) {
        if (linear->kind == Kind::kFloat) {
            triptych::pack_float(*linear, gated, static_cast<const float*>(weight), panel);
        } else {
            triptych::pack_bf16(*linear, gated, static_cast<const triptych::Bf16*>(weight), panel);
        }
    });
    triptych::pack_bias(*linear, gated, bias);
    return linear.release();
}

// The same of q u8 [out, in], scale and low float16 [out, ceil(in / group)].
TK_EXPORT Linear* tk_linear_affine(int kind, int out, int in, int group, int gated,
                                   const std::uint8_t* q, const std::uint16_t* scale,
                                   const std::uint16_t* low, const float* bias) {
    auto linear = triptych::shape(static_cast<Kind>(kind), out, in, group, gated);
    const std::size_t groups = static_cast<std::size_t>(out) * ((in + group - 1) / group);
    linear->finite = triptych::all_finite(scale, groups) && triptych::all_finite(low, groups);
    triptych::parallel_for(linear->panels, [&](int panel) {
        triptych::pack_affine(*linear, gated, {q, scale, low}, panel);
    });
    triptych::pack_bias(*linear, gated, bias);
    return linear.release();
}

TK_EXPORT void tk_linear_free(Linear* linear) { delete linear; }

TK_EXPORT std::size_t tk_linear_bytes(const Linear* linear) {
    return linear->panel_bytes * linear->panels;
}

// out [rows, stride] = what `action` (see Epilogue) makes of x [rows, in] float32.
TK_EXPORT void tk_linear(const Linear* linear, const float* x, int rows, int action, float* out,
                         int stride) {
    static thread_local triptych::OperandBuffer buffer;
    triptych::Operand& operand = buffer.take(*linear, rows);
    triptych::parallel_for(rows, [&](int row) {
        triptych::put_row(operand, row, x + static_cast<std::size_t>(row) * linear->in);
    });
    triptych::apply(*linear, operand,
                    {static_cast<triptych::Epilogue::Action>(action), out, stride, nullptr});
}

// out [count, in] float32: rows `ids` of the weight.
TK_EXPORT void tk_linear_rows(const Linear* linear, const std::int32_t* ids, int count,
                              float* out) {
    triptych::parallel_for(count, [&](int i) {
        triptych::copy_row(*linear, ids[i], out + static_cast<std::size_t>(i) * linear->in);
    });
}

}  // extern "C"
