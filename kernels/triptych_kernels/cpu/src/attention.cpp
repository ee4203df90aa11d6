#include "attention.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "attention_tile.h"
#include "export.h"
#include "pool.h"

namespace triptych {
namespace {

constexpr int kSplitTokens = 1024;
constexpr int kGroupsOfTask = 8;  // groups of 16 lanes that share the reading of a tile
constexpr float kLog2E = 0x1.715476p+0f;
constexpr float kNothing = -1e30f;  // below every score, and finite: differences stay numbers

// A softmax in progress: per lane the largest score, the sum of weights, the weighted values
// [dim][16].
struct State {
    float* at;
    int dim;

    static std::size_t size(int dim) { return (dim + 2) * kLanes; }
    float* best() const { return at; }
    float* total() const { return at + kLanes; }
    float* out() const { return at + 2 * kLanes; }
    void clear() const {
        store(best(), set1(kNothing));
        std::memset(total(), 0, (dim + 1) * kLanes * sizeof(float));
    }
};

// a ← a then b; b holds later positions.
void merge(const State& a, const State& b) {
    const V best = max(load(a.best()), load(b.best()));
    const V of_a = exp2(load(a.best()) - best), of_b = exp2(load(b.best()) - best);
    store(a.best(), best);
    for (int i = 1; i < a.dim + 2; ++i) {  // the total, then the values
        float* to = a.at + i * kLanes;
        store(to, load(to) * of_a + load(b.at + i * kLanes) * of_b);
    }
}

// Sixteen lanes of one job and KV head: which positions each one sees, [low, high).
struct Lanes {
    VInt low, high;
    int all_low, all_high;  // what all of them see
    int first_row, last_row;
};

struct Call {
    const KvCache& cache;
    int layer;
    const AttentionShape& shape;
    const float* queries;
    int stride;
    Operand* out;
    float* floats;

    int group() const { return shape.heads / cache.kv_heads; }  // query heads of a KV head
};

// Some groups of lanes of one job and KV head.
struct Task {
    const Job* job;
    int head, first_group, groups;
    int begin, end;  // positions that some lane sees

    int first_split() const { return begin / kSplitTokens; }
    int last_split() const { return (end + kSplitTokens - 1) / kSplitTokens; }
};

std::vector<std::int32_t> path_to(const Job& job, int row) {
    std::vector<std::int32_t> path;
    for (; row >= 0; row = job.parents[row]) path.push_back(job.start + row);
    std::reverse(path.begin(), path.end());
    return path;
}

Lanes lanes_of(const Call& call, const Job& job, int group) {
    Lanes lanes{};
    const int first = group * kLanes, heads = call.group();
    const int count = std::min(kLanes, job.rows * heads - first);
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

V visible(V score, const Lanes& lanes, int position) {
    const VInt here = VInt{} + position;
    const VInt seen = (here < lanes.high) & (here >= lanes.low);
    return seen ? score : set1(-__builtin_inff());
}

template <class P>
class Worker {
  public:
    using T = typename P::Element;

    explicit Worker(int dim) : dim_(dim), scratch_(dim), query_bytes_(P::query_bytes(dim)) {}

    // Folds the task's positions of one split into states[group], which start empty.
    void fold(const Call& call, const Task& task, int split, const State* states) {
        const Job& job = *task.job;
        const bool tree = job.parents != nullptr;
        const KvSource source{call.cache, call.layer, task.head, job.blocks, job.start + job.rows};
        const int begin = std::max(task.begin, split * kSplitTokens) / kTileTokens * kTileTokens;
        const int end = std::min(task.end, (split + 1) * kSplitTokens);
        for (int at = begin; at < end; at += kTileTokens) {
            if (tree && at + kTileTokens > job.start) {
                fold_paths(call, task, source, at, states);
                continue;
            }
            const KvTile<T> tile = read_tile(source, at, end, scratch_);
            int group = 0;
            while (group < task.groups && job.start + lanes_[group].last_row < at) ++group;
            for (; group + 1 < task.groups; group += 2) {
                fold_tile<2>(call, tile, at, &lanes_[group], group, states + group);
            }
            if (group < task.groups) {
                fold_tile<1>(call, tile, at, &lanes_[group], group, states + group);
            }
        }
    }

    // Packs the task's queries and finds what its lanes see.
    void prepare(const Call& call, const Task& task) {
        lanes_.resize(task.groups);
        auto* room = queries_.take(query_bytes_ * task.groups);
        std::memset(room, 0, query_bytes_ * task.groups);
        const int heads = call.group();
        for (int i = 0; i < task.groups; ++i) {
            const int first = (task.first_group + i) * kLanes;
            lanes_[i] = lanes_of(call, *task.job, task.first_group + i);
            const int count = std::min(kLanes, task.job->rows * heads - first);
            for (int lane = 0; lane < count; ++lane) {
                const int row = task.job->first_row + (first + lane) / heads;
                const int head = task.head * heads + (first + lane) % heads;
                P::put_query(room + i * query_bytes_, lane,
                             call.queries + static_cast<std::size_t>(row) * call.stride +
                                 head * dim_,
                             dim_);
            }
        }
    }

    // States of the task's groups for a split, and for what splits were merged.
    State* split_states(int groups) { return states(groups, split_memory_, split_states_); }
    State* merged_states(int groups) { return states(groups, merged_memory_, merged_states_); }

  private:
    State* states(int groups, Buffer<float>& memory, std::vector<State>& all) {
        float* at = memory.take(State::size(dim_) * groups);
        all.resize(groups);
        for (int i = 0; i < groups; ++i) all[i] = {at + i * State::size(dim_), dim_};
        return all.data();
    }

    // A tree's tile: each row sees keys of its own, and the lanes of other rows look away.
    void fold_paths(const Call& call, const Task& task, const KvSource& source, int at,
                    const State* states) {
        for (int i = 0; i < task.groups; ++i) {
            for (int row = lanes_[i].first_row; row <= lanes_[i].last_row; ++row) {
                const auto path = path_to(*task.job, row);
                const int length = static_cast<int>(path.size());
                if (task.job->start + length <= at) continue;
                const KvTile<T> tile =
                    read_path(source, at, task.job->start, path.data(), length, scratch_);
                Lanes own = lanes_[i];
                for (int lane = 0; lane < kLanes; ++lane) {
                    const int of = ((task.first_group + i) * kLanes + lane) / call.group();
                    if (of != row) own.high[lane] = 0;
                }
                own.all_high = 0;
                fold_tile<1>(call, tile, at, &own, i, states + i);
            }
        }
    }

    // One tile for one group, or for two that share the loads of keys and values.
    template <int kGroups>
    void fold_tile(const Call& call, const KvTile<T>& tile, int begin, const Lanes* lanes,
                   int first_group, const State* states) {
        const void* queries[kGroups];
        float* outs[kGroups];
        for (int i = 0; i < kGroups; ++i) {
            queries[i] = queries_.data() + (first_group + i) * query_bytes_;
            outs[i] = states[i].out();
        }
        P::template scores<kGroups>(tile, dim_, queries, scores_);
        for (int i = 0; i < kGroups; ++i) {
            soften(call.shape, tile, begin, lanes[i], scores_[i], weights_[i], states[i]);
        }
        P::template weigh<kGroups>(tile, dim_, weights_, outs);
    }

    // Scores become weights, and what the state holds is brought to the new maximum.
    void soften(const AttentionShape& shape, const KvTile<T>& tile, int begin, const Lanes& lanes,
                float* scores, float* weights, const State& state) {
        const int tokens = tile.parts * kPartTokens;
        if (tile.key_scales != nullptr) scale_keys(tile, tokens, scores);
        if (shape.softcap > 0) cap_scores(shape, tokens, scores);
        if (begin + tokens > lanes.all_high || begin < lanes.all_low) {
            mask(begin, lanes, tokens, scores);
        }
        const float scale = (shape.softcap > 0 ? shape.softcap : shape.scale) * kLog2E;
        const V before = load(state.best());
        const V best = max(largest(tokens, scores) * set1(scale), before);
        const V factor = exp2(before - best);
        const V sum = tile.value_scales != nullptr
                          ? weigh_scores<true>(tile, tokens, scale, best, scores, weights)
                          : weigh_scores<false>(tile, tokens, scale, best, scores, weights);
        store(state.best(), best);
        store(state.total(), load(state.total()) * factor + sum);
        if (any_above(best, before)) {
            for (int d = 0; d < dim_; ++d) {
                float* out = state.out() + d * kLanes;
                store(out, load(out) * factor);
            }
        }
    }

    // Keys of int8 are whole numbers; their scales come here.
    static void scale_keys(const KvTile<T>& tile, int tokens, float* scores) {
        for (int t = 0; t < tokens; ++t, scores += kLanes) {
            store(scores, load(scores) * set1(tile.key_scales[t]));
        }
    }

    // tanh(scores × scale / softcap); what is left to do is × softcap.
    static void cap_scores(const AttentionShape& shape, int tokens, float* scores) {
        const V scale = set1(shape.scale / shape.softcap);
        for (int t = 0; t < tokens; ++t, scores += kLanes) {
            store(scores, tanh(load(scores) * scale));
        }
    }

    static void mask(int begin, const Lanes& lanes, int tokens, float* scores) {
        for (int t = 0; t < tokens; ++t, scores += kLanes) {
            store(scores, visible(load(scores), lanes, begin + t));
        }
    }

    // Of each lane; never a NaN.
    static V largest(int tokens, const float* scores) {
        V best[4] = {set1(kNothing), set1(kNothing), set1(kNothing), set1(kNothing)};
        for (int t = 0; t < tokens; t += 4, scores += 4 * kLanes) {
            for (int i = 0; i < 4; ++i) best[i] = max(load(scores + i * kLanes), best[i]);
        }
        return max(max(best[0], best[1]), max(best[2], best[3]));
    }

    // Weights for the second product; returns each lane's sum of them. Four sums run side by side:
    // one would wait for itself.
    template <bool kScaled>
    static V weigh_scores(const KvTile<T>& tile, int tokens, float scale, V best,
                          const float* scores, float* weights) {
        V sums[4] = {};
        for (int t = 0; t < tokens; t += 4, scores += 4 * kLanes) {
            V weight[4];
            for (int i = 0; i < 4; ++i) {
                const V logit = fma(load(scores + i * kLanes), set1(scale), -best);
                weight[i] = P::exp2(logit);
                sums[i] += weight[i];
                if (kScaled) weight[i] *= set1(tile.value_scales[t + i]);
            }
            P::put_weights(weights, t / 2, weight[0], weight[1]);
            P::put_weights(weights, t / 2 + 1, weight[2], weight[3]);
        }
        return (sums[0] + sums[1]) + (sums[2] + sums[3]);
    }

    int dim_;
    KvScratch<T> scratch_;
    std::size_t query_bytes_;
    Buffer<std::uint8_t> queries_;
    std::vector<Lanes> lanes_;
    Buffer<float> split_memory_, merged_memory_;
    std::vector<State> split_states_, merged_states_;
    alignas(64) float scores_[2][kTileTokens * kLanes];
    alignas(64) float weights_[2][kTileTokens * kLanes];
};

// One per thread and head size.
template <class P>
Worker<P>& worker(int dim) {
    static thread_local std::vector<std::pair<int, std::unique_ptr<Worker<P>>>> workers;
    for (auto& [known, made] : workers) {
        if (known == dim) return *made;
    }
    workers.emplace_back(dim, std::make_unique<Worker<P>>(dim));
    return *workers.back().second;
}

void write_row(const Call& call, int row, int column, const float* values, int dim) {
    if (call.out == nullptr) {
        std::memcpy(call.floats + static_cast<std::size_t>(row) * call.shape.heads * dim + column,
                    values, dim * sizeof(float));
        return;
    }
    for (int d = 0; d < dim; d += kLanes) {
        const int at = column + d;
        store(call.out->half_line(row, at) + at % kBf16Depth, load(values + d));
    }
}

void write_out(const Call& call, const Task& task, int group, const State& state) {
    const V inverse = set1(1.0f) / load(state.total());
    const int heads = call.group(), first = (task.first_group + group) * kLanes;
    const int count = std::min(kLanes, task.job->rows * heads - first);
    const float* out = state.out();
    alignas(64) float lanes[kLanes][512];
    for (int d = 0; d < state.dim; d += 2) {  // a rotary head has an even size
        const V first = load(out + d * kLanes) * inverse;
        const V second = load(out + (d + 1) * kLanes) * inverse;
        for (int lane = 0; lane < count; ++lane) {
            lanes[lane][d] = first[lane];
            lanes[lane][d + 1] = second[lane];
        }
    }
    for (int lane = 0; lane < count; ++lane) {
        const float* values = lanes[lane];
        const int head = task.head * heads + (first + lane) % heads;
        write_row(call, task.job->first_row + (first + lane) / heads, head * state.dim, values,
                  state.dim);
    }
}

template <class P>
void run_whole(const Call& call, const Task& task) {
    Worker<P>& own = worker<P>(call.cache.head_dim);
    P::configure();
    own.prepare(call, task);
    State* merged = own.merged_states(task.groups);
    State* part = own.split_states(task.groups);
    for (int i = 0; i < task.groups; ++i) merged[i].clear();
    for (int split = task.first_split(); split < task.last_split(); ++split) {
        for (int i = 0; i < task.groups; ++i) part[i].clear();
        own.fold(call, task, split, part);
        for (int i = 0; i < task.groups; ++i) merge(merged[i], part[i]);
    }
    for (int i = 0; i < task.groups; ++i) write_out(call, task, i, merged[i]);
}

// Few tasks and long contexts: the threads share a task's splits, and merge when all are there.
template <class P>
void run_split(const Call& call, const std::vector<Task>& tasks) {
    static thread_local Buffer<float> memory;
    const int dim = call.cache.head_dim;
    struct Piece {
        const Task* task;
        int split;
        std::vector<State> states;
    };
    std::vector<Piece> pieces;
    std::size_t size = 0;
    for (const Task& task : tasks) {
        for (int split = task.first_split(); split < task.last_split(); ++split) {
            pieces.push_back({&task, split, std::vector<State>(task.groups)});
            size += State::size(dim) * task.groups;
        }
    }
    float* at = memory.take(size);
    for (Piece& piece : pieces) {
        for (State& state : piece.states) state = {at, dim}, at += State::size(dim);
    }
    parallel_for(static_cast<int>(pieces.size()), [&](int i) {
        Worker<P>& own = worker<P>(dim);
        P::configure();
        own.prepare(call, *pieces[i].task);
        for (const State& state : pieces[i].states) state.clear();
        own.fold(call, *pieces[i].task, pieces[i].split, pieces[i].states.data());
    });
    parallel_for(static_cast<int>(tasks.size()), [&](int t) {
        State* merged = worker<P>(dim).merged_states(tasks[t].groups);
        for (int i = 0; i < tasks[t].groups; ++i) {
            merged[i].clear();
            for (const Piece& piece : pieces) {
                if (piece.task == &tasks[t]) merge(merged[i], piece.states[i]);
            }
            write_out(call, tasks[t], i, merged[i]);
        }
    });
}

// Tasks of at most `most` groups each.
std::vector<Task> tasks_of(const Call& call, const Job* jobs, int num_jobs, int most) {
    std::vector<Task> tasks;
    for (const Job* job = jobs; job < jobs + num_jobs; ++job) {
        const int groups = (job->rows * call.group() + kLanes - 1) / kLanes;
        // The last rows see most: whoever takes them last would be waited for.
        for (int last = groups; last > 0; last -= most) {
            const int first = std::max(0, last - most);
            const int first_row = first * kLanes / call.group();
            const int last_row = std::min(job->rows, (last * kLanes - 1) / call.group() + 1);
            const bool tree = job->parents != nullptr;
            const int low = call.shape.window > 0
                                ? job->start + (tree ? 0 : first_row) + 1 - call.shape.window
                                : 0;
            for (int head = 0; head < call.cache.kv_heads; ++head) {
                tasks.push_back({job, head, first, last - first, std::max(0, low),
                                 job->start + last_row});
            }
        }
    }
    return tasks;
}

template <class P>
void run(const Call& call, const Job* jobs, int num_jobs) {
    std::vector<Task> tasks = tasks_of(call, jobs, num_jobs, kGroupsOfTask);
    const bool few = tasks.size() < 8u * num_threads();
    const bool long_ones = std::any_of(tasks.begin(), tasks.end(), [](const Task& task) {
        return task.last_split() - task.first_split() > 1;
    });
    if (few && long_ones && num_threads() > 1) return run_split<P>(call, tasks);
    if (few) tasks = tasks_of(call, jobs, num_jobs, 2);  // a pair still shares its loads
    parallel_for(static_cast<int>(tasks.size()), [&](int i) { run_whole<P>(call, tasks[i]); });
}

}  // namespace

int position_of(const Job& job, int row) {
    if (job.parents == nullptr) return job.start + row;
    int depth = 0;
    while ((row = job.parents[row]) >= 0) ++depth;
    return job.start + depth;
}

bool writes_operand(const Linear& next, int head_dim) {
    return next.kind != Kind::kFloat && head_dim % kLanes == 0;
}

void attend(const KvCache& cache, int layer, const AttentionShape& shape, const Job* jobs,
            int num_jobs, const float* queries, int stride, Operand* out, float* floats) {
    const Call call{cache, layer, shape, queries, stride, out, floats};
    if (cache.type == KvType::kFloat) return run<FmaProducts<float>>(call, jobs, num_jobs);
#if defined(TK_AMX)
    if (cache.head_dim % kBf16Depth == 0) return run<AmxProducts>(call, jobs, num_jobs);
#endif
    run<FmaProducts<Bf16>>(call, jobs, num_jobs);
}

}  // namespace triptych

extern "C" {

// queries, out: float32 [rows, heads × head_dim].
TK_EXPORT void tk_attend(const triptych::KvCache* cache, int layer,
                         const triptych::AttentionShape* shape, const triptych::Job* jobs,
                         int num_jobs, const float* queries, float* out) {
    triptych::attend(*cache, layer, *shape, jobs, num_jobs, queries,
                     shape->heads * cache->head_dim, nullptr, out);
}

// Stores keys, values float32 [count, kv_heads, head_dim] in slots (block × block_tokens + offset).
TK_EXPORT void tk_put_kv(const triptych::KvCache* cache, int layer, const std::int64_t* slots,
                         int count, const float* keys, const float* values) {
    const int dim = cache->head_dim;
    for (int i = 0; i < count * cache->kv_heads; ++i) {
        const std::int64_t slot = slots[i / cache->kv_heads];
        triptych::put_kv(*cache, layer, static_cast<int>(slot / cache->block_tokens),
                         i % cache->kv_heads, static_cast<int>(slot % cache->block_tokens),
                         keys + static_cast<std::size_t>(i) * dim,
                         values + static_cast<std::size_t>(i) * dim);
    }
}

}  // extern "C"
