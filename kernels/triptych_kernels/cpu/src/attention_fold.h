// One tile of keys and values for one group of lanes: scores, softmax, weighted values.
//
// The three come one after the other. Softmax between the instructions of tile products was tried:
// with tile instructions in flight a core has one unit for vectors of 512 bits instead of two, so
// what one half gains the other loses.
//
// Where no more than P::kFewLanes lanes are used, all three are as wide as that (kWidth), and a vector
// holds scores of two tokens. Sums are kept by token modulo four either way.
#pragma once

#include "attention_tile.h"
#include "skipping.h"

namespace triptych {

// A tile for one group of lanes.
template <class T>
struct Item {
    KvTile<T> tile;
    int begin;  // position
    int used;   // lanes
    const Lanes* lanes;
    const void* queries;
    State state;
    const std::uint16_t* seen;  // lanes that see a slot; null: as `lanes` says
    const SkipRule* rule;       // null: no lane leaves out anything
    V seed;
    bool values_late;  // values are read where they lie, and asked for only when they will be weighed
};

enum class Wanted { kKeys, kValues, kBoth };

// Keys and values on their way from DRAM into the second-level cache. They lie in pieces of a page
// or so, across which the CPU's own prefetcher does not look; and as many requests at once as a
// tile has lines would only wait for each other.
class Awaited {
  public:
    // To be fetched in so many calls of `fetch_some`.
    template <class T>
    void set(const KvTile<T>& tile, Wanted what, int dim, int calls) {
        pieces_ = 0, line_ = 0;
        lines_ = kPartTokens * dim * static_cast<int>(sizeof(T)) / 64;
        if (what != Wanted::kKeys) add(tile.values, tile.parts);
        if (what != Wanted::kValues) add(tile.keys, tile.parts);
        lines_at_once_ = (pieces_ * lines_ + 4 * calls - 1) / (4 * calls) * 4;
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

// V's of two registers are passed in memory where the compiler calls.
#define TK_INLINED __attribute__((always_inline)) static

// A vector of scores: one token's, or two tokens' of eight lanes each.
template <int kWidth>
struct Vectors;

template <>
struct Vectors<kLanes> {
    static constexpr int kTokens = 1;
    TK_INLINED VInt tokens() { return VInt{}; }  // which it holds, from the first one on
    TK_INLINED V of_lanes(V lanes) { return lanes; }
    TK_INLINED V of_tokens(const float* of) { return set1(*of); }
    TK_INLINED VInt of_tokens(const std::uint16_t* of) { return VInt{} + *of; }
    TK_INLINED V of_next(V x) { return x; }  // what it has of the other token
    TK_INLINED V sum_up(const V (&of)[4]) { return (of[0] + of[1]) + (of[2] + of[3]); }
};

template <>
struct Vectors<kLanes / 2> {
    static constexpr int kTokens = 2;
    static constexpr VInt kSecond = {0, 0, 0, 0, 0, 0, 0, 0, -1, -1, -1, -1, -1, -1, -1, -1};
    TK_INLINED VInt tokens() { return -kSecond; }
    TK_INLINED V of_lanes(V lanes) { return halves(lanes, 0, 0); }
    TK_INLINED V of_tokens(const float* of) { return choose(kSecond, set1(of[1]), set1(of[0])); }
    TK_INLINED VInt of_tokens(const std::uint16_t* of) {
        return choose(kSecond, VInt{} + of[1], VInt{} + of[0]);
    }
    TK_INLINED V of_next(V x) { return halves(x, 1, 0); }
    TK_INLINED V sum_up(const V (&of)[2]) {
        return (of[0] + of_next(of[0])) + (of[1] + of_next(of[1]));
    }

  private:
    TK_INLINED V halves(V x, int first, int second) {
        __m256 from[2], to[2];
        std::memcpy(from, &x, 64);
        to[0] = from[first], to[1] = from[second];
        std::memcpy(&x, to, 64);
        return x;
    }
};

template <class P>
class TileFold {
  public:
    using T = typename P::Element;

    explicit TileFold(int dim) : dim_(dim) {}

    // The tile that will be read after so many folds of the one before; a prefetch, nothing more.
    template <class Stored>
    void expect(const KvTile<Stored>& tile, Wanted what, int folds) {
        // A tile that is left out has no weights to make.
        const bool scores_only = P::kAsksBetween && what == Wanted::kKeys;
        awaited_.set(tile, what, dim_, folds * (scores_only ? P::kAsksInScores : P::kAsks));
    }

    // Does what is left to do for the last tile. To be called before its state is looked at.
    void finish() {
        if (late_out_ == nullptr) return;
        late_few_ ? weigh<P::kFewLanes>(late_, late_out_) : weigh<kLanes>(late_, late_out_);
        late_out_ = nullptr;
    }

    // False when all lanes leave out the tile.
    bool operator()(const AttentionShape& shape, const Item<T>& item) {
        return item.used <= P::kFewLanes ? fold<P::kFewLanes>(shape, item) : fold<kLanes>(shape, item);
    }

    // The largest score of each lane in the tile, in units of log2; never a NaN.
    V score(const AttentionShape& shape, const Item<T>& item) {
        return item.used <= P::kFewLanes ? score<P::kFewLanes>(shape, item)
                                         : score<kLanes>(shape, item);
    }

  private:
    static float scale_of(const AttentionShape& shape) {
        return (shape.softcap > 0 ? shape.softcap : shape.scale) * kLog2E;
    }

    template <int kWidth>
    bool fold(const AttentionShape& shape, const Item<T>& item) {
        const V top = score<kWidth>(shape, item);
        finish();
        VInt gone{};
        if (item.rule != nullptr) {
            Loss loss = loss_of(*item.rule, *item.lanes, item.state, item.seed, item.begin, top);
            if (any(loss.gone)) {
                loss.gone &= ~unknown<kWidth>(item.tile.parts * kPartTokens);
                omit(loss, item.state);
                gone = loss.gone;
                if (!any(~(gone | item.rule->unused))) return false;
            }
        }
        if (item.values_late) values_.set(item.tile, Wanted::kValues, dim_, P::kAsks);
        soften<kWidth>(shape, item, top, gone);
        if (item.values_late && P::kAsksBetween) {
            late_ = item.tile, late_out_ = item.state.out(), late_few_ = kWidth == P::kFewLanes;
        } else {
            weigh<kWidth>(item.tile, item.state.out());
        }
        return true;
    }

    template <int kWidth>
    void weigh(const KvTile<T>& tile, float* out) {
        P::template weigh<kWidth>(tile, dim_, weights_, out, [&] { awaited_.fetch_some(); });
    }

    template <int kWidth>
    V score(const AttentionShape& shape, const Item<T>& item) {
        const int tokens = item.tile.parts * kPartTokens;
        P::template scores<kWidth>(item.tile, dim_, item.queries, scores_, [&] {
            awaited_.fetch_some();
            values_.fetch_some();
        });
        if (item.tile.key_scales != nullptr) scale_keys<kWidth>(item.tile, tokens);
        if (shape.softcap > 0) cap_scores<kWidth>(shape, tokens);
        if (item.seen != nullptr) {
            mask_slots<kWidth>(item.seen, tokens);
        } else if (item.begin + tokens > item.lanes->all_high ||
                   item.begin < item.lanes->all_low) {
            mask<kWidth>(item, tokens);
        }
        return largest<kWidth>(tokens) * set1(scale_of(shape));
    }

    // Scores become weights, none for lanes that are gone, and what the state holds is brought to the
    // new maximum.
    template <int kWidth>
    void soften(const AttentionShape& shape, const Item<T>& item, V top, VInt gone) {
        const KvTile<T>& tile = item.tile;
        const int tokens = tile.parts * kPartTokens;
        const float scale = scale_of(shape);
        const State& state = item.state;
        const V before = load(state.best());
        const V best = choose(gone, before, max(top, before));
        const V from = Vectors<kWidth>::of_lanes(choose(gone, set1(kAll), best));
        const V factor = exp2(before - best);
        const V sum = tile.value_scales != nullptr
                          ? weigh_scores<kWidth, true>(tile, tokens, scale, from)
                          : weigh_scores<kWidth, false>(tile, tokens, scale, from);
        store(state.best(), best);
        store(state.total(), load(state.total()) * factor + sum);
        if (!any_above(best, before)) return;
        for (int d = 0; d < dim_; ++d) {
            float* out = state.out() + d * kLanes;
            store(out, load(out) * factor);
        }
    }

    // Calls visit(token, score) with a vector of scores at a time.
    template <int kWidth, class Visit>
    void each(int tokens, Visit&& visit) {
        for (int t = 0; t < tokens; t += Vectors<kWidth>::kTokens) visit(t, scores_ + t * kWidth);
    }

    // Lanes with a score that is not a number.
    template <int kWidth>
    VInt unknown(int tokens) {
        VInt found{};
        for (int t = 0; t < tokens; t += kPartTokens) {
            found |= where_any_nan(scores_ + t * kWidth, kPartTokens * kWidth);
            for (int i = 0; i < kPartTokens; i += 4) awaited_.fetch_some();
        }
        return found | (VInt)Vectors<kWidth>::of_next((V)found);
    }

    // Keys of int8 are whole numbers; their scales come here.
    template <int kWidth>
    void scale_keys(const KvTile<T>& tile, int tokens) {
        each<kWidth>(tokens, [&](int t, float* score) {
            store(score, load(score) * Vectors<kWidth>::of_tokens(tile.key_scales + t));
        });
    }

    // tanh(scores × scale / softcap); what is left to do is × softcap.
    template <int kWidth>
    void cap_scores(const AttentionShape& shape, int tokens) {
        const V scale = set1(shape.scale / shape.softcap);
        each<kWidth>(tokens, [&](int, float* score) { store(score, tanh(load(score) * scale)); });
    }

    template <int kWidth>
    void mask(const Item<T>& item, int tokens) {
        const VInt low = (VInt)Vectors<kWidth>::of_lanes((V)item.lanes->low);
        const VInt high = (VInt)Vectors<kWidth>::of_lanes((V)item.lanes->high);
        each<kWidth>(tokens, [&](int t, float* score) {
            const VInt here = Vectors<kWidth>::tokens() + (item.begin + t);
            const VInt seen = where_above(high, here) & ~where_above(low, here);
            store(score, choose(seen, load(score), set1(-__builtin_inff())));
        });
    }

    template <int kWidth>
    void mask_slots(const std::uint16_t* seen, int tokens) {
        const VInt bit = (VInt)Vectors<kWidth>::of_lanes(
            (V)VInt{1,      1 << 1, 1 << 2,  1 << 3,  1 << 4,  1 << 5,  1 << 6,  1 << 7,
                    1 << 8, 1 << 9, 1 << 10, 1 << 11, 1 << 12, 1 << 13, 1 << 14, 1 << 15});
        each<kWidth>(tokens, [&](int t, float* score) {
            const VInt lanes = Vectors<kWidth>::of_tokens(seen + t);
            store(score, choose(where_same(lanes & bit, VInt{}), set1(-__builtin_inff()), load(score)));
        });
    }

    // Of each lane; never a NaN.
    template <int kWidth>
    V largest(int tokens) const {
        V best[4] = {set1(kNothing), set1(kNothing), set1(kNothing), set1(kNothing)};
        for (const float* score = scores_; score < scores_ + tokens * kWidth;) {
            for (int i = 0; i < 4; ++i, score += kLanes) best[i] = max(load(score), best[i]);
        }
        const V found = max(max(best[0], best[1]), max(best[2], best[3]));
        return max(found, Vectors<kWidth>::of_next(found));
    }

    // Weights for the second product; returns each lane's sum of them. Four sums run side by side:
    // one would wait for itself.
    template <int kWidth, bool kScaled>
    V weigh_scores(const KvTile<T>& tile, int tokens, float scale, V from) {
        constexpr int kCount = 4 / Vectors<kWidth>::kTokens;  // vectors of four tokens
        V sums[kCount] = {};
        for (int t = 0; t < tokens; t += 4) {
            V weight[kCount];
            for (int i = 0; i < kCount; ++i) {
                const V score = load(scores_ + t * kWidth + i * kLanes);
                weight[i] = P::exp2(fma(score, set1(scale), -from));
                sums[i] += weight[i];
                if (!kScaled) continue;
                const float* scales = tile.value_scales + t + i * Vectors<kWidth>::kTokens;
                weight[i] *= Vectors<kWidth>::of_tokens(scales);
            }
            awaited_.fetch_some();
            values_.fetch_some();
            P::template put_weights<kWidth>(weights_, t, weight);
        }
        return Vectors<kWidth>::sum_up(sums);
    }

    int dim_;
    Awaited awaited_;  // of the next tile
    Awaited values_;   // of this one
    // The tile whose values are on their way: it is weighed behind the next one's scores. Nothing is added
    // up in another order.
    KvTile<T> late_;
    float* late_out_ = nullptr;
    bool late_few_ = false;
    alignas(64) float scores_[kTileTokens * kLanes];
    alignas(64) float weights_[P::kWeightFloats];
};

}  // namespace triptych
