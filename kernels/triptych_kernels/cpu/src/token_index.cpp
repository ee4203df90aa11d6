#include "token_index.h"

#include <algorithm>
#include <cmath>

#include "attention_lanes.h"
#include "attention_tile.h"
#include "memory.h"
#include "norms.h"
#include "pool.h"
#include "ranks.h"

namespace triptych {
namespace {

constexpr int kRowsOfBlock = 8;  // that share the reading of a tile
constexpr int kRowsAtOnce = 64;  // whose worths are kept at the same time

// Rows of a job that are scored together.
struct RowBlock {
    const Job* job;
    int first, rows;
    float* worth;         // [rows, width]
    std::uint64_t* bits;  // [rows, words]
    int width, words;     // slots up to the block's last row's; words of the job

    int end() const { return job->start + first + rows; }
};

// Index keys of a tile, where they lie or in a copy. What lies behind `end` scores for nobody.
template <class T>
KvTile<T> read_keys(const KvCache& cache, int layer, const Job& job, int begin, int end, T* room) {
    KvTile<T> tile{};
    tile.tokens = std::min(kTileTokens, end - begin);
    tile.parts = (tile.tokens + kPartTokens - 1) / kPartTokens;
    const int dim = cache.index_dim, size = cache.block_tokens;
    const auto at = [&](int slot) {
        const int block = job.blocks[slot / size];
        return reinterpret_cast<const T*>(cache.index_keys(layer, block)) + slot % size * dim;
    };
    for (int part = 0; part < tile.parts; ++part) {
        const int first = begin + part * kPartTokens, last = std::min(first + kPartTokens, end);
        if (size % kPartTokens == 0) {
            tile.keys[part] = at(first);
            continue;
        }
        T* to = room + static_cast<std::size_t>(part) * kPartTokens * dim;
        tile.keys[part] = to;
        for (int slot = first; slot < last;) {
            const int run = std::min(last - slot, size - slot % size);
            std::memcpy(to + (slot - first) * dim, at(slot), sizeof(T) * run * dim);
            slot += run;
        }
    }
    return tile;
}

// Slots [begin, end) of one split for a block of rows.
template <class P>
class IndexScorer {
  public:
    using T = typename P::Element;

    void run(const TokenIndex& index, const KvCache& cache, int layer, const IndexRows& rows,
             const RowBlock& block, int begin, int end) {
        P::configure();
        const int groups = (index.heads + kLanes - 1) / kLanes;
        pack(index, rows, block, groups);
        T* room = keys_.take(static_cast<std::size_t>(kTileTokens) * index.dim);
        for (int at = begin; at < end; at += kTileTokens) {
            const KvTile<T> tile = read_keys(cache, layer, *block.job, at, end, room);
            for (int row = 0; row < block.rows; ++row) {
                add_up(index, row, groups, tile);
                float* to = block.worth + static_cast<std::size_t>(row) * block.width + at;
                for (int t = 0; t < tile.tokens; ++t) to[t] = sum_lanes(load(sums_ + t * kLanes));
            }
        }
    }

  private:
    // A row's heads fill groups of its own; lanes without a head weigh nothing.
    void pack(const TokenIndex& index, const IndexRows& rows, const RowBlock& block, int groups) {
        const std::size_t size = P::query_bytes(index.dim);
        auto* queries = queries_.take(size * groups * block.rows);
        float* weights = weights_.take(static_cast<std::size_t>(kLanes) * groups * block.rows);
        std::memset(queries, 0, size * groups * block.rows);
        std::memset(weights, 0, sizeof(float) * kLanes * groups * block.rows);
        for (int i = 0; i < block.rows; ++i) {
            const std::size_t row = block.job->first_row + block.first + i;
            for (int head = 0; head < index.heads; ++head) {
                const int group = i * groups + head / kLanes;
                P::put_query(queries + group * size, head % kLanes,
                             rows.queries + (row * index.heads + head) * index.dim, index.dim);
                weights[group * kLanes + head % kLanes] = rows.weights[row * index.heads + head];
            }
        }
    }

    // sums_[t][lane]: what the heads of a lane add, group after group.
    void add_up(const TokenIndex& index, int row, int groups, const KvTile<T>& tile) {
        const int tokens = tile.parts * kPartTokens;
        for (int group = row * groups; group < (row + 1) * groups; ++group) {
            P::scores(tile, index.dim, queries_.data() + group * P::query_bytes(index.dim), scores_);
            const V weight = load(weights_.data() + group * kLanes);
            for (int t = 0; t < tokens; ++t) {
                // In this order a NaN stays one.
                const V positive = max(V{}, load(scores_ + t * kLanes));
                const V before = group == row * groups ? V{} : load(sums_ + t * kLanes);
                store(sums_ + t * kLanes, fma(positive, weight, before));
            }
        }
    }

    Buffer<T> keys_;
    Buffer<std::uint8_t> queries_;
    Buffer<float> weights_;
    alignas(64) float scores_[kTileTokens * kLanes], sums_[kTileTokens * kLanes];
};

// The slots that a row sees, in the order of their positions.
void slots_seen(const Job& job, int row, std::vector<std::int32_t>& slots) {
    slots.clear();
    const int before = job.parents == nullptr ? job.start + row + 1 : job.start;
    for (int slot = 0; slot < before; ++slot) slots.push_back(slot);
    if (job.parents == nullptr) return;
    const std::vector<std::int32_t> path = path_to(job, row);
    slots.insert(slots.end(), path.begin(), path.end());
}

void choose_of_row(const RowBlock& block, int i, int top_k) {
    static thread_local std::vector<std::int32_t> slots;
    static thread_local std::vector<std::uint32_t> ranks;
    slots_seen(*block.job, block.first + i, slots);
    const float* worth = block.worth + static_cast<std::size_t>(i) * block.width;
    std::uint64_t* bits = block.bits + static_cast<std::size_t>(i) * block.words;
    std::memset(bits, 0, sizeof(std::uint64_t) * block.words);
    ranks.clear();
    for (const int slot : slots) ranks.push_back(rank_of(worth[slot]));
    keep_best(ranks, top_k, [&](int place) { Chosen::mark(bits, slots[place]); });
}

template <class P>
void choose_of_blocks(const TokenIndex& index, const KvCache& cache, int layer,
                      const std::vector<RowBlock>& blocks, const IndexRows& rows) {
    struct Piece {
        const RowBlock* block;
        int begin, end;
    };
    std::vector<Piece> pieces;
    for (const RowBlock& block : blocks) {
        for (int at = 0; at < block.end(); at += kSplitTokens) {
            pieces.push_back({&block, at, std::min(block.end(), at + kSplitTokens)});
        }
    }
    parallel_for(static_cast<int>(pieces.size()), [&](int i) {
        static thread_local IndexScorer<P> own;
        own.run(index, cache, layer, rows, *pieces[i].block, pieces[i].begin, pieces[i].end);
    });
    parallel_for(static_cast<int>(blocks.size()) * kRowsOfBlock, [&](int i) {
        const RowBlock& block = blocks[i / kRowsOfBlock];
        if (i % kRowsOfBlock < block.rows) choose_of_row(block, i % kRowsOfBlock, index.top_k);
    });
}

// The same with the products that the cache's type asks for.
void choose_of_blocks(const TokenIndex& index, const KvCache& cache, int layer,
                      const std::vector<RowBlock>& blocks, const IndexRows& rows) {
    if (cache.type == KvType::kFloat) {
        return choose_of_blocks<FmaProducts<float>>(index, cache, layer, blocks, rows);
    }
#if defined(TK_AMX)
    if (index.dim % kBf16Depth == 0) {
        return choose_of_blocks<AmxProducts>(index, cache, layer, blocks, rows);
    }
#endif
    choose_of_blocks<FmaProducts<Bf16>>(index, cache, layer, blocks, rows);
}

void layer_norm(float* x, int size, const float* weight, const float* bias, float eps) {
    float sum = 0, squares = 0;
    for (int i = 0; i < size; ++i) sum += x[i];
    const float mean = sum / static_cast<float>(size);
    for (int i = 0; i < size; ++i) squares = __builtin_fmaf(x[i] - mean, x[i] - mean, squares);
    const float factor = 1.0f / std::sqrt(squares / static_cast<float>(size) + eps);
    for (int i = 0; i < size; ++i) x[i] = (x[i] - mean) * factor * weight[i] + bias[i];
}

}  // namespace

void finish_index(const TokenIndex& index, const KvCache& cache, int layer, const IndexRows& rows,
                  std::size_t row, int block, int offset, const float* cosines,
                  const float* sines, int rope_dim) {
    float* key = rows.keys + row * index.dim;
    layer_norm(key, index.dim, index.key_norm, index.key_norm_bias, index.eps);
    rotate_halves(key, rope_dim, cosines, sines);
    for (int head = 0; head < index.heads; ++head) {
        rotate_halves(rows.queries + (row * index.heads + head) * index.dim, rope_dim, cosines, sines);
    }
    for (int head = 0; head < index.heads; ++head) rows.weights[row * index.heads + head] *= index.scale;
    std::uint8_t* to = cache.index_keys(layer, block) +
                       static_cast<std::size_t>(offset) * index.dim * cache.index_item_bytes();
    if (cache.type == KvType::kFloat) {
        std::memcpy(to, key, sizeof(float) * index.dim);
        return;
    }
    for (int i = 0; i < index.dim; i += kLanes) {
        const int count = std::min(kLanes, index.dim - i);
        store_some(reinterpret_cast<Bf16*>(to) + i, load_some(key + i, count), count);
    }
}

const std::vector<Chosen>& choose_tokens(const TokenIndex& index, const KvCache& cache, int layer,
                                         const Job* jobs, int num_jobs, const IndexRows& rows) {
    static thread_local std::vector<Chosen> chosen;
    static thread_local Buffer<std::uint64_t> bit_memory;
    static thread_local Buffer<float> worth_memory;
    chosen.assign(num_jobs, Chosen{});
    const auto sees_all = [&](const Job& job) { return job.start + job.rows <= index.top_k; };
    std::size_t num_words = 0;
    for (const Job* job = jobs; job < jobs + num_jobs; ++job) {
        if (!sees_all(*job)) num_words += static_cast<std::size_t>(Chosen::words_for(*job)) * job->rows;
    }
    std::uint64_t* bits = bit_memory.take(num_words);
    std::vector<RowBlock> blocks;
    int waiting = 0;  // rows
    const auto flush = [&] {
        std::size_t size = 0;
        for (const RowBlock& block : blocks) size += static_cast<std::size_t>(block.width) * block.rows;
        float* worth = worth_memory.take(size);
        for (RowBlock& block : blocks) {
            block.worth = worth;
            worth += static_cast<std::size_t>(block.width) * block.rows;
        }
        choose_of_blocks(index, cache, layer, blocks, rows);
        blocks.clear();
        waiting = 0;
    };
    for (const Job* job = jobs; job < jobs + num_jobs; ++job) {
        if (sees_all(*job)) continue;
        const int words = Chosen::words_for(*job);
        chosen[job - jobs] = {bits, words};
        for (int first = 0; first < job->rows; first += kRowsOfBlock) {
            const int count = std::min(kRowsOfBlock, job->rows - first);
            blocks.push_back({job, first, count, nullptr, bits, job->start + first + count, words});
            bits += static_cast<std::size_t>(words) * count;
            waiting += count;
            if (waiting >= kRowsAtOnce) flush();
        }
    }
    if (!blocks.empty()) flush();
    return chosen;
}

}  // namespace triptych
