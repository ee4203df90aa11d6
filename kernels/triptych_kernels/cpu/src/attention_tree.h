// How rows of a tree of drafts share the reading of a tile.
//
// A row must get the bits that it would get in plain decoding, where the tokens of its path lie at
// their positions. Sums over a tile are in order of the slots, separately by slot mod 4 (weights) and
// by slot mod 2 within a part (AMX products), and what weighs nothing changes no bit. So a token may
// lie in any slot of its part that is the same mod 4, as long as those of a path stay in order: rows
// whose paths differ lie side by side in one tile, and each lane looks away from the others' tokens.
#pragma once

#include <algorithm>
#include <array>
#include <vector>

#include "kv_cache.h"

namespace triptych {

class TreeTile {
  public:
    // Of positions [begin, begin + 128) of a job whose drafts begin at position `base`.
    TreeTile(int begin, int base) : begin_(begin), base_(base) { from_.fill(-1); }

    // Adds a path, the position in the cache of each of its tokens, for these lanes, which see
    // positions from `low` on, if `chosen(position in the cache)` says so. False, and nothing changed,
    // when there is no room.
    template <class ChosenAt>
    bool add(const std::vector<std::int32_t>& path, int low, std::uint16_t lanes,
             ChosenAt&& chosen) {
        int slots[kTileTokens], count = 0, last = -1;
        const int first = std::max(0, begin_ - base_);
        const int end = std::min(static_cast<int>(path.size()), begin_ + kTileTokens - base_);
        for (int i = first; i < end; ++i, ++count) {
            last = slots[count] = slot_for(path[i], base_ + i - begin_, last);
            if (last < 0) return false;
        }
        for (int slot = std::max(0, low - begin_); slot < base_ - begin_; ++slot) {
            if (chosen(begin_ + slot)) seen_[slot] |= lanes;
        }
        for (int i = 0; i < count; ++i) {
            from_[slots[i]] = path[first + i];
            const bool sees = base_ + first + i >= low && chosen(path[first + i]);
            if (sees) seen_[slots[i]] |= lanes;
            end_ = std::max(end_, slots[i] + 1);
        }
        end_ = std::max(end_, std::min(kTileTokens, base_ - begin_));
        return true;
    }

    int begin() const { return begin_; }
    int base() const { return base_; }
    int end() const { return end_; }  // behind the last slot that is used
    int from(int slot) const { return from_[slot]; }
    const std::uint16_t* seen() const { return seen_.data(); }  // lanes, by slot

  private:
    // A slot for the token that belongs at `wanted`, behind `last`; one that has it already, else a
    // free one.
    int slot_for(int position, int wanted, int last) const {
        const int part = wanted / kPartTokens * kPartTokens;
        int free = -1;
        for (int slot = part + wanted % 4; slot < part + kPartTokens; slot += 4) {
            if (slot <= last || begin_ + slot < base_) continue;
            if (from_[slot] == position) return slot;
            if (free < 0 && from_[slot] < 0) free = slot;
        }
        return free;
    }

    int begin_, base_, end_ = 0;
    std::array<std::int32_t, kTileTokens> from_;  // position in the cache; −1: empty
    std::array<std::uint16_t, kTileTokens> seen_{};
};

}  // namespace triptych
