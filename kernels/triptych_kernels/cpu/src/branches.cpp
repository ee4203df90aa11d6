#include "branches.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "attention_lanes.h"
#include "attention_tile.h"
#include "memory.h"
#include "pool.h"
#include "ranks.h"
#include "sight.h"

namespace triptych {
namespace {

using P = FmaProducts<float>;

constexpr int kGates = 3;  // of a head: means, chosen blocks, window

// One head's keys and values of one layer, added up position by position. A key's number is one sum; a
// value's is sixteen, position mod 16, as values lie transposed.
class Adder {
  public:
    Adder(const KvCache& cache, int layer, int head, const std::int32_t* blocks)
        : cache_(cache), layer_(layer), head_(head), blocks_(blocks) {}

    // The mean of positions [begin, begin + count), keys and values [head_dim].
    void mean(const Sight& sight, int begin, int count, float* keys, float* values) {
        const int dim = cache_.head_dim;
        float* lanes = memory().take(static_cast<std::size_t>(dim) * kLanes);
        std::fill(keys, keys + dim, 0.0f);
        std::fill(lanes, lanes + dim * kLanes, 0.0f);
        share_ = 1.0f / static_cast<float>(count);
        for (int i = 0; i < count;) {
            const int slot = sight.slot(begin + i), room = cache_.block_tokens - slot % cache_.block_tokens;
            int run = 1;
            while (run < std::min(room, count - i) && sight.slot(begin + i + run) == slot + run) ++run;
            add(slot, i, run, keys, lanes);
            i += run;
        }
        for (int d = 0; d < dim; ++d) values[d] = sum_lanes(load(lanes + d * kLanes));
    }

  private:
    static Buffer<float>& memory() {
        static thread_local Buffer<float> own;
        return own;
    }

    // `count` positions of one block from `slot` on, which are `first` and so on of what is averaged.
    void add(int slot, int first, int count, float* keys, float* lanes) const {
        if (cache_.type == KvType::kFloat) return add<float>(slot, first, count, keys, lanes);
        if (cache_.type == KvType::kBf16) return add<Bf16>(slot, first, count, keys, lanes);
        add<std::int8_t>(slot, first, count, keys, lanes);
    }

    template <class T>
    void add(int slot, int first, int count, float* keys, float* lanes) const {
        const int dim = cache_.head_dim, tokens = cache_.block_tokens;
        const int block = blocks_[slot / tokens], offset = slot % tokens;
        const auto* from = reinterpret_cast<const T*>(cache_.keys(layer_, block, head_)) + offset * dim;
        const auto* column = reinterpret_cast<const T*>(cache_.values(layer_, block, head_)) + offset;
        for (int t = 0; t < count; ++t) {
            const float share = share_of(block, 0, offset + t);
            for (int d = 0; d < dim; ++d) {
                keys[d] = __builtin_fmaf(wide(from[t * dim + d]), share, keys[d]);
            }
        }
        alignas(64) float shares[kLanes];
        for (int t = 0, lane; t < count; t += kLanes - lane) {
            lane = (first + t) % kLanes;
            const int some = std::min(kLanes - lane, count - t);
            for (int i = 0; i < some; ++i) shares[i] = share_of(block, 1, offset + t + i);
            for (int d = 0; d < dim; ++d) {
                const T* values = column + d * tokens + t;
                float* to = lanes + d * kLanes + lane;
                for (int i = 0; i < some; ++i) to[i] = __builtin_fmaf(wide(values[i]), shares[i], to[i]);
            }
        }
    }

    // What a stored number is multiplied by; so large ones do not overflow when they are added.
    float share_of(int block, int which, int offset) const {
        if (cache_.type != KvType::kInt8) return share_;
        return cache_.scales(layer_, block, which, head_)[offset] * share_;
    }

    const KvCache& cache_;
    int layer_, head_;
    const std::int32_t* blocks_;
    float share_ = 1.0f;
};

// Means of up to 128 blocks of a head, as products read a tile: keys [128][head_dim], values
// [head_dim][128]. What lies behind the last one, up to the end of its part, is zero.
struct MeanTile {
    float* at;
    int dim;

    static std::size_t size(int dim) { return static_cast<std::size_t>(2) * kTileTokens * dim; }
    float* key(int i) const { return at + i * dim; }
    float* values() const { return at + kTileTokens * dim; }

    void put(Adder& adder, const Sight& sight, int i, int begin, int count) const {
        float column[512];
        adder.mean(sight, begin, count, key(i), column);
        for (int d = 0; d < dim; ++d) values()[d * kTileTokens + i] = column[d];
    }

    void clear_behind(int count) const {
        const int missing = -count & (kPartTokens - 1);
        std::fill(key(count), key(count + missing), 0.0f);
        for (int d = 0; d < dim; ++d) {
            float* to = values() + d * kTileTokens + count;
            std::fill(to, to + missing, 0.0f);
        }
    }

    void copy_from(const MeanTile& other, int count) const {
        std::memcpy(at, other.at, sizeof(float) * count * dim);
        for (int d = 0; d < dim; ++d) {
            const std::size_t row = static_cast<std::size_t>(d) * kTileTokens;
            std::memcpy(values() + row, other.values() + row, sizeof(float) * count);
        }
    }

    KvTile<float> first(int count) const {
        KvTile<float> tile{};
        tile.tokens = count;
        tile.parts = (count + kPartTokens - 1) / kPartTokens;
        for (int part = 0; part < tile.parts; ++part) {
            tile.keys[part] = key(part * kPartTokens);
            tile.values[part] = values() + part * kPartTokens;
            tile.value_stride[part] = kTileTokens;
        }
        return tile;
    }
};

// What all rows of a job see alike: the means of blocks that lie before its drafts.
struct JobMeans {
    const Job* job;
    int count;     // blocks
    float* means;  // [KV heads][tiles] of MeanTile

    int tiles() const { return (count + kTileTokens - 1) / kTileTokens; }
    MeanTile tile(int head, int number, int dim) const {
        return {means + MeanTile::size(dim) * (static_cast<std::size_t>(head) * tiles() + number), dim};
    }
};

struct BranchCall {
    const Branches& branches;
    const KvCache& cache;
    int layer;
    const AttentionShape& shape;
    const float* queries;
    int stride;
    const float* gates;
    float* out;

    int group() const { return shape.heads / cache.kv_heads; }
    float gate(std::size_t row, int head, int which) const {
        const float x = gates[(row * shape.heads + head) * kGates + which];
        return 1.0f / (1.0f + std::exp(-x));
    }
};

// One row and KV head: attention to means, and the blocks that it makes the row choose.
class MeanReader {
  public:
    void run(const BranchCall& call, const JobMeans& means, int row, int head, const Chosen& chosen) {
        const Job& job = *means.job;
        const int position = position_of(job, row), size = call.branches.block_tokens;
        sight_ = sight_of(job, row);
        count_ = (position + 1) / size;
        shares_.assign(position / size + 1, 0.0f);
        read_tiles(call, means, head);
        for (int first = 0; first < call.group(); first += kLanes) attend(call, job, row, head, first);
        if (chosen.bits != nullptr) choose(call, position, chosen.row(row, head));
    }

  private:
    // The job's tiles, and a copy of those that hold blocks of the row's own path.
    void read_tiles(const BranchCall& call, const JobMeans& means, int head) {
        const int dim = call.cache.head_dim, size = call.branches.block_tokens;
        const int tiles = (count_ + kTileTokens - 1) / kTileTokens;
        const int whole = count_ <= means.count ? tiles : means.count / kTileTokens;
        float* room = own_.take(MeanTile::size(dim) * (tiles - whole));
        Adder adder(call.cache, call.layer, head, means.job->blocks_of(call.layer, head));
        tiles_.clear();
        for (int number = 0; number < tiles; ++number) {
            if (number < whole) {
                tiles_.push_back(means.tile(head, number, dim));
                continue;
            }
            const MeanTile tile{room + MeanTile::size(dim) * (number - whole), dim};
            const int begin = number * kTileTokens, end = std::min(count_, begin + kTileTokens);
            const int known = std::clamp(means.count - begin, 0, kTileTokens);
            if (known > 0) tile.copy_from(means.tile(head, number, dim), known);
            for (int block = begin + known; block < end; ++block) {
                tile.put(adder, sight_, block - begin, block * size, size);
            }
            tile.clear_behind(end - begin);
            tiles_.push_back(tile);
        }
    }

    KvTile<float> tile(int number) const {
        return tiles_[number].first(std::min(kTileTokens, count_ - number * kTileTokens));
    }

    // Sixteen query heads from `first` of the KV head's on.
    void attend(const BranchCall& call, const Job& job, int row, int head, int first) {
        const int dim = call.cache.head_dim, lanes = std::min(kLanes, call.group() - first);
        const std::size_t at = job.first_row + row;
        const int first_head = head * call.group() + first;
        float* sums = sums_.take(static_cast<std::size_t>(dim) * kLanes);
        std::fill(sums, sums + dim * kLanes, 0.0f);
        const V inverse = count_ > 0 ? weigh(call, at, first_head, lanes, sums) : V{};
        for (int lane = 0; lane < lanes; ++lane) {
            const float share = inverse[lane] * call.gate(at, first_head + lane, 0);
            float* to = call.out + (at * call.shape.heads + first_head + lane) * dim;
            for (int d = 0; d < dim; ++d) to[d] = sums[d * kLanes + lane] * share;
        }
    }

    // Weighted sums of means' values, what they are to be divided by, and what each block got.
    V weigh(const BranchCall& call, std::size_t row, int first_head, int lanes, float* sums) {
        const int dim = call.cache.head_dim, tiles = static_cast<int>(tiles_.size());
        auto* queries = queries_.take(P::query_bytes(dim));
        std::memset(queries, 0, P::query_bytes(dim));
        for (int lane = 0; lane < lanes; ++lane) {
            P::put_query(queries, lane, call.queries + row * call.stride + (first_head + lane) * dim, dim);
        }
        float* weights = weights_.take(static_cast<std::size_t>(tiles) * kTileTokens * kLanes);
        V best = set1(kNothing);
        for (int number = 0; number < tiles; ++number) {
            const KvTile<float> read = tile(number);
            float* scores = weights + number * kTileTokens * kLanes;
            P::scores(read, dim, queries, scores);
            for (int t = 0; t < read.tokens; ++t) best = max(load(scores + t * kLanes), best);
        }
        const V scale = set1(call.shape.scale * kLog2E), from = best * scale;
        V total{};
        for (int number = 0; number < tiles; ++number) {
            const KvTile<float> read = tile(number);
            float* of_tile = weights + number * kTileTokens * kLanes;
            for (int t = 0; t < read.parts * kPartTokens; ++t) {
                float* to = of_tile + t * kLanes;
                const V weight = t < read.tokens ? exp2(fma(load(to), scale, -from)) : V{};
                total += weight;
                store(to, weight);
            }
            P::weigh(read, dim, of_tile, sums);
        }
        V inverse = set1(1.0f) / total;
        for (int lane = lanes; lane < kLanes; ++lane) inverse[lane] = 0.0f;
        for (int block = 0; block < count_; ++block) {
            shares_[block] += sum_lanes(load(weights + block * kLanes) * inverse);
        }
        return inverse;
    }

    // The slots of the blocks that got most; the first one, the row's own and the one before it are
    // always among them.
    void choose(const BranchCall& call, int position, std::uint64_t* bits) {
        const int size = call.branches.block_tokens, own = position / size;
        ranks_.clear();
        for (int block = 0; block <= own; ++block) {
            const bool always = block == 0 || block >= own - 1;
            ranks_.push_back(always ? kUnknown : rank_of(shares_[block]));
        }
        keep_best(ranks_, call.branches.top_k, [&](int block) {
            const int end = std::min(position + 1, (block + 1) * size);
            for (int at = block * size; at < end; ++at) Chosen::mark(bits, sight_.slot(at));
        });
    }

    Sight sight_;
    int count_ = 0;  // blocks that the row sees whole
    std::vector<MeanTile> tiles_;
    std::vector<float> shares_;  // by block, up to the row's own
    std::vector<std::uint32_t> ranks_;
    Buffer<float> own_, sums_, weights_;
    Buffer<std::uint8_t> queries_;
};

// By job. Valid until the next call in this thread.
std::vector<JobMeans> make_means(const BranchCall& call, const Job* jobs, int num_jobs) {
    static thread_local Buffer<float> memory;
    const int dim = call.cache.head_dim, heads = call.cache.kv_heads, size = call.branches.block_tokens;
    std::vector<JobMeans> all;
    std::vector<std::pair<int, int>> pieces;  // job and tile
    std::size_t needed = 0;
    for (const Job* job = jobs; job < jobs + num_jobs; ++job) {
        const int end = job->parents == nullptr ? job->start + job->rows : job->start;
        all.push_back({job, end / size, nullptr});
        for (int tile = 0; tile < all.back().tiles(); ++tile) {
            pieces.push_back({static_cast<int>(job - jobs), tile});
        }
        needed += MeanTile::size(dim) * heads * all.back().tiles();
    }
    float* at = memory.take(needed);
    for (JobMeans& means : all) {
        means.means = at;
        at += MeanTile::size(dim) * heads * means.tiles();
    }
    constexpr int kPieces = kTileTokens / kPartTokens;
    parallel_for(static_cast<int>(pieces.size()) * heads * kPieces, [&](int i) {
        const auto [job, number] = pieces[i / kPieces / heads];
        const JobMeans& means = all[job];
        const int head = i / kPieces % heads, part = i % kPieces;
        const MeanTile tile = means.tile(head, number, dim);
        Adder adder(call.cache, call.layer, head, means.job->blocks_of(call.layer, head));
        const Sight sight{means.count * size, {}};
        const int begin = number * kTileTokens, first = part * kPartTokens;
        const int end = std::min(means.count - begin, first + kPartTokens);
        for (int block = first; block < end; ++block) {
            tile.put(adder, sight, block, (begin + block) * size, size);
        }
        if (first < end) tile.clear_behind(end);
    });
    return all;
}

// Room for what the rows of each job choose, all clear; none where they read everything.
std::vector<Chosen> make_room(const BranchCall& call, const Job* jobs, int num_jobs) {
    static thread_local Buffer<std::uint64_t> memory;
    std::vector<Chosen> chosen(num_jobs);
    const auto size_of = [&](const Job& job) {
        const int end = job.start + job.rows, heads = call.cache.kv_heads;
        const bool all = end <= call.branches.top_k * call.branches.block_tokens;
        return all ? 0 : static_cast<std::size_t>(Chosen::words_for(job)) * job.rows * heads;
    };
    std::size_t needed = 0;
    for (int i = 0; i < num_jobs; ++i) needed += size_of(jobs[i]);
    std::uint64_t* bits = memory.take(needed);
    std::fill(bits, bits + needed, 0);
    for (int i = 0; i < num_jobs; ++i) {
        if (const std::size_t size = size_of(jobs[i])) {
            chosen[i] = {bits, Chosen::words_for(jobs[i]), call.cache.kv_heads};
            bits += size;
        }
    }
    return chosen;
}

// out += gate · part [rows, heads × head_dim], of all rows of the jobs.
void add_part(const BranchCall& call, const Job* jobs, int num_jobs, const float* part, int which) {
    const int dim = call.cache.head_dim, heads = call.shape.heads;
    for (const Job* job = jobs; job < jobs + num_jobs; ++job) {
        parallel_for(job->rows, [&](int i) {
            const std::size_t row = job->first_row + i;
            for (int head = 0; head < heads; ++head) {
                const float gate = call.gate(row, head, which);
                const std::size_t at = (row * heads + head) * dim;
                for (int d = 0; d < dim; ++d) {
                    call.out[at + d] = __builtin_fmaf(part[at + d], gate, call.out[at + d]);
                }
            }
        });
    }
}

}  // namespace

void attend_branches(const Branches& branches, const KvCache& cache, int layer,
                     const AttentionShape& shape, const Job* jobs, int num_jobs,
                     const float* queries, int stride, const float* gates, float* out) {
    static thread_local Buffer<float> memory;
    const BranchCall call{branches, cache, layer, shape, queries, stride, gates, out};
    const std::vector<JobMeans> means = make_means(call, jobs, num_jobs);
    const std::vector<Chosen> chosen = make_room(call, jobs, num_jobs);
    int end = 0;
    for (int i = 0; i < num_jobs; ++i) {
        end = std::max(end, jobs[i].first_row + jobs[i].rows);
        parallel_for(jobs[i].rows * cache.kv_heads, [&](int at) {
            static thread_local MeanReader reader;
            reader.run(call, means[i], at / cache.kv_heads, at % cache.kv_heads, chosen[i]);
        });
    }
    float* part = memory.take(static_cast<std::size_t>(end) * shape.heads * cache.head_dim);
    attend(cache, layer, shape, jobs, num_jobs, queries, stride, nullptr, part, chosen.data());
    add_part(call, jobs, num_jobs, part, 1);
    if (branches.window == 0) return;
    AttentionShape near = shape;
    near.window = branches.window;
    attend(cache, layer, near, jobs, num_jobs, queries, stride, nullptr, part);
    add_part(call, jobs, num_jobs, part, 2);
}

}  // namespace triptych
