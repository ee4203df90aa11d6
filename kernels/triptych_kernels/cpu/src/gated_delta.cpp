// The gated delta rule of linear attention (arXiv 2412.06464), token by token, as reference_delta.py
// says it.
//
// Nothing that is added up depends on how rows are cut: taps are added in order of time, products of a
// state and a key in two sums, of even and odd rows of the state. Columns of a state know nothing of
// each other, so a task takes some of a head's through all rows, and they stay in its first-level cache.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "export.h"
#include "memory.h"
#include "pool.h"
#include "simd.h"

namespace triptych {
namespace {

constexpr int kColumns = 32, kVectors = kColumns / kLanes;  // of a state, in one task
constexpr int kChannels = 256;                              // of the convolution, in one task
constexpr float kLog2E = 0x1.715476p+0f;
constexpr float kEpsilon = 1e-6f;  // of the norms of queries and keys

}  // namespace

// What a layer's rows bring, [rows] of each, and what they change. Mirrored in cpu/delta.py.
struct DeltaRows {
    std::int32_t rows, key_heads, value_heads, key_dim, value_dim, taps;
    const float* mixed;  // [rows][channels]: queries, keys, values before the convolution
    const float* decay;  // [rows][value heads]
    const float* beta;   // [rows][value heads]
    const float* conv;   // [taps][channels], the row's own last
    float* state;        // [value heads][key_dim][value_dim]
    float* history;      // [taps − 1][channels], rows before these
    float* out;          // [rows][value heads][value_dim]

    int keys() const { return key_heads * key_dim; }
    std::size_t channels() const { return 2 * keys() + static_cast<std::size_t>(value_heads) * value_dim; }
    // The row before the first one is −1.
    const float* before_convolution(int row) const {
        return row < 0 ? history + (taps - 1 + row) * channels() : mixed + row * channels();
    }
};

namespace {

inline V sigmoid(V x) { return set1(1.0f) / (set1(1.0f) + exp2(x * set1(-kLog2E))); }

// Convolution along time, then SiLU, of some channels of all rows.
void mix(const DeltaRows& of, int first, float* active) {
    const int channels = static_cast<int>(of.channels());
    for (int row = 0; row < of.rows; ++row) {
        for (int at = first; at < std::min(first + kChannels, channels); at += kLanes) {
            const int count = channels - at;
            V sum{};
            for (int tap = 0; tap < of.taps; ++tap) {
                const float* seen = of.before_convolution(row - of.taps + 1 + tap);
                sum += load_some(seen + at, count) * load_some(of.conv + tap * channels + at, count);
            }
            store_some(active + static_cast<std::size_t>(row) * channels + at, sum * sigmoid(sum), count);
        }
    }
}

// Divides a query or a key by its length.
void make_unit(float* head, int dim, float scale) {
    V squares{};
    for (int d = 0; d < dim; d += kLanes) {
        const V x = load_some(head + d, dim - d);
        squares += x * x;
    }
    const float factor = scale / std::sqrt(sum_lanes(squares) + kEpsilon);
    for (int d = 0; d < dim; ++d) head[d] *= factor;
}

// Some columns of a head's state, through all rows. `active`: see `mix`, with queries and keys of length one.
void take_in(const DeltaRows& of, const float* active, int head, int first) {
    static thread_local Buffer<float> memory;
    const int count = std::min(kColumns, of.value_dim - first);
    float* columns = memory.take(static_cast<std::size_t>(of.key_dim) * kColumns);
    float* state = of.state + (static_cast<std::size_t>(head) * of.key_dim) * of.value_dim + first;
    for (int d = 0; d < of.key_dim; ++d) {
        for (int i = 0; i < kVectors; ++i) {
            const int from = i * kLanes;
            store(columns + d * kColumns + from, load_some(state + d * of.value_dim + from, count - from));
        }
    }
    const int key_head = head / (of.value_heads / of.key_heads);
    for (int row = 0; row < of.rows; ++row) {
        const float* query = active + row * of.channels() + key_head * of.key_dim;
        const float* key = query + of.keys();
        const float* value = active + row * of.channels() + 2 * of.keys() + head * of.value_dim + first;
        const V kept = set1(of.decay[row * of.value_heads + head]);
        V known[2][kVectors] = {};
        for (int d = 0; d < of.key_dim; ++d) {
            for (int i = 0; i < kVectors; ++i) {
                float* at = columns + d * kColumns + i * kLanes;
                const V here = load(at) * kept;
                store(at, here);
                known[d % 2][i] = fma(here, set1(key[d]), known[d % 2][i]);
            }
        }
        V change[kVectors], read[2][kVectors] = {};
        for (int i = 0; i < kVectors; ++i) {
            const V wanted = load_some(value + i * kLanes, count - i * kLanes);
            change[i] = (wanted - (known[0][i] + known[1][i])) * set1(of.beta[row * of.value_heads + head]);
        }
        for (int d = 0; d < of.key_dim; ++d) {
            for (int i = 0; i < kVectors; ++i) {
                float* at = columns + d * kColumns + i * kLanes;
                const V here = fma(set1(key[d]), change[i], load(at));
                store(at, here);
                read[d % 2][i] = fma(here, set1(query[d]), read[d % 2][i]);
            }
        }
        float* out = of.out + (static_cast<std::size_t>(row) * of.value_heads + head) * of.value_dim + first;
        for (int i = 0; i < kVectors; ++i) {
            store_some(out + i * kLanes, read[0][i] + read[1][i], count - i * kLanes);
        }
    }
    for (int d = 0; d < of.key_dim; ++d) {
        for (int i = 0; i < kVectors; ++i) {
            const int from = i * kLanes;
            store_some(state + d * of.value_dim + from, load(columns + d * kColumns + from), count - from);
        }
    }
}

// The last rows, for those that follow.
void remember(const DeltaRows& of) {
    static thread_local Buffer<float> memory;
    const std::size_t channels = of.channels();
    float* last = memory.take((of.taps - 1) * channels);
    for (int i = 0; i < of.taps - 1; ++i) {
        const float* from = of.before_convolution(of.rows - of.taps + 1 + i);
        std::memcpy(last + i * channels, from, channels * sizeof(float));
    }
    std::memcpy(of.history, last, (of.taps - 1) * channels * sizeof(float));
}

}  // namespace
}  // namespace triptych

extern "C" {

TK_EXPORT void tk_gated_delta(const triptych::DeltaRows* rows) {
    using namespace triptych;
    static thread_local Buffer<float> memory;
    const DeltaRows& of = *rows;
    const std::size_t channels = of.channels();
    float* active = memory.take(of.rows * channels);
    parallel_for(static_cast<int>((channels + kChannels - 1) / kChannels),
                 [&](int i) { mix(of, i * kChannels, active); });
    const float scale = 1.0f / std::sqrt(static_cast<float>(of.key_dim));
    parallel_for(of.rows, [&](int row) {
        for (int head = 0; head < 2 * of.key_heads; ++head) {
            make_unit(active + row * channels + head * of.key_dim, of.key_dim,
                      head < of.key_heads ? scale : 1.0f);
        }
    });
    const int parts = (of.value_dim + kColumns - 1) / kColumns;
    parallel_for(of.value_heads * parts,
                 [&](int i) { take_in(of, active, i / parts, i % parts * kColumns); });
    remember(of);
}

}  // extern "C"
