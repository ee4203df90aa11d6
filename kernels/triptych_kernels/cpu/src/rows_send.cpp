// How the exchange sends: cells that are to go out, packed into shards and posted into slots.
#include <algorithm>
#include <cstring>

#include "rows_exchange.h"

namespace triptych {
namespace {

constexpr int kRowsAlone = 64;  // to call the pool's threads takes longer than to round so few

}  // namespace

// Many rows are rounded before they are sent, on all threads and once: each is in several shards,
// probably. A few are rounded on their way into each slot.
void Exchange::pack_rows(Call& call, const float* x) {
    call.x = x;
    call.packed = call.rows > kRowsAlone;
    if (!call.packed) return;
    const std::size_t bytes = row_bytes(shape_.row_type, shape_.hidden);
    const std::size_t scales = row_scales(shape_.row_type, shape_.hidden);
    quantise_rows(x, call.rows, shape_.hidden, static_cast<RowType>(shape_.row_type),
                  call.rows_out.take(call.rows * bytes), call.scales_out.take(call.rows * scales));
}

// Cells that are not sent, by (expert, row).
void Exchange::sort_unsent(const Call& call) {
    std::fill(starts_.begin(), starts_.end(), 0);
    const int cells = call.cells();
    const auto unsent = [&](int i) { return call.states[i] < CellState::kPending; };
    for (int i = 0; i < cells; ++i) {
        if (unsent(i)) ++starts_[call.experts[i] + 1];
    }
    for (int e = 0; e < shape_.experts; ++e) starts_[e + 1] += starts_[e];
    order_.resize(call.unsent);
    for (int i = 0; i < cells; ++i) {
        if (unsent(i)) order_[starts_[call.experts[i]]++] = i;
    }
    for (int e = shape_.experts; e > 0; --e) starts_[e] = starts_[e - 1];
    starts_[0] = 0;
}

void Exchange::try_unsent(Call& call, bool forgiving) {
    call.retry = false;
    sort_unsent(call);
    std::int64_t loads[kMaxWorkers];  // of live ones
    for (std::uint64_t live = live_; live != 0; live &= live - 1) {
        const int number = __builtin_ctzll(live);
        loads[number] = stats_[number].outstanding;
    }
    const std::size_t table = static_cast<std::size_t>(call.layer) * shape_.experts;
    Choice choice{tables_ + table * shape_.replicas,
                  shape_.experts,
                  shape_.replicas,
                  shape_.split_rows,
                  live_ & ~call.avoid,
                  mix(call.layer * kMaxLanes + call.lane)};
    if (forgiving) choice.fallback = live_;
    choose_workers(choice, starts_.data(), loads, free_portions_, portions_);

    std::uint64_t used = 0;
    call.parked = 0;
    for (const Portion& portion : portions_) {
        const bool nobody = portion.worker < 0;
        if (!nobody) used |= std::uint64_t{1} << portion.worker;
        for (int i = portion.begin; i < portion.end; ++i) {
            CellState& state = call.states[order_[i]];
            if (nobody && state != CellState::kParked) call.told = false;
            state = nobody ? CellState::kParked : CellState::kWaiting;
        }
        if (nobody) call.parked += portion.end - portion.begin;
    }
    for (; used != 0; used &= used - 1) send_portions(__builtin_ctzll(used), call);
    ++call.attempt;
}

struct Exchange::Box {
    Worker* worker;
    int number;  // of the worker
    std::uint32_t slot = 0;
    bool open = false;
};

// As many shards as the worker has free slots for; the rest stays waiting.
void Exchange::send_portions(int number, Call& call) {
    Box box{workers_[number].get(), number};
    bool sent = false;
    const auto pack = [&]() {
        for (const Portion& portion : portions_) {
            if (portion.worker != number) continue;
            for (int i = portion.begin; i < portion.end; ++i) {
                const int cell = order_[i], row = cell / call.k;
                if (box.open && !has_room(box, call, row)) post(box, call);
                if (!box.open && !open_box(box)) return;
                sent = true;
                put(box, call, cell, row);
            }
        }
    };
    pack();
    if (box.open) post(box, call);
    if (sent) box.worker->bell->ring();
}

bool Exchange::open_box(Box& box) {
    if (box.worker->free.empty()) return false;
    box.slot = box.worker->free.back();
    box.worker->free.pop_back();
    box.open = true;
    box_rows_.clear();
    box.worker->slots[box.slot].shard = next_shard_++;
    if (next_shard_ == 0) next_shard_ = 1;  // 0 is no shard
    return true;
}

bool Exchange::has_room(const Box& box, const Call& call, int row) const {
    const SegmentLayout& layout = box.worker->segment->layout;
    const Slot& slot = box.worker->slots[box.slot];
    if (static_cast<int>(slot.cells.size()) == layout.room(call.out_type)) return false;
    return row_shard_[row] == slot.shard ||
           static_cast<int>(box_rows_.size()) < layout.shape.slot_rows;
}

void Exchange::put(Box& box, Call& call, int cell, int row) {
    Slot& slot = box.worker->slots[box.slot];
    if (row_shard_[row] != slot.shard) {
        row_shard_[row] = slot.shard;
        box_rows_.push_back(row);
    }
    slot.cells.push_back(cell);
    call.states[cell] = CellState::kPending;
    --call.unsent;
}

// Each row once, in ascending order, so that cells stay sorted by (expert, row) in the shard too.
void Exchange::write_sections(const Box& box, const Call& call) {
    const Segment& segment = *box.worker->segment;
    const std::size_t bytes = row_bytes(shape_.row_type, shape_.hidden);
    const std::size_t scales = row_scales(shape_.row_type, shape_.hidden);
    std::sort(box_rows_.begin(), box_rows_.end());
    for (std::size_t place = 0; place < box_rows_.size(); ++place) {
        const std::size_t row = box_rows_[place];
        std::uint8_t* to = segment.rows(box.slot) + place * bytes;
        float* to_scales = segment.scales(box.slot) + place * scales;
        if (call.packed) {
            std::memcpy(to, call.rows_out.data() + row * bytes, bytes);
            std::memcpy(to_scales, call.scales_out.data() + row * scales, scales * sizeof(float));
        } else {
            quantise_row(call.x + row * shape_.hidden, shape_.hidden,
                         static_cast<RowType>(shape_.row_type), to, to_scales);
        }
        row_place_[row] = static_cast<std::uint16_t>(place);
    }
    Cell* to = segment.cells(box.slot);
    for (const std::int32_t cell : box.worker->slots[box.slot].cells) {
        *to++ = {row_place_[cell / call.k], static_cast<std::uint16_t>(call.experts[cell])};
    }
}

void Exchange::post(Box& box, Call& call) {
    write_sections(box, call);
    Worker& worker = *box.worker;
    Slot& slot = worker.slots[box.slot];
    const int num_rows = static_cast<int>(box_rows_.size());
    const int num_cells = static_cast<int>(slot.cells.size());
    slot.state = SlotState::kPending;
    slot.told_late = false;
    slot.lane = call.lane, slot.call = call.id, slot.attempt = call.attempt;
    slot.out_type = call.out_type;
    slot.posted_us = now_us(), slot.deadline_us = slot.posted_us + worker.deadline_us;

    RequestHeader head{};
    head.magic = kRowsMagic;
    head.layer = static_cast<std::uint16_t>(call.layer);
    head.lane = static_cast<std::uint8_t>(call.lane), head.attempt = call.attempt;
    head.a_inc = worker.a_inc, head.f_inc = worker.f_inc;
    head.call = call.id, head.shard = slot.shard;
    head.num_rows = num_rows, head.num_cells = num_cells;
    head.row_type = static_cast<std::uint8_t>(shape_.row_type);
    head.out_type = static_cast<std::uint8_t>(call.out_type);
    head.deadline_us = static_cast<std::uint32_t>(worker.deadline_us);
    head.posted_us = slot.posted_us;
    head.crc = crc_of(head, worker.segment->cells(box.slot));
    *worker.segment->request(box.slot) = head;
    worker.requests.push(box.slot);

    WorkerStats& stats = *worker.stats;
    ++stats.shards_sent, ++stats.pending;
    stats.cells_sent += num_cells, stats.outstanding += num_cells;
    stats.bytes_sent += sizeof head + num_cells * sizeof(Cell) +
                        num_rows * (row_bytes(shape_.row_type, shape_.hidden) +
                                    row_scales(shape_.row_type, shape_.hidden) * sizeof(float));
    box.open = false;
}

}  // namespace triptych
