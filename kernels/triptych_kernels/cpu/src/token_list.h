// Tokens that are left of a row, and their order.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "memory.h"
#include "token_lanes.h"

namespace triptych {

// Logits and ids side by side.
class TokenList {
  public:
    const float* logits() const { return logits_.data(); }
    const int* tokens() const { return tokens_.data(); }
    int* tokens() { return tokens_.data(); }

    // Makes room for `count` tokens; what was in the list is lost.
    void reserve(int count) {
        logits_.take(count + kLanes);
        tokens_.take(count + kLanes);
    }

    // Puts the lanes in `chosen` at place `at` and behind it; returns how many. Up to sixteen places
    // from `at` on hold anything afterwards.
    int put(int at, V logits, VInt tokens, Mask chosen) {
        return pick(logits, tokens, chosen, logits_.data() + at, tokens_.data() + at);
    }

    void put(int at, float logit, int token) {
        logits_.data()[at] = logit;
        tokens_.data()[at] = token;
    }

    // The first `count` of another list, to place `at` and behind it.
    void copy(int at, const TokenList& other, int count) {
        std::copy(other.logits(), other.logits() + count, logits_.data() + at);
        std::copy(other.tokens(), other.tokens() + count, tokens_.data() + at);
    }

  private:
    Buffer<float> logits_;
    Buffer<int> tokens_;
};

// A token and its logit as one number: the greater the number, the earlier the filters take it.
// Greater logits first, of equal ones (+0 and −0 are equal) the lower id. No two keys are equal.
using TokenKey = std::uint64_t;

inline TokenKey token_key(float logit, int token) {
    logit += 0.0f;  // −0 becomes +0
    std::uint32_t bits;
    std::memcpy(&bits, &logit, sizeof bits);
    bits ^= bits >> 31 ? 0xFFFFFFFFu : 0x80000000u;
    return TokenKey{bits} << 32 | ~static_cast<std::uint32_t>(token);
}

inline float key_logit(TokenKey key) {
    auto bits = static_cast<std::uint32_t>(key >> 32);
    bits ^= bits >> 31 ? 0x80000000u : 0xFFFFFFFFu;
    float logit;
    std::memcpy(&logit, &bits, sizeof logit);
    return logit;
}

inline int key_token(TokenKey key) { return static_cast<int>(~static_cast<std::uint32_t>(key)); }

}  // namespace triptych
