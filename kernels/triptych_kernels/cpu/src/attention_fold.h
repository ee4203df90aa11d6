// One tile of keys and values for one group of lanes: scores, softmax, weighted values.
//
// The three come one after the other. Softmax between the instructions of tile products was tried:
// with tile instructions in flight a core has one unit for vectors of 512 bits instead of two, so
// what one half gains the other loses.
#pragma once

#include "attention_tile.h"
#include "skipping.h"

namespace triptych {

// A tile for one group of lanes.
template <class T>
struct Item {
    KvTile<T> tile;
    int begin;  // position
    const Lanes* lanes;
    const void* queries;
    State state;
    const std::uint16_t* seen;  // lanes that see a slot; null: as `lanes` says
    const SkipRule* rule;       // null: no lane leaves out anything
    V seed;
    bool values_ahead;          // to be fetched while scores become weights
};

enum class Wanted { kKeys, kValues, kBoth };

// Keys and values on their way from DRAM into the second-level cache. They lie in pieces of a page
// or so, across which the CPU's own prefetcher does not look; and as many requests at once as a
// tile has lines would only wait for each other.
class Awaited {
  public:
    // To be fetched while `folds` tiles are folded.
    template <class T>
    void set(const KvTile<T>& tile, Wanted what, int dim, int folds) {
        pieces_ = 0, line_ = 0;
        lines_at_once_ = folds == 1 ? 16 : folds <= 3 ? 8 : 4;
        lines_ = kPartTokens * dim * static_cast<int>(sizeof(T)) / 64;
        if (what != Wanted::kKeys) add(tile.values, tile.parts);
        if (what != Wanted::kValues) add(tile.keys, tile.parts);
    }

    void fetch_some() {
        if (pieces_ == 0) return;
        const char* from = from_[pieces_ - 1] + line_ * 64;
        for (int i = 0; i < lines_at_once_; i += 4, from += 4 * 64) {
            __builtin_prefetch(from, 0, 2);
            __builtin_prefetch(from + 64, 0, 2);
            __builtin_prefetch(from + 128, 0, 2);
            __builtin_prefetch(from + 192, 0, 2);
        }
        line_ += lines_at_once_;
        if (line_ >= lines_) line_ = 0, --pieces_;
    }

  private:
    template <class T>
    void add(const T* const* parts, int count) {
        while (count > 0) from_[pieces_++] = reinterpret_cast<const char*>(parts[--count]);
    }

    const char* from_[2 * kParts];  // the last one first
    int pieces_ = 0, lines_ = 0, line_ = 0, lines_at_once_ = 0;
};

template <class P>
class TileFold {
  public:
    using T = typename P::Element;

    explicit TileFold(int dim) : dim_(dim) {}

    // The tile that will be read after so many folds of the one before; a prefetch, nothing more.
    template <class Stored>
    void expect(const KvTile<Stored>& tile, Wanted what, int folds) {
        awaited_.set(tile, what, dim_, folds);
    }

    // False when all lanes leave out the tile.
    bool operator()(const AttentionShape& shape, const Item<T>& item) {
        const V top = score(shape, item);
        VInt gone{};
        if (item.rule != nullptr) {
            Loss loss = loss_of(*item.rule, *item.lanes, item.state, item.seed, item.begin, top);
            if (any(loss.gone)) {
                loss.gone &= ~unknown(item.tile.parts * kPartTokens);
                omit(loss, item.state);
                gone = loss.gone;
                if (!any(~(gone | item.rule->unused))) return false;
            }
        }
        if (item.values_ahead) values_.set(item.tile, Wanted::kValues, dim_, 1);
        soften(shape, item, top, gone);
        P::weigh(item.tile, dim_, weights_, item.state.out());
        return true;
    }

    // The largest score of each lane in the tile, in units of log2; never a NaN.
    V score(const AttentionShape& shape, const Item<T>& item) {
        const int tokens = item.tile.parts * kPartTokens;
        P::scores(item.tile, dim_, item.queries, scores_);
        if (item.tile.key_scales != nullptr) scale_keys(item.tile, tokens);
        if (shape.softcap > 0) cap_scores(shape, tokens);
        if (item.seen != nullptr) {
            mask_slots(item.seen, tokens);
        } else if (item.begin + tokens > item.lanes->all_high ||
                   item.begin < item.lanes->all_low) {
            mask(item, tokens);
        }
        return largest(tokens) * set1(scale_of(shape));
    }

  private:
    static float scale_of(const AttentionShape& shape) {
        return (shape.softcap > 0 ? shape.softcap : shape.scale) * kLog2E;
    }

    // Scores become weights, none for lanes that are gone, and what the state holds is brought to the
    // new maximum.
    void soften(const AttentionShape& shape, const Item<T>& item, V top, VInt gone) {
        const KvTile<T>& tile = item.tile;
        const int tokens = tile.parts * kPartTokens;
        const float scale = scale_of(shape);
        const State& state = item.state;
        const V before = load(state.best());
        const V best = gone ? before : max(top, before);
        const V from = gone ? set1(kAll) : best;
        const V factor = exp2(before - best);
        const V sum = tile.value_scales != nullptr ? weigh_scores<true>(tile, tokens, scale, from)
                                                   : weigh_scores<false>(tile, tokens, scale, from);
        store(state.best(), best);
        store(state.total(), load(state.total()) * factor + sum);
        if (!any_above(best, before)) return;
        for (int d = 0; d < dim_; ++d) {
            float* out = state.out() + d * kLanes;
            store(out, load(out) * factor);
        }
    }

    // Lanes with a score that is not a number.
    VInt unknown(int tokens) {
        VInt found{};
        for (int t = 0; t < tokens; t += 4) {
            for (int i = 0; i < 4; ++i) {
                const V score = load(scores_ + (t + i) * kLanes);
                found |= score != score;
            }
            awaited_.fetch_some();
        }
        return found;
    }

    // Keys of int8 are whole numbers; their scales come here.
    void scale_keys(const KvTile<T>& tile, int tokens) {
        for (int t = 0; t < tokens; ++t) {
            float* score = scores_ + t * kLanes;
            store(score, load(score) * set1(tile.key_scales[t]));
        }
    }

    // tanh(scores × scale / softcap); what is left to do is × softcap.
    void cap_scores(const AttentionShape& shape, int tokens) {
        const V scale = set1(shape.scale / shape.softcap);
        for (int t = 0; t < tokens; ++t) {
            float* score = scores_ + t * kLanes;
            store(score, tanh(load(score) * scale));
        }
    }

    void mask(const Item<T>& item, int tokens) {
        for (int t = 0; t < tokens; ++t) {
            float* score = scores_ + t * kLanes;
            store(score, item.lanes->visible(load(score), item.begin + t));
        }
    }

    void mask_slots(const std::uint16_t* seen, int tokens) {
        const VInt bit = {1,      1 << 1, 1 << 2,  1 << 3,  1 << 4,  1 << 5,  1 << 6,  1 << 7,
                          1 << 8, 1 << 9, 1 << 10, 1 << 11, 1 << 12, 1 << 13, 1 << 14, 1 << 15};
        for (int t = 0; t < tokens; ++t) {
            if (seen[t] == 0xffff) continue;
            float* score = scores_ + t * kLanes;
            const VInt lanes = VInt{} + seen[t];
            store(score, (lanes & bit) != 0 ? load(score) : set1(-__builtin_inff()));
        }
    }

    // Of each lane; never a NaN.
    V largest(int tokens) const {
        V best[4] = {set1(kNothing), set1(kNothing), set1(kNothing), set1(kNothing)};
        for (const float* score = scores_; tokens > 0; tokens -= 4) {
            for (int i = 0; i < 4; ++i, score += kLanes) best[i] = max(load(score), best[i]);
        }
        return max(max(best[0], best[1]), max(best[2], best[3]));
    }

    // Weights for the second product; returns each lane's sum of them. Four sums run side by side:
    // one would wait for itself.
    template <bool kScaled>
    V weigh_scores(const KvTile<T>& tile, int tokens, float scale, V from) {
        V sums[4] = {};
        for (int t = 0; t < tokens; t += 4) {
            V weight[4];
            for (int i = 0; i < 4; ++i) {
                const V score = load(scores_ + (t + i) * kLanes);
                weight[i] = P::exp2(fma(score, set1(scale), -from));
                sums[i] += weight[i];
                if (kScaled) weight[i] *= set1(tile.value_scales[t + i]);
            }
            awaited_.fetch_some();
            values_.fetch_some();
            P::put_weights(weights_, t / 2, weight[0], weight[1]);
            P::put_weights(weights_, t / 2 + 1, weight[2], weight[3]);
        }
        return (sums[0] + sums[1]) + (sums[2] + sums[3]);
    }

    int dim_;
    Awaited awaited_;  // of the next tile
    Awaited values_;   // of this one
    alignas(64) float scores_[kTileTokens * kLanes];
    alignas(64) float weights_[P::kWeightFloats];
};

}  // namespace triptych
