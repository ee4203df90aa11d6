// A's side of the row exchange: calls out to workers, cells back, each exactly once.
//
// A result counts iff its slot holds a pending shard and (call, shard, attempt, f_inc) agree. A
// shard that was given up leaves its slot in quarantine: F may still write there, and nobody reads
// it, until the late answer comes or the worker's segment is dropped.
#pragma once

#include <array>
#include <atomic>
#include <memory>
#include <vector>

#include "rows_call.h"
#include "rows_choose.h"
#include "rows_worker.h"

namespace triptych {

// Mirrored in transport/rows/library.py.
struct ExchangeShape {
    std::int32_t layers, experts, replicas, hidden, top_k, lanes, max_rows;
    std::int32_t row_type, cell_type, split_rows, spin_us;
};

// Of a pending shard past its deadline. Mirrored in transport/rows/library.py.
struct Overdue {
    std::int32_t worker, lane;
    std::int64_t shard, age_us;
};

constexpr int kMaxLanes = 8;
constexpr int kBadId = -1, kMisused = -2;

// What `wait` returns, as bits: lanes that are complete; lanes with newly parked cells, above.
constexpr std::uint32_t kParkedShift = 8, kRungBit = 1u << 16, kOverdueBit = 1u << 17;

// One thread at a time, but for `ring`.
class Exchange {
  public:
    Exchange(const ExchangeShape& shape, const std::int16_t* tables, std::uint64_t* counts,
             WorkerStats* stats, Doorbell* bell);

    void add_worker(int worker, Segment* segment, Doorbell* bell, std::uint64_t a_inc,
                    std::uint64_t f_inc);
    bool drop_worker(int worker);
    bool set_deadline(int worker, std::int64_t us);

    // x must stay as it is until `end`. ids null: a dense layer. Returns how many cells are parked;
    // kBadId or kMisused: nothing has begun.
    int begin(int lane, int layer, const float* x, int rows, const std::int32_t* ids, int k);
    bool call_shape(int lane, std::int32_t* rows_and_k) const;
    int issue(int lane, bool forgiving);
    std::uint32_t wait(std::uint32_t lanes, std::int64_t timeout_us);
    int overdue(std::int64_t now, Overdue* out, int room);
    bool abandon(std::uint32_t shard);
    int missing(int lane, bool waiting_too, std::int32_t* out) const;
    int fill(int lane, const std::int32_t* cells, int count, const std::uint8_t* rows);
    std::uint8_t* cells(int lane) { return calls_[lane].cells_in.data(); }
    void end(int lane);
    void ring();

  private:
    struct Box;  // a shard that is being packed

    void pack_rows(Call& call, const float* x);
    int tell_parked(Call& call, bool forgiving);
    void try_unsent(Call& call, bool forgiving);
    void sort_unsent(const Call& call);
    void send_portions(int worker, Call& call);
    bool open_box(Box& box);
    bool has_room(const Box& box, const Call& call, int row) const;
    void put(Box& box, Call& call, int cell, int row);
    void write_sections(const Box& box, const Call& call);
    void post(Box& box, Call& call);

    void take_answers();
    void take_answer(int worker, std::uint32_t slot, std::int64_t now);
    void accept(Worker& worker, std::uint32_t index, const ResultHeader& head, std::int64_t now);
    void give_up(const Slot& slot, int worker);
    void retry_calls();
    bool anyone_late(std::int64_t now, std::int64_t& next);
    template <class Visit>
    void each_pending(Visit visit);

    const ExchangeShape shape_;
    const std::int16_t* tables_;  // [layers, experts, replicas]
    std::uint64_t* counts_;       // [layers, experts]
    WorkerStats* stats_;          // [kMaxWorkers]
    Doorbell* bell_;
    std::atomic<bool> rung_{false};
    std::array<std::unique_ptr<Worker>, kMaxWorkers> workers_;
    std::uint64_t live_ = 0;
    std::array<Call, kMaxLanes> calls_;
    std::uint64_t next_call_ = 1;
    std::uint32_t next_shard_ = 1;
    bool slots_came_back_ = false;
    std::vector<Call*> by_age_;

    // Scratch of one `try_unsent`.
    std::vector<std::int32_t> order_, starts_;
    std::vector<Portion> portions_, free_portions_;
    std::vector<std::uint32_t> row_shard_;  // [max_rows]: the last shard that took the row …
    std::vector<std::uint16_t> row_place_;  // … and where it lies there
    std::vector<std::int32_t> box_rows_;    // rows of the shard that is being packed
};

}  // namespace triptych
