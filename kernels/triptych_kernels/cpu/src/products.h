// Rows of activations times columns of a panel, without AMX: sums stay in registers.
//
// What a walk through the weights computes at once, rows × columns, is as much as the registers of
// the level hold; each sum adds up its products in the order of K whatever that is.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstring>

#include "simd.h"

namespace triptych {

#if defined(__AVX512F__)

typedef __m512 Reg;
typedef __m512i RegInt;
constexpr int kRegLanes = 16, kManyRows = 12;

inline Reg reg_load(const float* from) { return _mm512_loadu_ps(from); }
inline Reg reg_set1(float value) { return _mm512_set1_ps(value); }
inline Reg reg_fma(Reg a, Reg b, Reg c) { return _mm512_fmadd_ps(a, b, c); }
inline void reg_store(float* to, Reg value) { _mm512_storeu_ps(to, value); }
inline RegInt reg_pairs(const Bf16* from) { return _mm512_loadu_si512(from); }
inline Reg first_of(RegInt pairs) { return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)); }
inline Reg second_of(RegInt pairs) {
    return _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(~0xffff)));
}

#else

typedef __m256 Reg;
typedef __m256i RegInt;
constexpr int kRegLanes = 8, kManyRows = 4;

inline Reg reg_load(const float* from) { return _mm256_loadu_ps(from); }
inline Reg reg_set1(float value) { return _mm256_set1_ps(value); }
inline Reg reg_fma(Reg a, Reg b, Reg c) { return _mm256_fmadd_ps(a, b, c); }
inline void reg_store(float* to, Reg value) { _mm256_storeu_ps(to, value); }
inline RegInt reg_pairs(const Bf16* from) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
}
inline Reg first_of(RegInt pairs) { return _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)); }
inline Reg second_of(RegInt pairs) {
    return _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(~0xffff)));
}

#endif

// Sums of kRows rows and kRegs registers of columns.
template <int kRows, int kRegs>
struct Sums {
    Reg sum[kRows][kRegs];

    Sums() {
        for (auto& row : sum) {
            for (Reg& lanes : row) lanes = reg_set1(0);
        }
    }
    // From where they are, `stride` apart.
    Sums(const float* from, std::size_t stride) {
        for (int row = 0; row < kRows; ++row) {
            for (int i = 0; i < kRegs; ++i) {
                sum[row][i] = reg_load(from + row * stride + i * kRegLanes);
            }
        }
    }
    // x: one value of each row, `stride` apart.
    void add(const float* x, std::size_t stride, const Reg* weights) {
        for (int row = 0; row < kRows; ++row) {
            const Reg value = reg_set1(x[row * stride]);
            for (int i = 0; i < kRegs; ++i) sum[row][i] = reg_fma(value, weights[i], sum[row][i]);
        }
    }
    void store(float* to, std::size_t stride) const {
        for (int row = 0; row < kRows; ++row) {
            for (int i = 0; i < kRegs; ++i) {
                reg_store(to + row * stride + i * kRegLanes, sum[row][i]);
            }
        }
    }
};

// Calls run.rows<count, whole>(first) so that all rows [begin, end) are covered. `whole`: registers
// hold the sums of so many rows for a whole panel, else for half of it.
template <class Run>
void in_few_rows(int begin, int end, Run run) {
    constexpr bool kWhole = kRegLanes == 16;
    for (; end - begin >= kManyRows; begin += kManyRows) run.template rows<kManyRows, kWhole>(begin);
    if (kManyRows > 4) {
        for (; end - begin >= 4; begin += 4) run.template rows<4, kWhole>(begin);
    }
    for (; end - begin >= 2; begin += 2) run.template rows<2, true>(begin);
    if (end > begin) run.template rows<1, true>(begin);
}

}  // namespace triptych
