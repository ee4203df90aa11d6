// The memory that an attention process A and a feed-forward worker F share: its layout, its rings.
//
// A makes one memfd per F and owns every slot in it: slots are the credits, and F answers without
// asking. A header page, the ring of requests, the ring of answers, then the slots. A slot is in
// use from A's post to F's answer. Whoever reads what the other side wrote trusts nothing: indices
// are bounded, sizes come from the shape that both agreed on before. Over a network each side has a
// segment of its own, and rows_pump.cpp mirrors the slots in use.
#pragma once

#include <nmmintrin.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "wire_rows.h"

namespace triptych {

constexpr std::uint32_t kRowsMagic = 0x31575254;  // "TRW1": a change of the layout changes it
constexpr std::size_t kLine = 64;
constexpr std::size_t kPage = 4096;

// What both sides agree on. Mirrored in transport/rows/library.py.
struct SegmentShape {
    std::int32_t slots, slot_rows, slot_cells, hidden;
    std::int32_t row_type, cell_type;  // RowType; of cells kFloat or kBf16
};

struct SegmentHeader {
    std::uint32_t magic, reserved;
    SegmentShape shape;
};

enum class Status : std::uint8_t { kOk = 0, kNotHere = 1, kBusy = 2, kStale = 3, kError = 4 };
constexpr int kStatuses = 5;

// Written by A, in front of cells, rows and scales.
struct RequestHeader {
    std::uint32_t magic;
    std::uint16_t layer;
    std::uint8_t lane, attempt;
    std::uint64_t a_inc, f_inc, call;
    std::uint32_t shard;
    std::int32_t num_rows, num_cells;
    std::uint8_t row_type, out_type;
    std::uint16_t reserved;
    std::uint32_t deadline_us;  // from posted_us on
    std::uint32_t crc;          // of this header with crc and posted_us 0, and of the cells
    std::int64_t posted_us;     // on F's clock: A's own on one host, else when the pump received it
};
static_assert(sizeof(RequestHeader) == kLine);

// Written by F, in front of the cells' results. `shard` is stored last: with it all else is there.
struct ResultHeader {
    std::uint32_t magic;
    std::uint8_t status, attempt, out_type, reserved;
    std::uint64_t call, f_inc;
    std::int32_t num_cells;
    std::uint32_t queue_us, compute_us;
    std::uint32_t crc;  // of this header, crc 0
    std::uint32_t reserved_too[5];
    std::uint32_t shard;
};
static_assert(sizeof(ResultHeader) == kLine);

// Of whole 32-bit words.
inline std::uint32_t crc32c(std::uint32_t crc, const void* data, std::size_t bytes) {
    const auto* at = static_cast<const std::uint8_t*>(data);
    std::uint64_t sum = crc;
    for (; bytes >= 8; bytes -= 8, at += 8) {
        std::uint64_t word;
        std::memcpy(&word, at, 8);
        sum = _mm_crc32_u64(sum, word);
    }
    if (bytes >= 4) {
        std::uint32_t word;
        std::memcpy(&word, at, 4);
        sum = _mm_crc32_u32(static_cast<std::uint32_t>(sum), word);
    }
    return static_cast<std::uint32_t>(sum);
}

inline std::uint32_t crc_of(RequestHeader head, const Cell* cells) {
    head.crc = 0, head.posted_us = 0;
    const std::uint32_t crc = crc32c(~0u, &head, sizeof head);
    return crc32c(crc, cells, static_cast<std::size_t>(head.num_cells) * sizeof(Cell));
}

inline std::uint32_t crc_of(ResultHeader head) {
    head.crc = 0;
    return crc32c(~0u, &head, sizeof head);
}

inline void store_result(ResultHeader* to, ResultHeader head) {
    head.crc = crc_of(head);
    const std::uint32_t shard = head.shard;
    std::memcpy(static_cast<void*>(to), &head, offsetof(ResultHeader, shard));
    __atomic_store_n(&to->shard, shard, __ATOMIC_RELEASE);
}

inline ResultHeader load_result(const ResultHeader* from) {
    ResultHeader head;
    head.shard = __atomic_load_n(&from->shard, __ATOMIC_ACQUIRE);
    std::memcpy(static_cast<void*>(&head), from, offsetof(ResultHeader, shard));
    return head;
}

inline std::size_t round_up(std::size_t bytes, std::size_t to) {
    return (bytes + to - 1) / to * to;
}

// Where everything lies; all of a slot's parts begin on a cache line.
struct SegmentLayout {
    SegmentShape shape;
    std::uint32_t ring_size;  // a power of two; every slot fits in twice
    std::size_t requests, answers, slots, total;
    std::size_t cells, rows, scales, result, out, slot_bytes;  // the first five inside a slot

    explicit SegmentLayout(const SegmentShape& of) : shape(of), ring_size(4) {
        while (ring_size < 2u * shape.slots) ring_size *= 2;
        const std::size_t ring_bytes = round_up(kLine + ring_size * 4, kLine);
        requests = kPage, answers = requests + ring_bytes;
        slots = round_up(answers + ring_bytes, kPage);
        const std::size_t num_rows = shape.slot_rows, num_cells = shape.slot_cells;
        cells = kLine;
        rows = round_up(cells + num_cells * sizeof(Cell), kLine);
        scales = round_up(rows + num_rows * row_bytes(shape.row_type, shape.hidden), kLine);
        result = round_up(scales + num_rows * row_scales(shape.row_type, shape.hidden) * 4, kLine);
        out = result + kLine;
        slot_bytes = round_up(out + num_cells * row_bytes(shape.cell_type, shape.hidden), kLine);
        total = round_up(slots + slot_bytes * shape.slots, kPage);
    }

    static bool possible(const SegmentShape& of) {
        const auto within = [](std::int32_t x, std::int32_t most) { return x > 0 && x <= most; };
        return within(of.slots, 4096) && within(of.slot_rows, 65536) &&
               within(of.slot_cells, 1 << 20) && within(of.hidden, 1 << 17) && of.row_type >= 0 &&
               of.row_type <= 3 && of.cell_type >= 0 && of.cell_type <= 1;
    }

    // Cells whose results of this type a slot has room for.
    std::int32_t room(std::int32_t out_type) const {
        const std::size_t held = shape.slot_cells * row_bytes(shape.cell_type, shape.hidden);
        const std::size_t fit = held / row_bytes(out_type, shape.hidden);
        return fit < static_cast<std::size_t>(shape.slot_cells) ? static_cast<std::int32_t>(fit)
                                                                 : shape.slot_cells;
    }
};

// Slot numbers from one process to another: one writer, one reader, and room for every slot.
struct Ring {
    std::atomic<std::uint32_t> tail;  // entries ever written
    std::uint32_t padding[kLine / 4 - 1];
    std::atomic<std::uint32_t> entries[1];
};

class RingWriter {
  public:
    RingWriter() = default;
    RingWriter(Ring* ring, std::uint32_t size) : ring_(ring), mask_(size - 1) {}

    // Whoever pops it sees all that was written before.
    void push(std::uint32_t slot) {
        ring_->entries[next_ & mask_].store(slot, std::memory_order_relaxed);
        ring_->tail.store(++next_, std::memory_order_release);
    }

  private:
    Ring* ring_ = nullptr;
    std::uint32_t mask_ = 0, next_ = 0;
};

class RingReader {
  public:
    RingReader() = default;
    RingReader(Ring* ring, std::uint32_t size) : ring_(ring), mask_(size - 1) {}

    // Entries are what the other side wrote: any number. A writer that overtook us loses what it
    // wrote over, never more than one round is read.
    bool pop(std::uint32_t& slot) {
        const std::uint32_t tail = ring_->tail.load(std::memory_order_acquire);
        if (tail == head_) return false;
        if (tail - head_ > mask_ + 1) head_ = tail - mask_ - 1;
        slot = ring_->entries[head_++ & mask_].load(std::memory_order_relaxed);
        return true;
    }

    std::uint32_t size() const { return mask_ + 1; }

  private:
    Ring* ring_ = nullptr;
    std::uint32_t mask_ = 0, head_ = 0;
};

// A segment as one of its users maps it.
class Segment {
  public:
    // The descriptor stays the caller's. Null, and errno, where it is no sealed memfd of this
    // shape.
    static Segment* map(int fd, const SegmentShape& shape);
    ~Segment();
    Segment(const Segment&) = delete;
    Segment& operator=(const Segment&) = delete;

    const SegmentLayout layout;

    Ring* requests() const { return reinterpret_cast<Ring*>(base_ + layout.requests); }
    Ring* answers() const { return reinterpret_cast<Ring*>(base_ + layout.answers); }
    std::uint8_t* slot(std::uint32_t index) const {
        return base_ + layout.slots + index * layout.slot_bytes;
    }
    RequestHeader* request(std::uint32_t index) const {
        return reinterpret_cast<RequestHeader*>(slot(index));
    }
    ResultHeader* result(std::uint32_t index) const {
        return reinterpret_cast<ResultHeader*>(slot(index) + layout.result);
    }
    Cell* cells(std::uint32_t index) const {
        return reinterpret_cast<Cell*>(slot(index) + layout.cells);
    }
    std::uint8_t* rows(std::uint32_t index) const { return slot(index) + layout.rows; }
    float* scales(std::uint32_t index) const {
        return reinterpret_cast<float*>(slot(index) + layout.scales);
    }
    std::uint8_t* out(std::uint32_t index) const { return slot(index) + layout.out; }

  private:
    Segment(std::uint8_t* base, const SegmentShape& shape) : layout(shape), base_(base) {}

    std::uint8_t* base_;
};

}  // namespace triptych
