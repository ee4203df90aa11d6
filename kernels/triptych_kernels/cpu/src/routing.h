// Which experts a row goes to, and with which weights.
#pragma once

#include <cstdint>

namespace triptych {

// See Routing in triptych/models/moe.py.
struct Routing {
    enum class Scoring : std::int32_t { kSoftmax, kSigmoid, kSoftmaxOfChosen };
    enum class GroupScore : std::int32_t { kMax, kTwoBest };

    std::int32_t experts, top_k;
    Scoring scoring;
    std::int32_t renormalise;
    float scale;
    std::int32_t groups, groups_kept;
    GroupScore group_score;
    const float* correction;  // [experts], added to the scores when choosing only; or null
};

// logits [rows, experts] → ids [rows, top_k], ascending in each row, and their weights beside them.
// Of equal scores the lower id wins, and a row's choice depends on that row alone.
void route(const Routing& routing, const float* logits, int rows, std::int32_t* ids,
           float* weights);

}  // namespace triptych
