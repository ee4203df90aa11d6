#include "sampling.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "gumbel.h"
#include "pool.h"
#include "memory.h"
#include "token_filter.h"

namespace triptych {
namespace {

constexpr int kSlice = 16384;

// Kept per thread, because a step needs them again soon.
struct Buffers {
    Buffer<TokenKey> keys, spare;
    Buffer<float> logits;
    Buffer<int> tokens;
};
thread_local Buffers buffers;

int first_equal(const float* logits, int count, float value) {
    for (int i = 0; i < count; ++i) {
        if (logits[i] == value) return i;
    }
    return kNoToken;
}

int greedy_token(const float* logits, int vocab) {
    const float most = greatest_logit(logits, vocab);
    return most == -INFINITY ? kNoToken : first_equal(logits, vocab, most);
}

// What the filters leave of a row: a list of keys, or all tokens that are not below the floor.
struct Kept {
    TokenKey* keys = nullptr;  // null: no list
    int count = 0;
    float floor = -INFINITY;
};

Kept filter_row(const TkDraw& draw, const ScaledRow& row, float greatest) {
    Kept kept;
    kept.floor = greatest + draw.min_p_log;
    const bool has_top_k = draw.top_k > 0 && draw.top_k < row.count;
    if (has_top_k) {
        kept.keys = buffers.keys.take(room_for_best(draw.top_k));
        kept.count = find_best(row, draw.top_k, kept.keys);
    }
    if (draw.top_p >= 1.0) return kept;
    if (has_top_k) {
        TokenKey* const spare = buffers.spare.take(kept.count);
        kept.count = keep_likely(kept.keys, kept.count, draw.top_p, spare);
    } else {
        const int room = room_for_likely(row.count);
        kept.keys = buffers.keys.take(room);
        TokenKey* const spare = buffers.spare.take(room);
        kept.count = find_likely(row, greatest, draw.top_p, kept.keys, spare);
    }
    return kept;
}

Winner winner_of_list(const Kept& kept, std::uint64_t key) {
    float* const logits = buffers.logits.take(kept.count);
    int* const tokens = buffers.tokens.take(kept.count);
    for (int i = 0; i < kept.count; ++i) {
        logits[i] = key_logit(kept.keys[i]);
        tokens[i] = key_token(kept.keys[i]);
    }
    return find_winner({logits, tokens, 0, kept.count, 1.0f, kept.floor}, key);
}

Winner winner_of_row(const ScaledRow& row, float floor, std::uint64_t key) {
    std::array<Winner, 64> winners{};
    const int slices = (row.count + kSlice - 1) / kSlice;
    if (slices > static_cast<int>(winners.size())) {
        return find_winner({row.logits, nullptr, 0, row.count, row.scale, floor}, key);
    }
    parallel_for(slices, [&](int s) {
        const int from = s * kSlice, here = std::min(kSlice, row.count - from);
        winners[s] = find_winner({row.logits + from, nullptr, from, here, row.scale, floor}, key);
    });
    Winner winner = winners[0];
    for (int s = 1; s < slices; ++s) winner.meet(winners[s]);
    return winner;
}

int draw_token(const TkDraw& draw, int vocab) {
    if (draw.inverse_temperature == 0.0f) return greedy_token(draw.logits, vocab);
    const ScaledRow row{draw.logits, vocab, draw.inverse_temperature};
    const float greatest = greatest_logit(row);
    if (greatest == -INFINITY) return kNoToken;
    if (greatest == INFINITY) {  // no noise and no filter matters beside it
        for (int i = 0; i < vocab; ++i) {
            if (row.logits[i] * row.scale == INFINITY) return i;
        }
    }
    const Kept kept = filter_row(draw, row, greatest);
    const std::uint64_t key = noise_key(draw.seed, draw.position);
    return (kept.keys ? winner_of_list(kept, key) : winner_of_row(row, kept.floor, key)).token;
}

}  // namespace
}  // namespace triptych

void tk_draw_tokens(const TkDraw* draws, int count, int vocab, std::int32_t* tokens) {
    triptych::parallel_for(
        count, [&](int r) { tokens[r] = triptych::draw_token(draws[r], vocab); });
}

int tk_kept_tokens(const TkDraw* draw, int vocab, std::int32_t* tokens) {
    const triptych::ScaledRow row{draw->logits, vocab, draw->inverse_temperature};
    const float greatest = triptych::greatest_logit(row);
    if (greatest == -INFINITY) return 0;
    const triptych::Kept kept = triptych::filter_row(*draw, row, greatest);
    int count = 0;
    const auto keep = [&](float logit, int token) {
        if (logit >= kept.floor && logit > -INFINITY) tokens[count++] = token;
    };
    for (int i = 0; kept.keys && i < kept.count; ++i) {
        keep(triptych::key_logit(kept.keys[i]), triptych::key_token(kept.keys[i]));
    }
    for (int i = 0; !kept.keys && i < vocab; ++i) keep(row.logits[i] * row.scale, i);
    return count;
}

void tk_noise_of_bits(std::uint32_t first, int count, float* noise) {
    for (int i = 0; i < count; ++i) noise[i] = triptych::noise_of_bits(first + i);
}

void tk_gumbel_noise(std::uint64_t seed, std::uint64_t position, int vocab, float* noise) {
    const std::uint64_t key = triptych::noise_key(seed, position);
    for (int i = 0; i < vocab; ++i) {
        noise[i] = triptych::noise_of_bits(triptych::noise_bits(key, i));
    }
}
