#include "token_filter.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>

#include "pool.h"
#include "sampling_lanes.h"

namespace triptych {
namespace {

using lanes::Floats;
using lanes::kLanes;
using lanes::Mask;

constexpr int kWeightBits = 40;  // 2¹⁸ tokens of the greatest weight still fit into 63 bits
constexpr int kSlice = 16384;    // a multiple of kLanes
constexpr int kSortBelow = 96;
constexpr int kBins = 256;
constexpr int kRounds = 4;

Floats load_scaled(const ScaledRow& row, int i) {
    const int here = row.count - i;
    const Floats raw = here >= kLanes ? lanes::load(row.logits + i)
                                      : lanes::load_some(row.logits + i, here, -INFINITY);
    return raw * lanes::splat(row.scale);
}

// Calls body(slice, from, to) for every slice of [0, count).
template <class Body>
void for_slices(int count, Body body) {
    const int slices = (count + kSlice - 1) / kSlice;
    parallel_for(slices, [&](int s) { body(s, s * kSlice, std::min(count, (s + 1) * kSlice)); });
}

float lane_maximum(Floats a) {
    alignas(64) float values[kLanes];
    lanes::store(values, a);
    return *std::max_element(values, values + kLanes);
}

float slice_maximum(const float* logits, int from, int to) {
    Floats most[4];
    std::fill(most, most + 4, lanes::splat(-INFINITY));
    int i = from;
    for (; i + 4 * kLanes <= to; i += 4 * kLanes) {
        for (int j = 0; j < 4; ++j) {
            most[j] = lanes::larger(lanes::load(logits + i + j * kLanes), most[j]);
        }
    }
    for (; i < to; i += kLanes) {
        most[0] = lanes::larger(
            lanes::load_some(logits + i, std::min(kLanes, to - i), -INFINITY), most[0]);
    }
    most[0] = lanes::larger(most[0], most[1]);
    most[2] = lanes::larger(most[2], most[3]);
    return lane_maximum(lanes::larger(most[0], most[2]));
}

TokenKey make_key(float logit, int token) {
    const std::uint32_t bits = lanes::bits_of(logit + 0.0f);  // −0 becomes +0
    const std::uint32_t ordered = bits ^ (bits >> 31 ? 0xFFFFFFFFu : 0x80000000u);
    return TokenKey{ordered} << 32 | ~static_cast<std::uint32_t>(token);
}

// Writes the keys of the lanes in `chosen`, lowest token first; returns how many. Up to sixteen
// keys behind them hold anything afterwards.
int append_keys(TokenKey* keys, Floats logits, int first_token, Mask chosen) {
#if defined(__AVX512F__)
    const __m512i iota =
        _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i tokens = _mm512_add_epi32(iota, _mm512_set1_epi32(first_token));
    const __m512i bits = _mm512_castps_si512(_mm512_add_ps(logits.v, _mm512_setzero_ps()));
    const __m512i flip = _mm512_or_si512(_mm512_srai_epi32(bits, 31),
                                         _mm512_set1_epi32(static_cast<int>(0x80000000u)));
    const __m512i ordered = _mm512_maskz_compress_epi32(chosen, _mm512_xor_si512(bits, flip));
    const __m512i ids = _mm512_maskz_compress_epi32(
        chosen, _mm512_xor_si512(tokens, _mm512_set1_epi32(-1)));
    const auto join = [](__m256i high, __m256i low) {
        return _mm512_or_si512(_mm512_slli_epi64(_mm512_cvtepu32_epi64(high), 32),
                               _mm512_cvtepu32_epi64(low));
    };
    _mm512_storeu_si512(keys,
                        join(_mm512_castsi512_si256(ordered), _mm512_castsi512_si256(ids)));
    _mm512_storeu_si512(keys + 8, join(_mm512_extracti64x4_epi64(ordered, 1),
                                       _mm512_extracti64x4_epi64(ids, 1)));
    return __builtin_popcount(chosen);
#else
    int count = 0;
    for (unsigned rest = chosen; rest != 0; rest &= rest - 1) {
        const int l = __builtin_ctz(rest);
        keys[count++] = make_key(logits.v[l], first_token + l);
    }
    return count;
#endif
}

// Weights of sixteen tokens, added to sums[0..16).
struct Weights {
    alignas(64) std::int64_t of[kLanes] = {};

    void add(Floats logits, float greatest) {
        const Floats scaled = lanes::exp_scaled(logits - lanes::splat(greatest), kWeightBits);
#if defined(__AVX512DQ__)
        const __m256 low = _mm512_castps512_ps256(scaled.v);
        const __m256 high = _mm512_extractf32x8_ps(scaled.v, 1);
        const auto add_half = [](std::int64_t* sums, __m256 values) {
            const __m512i sum = _mm512_load_si512(sums);
            _mm512_store_si512(sums, _mm512_add_epi64(sum, _mm512_cvttps_epi64(values)));
        };
        add_half(of, low);
        add_half(of + 8, high);
#else
        for (int l = 0; l < kLanes; ++l) of[l] += static_cast<std::int64_t>(scaled.v[l]);
#endif
    }

    std::int64_t sum() const {
        std::int64_t total = 0;
        for (const std::int64_t weight : of) total += weight;
        return total;
    }
};

// −∞ weighs nothing: its gap is clamped to one whose weight is below 1. So do tokens that are no
// number.
std::int64_t row_weight(const ScaledRow& row, float greatest) {
    std::array<std::int64_t, 64> sums{};
    const auto slice_weight = [&](int from, int to) {
        Weights weights;
        for (int i = from; i < to; i += kLanes) weights.add(load_scaled(row, i), greatest);
        return weights.sum();
    };
    if (row.count > kSlice * static_cast<int>(sums.size())) return slice_weight(0, row.count);
    for_slices(row.count, [&](int s, int from, int to) { sums[s] = slice_weight(from, to); });
    std::int64_t total = 0;
    for (const std::int64_t sum : sums) total += sum;
    return total;
}

// The mass that is to be reached; the torch twin computes the same float64 product.
std::int64_t wanted_weight(std::int64_t total, double top_p) {
    const double share = std::ceil(top_p * static_cast<double>(total));
    return std::clamp(static_cast<std::int64_t>(share), std::int64_t{1}, total);
}

// The keys where the mass in front of them crosses what is wanted, in ever narrower bins.
class Crossing {
  public:
    Crossing(TokenKey* keys, int count, float greatest, std::int64_t wanted, TokenKey* spare)
        : keys_(keys), end_(count), greatest_(greatest), wanted_(wanted), spare_(spare) {}

    // Puts the kept keys in front and returns how many.
    int find() {
        for (int round = 0; round < kRounds && end_ - kept_ > kSortBelow; ++round) {
            if (!narrow()) return kept_;
        }
        std::sort(keys_ + kept_, keys_ + end_, std::greater<>());
        for (; wanted_ > 0 && kept_ < end_; ++kept_) wanted_ -= weight_of(keys_[kept_]);
        return kept_;
    }

  private:
    std::int64_t weight_of(TokenKey key) const {
        Weights weights;
        weights.add(lanes::splat(key_logit(key)), greatest_);
        return weights.of[0];
    }

    // One round over the keys in question; false when all was decided.
    bool narrow() {
        const auto [least, most] = std::minmax_element(keys_ + kept_, keys_ + end_);
        const double high = key_logit(*most), low = key_logit(*least);
        if (high == low) return take_equals();
        const double per_bin = (kBins - 1) / (high - low);
        // Never increases with the logit, so bins are in the keys' order.
        const auto bin_of = [=](TokenKey key) {
            return static_cast<int>((high - key_logit(key)) * per_bin);
        };
        std::array<std::int64_t, kBins> mass{};
        add_up(mass, bin_of);
        int crossing = 0;
        for (; crossing < kBins - 1 && mass[crossing] < wanted_; ++crossing) {
            wanted_ -= mass[crossing];
        }
        split(crossing, bin_of);
        return true;
    }

    // All have one logit: the lowest ids, as many as it takes.
    bool take_equals() {
        const std::int64_t each = std::max<std::int64_t>(weight_of(keys_[kept_]), 1);
        const int more = static_cast<int>(
            std::min<std::int64_t>(end_ - kept_, (wanted_ + each - 1) / each));
        TokenKey* const first = keys_ + kept_;
        std::nth_element(first, first + more - 1, keys_ + end_, std::greater<>());
        kept_ += more;
        return false;
    }

    template <class BinOf>
    void add_up(std::array<std::int64_t, kBins>& mass, BinOf bin_of) const {
        for (int i = kept_; i < end_; i += kLanes) {
            const int here = std::min(kLanes, end_ - i);
            alignas(64) float logits[kLanes] = {};
            for (int l = 0; l < here; ++l) logits[l] = key_logit(keys_[i + l]);
            Weights weights;
            weights.add(lanes::load(logits), greatest_);
            for (int l = 0; l < here; ++l) mass[bin_of(keys_[i + l])] += weights.of[l];
        }
    }

    // Bins before `crossing` are kept, bins behind it dropped.
    template <class BinOf>
    void split(int crossing, BinOf bin_of) {
        int inside = 0;
        const int from = kept_;
        for (int i = from; i < end_; ++i) {  // every key is written, few stay
            const TokenKey key = keys_[i];
            const int bin = bin_of(key);
            keys_[kept_] = key;
            kept_ += bin < crossing;
            spare_[inside] = key;
            inside += bin == crossing;
        }
        std::copy(spare_, spare_ + inside, keys_ + kept_);
        end_ = kept_ + inside;
    }

    TokenKey* keys_;
    int kept_ = 0;
    int end_;  // keys from here on are dropped
    float greatest_;
    std::int64_t wanted_;  // what the kept ones do not have yet
    TokenKey* spare_;
};

// Tokens with a lower gap to the greatest logit cannot be among the first that hold `wanted`: even
// all together they weigh less than what is left.
float least_gap(std::int64_t total, std::int64_t wanted, int count) {
    const double weight = std::max(static_cast<double>(total - wanted) / count, 1.0);
    // std::log may differ in its last bit between systems; the margin hides that and exp_scaled's
    // error. The result decides the work, never the outcome.
    return static_cast<float>(std::log(weight) - kWeightBits * 0.6931471805599453 - 1e-3);
}

}  // namespace

float key_logit(TokenKey key) {
    const auto ordered = static_cast<std::uint32_t>(key >> 32);
    return lanes::float_of(ordered ^ (ordered >> 31 ? 0x80000000u : 0xFFFFFFFFu));
}

int key_token(TokenKey key) { return static_cast<int>(~static_cast<std::uint32_t>(key)); }

float greatest_logit(const float* logits, int count) {
    std::array<float, 64> most;
    if (count > kSlice * static_cast<int>(most.size())) return slice_maximum(logits, 0, count);
    most.fill(-INFINITY);
    for_slices(count, [&](int s, int from, int to) { most[s] = slice_maximum(logits, from, to); });
    return *std::max_element(most.begin(), most.end());
}

// The scale is positive and rounding keeps order, so the greatest stays the greatest.
float greatest_logit(const ScaledRow& row) {
    return greatest_logit(row.logits, row.count) * row.scale;
}

int room_for_best(int k) { return 2 * k + 256 + 5 * kLanes; }

int find_best(const ScaledRow& row, int k, TokenKey* keys) {
    const int full = room_for_best(k) - 5 * kLanes;
    int count = 0;
    float bar = -INFINITY;  // k tokens so far are not below; an equal one that comes later loses
    const auto keep_best = [&] {
        if (count <= k) return;
        std::nth_element(keys, keys + k - 1, keys + count, std::greater<>());
        count = k;
        bar = key_logit(keys[k - 1]);
    };
    const auto take = [&](Floats logits, int i) {
        const Mask chosen = lanes::above(logits, lanes::splat(bar));
        if (chosen != 0) count += append_keys(keys + count, logits, i, chosen);
    };
    int i = 0;
    for (; i + 4 * kLanes <= row.count; i += 4 * kLanes) {
        Floats logits[4];
        for (int j = 0; j < 4; ++j) logits[j] = load_scaled(row, i + j * kLanes);
        unsigned any = 0;
        for (const Floats& four : logits) any |= lanes::above(four, lanes::splat(bar));
        if (any == 0) continue;
        for (int j = 0; j < 4; ++j) take(logits[j], i + j * kLanes);
        if (count > full) keep_best();
    }
    for (; i < row.count; i += kLanes) take(load_scaled(row, i), i);
    keep_best();
    return count;
}

int room_for_likely(int vocab) { return vocab + kLanes; }

int find_likely(const ScaledRow& row, float greatest, double top_p, TokenKey* keys,
                TokenKey* spare) {
    const std::int64_t total = row_weight(row, greatest);
    const std::int64_t wanted = wanted_weight(total, top_p);
    const Floats gap = lanes::splat(least_gap(total, wanted, row.count));
    int count = 0;
    for (int i = 0; i < row.count; i += kLanes) {
        const Floats logits = load_scaled(row, i);
        const Mask chosen = lanes::at_least(logits - lanes::splat(greatest), gap);
        if (chosen != 0) count += append_keys(keys + count, logits, i, chosen);
    }
    return Crossing(keys, count, greatest, wanted, spare).find();
}

int keep_likely(TokenKey* keys, int count, double top_p, TokenKey* spare) {
    const float greatest = key_logit(*std::max_element(keys, keys + count));
    std::int64_t total = 0;
    for (int i = 0; i < count; i += kLanes) {
        alignas(64) float logits[kLanes];
        std::fill(logits, logits + kLanes, -INFINITY);
        for (int l = 0; l < std::min(kLanes, count - i); ++l) logits[l] = key_logit(keys[i + l]);
        Weights weights;
        weights.add(lanes::load(logits), greatest);
        total += weights.sum();
    }
    const std::int64_t wanted = wanted_weight(total, top_p);
    return Crossing(keys, count, greatest, wanted, spare).find();
}

}  // namespace triptych
