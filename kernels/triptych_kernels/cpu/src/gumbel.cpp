#include "gumbel.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>

#include "token_lanes.h"

namespace triptych {
namespace {

constexpr int kChunk = 1024;  // tokens

constexpr std::uint64_t kGolden = 0x9E3779B97F4A7C15;
constexpr std::uint64_t kMixFirst = 0xBF58476D1CE4E5B9;
constexpr std::uint64_t kMixSecond = 0x94D049BB133111EB;

// SplitMix64's finaliser.
std::uint64_t mix(std::uint64_t x) {
    x = (x ^ (x >> 30)) * kMixFirst;
    x = (x ^ (x >> 27)) * kMixSecond;
    return x ^ (x >> 31);
}

// Natural log of a normal positive number, within 1 ulp: x = 2^e · m with m in [√½, √2), then
// log m = 2 artanh(s) with s = (m − 1) / (m + 1), its series cut where a term is below the last
// bit. Written without the system's libm, whose last bit differs between systems.
double log_of(double x) {
    std::uint64_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    constexpr std::uint64_t kRootHalf = 0x3FE6A09E667F3BCD;
    const auto exponent = static_cast<std::int64_t>(bits - kRootHalf) >> 52;
    bits -= static_cast<std::uint64_t>(exponent) << 52;
    double m;
    std::memcpy(&m, &bits, sizeof m);
    const double f = m - 1.0;  // exact
    const double s = f / (2.0 + f);
    const double z = s * s;
    double series = 2.0 / 23;
    for (int odd = 21; odd >= 3; odd -= 2) series = series * z + 2.0 / odd;
    const double half_square = 0.5 * f * f;
    const double e = static_cast<double>(exponent);
    // ln 2 in two parts; e times the first is exact. 2s = f − s·f, so that the greatest term has
    // no rounding error.
    const double tail = s * (half_square + series * z) + e * 0x1.ef35793c7673p-45;
    return e * 0x1.62e42fefa38p-1 - ((half_square - tail) - f);
}

// What a token must have to beat `best`, see may_win.
struct Bar {
    V lowered;
    V out_of_reach;

    explicit Bar(float best) {
        // Wider than all roundings between here and the score itself.
        const float margin = std::fabs(best) * 0x1p-20f + 0x1p-10f;
        const float low = std::max(best - margin, -FLT_MAX);
        lowered = set1(low);
        out_of_reach = set1(low - 18.0f);  // no noise exceeds 17.33
    }
};

// 1 − u, rounded, of the noise of sixteen tokens.
V complements(std::uint64_t key, VInt tokens) {
#if defined(__AVX512DQ__)
    const auto ids = (__m512i)tokens;
    const auto every = [](std::uint64_t x) {
        return _mm512_set1_epi64(static_cast<long long>(x));
    };
    const auto mix_in = [](__m512i x, unsigned shift) {
        return _mm512_xor_si512(x, _mm512_srli_epi64(x, shift));
    };
    const auto bits_of_half = [&](__m256i half) {
        __m512i x = _mm512_mullo_epi64(_mm512_cvtepi32_epi64(half), every(kGolden));
        x = _mm512_add_epi64(x, every(key + kGolden));
        x = _mm512_mullo_epi64(mix_in(x, 30), every(kMixFirst));
        x = _mm512_mullo_epi64(mix_in(x, 27), every(kMixSecond));
        return _mm512_cvtepi64_epi32(_mm512_srli_epi64(mix_in(x, 31), 40));
    };
    const __m256i low = bits_of_half(_mm512_castsi512_si256(ids));
    const __m256i high = bits_of_half(_mm512_extracti64x4_epi64(ids, 1));
    const VInt bits = (VInt)_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
#else
    VInt bits;
    for (int l = 0; l < kLanes; ++l) {
        bits[l] = static_cast<int>(noise_bits(key, static_cast<std::uint32_t>(tokens[l])));
    }
#endif
    return from_int((1 << 24) - bits) * set1(0x1p-24f) - set1(0x1p-25f);
}

// At least e^min(gap, 0) · 0.9999 and at most 6 % more, down to gaps of −80: a float's bits, read as
// a number, are its logarithm with straight lines between powers of two. Farther down it is near 0,
// negative, or no number.
V exp_bound(V gap) {
    constexpr float kOne = 0x1p23f;
    const V bits = min(gap, set1(0.0f)) * set1(0x1.715476p+0f * kOne) + set1(127 * kOne);
    return (V)to_int(bits);
}

VInt tokens_at(const Field& field, int i) {
    return field.tokens == nullptr ? count_from(field.first_token + i) : load(field.tokens + i);
}

class Search {
  public:
    Search(std::uint64_t key, float floor) : key_(key), floor_(set1(std::max(floor, -FLT_MAX))) {}

    const Winner& winner() const { return winner_; }

    // At most kChunk places of the field. First those are picked whose logit is not too low whatever
    // their noise is; it takes a hash to tell more, and that costs ten times as much.
    void through(const Field& field, int from, int to) {
        int count = 0;
        for (int i = from; i < to; i += kLanes) {
            const V raw = load_some(field.logits + i, to - i, -INFINITY);
            const V logits = raw * set1(field.scale);
            const Mask near = at_least(logits, bar_.out_of_reach) & at_least(logits, floor_);
            if (near == 0) continue;
            count += pick(logits, tokens_at(field, i), near, logits_ + count, tokens_ + count);
        }
        for (int i = 0; i < count; i += kLanes) meet(i, first_lanes(count - i));
    }

  private:
    void meet(int i, Mask lanes) {
        const V logits = load(logits_ + i);
        const VInt tokens = load(tokens_ + i);
        Mask rest = lanes & may_win(logits, tokens);
        if (rest == 0) return;
        for (; rest != 0; rest &= rest - 1) {
            const int at = i + __builtin_ctz(rest);
            const int token = tokens_[at];
            const std::uint32_t bits = noise_bits(key_, static_cast<std::uint32_t>(token));
            winner_.meet({logits_[at] + noise_of_bits(bits), token});
        }
        bar_ = Bar(winner_.score);
    }

    // Lanes that may beat the bar; few of those that cannot. From −log u ≥ 1 − u follows
    // noise ≤ −log(1 − u), so a token below the bar by d must have 1 − u ≤ e^−d: one exponential
    // instead of two logs.
    Mask may_win(V logits, VInt tokens) const {
        return at_least(exp_bound(logits - bar_.lowered), complements(key_, tokens));
    }

    std::uint64_t key_;
    V floor_;
    Bar bar_{-FLT_MAX};
    Winner winner_{-INFINITY};
    // What was picked.
    alignas(64) float logits_[kChunk + kLanes];
    alignas(64) int tokens_[kChunk + kLanes];
};

}  // namespace

std::uint64_t noise_key(std::uint64_t seed, std::uint64_t position) {
    return mix(mix(seed) + position * kGolden);
}

std::uint32_t noise_bits(std::uint64_t key, std::uint32_t token) {
    return static_cast<std::uint32_t>(mix(key + (token + std::uint64_t{1}) * kGolden) >> 40);
}

float noise_of_bits(std::uint32_t bits) {
    const double u = (static_cast<double>(bits) + 0.5) * 0x1p-24;
    return static_cast<float>(-log_of(-log_of(u)));
}

Winner find_winner(const Field& field, std::uint64_t key) {
    Search search(key, field.floor);
    for (int i = 0; i < field.count; i += kChunk) {
        search.through(field, i, std::min(field.count, i + kChunk));
    }
    return search.winner();
}

}  // namespace triptych
