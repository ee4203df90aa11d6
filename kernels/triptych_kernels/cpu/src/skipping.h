// BLASST (arXiv 2512.12087): a tile whose scores are far below the largest one is not weighed.
//
// A lane leaves out a tile when exp(its largest score there − the largest score that the lane knows)
// is below λ = scale / positions that the lane's row sees. The tile is read no further when all lanes
// leave it out; else it weighs exactly nothing for those that do. So a lane's result is its own, as in
// dense attention: neither its neighbours nor the chunk that it came in decide for it.
//
// Splits do not know each other's scores. So what a lane knows begins with the seed: the largest score of
// the first tile that it sees (attention sinks) and of the tile that it stands in. Both are never left
// out, hence the seed is a score that counts, and what follows is a proof, not an estimate.
//
// Of what is left out a lane keeps account: n tokens below 2^t weigh at most n · 2^t. That sum over the
// sum of all weights is ε, and the result is no farther than ε / (1 + ε) × the largest distance of two
// values from what dense attention would give. With a budget a lane leaves out nothing that would raise
// its ε above it.
#pragma once

#include <cmath>

#include "attention_lanes.h"

namespace triptych {

constexpr float kAll = __builtin_inff();

// Of a group of lanes.
struct SkipRule {
    V log2_lambda;     // −∞: this lane leaves out nothing
    V budget;          // of each split
    VInt first, own;   // where the tiles begin that are always weighed
    VInt unused;       // lanes without a row
    bool active;       // some lane may leave out something

    VInt keeps(int begin) const { return (first == begin) | (own == begin); }
};

inline SkipRule skip_rule(const Skipping& how, const Lanes& lanes, int used) {
    SkipRule rule{};
    for (int lane = 0; lane < kLanes; ++lane) {
        const int low = std::max(0, lanes.low[lane]), end = lanes.high[lane];
        const int splits = (end + kSplitTokens - 1) / kSplitTokens - low / kSplitTokens;
        const int seen = end - low;
        const bool may = how.scale > 0 && seen > how.scale;  // else λ is 0, or at least 1
        rule.log2_lambda[lane] = may ? std::log2(how.scale / static_cast<float>(seen)) : -kAll;
        rule.budget[lane] = how.budget / static_cast<float>(splits);
        rule.first[lane] = low / kTileTokens * kTileTokens;
        rule.own[lane] = (end - 1) / kTileTokens * kTileTokens;
        rule.unused[lane] = lane < used ? 0 : -1;
        rule.active |= may && lane < used;
    }
    return rule;
}

// How many tokens each lane sees in a tile.
inline V tokens_seen(const Lanes& lanes, int begin) {
    const VInt from = lanes.low > begin ? lanes.low : VInt{} + begin;
    const VInt to = lanes.high < begin + kTileTokens ? lanes.high : VInt{} + begin + kTileTokens;
    return from_int(to > from ? to - from : VInt{});
}

// What a tile with the largest scores `top` is worth to lanes that may leave it out. State and `seed` are in
// units of log2.
struct Loss {
    VInt gone;        // lanes that leave it out
    V omitted, unit;  // their account with it, as in State
};

inline Loss loss_of(const SkipRule& rule, const Lanes& lanes, const State& state, V seed, int begin, V top) {
    const V known = max(seed, load(state.best()));
    Loss loss{(top < known + rule.log2_lambda) & ~rule.keeps(begin), {}, known};
    if (!any(loss.gone)) return loss;
    const V more = tokens_seen(lanes, begin) * exp2(top - known);
    const V so_far = load(state.omitted()) * exp2(load(state.unit()) - known);
    const V kept = load(state.total()) * exp2(load(state.best()) - known);
    loss.omitted = so_far + more;
    loss.gone &= loss.omitted <= rule.budget * max(set1(1.0f), kept);
    return loss;
}

// Takes account of a tile that lanes leave out; nothing changes for the others.
inline void omit(const Loss& loss, const State& state) {
    store(state.omitted(), loss.gone ? loss.omitted : load(state.omitted()));
    store(state.unit(), loss.gone ? loss.unit : load(state.unit()));
}

// ε of each lane, when each lane's sink has had its share.
inline V share_omitted(const State& state, V sinks) {
    const V best = max(load(state.best()), sinks);
    const V total = load(state.total()) * exp2(load(state.best()) - best) + exp2(sinks - best);
    return load(state.omitted()) * exp2(load(state.unit()) - best) / total;
}

// What a thread has to report of a job in a layer.
struct SkipTally {
    std::int64_t tiles = 0, skipped = 0;
    float omitted = 0;

    void add_to(SkipCount& count) const {
        __atomic_fetch_add(&count.tiles, tiles, __ATOMIC_RELAXED);
        __atomic_fetch_add(&count.skipped, skipped, __ATOMIC_RELAXED);
        float before;
        __atomic_load(&count.omitted, &before, __ATOMIC_RELAXED);
        while (!(before >= omitted)) {
            float mine = omitted;
            if (__atomic_compare_exchange(&count.omitted, &before, &mine, true, __ATOMIC_RELAXED,
                                          __ATOMIC_RELAXED)) {
                break;
            }
        }
    }
};

}  // namespace triptych
