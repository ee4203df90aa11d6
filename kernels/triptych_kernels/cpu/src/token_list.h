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

    // Makes room for `count` tokens; what was in the list is lost.
    void reserve(int count) {
        logits_.take(count + kLanes);
        tokens_.take(count + kLanes);
    }

    // Writes the lanes in `chosen` to place `at` and behind it; returns how many. Up to sixteen
    // places from `at` on hold anything afterwards.
    int put(int at, V logits, VInt tokens, Mask chosen) {
        float* const logit = logits_.data() + at;
        int* const token = tokens_.data() + at;
#if defined(__AVX512F__)
        const auto mask = static_cast<__mmask16>(chosen);
        _mm512_storeu_ps(logit, _mm512_maskz_compress_ps(mask, (__m512)logits));
        _mm512_storeu_si512(token, _mm512_maskz_compress_epi32(mask, (__m512i)tokens));
        return __builtin_popcount(chosen);
#else
        int count = 0;
        for (Mask rest = chosen; rest != 0; rest &= rest - 1, ++count) {
            const int l = __builtin_ctz(rest);
            logit[count] = logits[l];
            token[count] = tokens[l];
        }
        return count;
#endif
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

    int* tokens() { return tokens_.data(); }

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
