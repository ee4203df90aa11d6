// Draws the tokens of a step: all its rows in one call.
//
// A row's token is a function of its own logits and wishes, whatever its batch mates, the threads
// and the instruction level are. Every sum on the way is one of whole numbers and every other
// reduction a maximum, so slices may be shared among threads in any way.
#pragma once

#include <cstdint>

#include "export.h"

extern "C" {

// One row, as triptych_kernels.cpu.sampling packs it.
struct TkDraw {
    const float* logits;  // [vocab]; what is no number counts as −∞
    std::uint64_t seed;
    std::uint64_t position;
    double top_p;               // 1: off
    float inverse_temperature;  // 0: greedy, the other wishes do not matter then
    float min_p_log;            // natural log of min_p, not above 0; −∞: off
    std::int32_t top_k;         // 0: off
    std::int32_t unused;
};

// tokens[count]; −1 for a row without any logit above −∞.
TK_EXPORT void tk_draw_tokens(const TkDraw* draws, int count, int vocab, std::int32_t* tokens);

// The ids that the filters leave, in any order, into tokens[vocab]; returns how many. Not for +∞.
TK_EXPORT int tk_kept_tokens(const TkDraw* draw, int vocab, std::int32_t* tokens);

// The noise of `count` values of its 24 bits, from `first` on.
TK_EXPORT void tk_noise_of_bits(std::uint32_t first, int count, float* noise);

// The noise of these tokens at a position of a request.
TK_EXPORT void tk_token_noise(std::uint64_t seed, std::uint64_t position, const std::int64_t* tokens,
                              int count, float* noise);
}
