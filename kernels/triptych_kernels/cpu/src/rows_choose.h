// Which worker computes which cells of a call: a pure function of the tables and the loads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace triptych {

constexpr int kMaxWorkers = 64;

// Cells [begin, end) of a call's cells sorted by (expert, row). worker -1: nobody is there.
struct Portion {
    std::int32_t expert, begin, end, worker;
};

struct Choice {
    const std::int16_t* table;  // [experts, replicas] of the layer; -1: none
    int experts, replicas, split_rows;
    std::uint64_t usable;         // workers that may be asked, a bit each
    std::uint32_t salt;           // of (layer, lane): spreads what is equally good
    std::uint64_t fallback = 0;   // those that may be asked where no usable one is a host
};

inline std::uint32_t mix(std::uint32_t x) {
    x = (x ^ (x >> 16)) * 0x7feb352du;
    x = (x ^ (x >> 15)) * 0x846ca68bu;
    return x ^ (x >> 16);
}

inline std::uint64_t hosts_of(const Choice& choice, int expert) {
    std::uint64_t hosts = 0;
    for (int i = 0; i < choice.replicas; ++i) {
        const int worker = choice.table[expert * choice.replicas + i];
        if (worker >= 0 && worker < kMaxWorkers) hosts |= std::uint64_t{1} << worker;
    }
    return (hosts & choice.usable) != 0 ? hosts & choice.usable : hosts & choice.fallback;
}

inline int least_loaded(std::uint64_t hosts, const std::int64_t* loads, std::uint32_t salt) {
    int best = -1;
    std::uint32_t best_tie = 0;
    for (; hosts != 0; hosts &= hosts - 1) {
        const int worker = __builtin_ctzll(hosts);
        const std::uint32_t tie = mix(salt ^ (worker * 0x9e3779b9u));
        if (best < 0 || loads[worker] < loads[best] ||
            (loads[worker] == loads[best] && tie < best_tie)) {
            best = worker, best_tie = tie;
        }
    }
    return best;
}

// starts[e], starts[e + 1]: the cells of expert e. `loads`: cells that workers have not
// answered; what is chosen is added. An expert goes to one worker, so that its weights are read
// once (JANUS, arXiv 2512.13525); first those that have no choice, then the others, the largest
// first. Only where it has 2 · split_rows cells or more, it is cut into about even parts.
inline void choose_workers(const Choice& choice, const std::int32_t* starts, std::int64_t* loads,
                           std::vector<Portion>& free, std::vector<Portion>& chosen) {
    free.clear(), chosen.clear();
    for (std::int32_t expert = 0; expert < choice.experts; ++expert) {
        Portion portion{expert, starts[expert], starts[expert + 1], -1};
        const int cells = portion.end - portion.begin;
        if (cells == 0) continue;
        const std::uint64_t hosts = hosts_of(choice, expert);
        if ((hosts & (hosts - 1)) != 0) {
            free.push_back(portion);
            continue;
        }
        if (hosts != 0) loads[portion.worker = __builtin_ctzll(hosts)] += cells;
        chosen.push_back(portion);
    }
    std::stable_sort(free.begin(), free.end(), [](const Portion& a, const Portion& b) {
        return a.end - a.begin > b.end - b.begin;
    });
    for (const Portion& whole : free) {
        const std::uint64_t hosts = hosts_of(choice, whole.expert);
        const int cells = whole.end - whole.begin;
        const int parts = std::clamp(cells / choice.split_rows, 1, __builtin_popcountll(hosts));
        for (int part = 0; part < parts; ++part) {
            const auto cut = [&](std::int64_t at) {
                return whole.begin + static_cast<std::int32_t>(cells * at / parts);
            };
            Portion portion{whole.expert, cut(part), cut(part + 1), -1};
            portion.worker = least_loaded(hosts, loads, choice.salt ^ mix(whole.expert));
            loads[portion.worker] += portion.end - portion.begin;
            chosen.push_back(portion);
        }
    }
    std::sort(chosen.begin(), chosen.end(),
              [](const Portion& a, const Portion& b) { return a.begin < b.begin; });
}

}  // namespace triptych
