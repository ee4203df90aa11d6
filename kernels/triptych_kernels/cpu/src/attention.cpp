#include "attention.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "attention_shared.h"
#include "attention_tree.h"
#include "export.h"
#include "pool.h"

namespace triptych {
namespace {

constexpr int kGroupsOfTask = 8;  // groups of 16 lanes that share the reading of a tile
constexpr int kHeadsOfTask = 8;   // of a job that has no more than these

template <class P>
class Worker {
  public:
    using T = typename P::Element;

    explicit Worker(int dim)
        : dim_(dim), scratch_(dim), fold_(dim), query_bytes_(P::query_bytes(dim)) {}

    // Folds the task's positions of one split into states[member], which start empty. `seeds` as
    // `find_seeds` left them; `after` is what this thread will probably do next, or null.
    void fold(const Call& call, const LaneTask& task, int split, const State* states,
              const float* seeds, const LaneTask* after) {
        seeds_ = seeds;
        const int begin = std::max(task.begin, split * kSplitTokens) / kTileTokens * kTileTokens;
        const int end = std::min(task.end, (split + 1) * kSplitTokens);
        for (int member = 0; member < task.members(); member += task.groups) {
            for (int at = begin; at < end; at += kTileTokens) {
                if (at + kTileTokens < end) {
                    expect(call, task, member, at + kTileTokens, end);
                } else if (member + task.groups < task.members()) {
                    expect(call, task, member + task.groups, begin, end);
                } else if (after != nullptr) {
                    const int first = after->begin / kTileTokens * kTileTokens;
                    expect(call, *after, 0, first, std::min(after->end, first + kTileTokens));
                }
                fold_tile(call, task, member, at, end, states);
            }
            fold_.finish();
        }
    }

    // Packs the task's queries and finds what its lanes see.
    void prepare(const Call& call, const LaneTask& task) {
        lanes_.resize(task.groups);
        rules_.resize(task.groups);
        used_.resize(task.groups);
        for (int i = 0; i < task.groups; ++i) {
            const int group = task.first_group + i;
            lanes_[i] = lanes_of(call, *task.job, group);
            used_[i] = lanes_used(call, *task.job, group);
            rules_[i] = task.job->skipping != nullptr
                            ? skip_rule(*task.job->skipping, lanes_[i], used_[i])
                            : SkipRule{};
        }
        tally_ = {};
        auto* room = queries_.take(query_bytes_ * task.members());
        std::memset(room, 0, query_bytes_ * task.members());
        const int heads = call.group();
        for (int member = 0; member < task.members(); ++member, room += query_bytes_) {
            const int first = task.group_of(member) * kLanes;
            const int count = lanes_used(call, *task.job, task.group_of(member));
            for (int lane = 0; lane < count; ++lane) {
                const std::size_t row = task.job->first_row + (first + lane) / heads;
                const int head = task.head_of(member) * heads + (first + lane) % heads;
                P::put_query(room, lane, call.queries + row * call.stride + head * dim_, dim_);
            }
        }
    }

    // seeds[member][lane]: the largest score that a lane knows before it folds anything; nothing at all
    // where nothing can be left out. The task is prepared.
    void find_seeds(const Call& call, const LaneTask& task, float* seeds) {
        for (int member = 0; member < task.members(); ++member) {
            find_seed(call, task, member, seeds + member * kLanes);
        }
    }

    void find_seed(const Call& call, const LaneTask& task, int member, float* seed) {
        const SkipRule& rule = rules_[member % task.groups];
        store(seed, set1(kNothing));
        if (!rule.active) return;
        for (const int at : tiles_kept(rule)) look_at_tile(call, task, member, at, seed);
    }

    // Room for the seeds of a task.
    float* own_seeds(int members) { return seed_memory_.take(members * kLanes); }

    // What was left out since `prepare`.
    SkipTally& tally() { return tally_; }

    // Empty states of so many members for a split, and for what splits were merged.
    State* split_states(int count) { return states(count, split_memory_, split_states_); }
    State* merged_states(int count) { return states(count, merged_memory_, merged_states_); }

  private:
    State* states(int count, Buffer<float>& memory, std::vector<State>& all) {
        float* at = memory.take(State::size(dim_) * count);
        all.resize(count);
        for (int i = 0; i < count; ++i) {
            all[i] = {at + i * State::size(dim_), dim_};
            all[i].clear();
        }
        return all.data();
    }

    const void* queries_of(int member) const { return queries_.data() + member * query_bytes_; }

    static KvSource source_of(const Call& call, const LaneTask& task, int member) {
        const Job& job = *task.job;
        const int head = task.head_of(member);
        return {call.cache, call.layer, head, job.blocks_of(call.layer, head),
                job.start + job.rows};
    }

    // Where the tiles of a group's lanes begin that are always weighed.
    static std::vector<int> tiles_kept(const SkipRule& rule) {
        std::vector<int> tiles;
        for (int lane = 0; lane < kLanes; ++lane) {
            for (const int at : {rule.first[lane], rule.own[lane]}) {
                if (std::find(tiles.begin(), tiles.end(), at) == tiles.end()) tiles.push_back(at);
            }
        }
        return tiles;
    }

    // Whether a tile's values may be wanted by nobody: of several groups one is likely to weigh them.
    bool may_leave_out() const { return rules_.size() == 1 && rules_[0].active; }

    // What follows the next tile.
    void expect(const Call& call, const LaneTask& task, int member, int at, int end) {
        if (!reads_in_place(call.cache) || call.chosen_by(*task.job) != nullptr) return;
        const KvTile<T> tile = read_tile(source_of(call, task, member), at, end, scratch_);
        fold_.expect(tile, may_leave_out() ? Wanted::kKeys : Wanted::kBoth, static_cast<int>(lanes_.size()));
    }

    // Positions from `at` on, for all groups of the head that begins with `member`.
    void fold_tile(const Call& call, const LaneTask& task, int member, int at, int end,
                   const State* states) {
        const KvSource source = source_of(call, task, member);
        if (is_tree(*task.job, at)) {
            for (int group = 0; group < task.groups; ++group) {
                visit_paths(call, task, member, group, at, [&](const TreeTile& tile) {
                    fold_group(call, task, member, group, at, read_tree(source, tile, scratch_),
                               tile.seen(), states);
                });
            }
            return;
        }
        if (const Chosen* chosen = call.chosen_by(*task.job)) {
            return fold_chosen(call, task, member, at, end, *chosen, states);
        }
        const KvTile<T> tile = read_tile(source, at, end, scratch_);
        for (int group = 0; group < task.groups; ++group) {
            const KvTile<T> seen = tile_seen(*task.job, group, at, tile);
            if (seen.parts > 0) fold_group(call, task, member, group, at, seen, nullptr, states);
        }
    }

    // The same where rows choose their tokens: what no row has chosen any of is not read.
    void fold_chosen(const Call& call, const LaneTask& task, int member, int at, int end,
                     const Chosen& chosen, const State* states) {
        KvTile<T> tile{};
        for (int group = 0; group < task.groups; ++group) {
            std::uint16_t seen[kTileTokens];
            if (!find_chosen(call, task, member, group, at, chosen, seen)) continue;
            if (tile.parts == 0) tile = read_tile(source_of(call, task, member), at, end, scratch_);
            const KvTile<T> kept = parts_chosen(tile_seen(*task.job, group, at, tile), seen);
            fold_group(call, task, member, group, at, kept, seen, states);
        }
    }

    // A tile without the parts of which nobody sees anything, and `seen` likewise: parts are added up
    // one after the other, and weights of zero change no bit.
    static KvTile<T> parts_chosen(const KvTile<T>& tile, std::uint16_t* seen) {
        if (tile.key_scales != nullptr) return tile;  // which lie in order
        KvTile<T> kept = tile;
        kept.parts = 0;
        for (int part = 0; part < tile.parts; ++part) {
            const std::uint16_t* of_part = seen + part * kPartTokens;
            if (std::all_of(of_part, of_part + kPartTokens, [](int lanes) { return lanes == 0; })) {
                continue;
            }
            kept.keys[kept.parts] = tile.keys[part];
            kept.values[kept.parts] = tile.values[part];
            kept.value_stride[kept.parts] = tile.value_stride[part];
            std::copy(of_part, of_part + kPartTokens, seen + kept.parts++ * kPartTokens);
        }
        return kept;
    }

    // Lanes of a group by slot of a tile that their rows have chosen. False: there are none.
    bool find_chosen(const Call& call, const LaneTask& task, int member, int group, int at,
                     const Chosen& chosen, std::uint16_t* seen) const {
        bool any = false;
        const int head = task.head_of(member);
        std::fill(seen, seen + kTileTokens, 0);
        for (int row = lanes_[group].first_row; row <= lanes_[group].last_row; ++row) {
            const std::uint16_t lanes = lanes_of_row(call, task.first_group + group, row);
            for (int word = at / 64; word < std::min(chosen.words, (at + kTileTokens) / 64); ++word) {
                for (std::uint64_t left = chosen.row(row, head)[word]; left != 0; left &= left - 1) {
                    seen[word * 64 - at + __builtin_ctzll(left)] |= lanes;
                    any = true;
                }
            }
        }
        return any;
    }

    void fold_group(const Call& call, const LaneTask& task, int member, int group, int at,
                    const KvTile<T>& tile, const std::uint16_t* seen, const State* states) {
        Item<T> item = item_of(member, group, at, tile, seen);
        item.state = states[member + group];
        item.values_late = may_leave_out() && reads_in_place(call.cache) && !is_tree(*task.job, at);
        if (item.rule != nullptr) item.seed = load(seeds_ + (member + group) * kLanes);
        const bool weighed = fold_(call.shape, item);
        ++tally_.tiles;
        tally_.skipped += !weighed;
    }

    // Raises a member's seed to what its lanes see in a tile that they keep.
    void look_at_tile(const Call& call, const LaneTask& task, int member, int at, float* seed) {
        const KvSource source = source_of(call, task, member);
        const int group = member % task.groups, first = member - group;
        const auto look = [&](const KvTile<T>& tile, const std::uint16_t* seen) {
            const V top = fold_.score(call.shape, item_of(first, group, at, tile, seen));
            store(seed, max(choose(rules_[group].keeps(at), top, set1(kNothing)), load(seed)));
        };
        if (is_tree(*task.job, at)) {
            return visit_paths(call, task, member, group, at, [&](const TreeTile& tile) {
                look(read_tree(source, tile, scratch_), tile.seen());
            });
        }
        const KvTile<T> tile = tile_seen(*task.job, group, at, read_tile(source, at, task.end, scratch_));
        if (const Chosen* chosen = call.chosen_by(*task.job)) {
            std::uint16_t seen[kTileTokens];
            if (find_chosen(call, task, member, group, at, *chosen, seen)) look(parts_chosen(tile, seen), seen);
            return;
        }
        look(tile, nullptr);
    }

    Item<T> item_of(int member, int group, int at, const KvTile<T>& tile,
                    const std::uint16_t* seen) const {
        const SkipRule* rule = rules_[group].active ? &rules_[group] : nullptr;
        return {tile, at, used_[group], &lanes_[group], queries_of(member + group), {}, seen, rule, V{}, false};
    }

    // The parts of a tile that some lane of a group sees.
    KvTile<T> tile_seen(const Job& job, int group, int at, KvTile<T> tile) const {
        const int seen = std::max(0, job.start + lanes_[group].last_row + 1 - at);
        tile.parts = std::min(tile.parts, (seen + kPartTokens - 1) / kPartTokens);
        return tile;
    }

    static bool is_tree(const Job& job, int at) {
        return job.parents != nullptr && at + kTileTokens > job.start;
    }

    // A tree's tile in the head that begins with `member`: each row sees tokens of its own. As many rows
    // at a time as find room.
    template <class Visit>
    void visit_paths(const Call& call, const LaneTask& task, int member, int group, int at,
                     Visit&& visit) {
        const Job& job = *task.job;
        const int head = task.head_of(member);
        std::vector<int> rows;
        for (int row = lanes_[group].first_row; row <= lanes_[group].last_row; ++row) {
            if (position_of(job, row) >= at) rows.push_back(row);
        }
        while (!rows.empty()) {
            TreeTile tile(at, job.start);
            const Chosen* chosen = call.chosen_by(job);
            const auto added = [&](int row) {
                return tile.add(path_to(job, row), low_of(call, job, row),
                                lanes_of_row(call, task.first_group + group, row), [&](int slot) {
                                    return chosen == nullptr || chosen->has(row, head, slot);
                                });
            };
            rows.erase(std::remove_if(rows.begin(), rows.end(), added), rows.end());
            visit(tile);
        }
    }

    int dim_;
    KvScratch<T> scratch_;
    TileFold<P> fold_;
    std::size_t query_bytes_;
    Buffer<std::uint8_t> queries_;
    std::vector<Lanes> lanes_;      // of each group, as all below
    std::vector<SkipRule> rules_;
    std::vector<int> used_;         // lanes
    const float* seeds_ = nullptr;  // [members][16]
    SkipTally tally_;
    Buffer<float> split_memory_, merged_memory_, seed_memory_;
    std::vector<State> split_states_, merged_states_;
};

// One per thread and head size.
template <class Own>
Own& of_thread(int dim) {
    static thread_local std::vector<std::pair<int, std::unique_ptr<Own>>> all;
    for (auto& [known, made] : all) {
        if (known == dim) return *made;
    }
    all.emplace_back(dim, std::make_unique<Own>(dim));
    return *all.back().second;
}

template <class P>
Worker<P>& worker(int dim) {
    return of_thread<Worker<P>>(dim);
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

// ε of a member's lanes, and the largest of them into the tally.
void report_omitted(const Call& call, const LaneTask& task, int member, V omitted, SkipTally& tally) {
    const Job& job = *task.job;
    const int heads = call.group(), first = task.group_of(member) * kLanes;
    const int count = lanes_used(call, job, task.group_of(member));
    for (int lane = 0; lane < count; ++lane) {
        tally.omitted = std::max(tally.omitted, omitted[lane]);
        if (job.skipping->omitted == nullptr) continue;
        const std::size_t row = static_cast<std::size_t>(call.layer) * job.rows + (first + lane) / heads;
        const int head = task.head_of(member) * heads + (first + lane) % heads;
        job.skipping->omitted[row * call.shape.heads + head] = omitted[lane];
    }
}

void write_out(const Call& call, const LaneTask& task, int member, const State& state,
               SkipTally& tally) {
    const int heads = call.group(), first = task.group_of(member) * kLanes;
    const int first_head = task.head_of(member) * heads;
    const V sinks = sinks_of(call, first_head, first);
    const V inverse = share_of_values(state, sinks);
    if (task.job->skipping != nullptr) {
        report_omitted(call, task, member, share_omitted(state, sinks), tally);
    }
    const int count = lanes_used(call, *task.job, task.group_of(member));
    const int dim = call.shape.result_dim(call.cache);
    const float* out = state.out();
    alignas(64) float lanes[kLanes][512];
    for (int d = 0; d < dim; d += 2) {  // heads have even sizes
        const V first = load(out + d * kLanes) * inverse;
        const V second = load(out + (d + 1) * kLanes) * inverse;
        for (int lane = 0; lane < count; ++lane) {
            lanes[lane][d] = first[lane];
            lanes[lane][d + 1] = second[lane];
        }
    }
    for (int lane = 0; lane < count; ++lane) {
        const int head = first_head + (first + lane) % heads;
        write_row(call, task.job->first_row + (first + lane) / heads, head * dim, lanes[lane], dim);
    }
}

void report(const Call& call, const LaneTask& task, const SkipTally& tally) {
    const Skipping* skipping = task.job->skipping;
    if (skipping != nullptr && skipping->counts != nullptr) tally.add_to(skipping->counts[call.layer]);
}

// Whether a prefix that the task's job shares holds whole splits.
bool begins_late(const LaneTask& task) { return task.begun != nullptr && task.first_split() > 0; }

// Empty states of a task's first split, brought to where the prefix ends that its job shares.
void enter_split(const Call& call, const LaneTask& task, const State* states) {
    if (task.begun == nullptr || task.begin % kSplitTokens == 0) return;
    for (int i = 0; i < task.members(); ++i) {
        const int group = task.group_of(i);
        task.begun->gather(group, lanes_used(call, *task.job, group), states[i], [&](int from) {
            return task.begun->prefix->state(task.head_of(i), from, task.first_split());
        });
    }
}

// The same for all splits before it.
void enter_merged(const Call& call, const LaneTask& task, const State* states) {
    if (!begins_late(task)) return;
    for (int i = 0; i < task.members(); ++i) {
        const int group = task.group_of(i);
        task.begun->gather(group, lanes_used(call, *task.job, group), states[i], [&](int from) {
            return task.begun->prefix->merged(task.head_of(i), from);
        });
    }
}

template <class P>
void run_whole(const Call& call, const LaneTask& task, const LaneTask* after) {
    Worker<P>& own = worker<P>(call.cache.head_dim);
    P::configure();
    own.prepare(call, task);
    const int members = task.members();
    float* seeds = own.own_seeds(members);
    own.find_seeds(call, task, seeds);
    State* states = own.split_states(members);
    enter_split(call, task, states);
    own.fold(call, task, task.first_split(), states, seeds, after);
    if (begins_late(task) || task.last_split() - task.first_split() > 1) {
        State* merged = own.merged_states(members);
        enter_merged(call, task, merged);
        for (int split = task.first_split();;) {
            for (int i = 0; i < members; ++i) merge(merged[i], states[i]);
            if (++split == task.last_split()) break;
            own.fold(call, task, split, own.split_states(members), seeds, after);
        }
        states = merged;
    }
    for (int i = 0; i < members; ++i) write_out(call, task, i, states[i], own.tally());
    report(call, task, own.tally());
}

bool skips(const LaneTask& task) { return task.job->skipping != nullptr; }

// Few tasks and long contexts: the threads share a task's splits, and merge when all are there.
template <class P>
void run_split(const Call& call, const std::vector<LaneTask>& tasks) {
    static thread_local Buffer<float> memory;
    const int dim = call.cache.head_dim;
    struct Piece {
        const LaneTask* task;
        int split;
        std::vector<State> states;
        const float* seeds;  // of the task
    };
    std::vector<Piece> pieces;
    std::vector<float*> seeds;  // by task
    std::size_t size = 0;
    for (const LaneTask& task : tasks) {
        for (int split = task.first_split(); split < task.last_split(); ++split) {
            pieces.push_back({&task, split, std::vector<State>(task.members()), nullptr});
            size += State::size(dim) * task.members();
        }
        size += kLanes * task.members();
    }
    float* at = memory.take(size);
    for (const LaneTask& task : tasks) seeds.push_back(at), at += kLanes * task.members();
    for (Piece& piece : pieces) {
        for (State& state : piece.states) state = {at, dim}, at += State::size(dim);
        piece.seeds = seeds[piece.task - tasks.data()];
    }
    std::vector<std::pair<int, int>> looks;  // task, member
    for (int t = 0; t < static_cast<int>(tasks.size()); ++t) {
        for (int member = 0; skips(tasks[t]) && member < tasks[t].members(); ++member) {
            looks.emplace_back(t, member);
        }
    }
    parallel_for(static_cast<int>(looks.size()), [&](int i) {
        const auto [t, member] = looks[i];
        Worker<P>& own = worker<P>(dim);
        P::configure();
        own.prepare(call, tasks[t]);
        own.find_seed(call, tasks[t], member, seeds[t] + member * kLanes);
    });
    parallel_for(static_cast<int>(pieces.size()), [&](int i) {
        Worker<P>& own = worker<P>(dim);
        P::configure();
        own.prepare(call, *pieces[i].task);
        for (const State& state : pieces[i].states) state.clear();
        if (pieces[i].split == pieces[i].task->first_split()) {
            enter_split(call, *pieces[i].task, pieces[i].states.data());
        }
        own.fold(call, *pieces[i].task, pieces[i].split, pieces[i].states.data(), pieces[i].seeds,
                 nullptr);
        report(call, *pieces[i].task, own.tally());
    });
    parallel_for(static_cast<int>(tasks.size()), [&](int t) {
        const int members = tasks[t].members();
        State* merged = worker<P>(dim).merged_states(members);
        enter_merged(call, tasks[t], merged);
        for (const Piece& piece : pieces) {
            if (piece.task != &tasks[t]) continue;
            for (int i = 0; i < members; ++i) merge(merged[i], piece.states[i]);
        }
        SkipTally tally;
        for (int i = 0; i < members; ++i) write_out(call, tasks[t], i, merged[i], tally);
        report(call, tasks[t], tally);
    });
}

// Tasks of at most `most` groups in each of at most `heads` heads. `begun`: by job.
std::vector<LaneTask> tasks_of(const Call& call, const Job* jobs, int num_jobs,
                               const std::vector<Begun>& begun, int most, int heads) {
    std::vector<LaneTask> tasks;
    for (const Job* job = jobs; job < jobs + num_jobs; ++job) {
        const Begun* own = begun.empty() ? nullptr : &begun[job - jobs];
        if (own != nullptr && own->prefix == nullptr) own = nullptr;
        const int groups = (job->rows * call.group() + kLanes - 1) / kLanes;
        const int together = groups <= most ? heads : 1;
        // The last rows see most: whoever takes them last would be waited for.
        for (int last = groups; last > 0; last -= most) {
            const int first = std::max(0, last - most);
            const int first_row = first * kLanes / call.group();
            const int last_row = std::min(job->rows, (last * kLanes - 1) / call.group() + 1);
            const bool tree = job->parents != nullptr;
            const int low = call.shape.window > 0
                                ? job->start + (tree ? 0 : first_row) + 1 - call.shape.window
                                : 0;
            const int begin = own != nullptr ? own->prefix->end : std::max(0, low);
            for (int head = 0; head < call.cache.kv_heads; head += together) {
                tasks.push_back({job, head, std::min(together, call.cache.kv_heads - head), first,
                                 last - first, begin, job->start + last_row, own});
            }
        }
    }
    return tasks;
}

template <class P>
void run(const Call& call, const Job* jobs, int num_jobs) {
    const int heads = std::min(call.cache.kv_heads, kHeadsOfTask);
    std::vector<SharedPrefix> prefixes = shared_prefixes(call, jobs, num_jobs);
    std::vector<Begun> begun;
    if (!prefixes.empty()) {
        begun = begun_by(prefixes, jobs, num_jobs);
        fold_shared<P>(call, prefixes, kGroupsOfTask,
                       [&]() -> auto& { return of_thread<SharedFold<P>>(call.cache.head_dim); });
    }
    std::vector<LaneTask> tasks = tasks_of(call, jobs, num_jobs, begun, kGroupsOfTask, heads);
    const bool few = tasks.size() < 8u * num_threads();
    const bool long_ones = std::any_of(tasks.begin(), tasks.end(), [](const LaneTask& task) {
        return task.last_split() - task.first_split() > 1;
    });
    if (few && long_ones && num_threads() > 1) return run_split<P>(call, tasks);
    if (few) tasks = tasks_of(call, jobs, num_jobs, begun, 1, 1);
    const int count = static_cast<int>(tasks.size()), threads = num_threads();
    parallel_for(count, [&](int i) {
        run_whole<P>(call, tasks[i], i + threads < count ? &tasks[i + threads] : nullptr);
    });
}

}  // namespace

int position_of(const Job& job, int row) {
    if (job.parents == nullptr) return job.start + row;
    int depth = 0;
    while ((row = job.parents[row]) >= 0) ++depth;
    return job.start + depth;
}

bool writes_operand(const Linear& next, int result_dim) {
    return next.kind != Kind::kFloat && result_dim % kLanes == 0;
}

void attend(const KvCache& cache, int layer, const AttentionShape& shape, const Job* jobs,
            int num_jobs, const float* queries, int stride, Operand* out, float* floats,
            const Chosen* chosen) {
    const Call call{cache, layer, shape, queries, stride, out, floats, jobs, chosen};
    if (cache.type == KvType::kFloat) return run<FmaProducts<float>>(call, jobs, num_jobs);
#if defined(TK_AMX)
    if (cache.head_dim % kBf16Depth == 0) return run<AmxProducts>(call, jobs, num_jobs);
#endif
    run<FmaProducts<Bf16>>(call, jobs, num_jobs);
}

}  // namespace triptych

extern "C" {

// queries float32 [rows, heads × head_dim], out float32 [rows, heads × result_dim].
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

// Copies keys and values between slots of a sequence's blocks, `count` pairs (from, to) in order, in
// all layers.
TK_EXPORT void tk_move_kv(const triptych::KvCache* cache, int layers, const std::int32_t* blocks,
                          const std::int32_t* moves, int count) {
    for (int i = 0; i < layers * count; ++i) {
        const std::int32_t* move = moves + i % count * 2;
        triptych::move_kv(*cache, i / count, blocks, move[0], move[1]);
    }
}

}  // extern "C"
