// float32 panels: [K][32 columns].
#include "epilogue.h"
#include "linear.h"

namespace triptych {
namespace {

template <int kRows>
void rows_of(const Linear& linear, const Operand& x, int panel, int begin, const Epilogue& to) {
    const float* weights = reinterpret_cast<const float*>(linear.panel(panel));
    const float* at = x.floats + static_cast<std::size_t>(begin) * x.depth;
    V sum[kRows][2] = {};
    for (int k = 0; k < x.in; ++k, weights += kPanel) {
        const V first = load(weights), second = load(weights + kLanes);
        _mm_prefetch(reinterpret_cast<const char*>(weights) + 4096, _MM_HINT_T0);
        _mm_prefetch(reinterpret_cast<const char*>(weights) + 4160, _MM_HINT_T0);
        for (int row = 0; row < kRows; ++row) {
            const V value = set1(at[row * static_cast<std::size_t>(x.depth) + k]);
            sum[row][0] = fma(value, first, sum[row][0]);
            sum[row][1] = fma(value, second, sum[row][1]);
        }
    }
    for (int row = 0; row < kRows; ++row) {
        finish(linear, to, begin + row, panel, sum[row][0], sum[row][1]);
    }
}

}  // namespace

// How many rows share a walk through the weights changes nothing of what each row adds up.
void apply_float(const Linear& linear, const Operand& x, const Part& part, const Epilogue& to) {
    for (int panel = part.first; panel < part.last; ++panel) {
        int row = part.begin;
        for (; part.end - row >= 12; row += 12) rows_of<12>(linear, x, panel, row, to);
        for (; part.end - row >= 4; row += 4) rows_of<4>(linear, x, panel, row, to);
        for (; part.end - row >= 2; row += 2) rows_of<2>(linear, x, panel, row, to);
        if (part.end > row) rows_of<1>(linear, x, panel, row, to);
    }
}

}  // namespace triptych
