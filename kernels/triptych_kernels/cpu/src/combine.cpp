// What experts answered, added up and into the residual stream.
#include "experts.h"
#include "export.h"
#include "norms.h"

namespace triptych {
namespace {

// The sum of a branch's cells and shared row: sixteen columns of one row, `count` of which exist.
template <class Number>
V sum_at(const Branch& of, std::size_t row, int column, int count) {
    const std::size_t size = of.size;
    const auto* cells = static_cast<const Number*>(of.cells) + row * of.k * size + column;
    V sum{};
    if (of.weights == nullptr) {
        sum = load_some(cells, count);
    } else {
        for (int j = 0; j < of.k; ++j, cells += size) {
            sum = fma(set1(of.weights[row * of.k + j]), load_some(cells, count), sum);
        }
    }
    if (of.shared == nullptr) return sum;
    return sum + load_some(of.shared + row * size + column, count);
}

// body(index of the first, count, sums) for all pieces of sixteen columns.
template <class Body>
void for_sums(const Branch& of, int rows, Body&& body) {
    for_rows(rows, [&](int row) {
        const std::size_t at = static_cast<std::size_t>(row) * of.size;
        for (int column = 0; column < of.size; column += kLanes) {
            const int count = of.size - column;
            body(at + column, count,
                 of.type == RowType::kBf16 ? sum_at<Bf16>(of, row, column, count)
                                           : sum_at<float>(of, row, column, count));
        }
    });
}

}  // namespace

void sum_cells(const Branch& branch, int rows, float* out) {
    for_sums(branch, rows,
             [&](std::size_t at, int count, V sum) { store_some(out + at, sum, count); });
}

void combine(const Branch& branch, int rows, float scale, float* hidden) {
    for_sums(branch, rows, [&](std::size_t at, int count, V sum) {
        store_some(hidden + at, load_some(hidden + at, count) + set1(scale) * sum, count);
    });
}

}  // namespace triptych

extern "C" {

TK_EXPORT void tk_combine(const triptych::Branch* branch, int rows, float scale, float* hidden) {
    triptych::combine(*branch, rows, scale, hidden);
}

}  // extern "C"
