// Gumbel noise by counter, and the token that wins with it: the twins of `gumbel_noise` and of the
// argmax behind it.
//
// The winner is the token with the greatest float32 sum of logit and noise, of equal ones the one
// with the lowest id. That is a maximum in a total order, so it may be looked for in any order and
// in slices.
#pragma once

#include <cstdint>

namespace triptych {

constexpr int kNoToken = -1;

// The key of a request's position; with a token id it decides the noise.
std::uint64_t noise_key(std::uint64_t seed, std::uint64_t position);

// 24 bits that are the token's own.
std::uint32_t noise_bits(std::uint64_t key, std::uint32_t token);

// −log(−log u) for u = (bits + ½) · 2⁻²⁴. The logs are within 1 ulp in float64, then one rounding to
// float32.
float noise_of_bits(std::uint32_t bits);

// Where tokens are looked for. Logits that are no number or −∞ never win; +∞ must not occur.
struct Field {
    const float* logits;   // [count]
    const int* tokens;     // their ids, readable up to a multiple of 16; null: first_token …
    int first_token;
    int count;
    float scale;  // what counts is the product, rounded to float32
    float floor;  // products below cannot win
};

struct Winner {
    float score;
    int token = kNoToken;

    void meet(Winner other) {
        if (other.token == kNoToken) return;
        const bool ahead = other.score > score || (other.score == score && other.token < token);
        if (ahead || token == kNoToken) *this = other;
    }
};

Winner find_winner(const Field& field, std::uint64_t key);

}  // namespace triptych
