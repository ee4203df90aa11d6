// float32 panels: [K][32 columns].
#include "epilogue.h"
#include "linear.h"
#include "products.h"

namespace triptych {
namespace {

struct FloatRows {
    const Linear& linear;
    const Operand& x;
    const Epilogue& to;
    int panel;

    template <int kRows, bool kWhole>
    void rows(int begin) const {
        constexpr int kColumns = kWhole ? kPanel : kPanel / 2;
        alignas(64) float sums[kRows * kPanel];
        for (int column = 0; column < kPanel; column += kColumns) {
            columns<kRows, kColumns / kRegLanes>(begin, column, sums + column);
        }
        for (int row = 0; row < kRows; ++row) {
            const float* sum = sums + row * kPanel;
            finish(linear, to, begin + row, panel, load(sum), load(sum + kLanes));
        }
    }

    template <int kRows, int kRegs>
    void columns(int begin, int column, float* to_sums) const {
        const float* weights = reinterpret_cast<const float*>(linear.panel(panel)) + column;
        const float* at = x.floats + static_cast<std::size_t>(begin) * x.depth;
        Sums<kRows, kRegs> sums;
        for (int k = 0; k < x.in; ++k, weights += kPanel) {
            Reg loaded[kRegs];
            for (int i = 0; i < kRegs; ++i) loaded[i] = reg_load(weights + i * kRegLanes);
            _mm_prefetch(reinterpret_cast<const char*>(weights) + 4096, _MM_HINT_T0);
            if (kRegs * kRegLanes > 16) {
                _mm_prefetch(reinterpret_cast<const char*>(weights) + 4160, _MM_HINT_T0);
            }
            sums.add(at + k, x.depth, loaded);
        }
        sums.store(to_sums, kPanel);
    }
};

}  // namespace

// How many rows share a walk through the weights changes nothing of what each row adds up.
void apply_float(const Linear& linear, const Operand& x, const Part& part, const Epilogue& to) {
    for (int panel = part.first; panel < part.last; ++panel) {
        in_few_rows(part.begin, part.end, FloatRows{linear, x, to, panel});
    }
}

}  // namespace triptych
