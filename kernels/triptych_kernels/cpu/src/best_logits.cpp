// The likeliest tokens of rows of logits, for drafters.
#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "export.h"
#include "gumbel.h"
#include "pool.h"
#include "simd.h"

namespace triptych {
namespace {

constexpr float kLog2E = 0x1.715476p+0f;

float lane_of_greatest(V value) {
    alignas(64) float lanes[kLanes];
    store(lanes, value);
    return *std::max_element(lanes, lanes + kLanes);
}

float greatest_of(const float* row, int columns) {
    V best = set1(-INFINITY);
    int i = 0;
    for (; i + kLanes <= columns; i += kLanes) best = max(load(row + i), best);
    float greatest = lane_of_greatest(best);
    for (; i < columns; ++i) greatest = row[i] > greatest ? row[i] : greatest;
    return greatest;
}

// log Σ e^logit.
float log_sum(const float* row, int columns) {
    const float greatest = greatest_of(row, columns);
    if (!std::isfinite(greatest)) return greatest;
    V sums = {};
    const V base = set1(-greatest * kLog2E);
    int i = 0;
    for (; i + kLanes <= columns; i += kLanes) {
        sums += exp2_below_zero<6>(fma(load(row + i), set1(kLog2E), base));
    }
    alignas(64) float lanes[kLanes];
    store(lanes, sums);
    float sum = 0;
    for (float lane : lanes) sum += lane;
    for (int rest = i; rest < columns; ++rest) sum += std::exp(row[rest] - greatest);
    return greatest + std::log(sum);
}

using Found = std::pair<float, std::int64_t>;

bool ahead(const Found& a, const Found& b) {
    return a.first > b.first || (a.first == b.first && a.second < b.second);
}

// A heap whose top is the last of the best.
class Best {
  public:
    explicit Best(int count) : count_(count) {}

    void begin() { heap_.clear(); }
    float least() const {
        return static_cast<int>(heap_.size()) < count_ ? -INFINITY : heap_.front().first;
    }
    void offer(float value, std::int64_t place) {
        if (!(value > least())) return;
        if (static_cast<int>(heap_.size()) == count_) {
            std::pop_heap(heap_.begin(), heap_.end(), ahead);
            heap_.pop_back();
        }
        heap_.emplace_back(value, place);
        std::push_heap(heap_.begin(), heap_.end(), ahead);
    }
    const std::vector<Found>& sorted() {
        std::sort_heap(heap_.begin(), heap_.end(), ahead);
        return heap_;
    }

  private:
    int count_;
    std::vector<Found> heap_;
};

void find_best(const float* row, int columns, Best& best) {
    best.begin();
    int i = 0;
    for (; i + kLanes <= columns; i += kLanes) {
        if (!any_above(load(row + i), set1(best.least()))) continue;
        for (int lane = i; lane < i + kLanes; ++lane) best.offer(row[lane], lane);
    }
    for (; i < columns; ++i) best.offer(row[i], i);
}

constexpr float kLikely = 6.0f;  // below the greatest
constexpr int kMostNoise = 18;   // of 24 bits

// Bits below which noise is less than a whole number: what needs more need not be computed.
struct NoiseBits {
    std::uint32_t below[kMostNoise + 1];
    NoiseBits() {
        for (int noise = 0; noise <= kMostNoise; ++noise) {
            const double u = std::exp(-std::exp(-static_cast<double>(noise)));
            below[noise] = static_cast<std::uint32_t>(u * (1 << 24)) - 1;
        }
    }
};
const NoiseBits noise_bits_table;

// One row's draw, and its competitors.
struct Drawing {
    const float* row;
    const std::int64_t* ids;
    int columns;
    float scale;
    std::uint64_t key;

    void offer(int column, Best& best) const {
        const float scaled = row[column] * scale, least = best.least();
        if (!(scaled + kMostNoise > least)) return;
        const std::uint32_t bits = noise_bits(key, static_cast<std::uint32_t>(ids[column]));
        const float needed = least - scaled;
        if (needed >= 0 && bits < noise_bits_table.below[static_cast<int>(needed)]) return;
        best.offer(scaled + noise_of_bits(bits), column);
    }
    // The likely ones first: behind them hardly another one needs its noise.
    void find(Best& best) const {
        best.begin();
        const float likely = greatest_of(row, columns) * scale - kLikely;
        if (!std::isfinite(likely)) return;  // no number, or one beside which nothing counts
        for (const bool first : {true, false}) {
            int i = 0;
            for (; i + kLanes <= columns; i += kLanes) {
                const V scaled = load(row + i) * set1(scale);
                const float bar = first ? likely : best.least();
                if (!any_above(scaled + set1(first ? 0.0f : kMostNoise), set1(bar))) continue;
                for (int column = i; column < i + kLanes; ++column) {
                    if ((row[column] * scale > likely) == first) offer(column, best);
                }
            }
            for (; i < columns; ++i) {
                if ((row[i] * scale > likely) == first) offer(i, best);
            }
        }
    }
};

void tell(Best& best, int count, float* values, std::int64_t* places) {
    std::fill_n(values, count, -INFINITY);
    std::fill_n(places, count, 0);
    for (const Found& found : best.sorted()) {
        *values++ = found.first;
        *places++ = found.second;
    }
}

}  // namespace
}  // namespace triptych

extern "C" {

// How `tk_best_draws` draws a row.
struct TkBestDraw {
    std::uint64_t seed, position;
    float inverse_temperature;
    std::int32_t unused;
};

// Of each row of logits [rows, columns] the `count` greatest: values and places [rows, count],
// greatest first, of equal ones the lowest place. NaN and −∞ are nothing; where there are fewer, −∞
// stands for the rest. log_sums [rows].
TK_EXPORT void tk_best_logits(const float* logits, int rows, int columns, int count, float* values,
                              std::int64_t* places, float* log_sums) {
    triptych::parallel_for(rows, [&](int r) {
        const float* row = logits + static_cast<std::size_t>(r) * columns;
        log_sums[r] = triptych::log_sum(row, columns);
        triptych::Best best(count);
        triptych::find_best(row, columns, best);
        const std::size_t at = static_cast<std::size_t>(r) * count;
        triptych::tell(best, count, values + at, places + at);
    });
}

// The same of logit / temperature + noise, with the noise of the tokens ids[columns].
TK_EXPORT void tk_best_draws(const float* logits, const std::int64_t* ids, const TkBestDraw* draws,
                             int rows, int columns, int count, float* values,
                             std::int64_t* places) {
    triptych::parallel_for(rows, [&](int r) {
        const TkBestDraw& draw = draws[r];
        const triptych::Drawing drawing{logits + static_cast<std::size_t>(r) * columns, ids, columns,
                                        draw.inverse_temperature,
                                        triptych::noise_key(draw.seed, draw.position)};
        triptych::Best best(count);
        drawing.find(best);
        const std::size_t at = static_cast<std::size_t>(r) * count;
        triptych::tell(best, count, values + at, places + at);
    });
}

}
