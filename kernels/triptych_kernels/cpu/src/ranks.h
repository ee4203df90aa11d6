// The best of what a row sees: exactly so many, and of equal ones the first.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <vector>

namespace triptych {

constexpr std::uint32_t kUnknown = 0xffffffff;  // a NaN's rank: above all

// The numbers' order as that of integers, -0 as 0. No number has 0.
inline std::uint32_t rank_of(float worth) {
    if (worth != worth) return kUnknown;
    const float plain = worth + 0.0f;
    std::uint32_t bits;
    std::memcpy(&bits, &plain, sizeof bits);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

// Calls keep(place) for the `count` greatest ranks, ascending; for all if there are no more.
template <class Keep>
void keep_best(const std::vector<std::uint32_t>& ranks, int count, Keep&& keep) {
    static thread_local std::vector<std::uint32_t> order;
    std::uint32_t last = 0;  // the lowest rank that is kept
    int of_last = 0;         // how many of these
    if (static_cast<int>(ranks.size()) > count) {
        order = ranks;
        std::nth_element(order.begin(), order.begin() + (count - 1), order.end(), std::greater<>());
        last = order[count - 1];
        const auto above = [&](std::uint32_t rank) { return rank > last; };
        of_last = count - static_cast<int>(std::count_if(order.begin(), order.end(), above));
    }
    for (std::size_t place = 0; place < ranks.size(); ++place) {
        if (ranks[place] > last || (ranks[place] == last && of_last-- > 0)) {
            keep(static_cast<int>(place));
        }
    }
}

}  // namespace triptych
