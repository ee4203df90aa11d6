// A worker as A sees it: slots, and what is known of whatever lies in them.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "rows_doorbell.h"
#include "rows_segment.h"

namespace triptych {

// Of one worker number, since A began. Mirrored in transport/rows/stats.py: words of eight bytes.
struct WorkerStats {
    std::uint64_t shards_sent, accepted, late, abandoned, stray;
    std::uint64_t refused[kStatuses];  // by status; of kOk: answers that make no sense
    std::uint64_t cells_sent, bytes_sent, bytes_received;
    std::int64_t outstanding, pending, quarantined;  // cells sent and unanswered; shards; shards
    std::uint64_t round_trips_us, queued_us, computed_us;  // of what was accepted, added up
    double round_trip_us, round_trip_variance;             // moving averages
};

enum class SlotState : std::uint8_t {
    kFree,
    kPending,
    kQuarantined,  // its shard was given up; F may still write here
};

struct Slot {
    SlotState state = SlotState::kFree;
    bool told_late = false;
    std::uint8_t attempt = 0;
    std::int32_t lane = 0;
    std::uint32_t shard = 0;
    std::uint64_t call = 0;
    std::int32_t out_type = 0;
    std::int64_t posted_us = 0, deadline_us = 0;
    std::vector<std::int32_t> cells;  // of the call, in the shard's order
};

struct Worker {
    std::unique_ptr<Segment> segment;
    std::unique_ptr<Doorbell> bell;
    std::uint64_t a_inc = 0, f_inc = 0;
    std::int64_t deadline_us = 1'000'000;
    RingWriter requests;
    RingReader answers;
    std::vector<Slot> slots;
    std::vector<std::uint32_t> free;
    WorkerStats* stats = nullptr;

    Worker(Segment* mapped, Doorbell* rung, WorkerStats* counted)
        : segment(mapped),
          bell(rung),
          requests(mapped->requests(), mapped->layout.ring_size),
          answers(mapped->answers(), mapped->layout.ring_size),
          slots(mapped->layout.shape.slots),
          stats(counted) {
        for (std::uint32_t slot = slots.size(); slot-- > 0;) free.push_back(slot);
        stats->outstanding = stats->pending = stats->quarantined = 0;
        stats->round_trip_us = stats->round_trip_variance = 0;
    }

    void release(std::uint32_t index) {
        Slot& slot = slots[index];
        stats->outstanding -= slot.cells.size();
        --(slot.state == SlotState::kPending ? stats->pending : stats->quarantined);
        slot.state = SlotState::kFree;
        slot.cells.clear();
        free.push_back(index);
    }

    void quarantine(Slot& slot) {
        slot.state = SlotState::kQuarantined;
        --stats->pending, ++stats->quarantined, ++stats->abandoned;
    }

    // What is in a slot and what a result says it answers.
    bool answers_slot(const Slot& slot, const ResultHeader& head) const {
        return slot.state != SlotState::kFree && head.magic == kRowsMagic &&
               head.shard == slot.shard && head.call == slot.call &&
               head.attempt == slot.attempt && head.f_inc == f_inc && head.crc == crc_of(head);
    }

    void learn(const Slot& slot, const ResultHeader& head, std::int64_t now) {
        constexpr double kPart = 1.0 / 16;
        const double took = static_cast<double>(now - slot.posted_us);
        stats->round_trips_us += now - slot.posted_us;
        stats->queued_us += head.queue_us, stats->computed_us += head.compute_us;
        if (stats->round_trip_us == 0) {
            stats->round_trip_us = took, stats->round_trip_variance = took * took / 4;
            return;
        }
        const double off = took - stats->round_trip_us;
        stats->round_trip_us += kPart * off;
        stats->round_trip_variance =
            (1 - kPart) * (stats->round_trip_variance + kPart * off * off);
    }
};

}  // namespace triptych
