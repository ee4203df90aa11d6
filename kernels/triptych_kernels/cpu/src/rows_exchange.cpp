#include "rows_exchange.h"

#include <algorithm>
#include <cstring>

namespace triptych {

Exchange::Exchange(const ExchangeShape& shape, const std::int16_t* tables, std::uint64_t* counts,
                   WorkerStats* stats, Doorbell* bell)
    : shape_(shape),
      tables_(tables),
      counts_(counts),
      stats_(stats),
      bell_(bell),
      starts_(shape.experts + 1),
      row_shard_(shape.max_rows),
      row_place_(shape.max_rows) {}

void Exchange::add_worker(int worker, Segment* segment, Doorbell* bell, std::uint64_t a_inc,
                          std::uint64_t f_inc) {
    workers_[worker] = std::make_unique<Worker>(segment, bell, &stats_[worker]);
    workers_[worker]->a_inc = a_inc, workers_[worker]->f_inc = f_inc;
    live_ |= std::uint64_t{1} << worker;
    for (Call& call : calls_) call.avoid &= ~(std::uint64_t{1} << worker);  // it is another one
}

// Unmapping is the fence: whatever the worker writes from now on, nobody here can read.
bool Exchange::drop_worker(int worker) {
    if (workers_[worker] == nullptr) return false;
    for (Slot& slot : workers_[worker]->slots) {
        if (slot.state == SlotState::kPending) {
            ++stats_[worker].abandoned;
            give_up(slot, worker);
        }
    }
    workers_[worker].reset();
    live_ &= ~(std::uint64_t{1} << worker);
    stats_[worker].outstanding = stats_[worker].pending = stats_[worker].quarantined = 0;
    return true;
}

bool Exchange::set_deadline(int worker, std::int64_t us) {
    if (workers_[worker] == nullptr) return false;
    workers_[worker]->deadline_us = std::clamp<std::int64_t>(us, 1, UINT32_MAX);
    return true;
}

int Exchange::begin(int lane, int layer, const float* x, int rows, const std::int32_t* ids, int k) {
    if (lane < 0 || lane >= shape_.lanes || calls_[lane].open || layer < 0 ||
        layer >= shape_.layers || rows < 0 || rows > shape_.max_rows || k < 1 ||
        k > (ids == nullptr ? 1 : shape_.top_k)) {
        return kMisused;
    }
    Call& call = calls_[lane];
    const int cells = rows * k;
    if (ids == nullptr) {
        call.experts.assign(cells, 0);
    } else {
        const auto wrong = [&](std::int32_t id) { return id < 0 || id >= shape_.experts; };
        if (std::any_of(ids, ids + cells, wrong)) return kBadId;
        call.experts.assign(ids, ids + cells);
    }
    call.open = true, call.id = next_call_++;
    call.lane = lane, call.layer = layer, call.rows = rows, call.k = k;
    call.out_type = ids == nullptr ? static_cast<int>(RowType::kFloat) : shape_.cell_type;
    call.unsent = cells, call.parked = call.done = 0;
    call.attempt = 0, call.avoid = 0, call.retry = false, call.told = true;
    call.states.assign(cells, CellState::kWaiting);
    call.cells_in.take(std::max<std::size_t>(1, cells * row_bytes(call.out_type, shape_.hidden)));

    pack_rows(call, x);
    std::uint64_t* counts = counts_ + static_cast<std::size_t>(layer) * shape_.experts;
    for (const std::int32_t expert : call.experts) ++counts[expert];
    return tell_parked(call, true);
}

bool Exchange::call_shape(int lane, std::int32_t* rows_and_k) const {
    const bool known = lane >= 0 && lane < shape_.lanes && calls_[lane].open;
    if (known) rows_and_k[0] = calls_[lane].rows, rows_and_k[1] = calls_[lane].k;
    return known;
}

int Exchange::issue(int lane, bool forgiving) {
    take_answers();
    return calls_[lane].open ? tell_parked(calls_[lane], forgiving) : 0;
}

int Exchange::tell_parked(Call& call, bool forgiving) {
    try_unsent(call, forgiving);
    call.told = true;
    return call.parked;
}

std::uint32_t Exchange::wait(std::uint32_t lanes, std::int64_t timeout_us) {
    const std::int64_t end = now_us() + timeout_us;
    for (;;) {
        const std::uint32_t seen = bell_->value();
        take_answers();
        retry_calls();
        std::uint32_t news = rung_.exchange(false) ? kRungBit : 0;
        for (Call& call : calls_) {
            if (!call.open) continue;
            if (call.complete()) news |= lanes & (1u << call.lane);
            if (!call.told) news |= 1u << (call.lane + kParkedShift);
            call.told = true;
        }
        const std::int64_t now = now_us();
        std::int64_t next = end;
        if (anyone_late(now, next)) news |= kOverdueBit;
        if (news != 0 || now >= end) return news;
        bell_->wait(seen, now, next, shape_.spin_us);
    }
}

void Exchange::take_answers() {
    std::int64_t now = 0;
    for (std::uint64_t live = live_; live != 0; live &= live - 1) {
        const int number = __builtin_ctzll(live);
        RingReader& answers = workers_[number]->answers;
        std::uint32_t slot;
        for (std::uint32_t left = answers.size(); left > 0 && answers.pop(slot); --left) {
            if (now == 0) now = now_us();
            take_answer(number, slot, now);
        }
    }
}

void Exchange::take_answer(int number, std::uint32_t index, std::int64_t now) {
    Worker& worker = *workers_[number];
    if (index >= worker.slots.size()) return void(++worker.stats->stray);
    Slot& slot = worker.slots[index];
    const ResultHeader head = load_result(worker.segment->result(index));
    if (!worker.answers_slot(slot, head)) return void(++worker.stats->stray);
    if (slot.state == SlotState::kQuarantined) {
        ++worker.stats->late;
    } else if (head.status == static_cast<int>(Status::kOk) &&
               head.num_cells == static_cast<int>(slot.cells.size()) &&
               head.out_type == slot.out_type) {
        accept(worker, index, head, now);
    } else {
        ++worker.stats->refused[head.status < kStatuses ? head.status : 0];
        give_up(slot, number);
    }
    worker.release(index);
    slots_came_back_ = true;
}

void Exchange::accept(Worker& worker, std::uint32_t index, const ResultHeader& head,
                      std::int64_t now) {
    const Slot& slot = worker.slots[index];
    Call& call = calls_[slot.lane];
    const std::size_t bytes = row_bytes(slot.out_type, shape_.hidden);
    const std::uint8_t* from = worker.segment->out(index);
    for (std::size_t i = 0; i < slot.cells.size(); ++i) {
        std::memcpy(call.cells_in.data() + slot.cells[i] * bytes, from + i * bytes, bytes);
        call.states[slot.cells[i]] = CellState::kDone;
    }
    call.done += static_cast<int>(slot.cells.size());
    ++worker.stats->accepted;
    worker.stats->bytes_received += sizeof head + slot.cells.size() * bytes;
    worker.learn(slot, head, now);
}

// A pending shard's call is open: `end` gives up what is left of it.
void Exchange::give_up(const Slot& slot, int worker) {
    Call& call = calls_[slot.lane];
    for (const std::int32_t cell : slot.cells) call.give_up(cell);
    call.avoid |= std::uint64_t{1} << worker;
    call.retry = true;
}

// The oldest call first: it is waited for.
void Exchange::retry_calls() {
    by_age_.clear();
    for (Call& call : calls_) {
        const bool waits = call.unsent > call.parked;
        if (call.open && (call.retry || (slots_came_back_ && waits))) by_age_.push_back(&call);
    }
    slots_came_back_ = false;
    std::sort(by_age_.begin(), by_age_.end(),
              [](const Call* a, const Call* b) { return a->id < b->id; });
    for (Call* call : by_age_) try_unsent(*call, false);
}

template <class Visit>
void Exchange::each_pending(Visit visit) {
    for (std::uint64_t live = live_; live != 0; live &= live - 1) {
        const int number = __builtin_ctzll(live);
        if (stats_[number].pending == 0) continue;
        for (Slot& slot : workers_[number]->slots) {
            if (slot.state == SlotState::kPending) visit(number, slot);
        }
    }
}

// Tells of each late shard once; `next` becomes the first deadline that is still to come, if it is
// earlier.
bool Exchange::anyone_late(std::int64_t now, std::int64_t& next) {
    bool late = false;
    each_pending([&](int, Slot& slot) {
        if (slot.told_late) return;
        if (slot.deadline_us <= now) {
            late = slot.told_late = true;
        } else {
            next = std::min(next, slot.deadline_us);
        }
    });
    return late;
}

int Exchange::overdue(std::int64_t now, Overdue* out, int room) {
    int count = 0;
    each_pending([&](int number, const Slot& slot) {
        if (slot.deadline_us > now || count == room) return;
        out[count++] = {number, slot.lane, slot.shard, now - slot.posted_us};
    });
    return count;
}

bool Exchange::abandon(std::uint32_t shard) {
    bool found = false;
    each_pending([&](int number, Slot& slot) {
        if (slot.shard != shard) return;
        give_up(slot, number);
        workers_[number]->quarantine(slot);
        found = true;
    });
    return found;
}

int Exchange::missing(int lane, bool waiting_too, std::int32_t* out) const {
    const Call& call = calls_[lane];
    int count = 0;
    for (int i = 0; i < call.cells(); ++i) {
        const CellState state = call.states[i];
        if (state == CellState::kParked || (waiting_too && state == CellState::kWaiting)) {
            out[2 * count] = i, out[2 * count + 1] = call.experts[i];
            ++count;
        }
    }
    return count;
}

int Exchange::fill(int lane, const std::int32_t* cells, int count, const std::uint8_t* rows) {
    Call& call = calls_[lane];
    const std::size_t bytes = row_bytes(call.out_type, shape_.hidden);
    int filled = 0;
    for (int i = 0; i < count; ++i) {
        if (!call.open || cells[i] < 0 || cells[i] >= call.cells()) return kMisused;
        CellState& state = call.states[cells[i]];
        if (state == CellState::kPending || state == CellState::kDone) continue;
        if (state == CellState::kParked) --call.parked;
        std::memcpy(call.cells_in.data() + cells[i] * bytes, rows + i * bytes, bytes);
        state = CellState::kDone;
        --call.unsent, ++call.done, ++filled;
    }
    return filled;
}

void Exchange::end(int lane) {
    Call& call = calls_[lane];
    each_pending([&](int number, Slot& slot) {
        if (slot.lane == lane) workers_[number]->quarantine(slot);
    });
    call.open = false;
}

void Exchange::ring() {
    rung_.store(true);
    bell_->ring();
}

}  // namespace triptych
