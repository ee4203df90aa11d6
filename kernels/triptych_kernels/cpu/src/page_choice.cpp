#include "page_choice.h"

#include <algorithm>
#include <vector>

#include "attention_tile.h"
#include "export.h"
#include "memory.h"
#include "pool.h"
#include "ranks.h"
#include "sight.h"

namespace triptych {
namespace {

using P = FmaProducts<float>;

struct ChoiceCall {
    const KvCache& cache;
    int layer;
    int group;  // query heads of a KV head
    const float* queries;
    int stride;

    int page_numbers() const { return 2 * cache.head_dim; }
    float* bounds(const Job& job, int head, int page) const {
        const PageChoice& of = *job.pages;
        const std::size_t place = static_cast<std::size_t>(layer) * cache.kv_heads + head;
        return of.bounds + (place * of.capacity + page) * page_numbers();
    }
    std::int32_t kept(const Job& job, int row) const {
        return job.pages->kept[job.start - job.pages->first_slot + row];
    }
};

// Complete pages that lie in place for all rows of a job that see them.
int pages_in_place(const Job& job) {
    return (job.parents == nullptr ? job.start + job.rows : job.start) / kPageTokens;
}

// Raises the bounds of a page by `count` keys; scales: of int8, else null. A NaN stays.
template <class T>
void include(const T* keys, const float* scales, int count, int dim, float* largest, float* smallest) {
    for (int t = 0; t < count; ++t, keys += dim) {
        const float scale = scales != nullptr ? scales[t] : 1.0f;
        for (int d = 0; d < dim; ++d) {
            const float x = wide(keys[d]) * scale;
            largest[d] = (x > largest[d]) | (x != x) ? x : largest[d];
            smallest[d] = (x < smallest[d]) | (x != x) ? x : smallest[d];
        }
    }
}

// Bounds of a page of a row's context into `to` [2][head_dim].
void find_bounds(const ChoiceCall& call, const Job& job, int head, const Sight& sight, int page, float* to) {
    const KvCache& cache = call.cache;
    const int dim = cache.head_dim, tokens = cache.block_tokens;
    std::fill(to, to + dim, -__builtin_inff());
    std::fill(to + dim, to + 2 * dim, __builtin_inff());
    const std::int32_t* blocks = job.blocks_of(call.layer, head);
    for (int at = page * kPageTokens, end = at + kPageTokens; at < end;) {
        const int slot = sight.slot(at), block = blocks[slot / tokens], offset = slot % tokens;
        int run = 1;
        while (run < std::min(tokens - offset, end - at) && sight.slot(at + run) == slot + run) ++run;
        const std::uint8_t* keys = cache.keys(call.layer, block, head);
        const std::size_t first = static_cast<std::size_t>(offset) * dim;
        if (cache.type == KvType::kFloat) {
            include(reinterpret_cast<const float*>(keys) + first, nullptr, run, dim, to, to + dim);
        } else if (cache.type == KvType::kBf16) {
            include(reinterpret_cast<const Bf16*>(keys) + first, nullptr, run, dim, to, to + dim);
        } else {
            include(reinterpret_cast<const std::int8_t*>(keys) + first,
                    cache.scales(call.layer, block, 0, head) + offset, run, dim, to, to + dim);
        }
        at += run;
    }
}

// The slots of positions [begin, end), which lie in one page or in place.
void mark(std::uint64_t* bits, const Sight& sight, int begin, int end) {
    for (; begin < end && begin < sight.start; ) {
        const int stop = std::min({end, sight.start, begin / 64 * 64 + 64});
        const std::uint64_t some = ~std::uint64_t{0} >> (64 - (stop - begin));
        bits[begin / 64] |= some << begin % 64;
        begin = stop;
    }
    for (; begin < end; ++begin) Chosen::mark(bits, sight.slot(begin));
}

// One row and KV head.
class PageReader {
  public:
    void run(const ChoiceCall& call, const Job& job, int row, int head, const Chosen& chosen) {
        const Sight sight = sight_of(job, row);
        const int position = position_of(job, row), own = position / kPageTokens;
        std::uint64_t* bits = chosen.row(row, head);
        const int kept = call.kept(job, row);
        if (kept == 0) return mark(bits, sight, 0, position + 1);
        const int ranked = std::max(0, own + 1 - kRecentPages);
        find_worths(call, job, row, head, sight, ranked);
        ranks_.assign(own + 1, kUnknown);
        for (int page = 1; page < ranked; ++page) ranks_[page] = rank_of(worths_[page]);
        keep_best(ranks_, kept, [&](int page) {
            mark(bits, sight, page * kPageTokens, std::min(position + 1, (page + 1) * kPageTokens));
        });
    }

  private:
    // What the first `count` pages are worth to the row.
    void find_worths(const ChoiceCall& call, const Job& job, int row, int head, const Sight& sight,
                     int count) {
        worths_.assign(count, -__builtin_inff());
        const int in_place = std::min(count, pages_in_place(job));
        float* path = path_.take(static_cast<std::size_t>(call.page_numbers()) * room(count - in_place));
        for (int page = in_place; page < count; ++page) {
            find_bounds(call, job, head, sight, page, path + (page - in_place) * call.page_numbers());
        }
        for (int first = 0; first < call.group; first += kLanes) {
            put_queries(call, job.first_row + row, head, first);
            const int heads = std::min(kLanes, call.group - first);
            raise(call, call.bounds(job, head, 0), in_place, heads, worths_.data());
            raise(call, path, count - in_place, heads, worths_.data() + in_place);
        }
    }

    // Products read whole parts.
    static int room(int pages) { return (pages + kPartTokens - 1) / kPartTokens * kPartTokens; }

    // What is above zero meets the largest numbers, the rest the smallest ones.
    void put_queries(const ChoiceCall& call, std::size_t row, int head, int first) {
        const int dim = call.cache.head_dim;
        float* to = queries_.take(static_cast<std::size_t>(2) * dim * kLanes);
        std::fill(to, to + 2 * dim * kLanes, 0.0f);
        for (int lane = 0; lane < std::min(kLanes, call.group - first); ++lane) {
            const float* query = call.queries + row * call.stride + (head * call.group + first + lane) * dim;
            for (int d = 0; d < dim; ++d) to[(query[d] > 0 ? d : dim + d) * kLanes + lane] = query[d];
        }
    }

    void raise(const ChoiceCall& call, const float* bounds, int count, int heads, float* worths) {
        const int numbers = call.page_numbers();
        for (int at = 0; at < count; at += kTileTokens) {
            KvTile<float> tile{};
            tile.tokens = std::min(kTileTokens, count - at);
            tile.parts = (tile.tokens + kPartTokens - 1) / kPartTokens;
            for (int part = 0; part < tile.parts; ++part) {
                tile.keys[part] = bounds + static_cast<std::size_t>(at + part * kPartTokens) * numbers;
            }
            P::scores(tile, numbers, queries_.data(), scores_);
            for (int t = 0; t < tile.tokens; ++t) {
                float& worth = worths[at + t];
                for (int lane = 0; lane < heads; ++lane) {
                    const float score = scores_[t * kLanes + lane];
                    worth = score > worth || score != score ? score : worth;
                }
            }
        }
    }

    std::vector<float> worths_;
    std::vector<std::uint32_t> ranks_;
    Buffer<float> path_, queries_;
    alignas(64) float scores_[kTileTokens * kLanes];
};

// Bounds of pages that became complete since the last pass, or were never looked at.
void complete_bounds(const ChoiceCall& call, const Job* jobs, int num_jobs) {
    constexpr int kPagesOfPiece = 16;
    struct Piece {
        const Job* job;
        int head, begin, end;
    };
    std::vector<Piece> pieces;
    for (const Job* job = jobs; job < jobs + num_jobs; ++job) {
        if (job->pages == nullptr) continue;
        const int end = pages_in_place(*job);
        for (int at = job->pages->known; at < end; at += kPagesOfPiece) {
            for (int head = 0; head < call.cache.kv_heads; ++head) {
                pieces.push_back({job, head, at, std::min(end, at + kPagesOfPiece)});
            }
        }
    }
    parallel_for(static_cast<int>(pieces.size()), [&](int i) {
        const auto& [job, head, begin, end] = pieces[i];
        const Sight sight{end * kPageTokens, {}};
        for (int page = begin; page < end; ++page) {
            find_bounds(call, *job, head, sight, page, call.bounds(*job, head, page));
        }
    });
}

}  // namespace

bool chooses_pages(const AttentionShape& shape, const Job* jobs, int num_jobs) {
    const auto chooses = [](const Job& job) { return job.pages != nullptr; };
    return shape.window == 0 && std::any_of(jobs, jobs + num_jobs, chooses);
}

const std::vector<Chosen>& choose_pages(const KvCache& cache, int layer, const AttentionShape& shape,
                                        const Job* jobs, int num_jobs, const float* queries, int stride) {
    static thread_local std::vector<Chosen> chosen;
    static thread_local Buffer<std::uint64_t> memory;
    const ChoiceCall call{cache, layer, shape.heads / cache.kv_heads, queries, stride};
    struct Piece {
        int job, row, head;
    };
    std::vector<Piece> pieces;
    std::size_t num_words = 0;
    const auto size_of = [&](const Job& job) {
        return static_cast<std::size_t>(Chosen::words_for(job)) * job.rows * cache.kv_heads;
    };
    for (int i = 0; i < num_jobs; ++i) {
        if (jobs[i].pages == nullptr) continue;
        num_words += size_of(jobs[i]);
        for (int at = 0; at < jobs[i].rows * cache.kv_heads; ++at) {
            pieces.push_back({i, at / cache.kv_heads, at % cache.kv_heads});
        }
    }
    std::uint64_t* bits = memory.take(num_words);
    std::fill(bits, bits + num_words, 0);
    chosen.assign(num_jobs, Chosen{});
    for (int i = 0; i < num_jobs; ++i) {
        if (jobs[i].pages == nullptr) continue;
        chosen[i] = {bits, Chosen::words_for(jobs[i]), cache.kv_heads};
        bits += size_of(jobs[i]);
    }
    complete_bounds(call, jobs, num_jobs);
    const std::vector<Chosen>& made = chosen;  // this thread's, not its helpers'
    parallel_for(static_cast<int>(pieces.size()), [&](int i) {
        static thread_local PageReader reader;
        const auto& [job, row, head] = pieces[i];
        reader.run(call, jobs[job], row, head, made[job]);
    });
    return chosen;
}

}  // namespace triptych

extern "C" {

// The slots that the rows of one job choose, u64 [rows, KV heads, words of `Chosen::words_for`].
TK_EXPORT void tk_choose_pages(const triptych::KvCache* cache, int layer,
                               const triptych::AttentionShape* shape, const triptych::Job* job,
                               const float* queries, std::uint64_t* out) {
    const int stride = shape->heads * cache->head_dim;
    const triptych::Chosen& found =
        triptych::choose_pages(*cache, layer, *shape, job, 1, queries, stride)[0];
    std::copy(found.bits, found.bits + static_cast<std::size_t>(job->rows) * cache->kv_heads * found.words, out);
}

}  // extern "C"
