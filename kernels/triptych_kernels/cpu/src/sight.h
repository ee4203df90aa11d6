// Where the positions lie that a row sees, and the numbers that are stored there.
#pragma once

#include <cstdint>
#include <vector>

#include "attention_lanes.h"

namespace triptych {

// Where the positions lie that a row sees: in the slots of the same number before `start`, then where
// its path says.
struct Sight {
    int start;
    std::vector<std::int32_t> path;

    int slot(int position) const { return position < start ? position : path[position - start]; }
};

inline Sight sight_of(const Job& job, int row) {
    if (job.parents == nullptr) return {job.start + job.rows, {}};
    return {job.start, path_to(job, row)};
}

inline float wide(float x) { return x; }
inline float wide(Bf16 x) { return to_float(x); }
inline float wide(std::int8_t x) { return static_cast<float>(x); }

}  // namespace triptych
