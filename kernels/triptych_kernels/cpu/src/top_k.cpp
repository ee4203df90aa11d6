#include <algorithm>
#include <array>
#include <functional>

#include "token_filter.h"

namespace triptych {
namespace {

constexpr int kAtOnce = 4;  // vectors; most of them hold nothing of interest
constexpr int kStep = kAtOnce * kLanes;

float slice_maximum(const float* logits, int from, int to) {
    V most[kAtOnce];
    std::fill(most, most + kAtOnce, set1(-INFINITY));
    int i = from;
    // `max` gives its second operand where the first is a NaN.
    for (; i + kStep <= to; i += kStep) {
        for (int j = 0; j < kAtOnce; ++j) most[j] = max(load(logits + i + j * kLanes), most[j]);
    }
    for (; i < to; i += kLanes) most[0] = max(load_some(logits + i, to - i, -INFINITY), most[0]);
    return max_lanes(max(max(most[0], most[1]), max(most[2], most[3])));
}

}  // namespace

float greatest_logit(const float* logits, int count) {
    std::array<float, kMaxSlices> most;
    for_slices(count, [&](int s, int from, int to) { most[s] = slice_maximum(logits, from, to); });
    return *std::max_element(most.begin(), most.begin() + slices_of(count));
}

// Collects what is above a bar, and whenever there is too much of it keeps the k best, the last of
// which is the next bar. Tokens come in the order of their ids, so one that equals the bar loses.
int keep_best(const ScaledRow& row, int k, FilterBuffers& buffers) {
    const int full = 2 * k + 256;
    TokenList& list = buffers.list;
    list.reserve(full + kStep);
    TokenKey* const order = buffers.keys.take(full + kStep);
    int count = 0;
    V bar = set1(-INFINITY);
    const auto drop_others = [&] {
        if (count <= k) return;
        for (int i = 0; i < count; ++i) order[i] = token_key(list.logits()[i], list.tokens()[i]);
        std::nth_element(order, order + k - 1, order + count, std::greater<>());
        for (int i = 0; i < k; ++i) list.put(i, key_logit(order[i]), key_token(order[i]));
        count = k;
        bar = set1(key_logit(order[k - 1]));
    };
    const auto take = [&](V logits, int i) {
        const Mask chosen = above(logits, bar);
        if (chosen != 0) count += list.put(count, logits, count_from(i), chosen);
    };
    int i = 0;
    for (; i + kStep <= row.count; i += kStep) {
        V logits[kAtOnce];
        Mask any = 0;
        for (int j = 0; j < kAtOnce; ++j) {
            logits[j] = load(row.logits + i + j * kLanes) * set1(row.scale);
            any |= above(logits[j], bar);
        }
        if (any == 0) continue;
        for (int j = 0; j < kAtOnce; ++j) take(logits[j], i + j * kLanes);
        if (count > full) drop_others();
    }
    for (; i < row.count; i += kLanes) take(row.load(i), i);
    drop_others();
    return count;
}

}  // namespace triptych
