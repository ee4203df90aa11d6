#include <algorithm>
#include <array>
#include <cfloat>
#include <cstdint>
#include <functional>

#include "token_filter.h"

namespace triptych {
namespace {

typedef float Floats8 __attribute__((vector_size(32)));
typedef std::int64_t Longs8 __attribute__((vector_size(64)));

constexpr int kWeightBits = 40;  // 2²² tokens of the greatest weight still fit into 63 bits
constexpr int kSortBelow = 96;
constexpr int kBins = 256;
constexpr int kRounds = 4;

// Sums of weights, one for each of sixteen lanes. −∞ weighs nothing, and so does a NaN.
struct Weights {
    Longs8 halves[2] = {};

    void add(V logits, float greatest) {
        const V weights = scaled_exp(logits - set1(greatest), kWeightBits);
        Floats8 floats[2];
        std::memcpy(floats, &weights, sizeof weights);
        for (int h = 0; h < 2; ++h) halves[h] += __builtin_convertvector(floats[h], Longs8);
    }

    void store(std::int64_t* to) const { std::memcpy(to, halves, sizeof halves); }

    std::int64_t sum() const {
        const Longs8 both = halves[0] + halves[1];
        std::int64_t total = 0;
        for (int l = 0; l < 8; ++l) total += both[l];
        return total;
    }
};

std::int64_t weight_of(float logit, float greatest) {
    Weights weights;
    weights.add(set1(logit), greatest);
    return weights.halves[0][0];
}

std::int64_t row_weight(const ScaledRow& row, float greatest) {
    std::array<std::int64_t, kMaxSlices> sums{};
    for_slices(row.count, [&](int s, int from, int to) {
        Weights weights;
        for (int i = from; i < to; i += kLanes) weights.add(row.load(i), greatest);
        sums[s] = weights.sum();
    });
    std::int64_t total = 0;
    for (const std::int64_t sum : sums) total += sum;
    return total;
}

// The mass that is to be reached; torch computes the same float64 product.
std::int64_t wanted_weight(std::int64_t total, double top_p) {
    const double share = std::ceil(top_p * static_cast<double>(total));
    return std::clamp(static_cast<std::int64_t>(share), std::int64_t{1}, total);
}

// A logit farther below the greatest cannot be among the first ones that hold `wanted`: all such
// tokens together weigh less than what is left.
float widest_gap(std::int64_t total, std::int64_t wanted, int count) {
    const double weight = std::max(static_cast<double>(total - wanted) / count, 1.0);
    // The margin is for the errors of scaled_exp, and of std::log, whose last bit differs between
    // systems: this number decides how much work there is, not how it ends.
    return static_cast<float>(std::log(weight) - kWeightBits * 0.6931471805599453 - 1e-3);
}

// Bins of equal width, greater logits first. A bin's number never falls with the logit, so bins are
// in the tokens' order.
struct Bins {
    float high, per_bin;

    Bins(float low, float high)
        : high(high), per_bin(std::min((kBins - 1) / (high - low), FLT_MAX)) {}

    VInt of(V logits) const {
        const V place = (set1(high) - logits) * set1(per_bin);
        // ∞ · 0 is bin 0, like everything beside it then.
        return to_int(min(max(place, set1(0.0f)), set1(kBins - 1.0f)));
    }
};

// Looks for the token where the mass of those in front of it reaches what is wanted: the list's
// places [0, kept_) are kept, those from end_ on dropped, the rest is told apart bin by bin.
class Crossing {
  public:
    Crossing(TokenList& list, TokenList& spare, int count, float greatest, std::int64_t wanted)
        : list_(list), spare_(spare), end_(count), greatest_(greatest), wanted_(wanted) {}

    // Puts the kept tokens in front and returns how many.
    int find(Buffer<TokenKey>& keys) {
        for (int round = 0; round < kRounds && end_ - kept_ > kSortBelow; ++round) {
            const auto [low, high] = limits();
            if (low == high) return take_equals(low);
            narrow(Bins(low, high));
        }
        return take_sorted(keys.take(end_ - kept_));
    }

  private:
    // Sixteen logits from `i` on, `rest` behind the last.
    V logits_at(int i, float rest) const { return load_some(list_.logits() + i, end_ - i, rest); }

    std::array<float, 2> limits() const {
        V low = set1(INFINITY), high = set1(-INFINITY);
        for (int i = kept_; i < end_; i += kLanes) {
            low = min(logits_at(i, INFINITY), low);
            high = max(logits_at(i, -INFINITY), high);
        }
        return {-max_lanes(-low), max_lanes(high)};
    }

    // All have one logit: the lowest ids, as many as it takes.
    int take_equals(float logit) {
        const std::int64_t each = std::max(weight_of(logit, greatest_), std::int64_t{1});
        const std::int64_t wish = (wanted_ + each - 1) / each;
        const int more = static_cast<int>(std::min(wish, std::int64_t{end_ - kept_}));
        int* const tokens = list_.tokens();
        if (more > 0) std::nth_element(tokens + kept_, tokens + kept_ + more - 1, tokens + end_);
        return kept_ + more;
    }

    int take_sorted(TokenKey* keys) {
        const int count = end_ - kept_;
        for (int i = 0; i < count; ++i) {
            keys[i] = token_key(list_.logits()[kept_ + i], list_.tokens()[kept_ + i]);
        }
        std::sort(keys, keys + count, std::greater<>());
        for (int i = 0; i < count && wanted_ > 0; ++i, ++kept_) {
            list_.put(kept_, key_logit(keys[i]), key_token(keys[i]));
            wanted_ -= weight_of(key_logit(keys[i]), greatest_);
        }
        return kept_;
    }

    void narrow(const Bins& bins) {
        std::array<std::int64_t, kBins> mass{};
        for (int i = kept_; i < end_; i += kLanes) {
            const V logits = logits_at(i, -INFINITY);
            Weights weights;
            weights.add(logits, greatest_);
            std::int64_t weight[kLanes];
            weights.store(weight);
            const VInt bins_here = bins.of(logits);
            int bin[kLanes];
            std::memcpy(bin, &bins_here, sizeof bin);
            for (int l = 0; l < kLanes; ++l) mass[bin[l]] += weight[l];
        }
        int crossing = 0;
        for (; crossing < kBins - 1 && mass[crossing] < wanted_; ++crossing) {
            wanted_ -= mass[crossing];
        }
        split(bins, crossing);
    }

    // Keeps the bins in front of `crossing`, drops those behind it.
    void split(const Bins& bins, int crossing) {
        const V here = set1(static_cast<float>(crossing));
        int inside = 0;
        spare_.reserve(end_ - kept_);
        for (int i = kept_; i < end_; i += kLanes) {
            const Mask valid = first_lanes(end_ - i);
            const V logits = logits_at(i, -INFINITY);
            const VInt tokens = load(list_.tokens() + i);
            const V bin = from_int(bins.of(logits));
            kept_ += list_.put(kept_, logits, tokens, above(here, bin) & valid);
            inside += spare_.put(inside, logits, tokens, equal(here, bin) & valid);
        }
        list_.copy(kept_, spare_, inside);
        end_ = kept_ + inside;
    }

    TokenList& list_;
    TokenList& spare_;
    int kept_ = 0;
    int end_;
    float greatest_;
    std::int64_t wanted_;  // what the kept ones do not have yet
};

}  // namespace

int keep_likely(const ScaledRow& row, float greatest, double top_p, FilterBuffers& buffers) {
    const std::int64_t total = row_weight(row, greatest);
    const std::int64_t wanted = wanted_weight(total, top_p);
    const V gap = set1(widest_gap(total, wanted, row.count));
    TokenList& list = buffers.list;
    list.reserve(row.count);
    int count = 0;
    for (int i = 0; i < row.count; i += kLanes) {
        const V logits = row.load(i);
        const Mask chosen = at_least(logits - set1(greatest), gap);
        if (chosen != 0) count += list.put(count, logits, count_from(i), chosen);
    }
    return Crossing(list, buffers.spare, count, greatest, wanted).find(buffers.keys);
}

int keep_likely_of(int count, float greatest, double top_p, FilterBuffers& buffers) {
    Weights weights;
    for (int i = 0; i < count; i += kLanes) {
        weights.add(load_some(buffers.list.logits() + i, count - i, -INFINITY), greatest);
    }
    const std::int64_t wanted = wanted_weight(weights.sum(), top_p);
    return Crossing(buffers.list, buffers.spare, count, greatest, wanted).find(buffers.keys);
}

}  // namespace triptych
