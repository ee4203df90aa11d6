// Which tokens top-k and top-p leave, without sorting the vocabulary: the twin of `filter_logits`.
//
// Probability mass is counted in whole numbers (a token's weight is 2⁴⁰ · e^(logit − greatest), cut
// to an integer), so sums depend on no order, and the torch twin gets the same ones.
#pragma once

#include <cstdint>

namespace triptych {

// Logits of a row as the filters see them: divided by the temperature, i.e. scaled, one rounding.
struct ScaledRow {
    const float* logits;  // [count]
    int count;
    float scale;
};

// A token as one number: the greater the number, the earlier the filters take it. Greater logits
// first, of equal ones (+0 and −0 are equal) the lower id.
using TokenKey = std::uint64_t;

float key_logit(TokenKey key);
int key_token(TokenKey key);

// Greatest scaled logit; −∞ if there is none. Slices of the row are shared among threads.
float greatest_logit(const ScaledRow& row);
float greatest_logit(const float* logits, int count);

// The k first tokens, in any order; fewer if fewer are above −∞. `keys` has room for
// `room_for_best(k)`.
int find_best(const ScaledRow& row, int k, TokenKey* keys);
int room_for_best(int k);

// Of all tokens the fewest first ones that hold the share `top_p` of the mass; `greatest` is the
// row's. `keys` and `spare` have room for `room_for_likely(row.count)`.
int find_likely(const ScaledRow& row, float greatest, double top_p, TokenKey* keys,
                TokenKey* spare);
int room_for_likely(int vocab);

// The same among `count` keys, which are the only tokens there are; they are put in another order.
int keep_likely(TokenKey* keys, int count, double top_p, TokenKey* spare);

}  // namespace triptych
