#include "page_scores.h"

#include <algorithm>
#include <vector>

#include "attention_lanes.h"
#include "attention_tile.h"
#include "export.h"
#include "memory.h"
#include "pool.h"

namespace triptych {
namespace {

// One KV head of one job, whose rows are those that score.
struct ScoreTask {
    Job job;
    int head;
    float* out;  // [pages]
};

int pages_of(const KvCache& cache, const Job& job) {
    return (job.start + job.rows + cache.block_tokens - 1) / cache.block_tokens;
}

// Per page and lane the largest exponent and the sum of 2^(exponent - largest), float32
// [pages][2][16]: shares follow when the largest of all pages is known.
template <class P>
class PageScorer {
  public:
    using T = typename P::Element;

    PageScorer(const Call& call, const ScoreTask& task)
        : call_(call), task_(task), scratch_(call.cache.head_dim),
          pages_(pages_of(call.cache, task.job)) {}

    void run() {
        std::fill(task_.out, task_.out + pages_, 0.0f);
        const int groups = (task_.job.rows * call_.group() + kLanes - 1) / kLanes;
        for (int group = 0; group < groups; ++group) {
            clear();
            sum_up(group);
            share_out(group);
        }
    }

  private:
    void clear() {
        float* sums = sums_.take(static_cast<std::size_t>(pages_) * 2 * kLanes);
        for (int page = 0; page < pages_; ++page, sums += 2 * kLanes) {
            store(sums, set1(kNothing));
            store(sums + kLanes, V{});
        }
    }

    int lanes_in(int group) const {
        return std::min(kLanes, task_.job.rows * call_.group() - group * kLanes);
    }

    void put_queries(int group) {
        const int dim = call_.cache.head_dim, heads = call_.group();
        auto* room = queries_.take(P::query_bytes(dim));
        std::memset(room, 0, P::query_bytes(dim));
        for (int lane = 0; lane < lanes_in(group); ++lane) {
            const int at = group * kLanes + lane;
            const std::size_t row = task_.job.first_row + at / heads;
            const int head = task_.head * heads + at % heads;
            P::put_query(room, lane, call_.queries + row * call_.stride + head * dim, dim);
        }
    }

    void sum_up(int group) {
        const Job& job = task_.job;
        const KvSource source{call_.cache, call_.layer, task_.head,
                              job.blocks_of(call_.layer, task_.head), job.start + job.rows};
        const Lanes lanes = lanes_of(call_, job, group);
        put_queries(group);
        for (int at = 0; at < source.end; at += kTileTokens) {
            const KvTile<T> tile = read_tile(source, at, source.end, scratch_);
            P::scores(tile, call_.cache.head_dim, queries_.data(), scores_);
            make_exponents(tile, lanes, at);
            add_tile(tile.tokens, at);
        }
    }

    // Scores become exponents of 2; what a lane does not see, -inf.
    void make_exponents(const KvTile<T>& tile, const Lanes& lanes, int at) {
        const float cap = call_.shape.softcap;
        const float scale = call_.shape.scale * (cap > 0 ? 1.0f / cap : kLog2E);
        for (int t = 0; t < tile.tokens; ++t) {
            float* score = scores_ + t * kLanes;
            const float of_key = tile.key_scales != nullptr ? tile.key_scales[t] : 1.0f;
            V x = load(score) * set1(scale * of_key);
            if (cap > 0) x = tanh(x) * set1(cap * kLog2E);
            store(score, lanes.visible(x, at + t));
        }
    }

    void add_tile(int tokens, int at) {
        const int page_tokens = call_.cache.block_tokens;
        for (int t = 0; t < tokens;) {
            const int page = (at + t) / page_tokens;
            const int end = std::min(tokens, (page + 1) * page_tokens - at);
            add_page(sums_.data() + static_cast<std::size_t>(page) * 2 * kLanes, t, end);
            t = end;
        }
    }

    void add_page(float* sums, int begin, int end) {
        const V before = load(sums);
        V best = before;
        for (int t = begin; t < end; ++t) best = max(load(scores_ + t * kLanes), best);
        V total = load(sums + kLanes) * exp2(before - best);
        for (int t = begin; t < end; ++t) total += P::exp2(load(scores_ + t * kLanes) - best);
        store(sums, best);
        store(sums + kLanes, total);
    }

    void share_out(int group) {
        const V sinks = sinks_of(call_, task_.head * call_.group(), group * kLanes);
        V best = max(sinks, set1(kNothing));
        const float* sums = sums_.data();
        for (int p = 0; p < pages_; ++p) best = max(load(sums + p * 2 * kLanes), best);
        V total = exp2(sinks - best);
        for (int p = 0; p < pages_; ++p) total += weight_of(p, best);
        V share = set1(1.0f / static_cast<float>(task_.job.rows * call_.group())) / total;
        for (int lane = lanes_in(group); lane < kLanes; ++lane) share[lane] = 0;
        for (int p = 0; p < pages_; ++p) task_.out[p] += sum_lanes(weight_of(p, best) * share);
    }

    V weight_of(int page, V best) const {
        const float* sums = sums_.data() + static_cast<std::size_t>(page) * 2 * kLanes;
        return load(sums + kLanes) * exp2(load(sums) - best);
    }

    const Call& call_;
    const ScoreTask& task_;
    KvScratch<T> scratch_;
    int pages_;
    Buffer<std::uint8_t> queries_;
    Buffer<float> sums_;
    alignas(64) float scores_[kTileTokens * kLanes];
};

template <class P>
void run(const Call& call, const std::vector<ScoreTask>& tasks) {
    parallel_for(static_cast<int>(tasks.size()), [&](int i) {
        P::configure();
        PageScorer<P>(call, tasks[i]).run();
    });
}

std::vector<ScoreTask> tasks_of(const KvCache& cache, int layer, const Job* jobs, int num_jobs) {
    std::vector<ScoreTask> tasks;
    for (const Job* job = jobs; job < jobs + num_jobs; ++job) {
        if (job->page_scores == nullptr) continue;
        Job last = *job;
        const int others = job->rows - job->scored_rows;
        last.first_row += others, last.start += others, last.rows -= others;
        const std::size_t pages = pages_of(cache, last);
        float* out = job->page_scores + layer * cache.kv_heads * pages;
        for (int head = 0; head < cache.kv_heads; ++head, out += pages) {
            tasks.push_back({last, head, out});
        }
    }
    return tasks;
}

}  // namespace

void score_pages(const KvCache& cache, int layer, const AttentionShape& shape, const Job* jobs,
                 int num_jobs, const float* queries, int stride) {
    if (shape.window > 0) return;
    const std::vector<ScoreTask> tasks = tasks_of(cache, layer, jobs, num_jobs);
    if (tasks.empty()) return;
    const Call call{cache, layer, shape, queries, stride, nullptr, nullptr};
    if (cache.type == KvType::kFloat) return run<FmaProducts<float>>(call, tasks);
#if defined(TK_AMX)
    if (cache.head_dim % kBf16Depth == 0) return run<AmxProducts>(call, tasks);
#endif
    run<FmaProducts<Bf16>>(call, tasks);
}

}  // namespace triptych

extern "C" {

// queries: float32 [rows, heads × head_dim].
TK_EXPORT void tk_page_scores(const triptych::KvCache* cache, int layer,
                              const triptych::AttentionShape* shape, const triptych::Job* jobs,
                              int num_jobs, const float* queries) {
    triptych::score_pages(*cache, layer, *shape, jobs, num_jobs, queries,
                          shape->heads * cache->head_dim);
}

}  // extern "C"
