// Jobs that begin with the same blocks (cascade attention): a tile of theirs is read once for all.
//
// The lanes of these jobs, a few each in decode, are packed into full groups for the tiles that all of
// them see whole. A lane meets there what it would meet alone, in the same order and the same splits, and
// goes on over its job's own blocks from the state that it reached. So sharing shows in no bit.
#pragma once

#include <algorithm>
#include <vector>

#include "attention_fold.h"
#include "pool.h"

namespace triptych {

// Slots [0, end) of some jobs, whole tiles, and how far their lanes are behind them.
struct SharedPrefix {
    std::vector<const Job*> jobs;
    int end;
    std::vector<int> rows;  // of the batch, job after job; of `heads` lanes each
    int heads;              // query heads of a KV head
    int dim;
    const std::uint8_t* queries;  // [kv heads][groups], packed
    float* states;                // [kv heads][groups][splits + 1]: of each, then of all complete ones

    int lanes() const { return static_cast<int>(rows.size()) * heads; }
    int groups() const { return (lanes() + kLanes - 1) / kLanes; }
    int splits() const { return (end + kSplitTokens - 1) / kSplitTokens; }
    int complete_splits() const { return end / kSplitTokens; }
    State state(int head, int group, int split) const {
        const std::size_t place = static_cast<std::size_t>(head) * groups() + group;
        return {states + (place * (splits() + 1) + split) * State::size(dim), dim};
    }
    State merged(int head, int group) const { return state(head, group, splits()); }
};

inline bool may_share(const Call& call, const Job& job) {
    return call.chosen_by(job) == nullptr && job.bundle != 0 && job.shared >= kTileTokens && job.skipping == nullptr &&
           job.layer_stride == 0 && job.head_stride == 0 && call.shape.window == 0;
}

// Of each bundle that has several jobs in this call.
inline std::vector<SharedPrefix> shared_prefixes(const Call& call, const Job* jobs, int num_jobs) {
    std::vector<SharedPrefix> found;
    for (const Job* job = jobs; job < jobs + num_jobs; ++job) {
        if (!may_share(call, *job)) continue;
        const int end = job->shared / kTileTokens * kTileTokens;
        auto at = std::find_if(found.begin(), found.end(), [&](const SharedPrefix& prefix) {
            return prefix.jobs[0]->bundle == job->bundle;
        });
        if (at == found.end()) {
            found.push_back({{}, end, {}, call.group(), call.cache.head_dim, nullptr, nullptr});
            at = found.end() - 1;
        }
        at->jobs.push_back(job);
        at->end = std::min(at->end, end);
        for (int row = 0; row < job->rows; ++row) at->rows.push_back(job->first_row + row);
    }
    const auto alone = [](const SharedPrefix& prefix) { return prefix.jobs.size() < 2; };
    found.erase(std::remove_if(found.begin(), found.end(), alone), found.end());
    return found;
}

// Where a job's lanes stand among those of a prefix.
struct Begun {
    const SharedPrefix* prefix = nullptr;  // null: the job shares nothing
    int first_lane = 0;

    // One group's lanes, out of states that `state_of(group of the prefix)` tells.
    template <class StateOf>
    void gather(int group, int used, const State& to, StateOf&& state_of) const {
        for (int lane = 0; lane < used; ++lane) {
            const int from = first_lane + group * kLanes + lane;
            const float* column = state_of(from / kLanes).at + from % kLanes;
            for (int i = 0; i < to.dim + 2; ++i) to.at[i * kLanes + lane] = column[i * kLanes];
        }
    }
};

// By job.
inline std::vector<Begun> begun_by(const std::vector<SharedPrefix>& prefixes, const Job* jobs,
                                   int num_jobs) {
    std::vector<Begun> begun(num_jobs);
    for (const SharedPrefix& prefix : prefixes) {
        int rows = 0;
        for (const Job* job : prefix.jobs) {
            begun[job - jobs] = {&prefix, rows * prefix.heads};
            rows += job->rows;
        }
    }
    return begun;
}

// Tiles of a split, for some groups of lanes of a KV head.
struct SharedPiece {
    const SharedPrefix* prefix;
    int head, split, first_group, groups;
};

// Folds pieces; one per thread and head size.
template <class P>
class SharedFold {
  public:
    using T = typename P::Element;
    using Many = typename P::Many;

    explicit SharedFold(int dim) : dim_(dim), scratch_(dim), room_(dim), fold_(dim) {}

    void operator()(const Call& call, const SharedPiece& piece) {
        const SharedPrefix& prefix = *piece.prefix;
        const KvSource source{call.cache, call.layer, piece.head, prefix.jobs[0]->blocks, prefix.end};
        const int begin = piece.split * kSplitTokens;
        const int end = std::min(prefix.end, begin + kSplitTokens);
        for (int group = 0; group < piece.groups; ++group) state_of(piece, group).clear();
        for (int at = begin; at < end; at += kTileTokens) {
            if (at + kTileTokens < end && reads_in_place(call.cache)) {
                fold_.expect(read_tile(source, at + kTileTokens, end, scratch_), Wanted::kBoth, piece.groups);
            }
            const KvTile<T> tile = read_tile(source, at, end, scratch_);
            fold_tile(call, piece, at, P::for_many(tile, dim_, room_));
        }
    }

  private:
    static State state_of(const SharedPiece& piece, int group) {
        return piece.prefix->state(piece.head, piece.first_group + group, piece.split);
    }

    void fold_tile(const Call& call, const SharedPiece& piece, int at,
                   const KvTile<typename Many::Element>& tile) {
        Lanes lanes{};
        lanes.all_high = at + kTileTokens;  // every lane sees all of it
        const SharedPrefix& prefix = *piece.prefix;
        const std::size_t bytes = P::query_bytes(dim_);
        const int first = piece.head * prefix.groups() + piece.first_group;
        for (int group = 0; group < piece.groups; ++group) {
            const int used = std::min(kLanes, prefix.lanes() - (piece.first_group + group) * kLanes);
            fold_(call.shape, {tile, at, used, &lanes, prefix.queries + (first + group) * bytes,
                               state_of(piece, group), nullptr, nullptr, V{}, false});
        }
    }

    int dim_;
    KvScratch<T> scratch_;
    KvScratch<typename Many::Element> room_;
    TileFold<Many> fold_;
};

// Queries of the lanes of a group.
template <class P>
void pack_queries(const Call& call, const SharedPrefix& prefix, int head, int group,
                  std::uint8_t* to) {
    std::memset(to, 0, P::query_bytes(prefix.dim));
    const int first = group * kLanes;
    for (int lane = 0; lane < std::min(kLanes, prefix.lanes() - first); ++lane) {
        const std::size_t row = prefix.rows[(first + lane) / prefix.heads];
        const int query = head * prefix.heads + (first + lane) % prefix.heads;
        P::put_query(to, lane, call.queries + row * call.stride + query * prefix.dim, prefix.dim);
    }
}

// As many groups at a time as leave work for all threads.
inline std::vector<SharedPiece> pieces_of(const Call& call, const std::vector<SharedPrefix>& prefixes,
                                          int most) {
    std::vector<SharedPiece> pieces;
    for (const SharedPrefix& prefix : prefixes) {
        for (int head = 0; head < call.cache.kv_heads; ++head) {
            for (int split = 0; split < prefix.splits(); ++split) {
                for (int group = 0; group < prefix.groups(); group += most) {
                    pieces.push_back({&prefix, head, split, group,
                                      std::min(most, prefix.groups() - group)});
                }
            }
        }
    }
    return pieces;
}

// Brings the lanes of all prefixes behind what they share.
template <class P, class FoldOfThread>
void fold_shared(const Call& call, std::vector<SharedPrefix>& prefixes, int most_groups,
                 FoldOfThread&& fold_of_thread) {
    static thread_local Buffer<std::uint8_t> queries;
    static thread_local Buffer<float> states;
    const int dim = call.cache.head_dim, heads = call.cache.kv_heads;
    const std::size_t query_bytes = P::query_bytes(dim);
    std::size_t groups = 0, splits = 0;
    for (const SharedPrefix& prefix : prefixes) {
        groups += heads * prefix.groups();
        splits += heads * prefix.groups() * (prefix.splits() + 1);
    }
    std::uint8_t* room = queries.take(groups * query_bytes);
    float* at = states.take(splits * State::size(dim));
    struct Group {
        const SharedPrefix* prefix;
        int head, group;
        std::uint8_t* queries;
    };
    std::vector<Group> all;
    for (SharedPrefix& prefix : prefixes) {
        prefix.queries = room, prefix.states = at;
        for (int i = 0; i < heads * prefix.groups(); ++i, room += query_bytes) {
            all.push_back({&prefix, i / prefix.groups(), i % prefix.groups(), room});
        }
        at += heads * prefix.groups() * (prefix.splits() + 1) * State::size(dim);
    }
    parallel_for(static_cast<int>(all.size()), [&](int i) {
        pack_queries<P>(call, *all[i].prefix, all[i].head, all[i].group, all[i].queries);
    });
    std::vector<SharedPiece> pieces = pieces_of(call, prefixes, most_groups);
    for (int most = most_groups; most > 1 && pieces.size() < 4u * num_threads();) {
        pieces = pieces_of(call, prefixes, most /= 2);
    }
    parallel_for(static_cast<int>(pieces.size()), [&](int i) {
        P::configure();
        fold_of_thread()(call, pieces[i]);
    });
    parallel_for(static_cast<int>(all.size()), [&](int i) {
        const auto& [prefix, head, group, packed] = all[i];
        const State merged = prefix->merged(head, group);
        merged.clear();
        for (int split = 0; split < prefix->complete_splits(); ++split) {
            merge(merged, prefix->state(head, group, split));
        }
    });
}

}  // namespace triptych
