#include "sampling.h"

#include <array>
#include <cmath>

#include "gumbel.h"
#include "token_filter.h"

namespace triptych {
namespace {

// Kept per thread, because the next step needs them again.
thread_local FilterBuffers buffers;

// The lowest id whose scaled logit is `value`, which there is.
int first_equal(const ScaledRow& row, float value) {
    for (int i = 0;; i += kLanes) {
        const Mask found = equal(row.load(i), set1(value)) & first_lanes(row.count - i);
        if (found != 0) return i + __builtin_ctz(found);
    }
}

// What the filters leave of a row; not those below the floor.
struct Kept {
    bool all = true;  // every token; false: the first `count` of the thread's list
    int count = 0;
    float floor = -INFINITY;
};

Kept filter_row(const TkDraw& draw, const ScaledRow& row, float greatest) {
    const float floor = greatest + draw.min_p_log;
    const bool has_top_p = draw.top_p < 1.0;
    if (draw.top_k > 0 && draw.top_k < row.count) {
        const int best = keep_best(row, draw.top_k, buffers);
        if (!has_top_p) return {false, best, floor};
        return {false, keep_likely_of(best, greatest, draw.top_p, buffers), floor};
    }
    if (has_top_p) return {false, keep_likely(row, greatest, draw.top_p, buffers), floor};
    return {true, row.count, floor};
}

Winner winner_of_list(const Kept& kept, std::uint64_t key) {
    const TokenList& list = buffers.list;
    return find_winner({list.logits(), list.tokens(), 0, kept.count, 1.0f, kept.floor}, key);
}

Winner winner_of_row(const ScaledRow& row, float floor, std::uint64_t key) {
    std::array<Winner, kMaxSlices> winners{};
    for_slices(row.count, [&](int s, int from, int to) {
        winners[s] = find_winner(
            {row.logits + from, nullptr, from, to - from, row.scale, floor}, key);
    });
    for (const Winner& other : winners) winners[0].meet(other);
    return winners[0];
}

int draw_token(const TkDraw& draw, int vocab) {
    const bool greedy = draw.inverse_temperature == 0.0f;
    const ScaledRow row{draw.logits, vocab, greedy ? 1.0f : draw.inverse_temperature};
    // Rounding keeps the order, so the greatest stays the greatest.
    const float greatest = greatest_logit(draw.logits, vocab) * row.scale;
    if (greatest == -INFINITY) return kNoToken;
    // Beside +∞ no noise and no filter matters.
    if (greedy || greatest == INFINITY) return first_equal(row, greatest);
    const Kept kept = filter_row(draw, row, greatest);
    const std::uint64_t key = noise_key(draw.seed, draw.position);
    return (kept.all ? winner_of_row(row, kept.floor, key) : winner_of_list(kept, key)).token;
}

}  // namespace
}  // namespace triptych

void tk_draw_tokens(const TkDraw* draws, int count, int vocab, std::int32_t* tokens) {
    triptych::parallel_for(
        count, [&](int r) { tokens[r] = triptych::draw_token(draws[r], vocab); });
}

int tk_kept_tokens(const TkDraw* draw, int vocab, std::int32_t* tokens) {
    const triptych::ScaledRow row{draw->logits, vocab, draw->inverse_temperature};
    const float greatest = triptych::greatest_logit(row.logits, vocab) * row.scale;
    if (greatest == -INFINITY) return 0;
    const triptych::Kept kept = triptych::filter_row(*draw, row, greatest);
    int count = 0;
    const auto keep = [&](float logit, int token) {
        if (logit >= kept.floor && logit > -INFINITY) tokens[count++] = token;
    };
    const triptych::TokenList& list = triptych::buffers.list;
    for (int i = 0; i < kept.count; ++i) {
        if (kept.all) keep(row.logits[i] * row.scale, i);
        if (!kept.all) keep(list.logits()[i], list.tokens()[i]);
    }
    return count;
}

void tk_noise_of_bits(std::uint32_t first, int count, float* noise) {
    for (int i = 0; i < count; ++i) noise[i] = triptych::noise_of_bits(first + i);
}

void tk_token_noise(std::uint64_t seed, std::uint64_t position, const std::int64_t* tokens,
                    int count, float* noise) {
    const std::uint64_t key = triptych::noise_key(seed, position);
    for (int i = 0; i < count; ++i) {
        const auto token = static_cast<std::uint32_t>(tokens[i]);
        noise[i] = triptych::noise_of_bits(triptych::noise_bits(key, token));
    }
}
