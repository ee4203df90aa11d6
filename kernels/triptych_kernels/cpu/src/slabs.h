// Many short sorted lists in one block of memory.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace triptych {

struct List {
    std::uint32_t at = 0;  // of its first entry
    std::uint32_t size = 0;
};

// Lists of `Entry`, each sorted by its `token`. A list of n entries has room for the next power of
// two; the room that a list leaves goes to the next one of that size.
template <class Entry>
class Slabs {
  public:
    Slabs() { free_.fill(kNone); }

    // Pointers hold until any list grows.
    Entry* begin(const List& list) { return entries_.data() + list.at; }
    Entry* end(const List& list) { return begin(list) + list.size; }

    // Null if the list has none of this token.
    Entry* find(const List& list, std::int32_t token) {
        Entry* found = place(list, token);
        return found != end(list) && found->token == token ? found : nullptr;
    }

    void insert(List& list, const Entry& entry) {
        const auto index = place(list, entry.token) - begin(list);
        if (list.size == 0 || log_room(list.size) != log_room(list.size + 1)) {
            move(list, log_room(list.size + 1));
        }
        Entry* at = begin(list) + index;
        std::move_backward(at, end(list), end(list) + 1);
        *at = entry;
        ++list.size;
    }

    void erase(List& list, Entry* entry) {
        const int before = log_room(list.size);
        std::move(entry + 1, end(list), entry);
        --list.size;
        if (list.size == 0) {
            give(list.at, before);
        } else if (log_room(list.size) != before) {
            const std::uint32_t old = list.at;
            move(list, log_room(list.size), false);
            give(old, before);
        }
    }

    void clear(List& list) {
        if (list.size > 0) give(list.at, log_room(list.size));
        list = List{};
    }

    List copy(const List& list) {
        List made = list;
        if (list.size > 0) move(made, log_room(list.size), false);
        return made;
    }

    std::size_t num_bytes() const { return entries_.capacity() * sizeof(Entry); }

  private:
    static constexpr std::uint32_t kNone = ~0u;

    static int log_room(std::uint32_t size) {
        return size <= 1 ? 0 : 32 - __builtin_clz(size - 1);
    }

    Entry* place(const List& list, std::int32_t token) {
        return std::lower_bound(begin(list), end(list), token,
                                [](const Entry& e, std::int32_t t) { return e.token < t; });
    }

    // To new room; what it had is given back unless others still use it.
    void move(List& list, int log, bool give_back = true) {
        const std::uint32_t at = take(log);
        std::copy(begin(list), end(list), entries_.data() + at);
        if (give_back && list.size > 0) give(list.at, log_room(list.size));
        list.at = at;
    }

    std::uint32_t take(int log) {
        std::uint32_t at = free_[log];
        if (at == kNone) {
            at = static_cast<std::uint32_t>(entries_.size());
            entries_.resize(entries_.size() + (std::size_t{1} << log));
        } else {
            free_[log] = static_cast<std::uint32_t>(entries_[at].token);
        }
        return at;
    }

    void give(std::uint32_t at, int log) {
        entries_[at].token = static_cast<std::int32_t>(free_[log]);
        free_[log] = at;
    }

    std::vector<Entry> entries_;
    std::array<std::uint32_t, 32> free_;  // first free room of each size; its token is the next's
};

}  // namespace triptych
