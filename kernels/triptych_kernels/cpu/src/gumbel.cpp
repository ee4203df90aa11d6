#include "gumbel.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>

#include "token_lanes.h"

namespace triptych {
namespace {

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
    const auto bits_of_half = [key](__m256i half) {
        const auto mix_in = [](__m512i x, int shift) {
            return _mm512_xor_si512(x, _mm512_srli_epi64(x, static_cast<unsigned>(shift)));
        };
        const __m512i golden = _mm512_set1_epi64(static_cast<long long>(kGolden));
        __m512i x = _mm512_mullo_epi64(_mm512_cvtepi32_epi64(half), golden);
        x = _mm512_add_epi64(x, _mm512_set1_epi64(static_cast<long long>(key + kGolden)));
        x = _mm512_mullo_epi64(mix_in(x, 30), _mm512_set1_epi64(static_cast<long long>(kMixFirst)));
        x = _mm512_mullo_epi64(mix_in(x, 27), _mm512_set1_epi64(static_cast<long long>(kMixSecond)));
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

// Tokens that may beat the bar; few of those that cannot. From −log u ≥ 1 − u follows
// noise ≤ −log(1 − u), so a token below the bar by d must have 1 − u ≤ e^−d: one exponential instead
// of two logs.
Mask may_win(V logits, std::uint64_t key, VInt tokens, const Bar& bar) {
    const V enough = scaled_exp(logits - bar.lowered, 0);
    return at_least(enough, complements(key, tokens));
}

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
    Winner winner{-INFINITY};
    Bar bar(-FLT_MAX);
    const V scale = set1(field.scale);
    const V floor = set1(std::max(field.floor, -FLT_MAX));
    for (int i = 0; i < field.count; i += kLanes) {
        const int here = std::min(kLanes, field.count - i);
        const V logits = load_some(field.logits + i, here, -INFINITY) * scale;
        const Mask near = at_least(logits, bar.out_of_reach) & at_least(logits, floor);
        if (near == 0) continue;
        const VInt tokens = field.tokens == nullptr ? count_from(field.first_token + i)
                                                    : load(field.tokens + i);
        Mask rest = near & may_win(logits, key, tokens, bar);
        if (rest == 0) continue;
        for (; rest != 0; rest &= rest - 1) {
            const int l = __builtin_ctz(rest);
            const auto token = static_cast<std::uint32_t>(tokens[l]);
            winner.meet({logits[l] + noise_of_bits(noise_bits(key, token)), tokens[l]});
        }
        bar = Bar(winner.score);
    }
    return winner;
}

}  // namespace triptych
