// Sixteen lanes of attention: whose they are, what they see, and what they have summed up.
#pragma once

#include <algorithm>
#include <vector>

#include "attention.h"

namespace triptych {

constexpr int kSplitTokens = 1024;
constexpr float kLog2E = 0x1.715476p+0f;
constexpr float kNothing = -1e30f;  // below every score, and finite: differences stay numbers

// A softmax in progress: per lane the largest score, the sum of weights, the weighted values
// [dim][16], and a bound of the weights that were left out, times 2^−unit.
struct State {
    float* at;
    int dim;

    static std::size_t size(int dim) { return (dim + 4) * kLanes; }
    float* best() const { return at; }
    float* total() const { return at + kLanes; }
    float* out() const { return at + 2 * kLanes; }
    float* omitted() const { return out() + dim * kLanes; }
    float* unit() const { return omitted() + kLanes; }
    void clear() const {
        store(best(), set1(kNothing));
        std::memset(total(), 0, (dim + 2) * kLanes * sizeof(float));
        store(unit(), set1(kNothing));
    }
};

// a ← a then b; b holds later positions.
inline void merge(const State& a, const State& b) {
    const V best = max(load(a.best()), load(b.best()));
    const V of_a = exp2(load(a.best()) - best), of_b = exp2(load(b.best()) - best);
    store(a.best(), best);
    for (int i = 1; i < a.dim + 2; ++i) {  // the total, then the values
        float* to = a.at + i * kLanes;
        store(to, load(to) * of_a + load(b.at + i * kLanes) * of_b);
    }
    const V unit = max(load(a.unit()), load(b.unit()));
    store(a.omitted(), load(a.omitted()) * exp2(load(a.unit()) - unit) +
                           load(b.omitted()) * exp2(load(b.unit()) - unit));
    store(a.unit(), unit);
}

// What weighted values are multiplied by in the end, when each lane's sink has had its share: a
// logit times log2(e), or nothing.
inline V share_of_values(const State& state, V sinks) {
    const V best = max(load(state.best()), sinks);
    const V of_values = exp2(load(state.best()) - best);
    return of_values / (load(state.total()) * of_values + exp2(sinks - best));
}

struct Call {
    const KvCache& cache;
    int layer;
    const AttentionShape& shape;
    const float* queries;
    int stride;
    Operand* out;
    float* floats;
    const Job* jobs = nullptr;
    const Chosen* chosen = nullptr;  // by job, or null

    int group() const { return shape.heads / cache.kv_heads; }  // query heads of a KV head
    // Null: the job's rows attend to all that they see.
    const Chosen* chosen_by(const Job& job) const {
        return chosen == nullptr || chosen[&job - jobs].bits == nullptr ? nullptr
                                                                       : &chosen[&job - jobs];
    }
};

struct Begun;  // in attention_shared.h

// Some groups of lanes of one job, in each of some KV heads. Its members are these groups, head
// after head.
struct LaneTask {
    const Job* job;
    int first_head, heads, first_group, groups;
    int begin, end;      // positions that some lane sees; behind those that a shared prefix stands for
    const Begun* begun;  // that prefix, or null

    int members() const { return heads * groups; }
    int head_of(int member) const { return first_head + member / groups; }
    int group_of(int member) const { return first_group + member % groups; }
    int first_split() const { return begin / kSplitTokens; }
    int last_split() const { return (end + kSplitTokens - 1) / kSplitTokens; }
};

// What the lanes of a group see: each one positions [low, high).
struct Lanes {
    VInt low, high;
    int all_low, all_high;  // what all of them see
    int first_row, last_row;

    V visible(V score, int position) const {
        const VInt here = VInt{} + position;
        return choose(where_above(high, here) & ~where_above(low, here), score, set1(-__builtin_inff()));
    }
};

// Lanes of a group that have a row.
inline int lanes_used(const Call& call, const Job& job, int group) {
    return std::min(kLanes, job.rows * call.group() - group * kLanes);
}

inline Lanes lanes_of(const Call& call, const Job& job, int group) {
    Lanes lanes{};
    const int first = group * kLanes, heads = call.group();
    const int count = lanes_used(call, job, group);
    lanes.first_row = first / heads;
    lanes.last_row = (first + count - 1) / heads;
    // Lanes that nobody uses look at what the first one sees: they alone need no mask then.
    for (int lane = 0; lane < kLanes; ++lane) {
        const int position = position_of(job, (first + (lane < count ? lane : 0)) / heads);
        lanes.high[lane] = position + 1;
        lanes.low[lane] = call.shape.window > 0 ? position + 1 - call.shape.window : 0;
        lanes.all_high = lane == 0 ? position + 1 : std::min(lanes.all_high, position + 1);
        lanes.all_low = lane == 0 ? lanes.low[0] : std::max(lanes.all_low, lanes.low[lane]);
    }
    return lanes;
}

// Sinks of the lanes that begin with `first` of the query heads from `first_head` on.
inline V sinks_of(const Call& call, int first_head, int first) {
    if (call.shape.sinks == nullptr) return set1(-__builtin_inff());
    V sinks{};
    for (int lane = 0; lane < kLanes; ++lane) {
        sinks[lane] = call.shape.sinks[first_head + (first + lane) % call.group()] * kLog2E;
    }
    return sinks;
}

// The first position that a row sees.
inline int low_of(const Call& call, const Job& job, int row) {
    return call.shape.window > 0 ? position_of(job, row) + 1 - call.shape.window : 0;
}

// Those of a group that belong to this row.
inline std::uint16_t lanes_of_row(const Call& call, int group, int row) {
    const int heads = call.group();
    const int first = std::max(0, row * heads - group * kLanes);
    const int end = std::min(kLanes, (row + 1) * heads - group * kLanes);
    return static_cast<std::uint16_t>((1u << end) - (1u << first));
}

// Slots of a row of a tree and of those before it, behind the job's start.
inline std::vector<std::int32_t> path_to(const Job& job, int row) {
    std::vector<std::int32_t> path;
    for (; row >= 0; row = job.parents[row]) path.push_back(job.start + row);
    std::reverse(path.begin(), path.end());
    return path;
}

}  // namespace triptych
