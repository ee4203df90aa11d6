// F's side of the row exchange: shards of many A's in, one layer at a time, results out.
//
// What lies in a segment is a stranger's: header and cells are copied before they are checked, and
// only the copies are used. Rows and results stay where they are: any bits will do there.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <vector>

#include "rows_doorbell.h"
#include "rows_segment.h"

namespace triptych {

// Of all peers, since F began. Mirrored in transport/rows/stats.py: words of eight bytes.
struct InboxStats {
    std::uint64_t taken, cells, batches, duplicates;
    std::uint64_t refused[kStatuses];  // by status
    std::int64_t waiting, peers;
};

// Mirrored in transport/rows/library.py.
struct InboxShape {
    std::int32_t layers, experts, hidden, max_cells, spin_us;
};

// An A and its segment. It goes when the last shard of it is answered or forgotten.
struct Peer {
    std::unique_ptr<Segment> segment;
    std::unique_ptr<Doorbell> bell;
    std::uint64_t a_inc = 0, f_inc = 0;
    std::atomic<bool> gone{false};
    RingReader requests;
    RingWriter answers;
    std::vector<std::uint8_t> in_use;  // per slot: it waits here or is computed
    std::vector<Cell> cells;           // [slots, slot_cells]: copies that nobody changes
    bool rung = true;

    Peer(Segment* mapped, Doorbell* ringer)
        : segment(mapped),
          bell(ringer),
          requests(mapped->requests(), mapped->layout.ring_size),
          answers(mapped->answers(), mapped->layout.ring_size),
          in_use(mapped->layout.shape.slots),
          cells(static_cast<std::size_t>(mapped->layout.shape.slots) *
                mapped->layout.shape.slot_cells) {}

    Cell* cells_of(std::uint32_t slot) {
        return cells.data() + static_cast<std::size_t>(slot) * segment->layout.shape.slot_cells;
    }
};

// A shard that is here, checked.
struct Posted {
    std::shared_ptr<Peer> peer;
    std::uint32_t slot;
    RequestHeader head;
    std::int64_t posted_us, deadline_us;
};

// What `take` returns: words of eight bytes, which Python reads at once. The shards, and what they
// point to, hold until the reply. Mirrored by Batch in transport/rows/inbox.py.
struct BatchView {
    std::int64_t layer, count, rows, cells;
    const Shard* shards;
};

// One thread takes and replies; peers come and go, and the bell is rung, from any thread.
class Inbox {
  public:
    // hosted [layers, experts]: not 0 where this worker has the unit; the caller may change it.
    Inbox(const InboxShape& shape, const std::uint8_t* hosted, InboxStats* stats, Doorbell* bell)
        : shape_(shape), hosted_(hosted), stats_(stats), bell_(bell) {}

    int hidden() const { return shape_.hidden; }
    void add_peer(int number, std::shared_ptr<Peer> peer);
    void drop_peer(int number);
    bool take(std::int64_t timeout_us, BatchView* view);
    void reply(const std::uint8_t* statuses);
    void ring() {
        rung_.store(true);
        bell_->ring();
    }

  private:
    void collect(std::int64_t now);
    void collect_from(const std::shared_ptr<Peer>& peer, std::int64_t now);
    Status check(Peer& peer, const RequestHeader& head, std::uint32_t slot) const;
    bool cells_make_sense(const RequestHeader& head, const Cell* cells) const;
    bool is_here(const Posted& posted) const;
    void sift(std::int64_t now);
    bool fill_batch(std::int64_t now, BatchView* view);
    void answer(const Posted& posted, Status status, std::int64_t computed, std::int64_t now);
    void ring_peers();

    struct Seat {
        int number;
        std::shared_ptr<Peer> peer;
    };

    const InboxShape shape_;
    const std::uint8_t* hosted_;
    InboxStats* stats_;
    Doorbell* bell_;
    std::atomic<bool> rung_{false};
    std::mutex door_;  // of `seats_`
    std::vector<Seat> seats_;
    std::vector<Posted> waiting_, later_, batch_;
    std::vector<Shard> shards_;
    std::vector<std::shared_ptr<Peer>> to_ring_;
    std::int64_t taken_us_ = 0;
};

}  // namespace triptych
