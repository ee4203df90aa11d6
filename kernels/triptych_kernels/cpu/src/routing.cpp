#include "routing.h"

#include <algorithm>
#include <limits>

#include "export.h"
#include "memory.h"
#include "norms.h"

namespace triptych {
namespace {

constexpr float kNothing = -std::numeric_limits<float>::infinity();
constexpr float kLeastSum = 1e-20f;  // DeepSeek's: scores that are all zero give weights of zero

struct Choice {
    float key;
    std::int32_t id;
};

int whole_lanes(int count) { return (count + kLanes - 1) / kLanes * kLanes; }

// x [whole_lanes(count)], −∞ behind `count`, in place.
void softmax(float* x, int count) {
    V best = load(x);
    for (int i = kLanes; i < count; i += kLanes) best = max(best, load(x + i));
    const V highest = set1(max_lanes(best));
    V sums{};
    for (int i = 0; i < count; i += kLanes) {
        const V value = exp(load(x + i) - highest);
        store(x + i, value);
        sums += value;
    }
    const V sum = set1(sum_lanes(sums));
    for (int i = 0; i < count; i += kLanes) store(x + i, load(x + i) / sum);
}

void sigmoid(float* x, int count) {
    for (int i = 0; i < count; i += kLanes) {
        store(x + i, set1(1.0f) / (set1(1.0f) + exp(-load(x + i))));
    }
}

// The best of some keys, best first. Of equal keys the one that came first stays ahead.
class Best {
  public:
    Best(Choice* room, int size) : chosen_(room), size_(size) {}

    void add(float key, std::int32_t id) {
        if (count_ == size_ && !(key > chosen_[size_ - 1].key)) return;
        int place = count_ < size_ ? count_++ : size_ - 1;
        for (; place > 0 && key > chosen_[place - 1].key; --place) {
            chosen_[place] = chosen_[place - 1];
        }
        chosen_[place] = {key, id};
    }

  private:
    Choice* chosen_;
    int size_, count_ = 0;
};

float group_key(Routing::GroupScore score, const float* keys, int size) {
    Choice best[2] = {{kNothing, 0}, {0.0f, 0}};
    const int wanted = score == Routing::GroupScore::kTwoBest ? std::min(size, 2) : 1;
    Best found(best, wanted);
    for (int i = 0; i < size; ++i) found.add(keys[i], i);
    return best[0].key + best[1].key;
}

// The experts of the best groups only, in ascending order: body(first, end) of each.
template <class Body>
void for_kept_groups(const Routing& of, const float* keys, Choice* room, Body&& body) {
    if (of.groups <= 1) return body(0, of.experts);
    const int size = of.experts / of.groups;
    Best kept(room, of.groups_kept);
    for (int group = 0; group < of.groups; ++group) {
        kept.add(group_key(of.group_score, keys + group * size, size), group);
    }
    std::sort(room, room + of.groups_kept,
              [](const Choice& a, const Choice& b) { return a.id < b.id; });
    for (int i = 0; i < of.groups_kept; ++i) body(room[i].id * size, (room[i].id + 1) * size);
}

void choose(const Routing& of, const float* keys, std::int32_t* ids) {
    static thread_local Buffer<Choice> memory;
    Choice* room = memory.take(of.groups_kept + of.top_k);
    Choice* chosen = room + of.groups_kept;
    Best best(chosen, of.top_k);
    for_kept_groups(of, keys, room, [&](int first, int end) {
        for (int id = first; id < end; ++id) best.add(keys[id], id);
    });
    for (int j = 0; j < of.top_k; ++j) ids[j] = chosen[j].id;
    std::sort(ids, ids + of.top_k);
}

// scores: of all experts, or of kSoftmaxOfChosen their logits.
void weigh(const Routing& of, const float* scores, const std::int32_t* ids, float* weights) {
    if (of.scoring == Routing::Scoring::kSoftmaxOfChosen) {
        static thread_local Buffer<float> memory;
        float* of_chosen = memory.take(whole_lanes(of.top_k));
        std::fill(of_chosen, of_chosen + whole_lanes(of.top_k), kNothing);
        for (int j = 0; j < of.top_k; ++j) of_chosen[j] = scores[ids[j]];
        softmax(of_chosen, of.top_k);
        std::copy(of_chosen, of_chosen + of.top_k, weights);
    } else {
        for (int j = 0; j < of.top_k; ++j) weights[j] = scores[ids[j]];
    }
    float sum = kLeastSum;
    for (int j = 0; j < of.top_k; ++j) sum += weights[j];
    for (int j = 0; j < of.top_k; ++j) {
        weights[j] = (of.renormalise ? weights[j] / sum : weights[j]) * of.scale;
    }
}

void route_row(const Routing& of, const float* logits, std::int32_t* ids, float* weights) {
    static thread_local Buffer<float> memory;
    const int width = whole_lanes(of.experts);
    float *scores = memory.take(2 * width), *keys = scores + width;
    std::copy(logits, logits + of.experts, scores);
    std::fill(scores + of.experts, scores + width, kNothing);
    if (of.scoring == Routing::Scoring::kSoftmax) softmax(scores, of.experts);
    if (of.scoring == Routing::Scoring::kSigmoid) sigmoid(scores, of.experts);
    if (of.correction == nullptr) {
        choose(of, scores, ids);
    } else {
        for (int id = 0; id < of.experts; ++id) keys[id] = scores[id] + of.correction[id];
        choose(of, keys, ids);
    }
    weigh(of, scores, ids, weights);
}

}  // namespace

void route(const Routing& routing, const float* logits, int rows, std::int32_t* ids,
           float* weights) {
    for_rows(rows, [&](int row) {
        const std::size_t at = row;
        route_row(routing, logits + at * routing.experts, ids + at * routing.top_k,
                  weights + at * routing.top_k);
    });
}

}  // namespace triptych

extern "C" {

TK_EXPORT void tk_route(const triptych::Routing* routing, const float* logits, int rows,
                        std::int32_t* ids, float* weights) {
    triptych::route(*routing, logits, rows, ids, weights);
}

}  // extern "C"
