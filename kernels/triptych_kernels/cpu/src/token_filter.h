// Which tokens top-k and top-p leave, without sorting the vocabulary: the twin of `filter_logits`.
//
// Probability mass is counted in whole numbers (a token's weight is 2⁴⁰ · e^(logit − greatest), cut
// to an integer), so that sums depend on no order and torch gets the same ones.
#pragma once

#include <algorithm>
#include <cmath>

#include "pool.h"
#include "token_lanes.h"
#include "token_list.h"

namespace triptych {

// Logits of a row as the filters see them: divided by the temperature, that is scaled and rounded.
struct ScaledRow {
    const float* logits;  // [count]
    int count;
    float scale;  // positive

    // Sixteen from `i` on, −∞ behind the last.
    V load(int i) const { return load_some(logits + i, count - i, -INFINITY) * set1(scale); }
};

// Vocabularies are walked through in slices, which threads share where a step has one row.
constexpr int kSlice = 16384;
constexpr int kMaxSlices = 64;

inline int slices_of(int count) {
    return std::clamp((count + kSlice - 1) / kSlice, 1, kMaxSlices);
}

// body(slice, from, to) for every slice of [0, count); the last one takes what is left.
template <class Body>
void for_slices(int count, Body body) {
    const int last = slices_of(count) - 1;
    parallel_for(last + 1, [&](int s) {
        body(s, s * kSlice, s == last ? count : (s + 1) * kSlice);
    });
}

// Greatest logit, unscaled; −∞ if there is none.
float greatest_logit(const float* logits, int count);

struct FilterBuffers {
    TokenList list, spare;
    Buffer<TokenKey> keys;
};

// Each filter leaves the kept tokens at the beginning of `buffers.list`, in any order, and returns
// how many they are.

// The k first tokens; fewer if fewer are above −∞.
int keep_best(const ScaledRow& row, int k, FilterBuffers& buffers);

// Of all tokens the fewest first ones that hold the share `top_p` of the mass. `greatest` is the
// greatest scaled logit, finite.
int keep_likely(const ScaledRow& row, float greatest, double top_p, FilterBuffers& buffers);

// The same where the list's first `count`, at least one, are all the tokens there are.
int keep_likely_of(int count, float greatest, double top_p, FilterBuffers& buffers);

}  // namespace triptych
