#include "rows_inbox.h"

#include <algorithm>
#include <cerrno>

#include "export.h"

namespace triptych {
namespace {

constexpr std::int64_t kOldestUs = 60'000'000;  // nobody gets further ahead by an older date

// A deadline orders work. Being late is no reason to drop it: where this is the only host, A waits
// on. After so many deadlines (this process was stopped, say) nobody does.
constexpr std::int64_t kForgotten = 16;

}  // namespace

void Inbox::add_peer(int number, std::shared_ptr<Peer> peer) {
    const std::lock_guard<std::mutex> lock(door_);
    seats_.push_back({number, std::move(peer)});
    stats_->peers = seats_.size();
}

void Inbox::drop_peer(int number) {
    {
        const std::lock_guard<std::mutex> lock(door_);
        const auto seat = std::find_if(seats_.begin(), seats_.end(),
                                       [&](const Seat& s) { return s.number == number; });
        if (seat == seats_.end()) return;
        seat->peer->gone.store(true);
        seats_.erase(seat);
        stats_->peers = seats_.size();
    }
    bell_->ring();  // so that what waits of it is forgotten now
}

bool Inbox::take(std::int64_t timeout_us, BatchView* view) {
    std::int64_t now = now_us();
    for (const std::int64_t end = now + timeout_us;; now = now_us()) {
        const std::uint32_t seen = bell_->value();
        collect(now);
        const bool found = fill_batch(now, view);
        ring_peers();  // of shards that were refused
        if (found || rung_.exchange(false) || now >= end) return found;
        bell_->wait(seen, now, end, shape_.spin_us);
    }
}

void Inbox::collect(std::int64_t now) {
    {
        const std::lock_guard<std::mutex> lock(door_);
        for (const Seat& seat : seats_) collect_from(seat.peer, now);
    }
    sift(now);
    stats_->waiting = waiting_.size();
}

// No more than one round of the ring, whatever the peer writes.
void Inbox::collect_from(const std::shared_ptr<Peer>& peer, std::int64_t now) {
    std::uint32_t slot;
    for (std::uint32_t left = peer->requests.size(); left > 0 && peer->requests.pop(slot); --left) {
        if (slot >= peer->in_use.size() || peer->in_use[slot]) {
            ++stats_->duplicates;
            continue;
        }
        Posted posted{peer, slot, *peer->segment->request(slot), 0, 0};
        posted.posted_us = std::clamp(posted.head.posted_us, now - kOldestUs, now);
        posted.deadline_us = posted.posted_us + posted.head.deadline_us;
        peer->in_use[slot] = 1;
        const Status status = check(*peer, posted.head, slot);
        if (status == Status::kOk) {
            waiting_.push_back(std::move(posted));
        } else {
            answer(posted, status, 0, now);
        }
    }
}

Status Inbox::check(Peer& peer, const RequestHeader& head, std::uint32_t slot) const {
    const SegmentLayout& layout = peer.segment->layout;
    const bool ours = head.magic == kRowsMagic && head.row_type == layout.shape.row_type &&
                      head.out_type <= 1 && head.layer < shape_.layers;
    if (!ours || head.num_rows < 1 || head.num_rows > layout.shape.slot_rows ||
        head.num_cells < 1 || head.num_cells > layout.room(head.out_type)) {
        return Status::kError;
    }
    Cell* cells = peer.cells_of(slot);
    std::memcpy(cells, peer.segment->cells(slot), head.num_cells * sizeof(Cell));
    if (crc_of(head, cells) != head.crc || !cells_make_sense(head, cells)) return Status::kError;
    const bool current = head.a_inc == peer.a_inc && head.f_inc == peer.f_inc;
    return current ? Status::kOk : Status::kStale;
}

bool Inbox::cells_make_sense(const RequestHeader& head, const Cell* cells) const {
    std::uint32_t before = 0;
    for (int i = 0; i < head.num_cells; ++i) {
        const std::uint32_t order = std::uint32_t{cells[i].expert} << 16 | cells[i].row;
        if (cells[i].row >= head.num_rows || cells[i].expert >= shape_.experts) return false;
        if (order < before) return false;
        before = order;
    }
    return true;
}

bool Inbox::is_here(const Posted& posted) const {
    const std::uint8_t* hosted =
        hosted_ + static_cast<std::size_t>(posted.head.layer) * shape_.experts;
    const Cell* cells = posted.peer->cells_of(posted.slot);
    return std::all_of(cells, cells + posted.head.num_cells,
                       [&](const Cell& cell) { return hosted[cell.expert] != 0; });
}

// Forgets what nobody waits for any more, and refuses what is not here (any more).
void Inbox::sift(std::int64_t now) {
    const auto over = [&](const Posted& posted) {
        if (posted.peer->gone.load()) return true;
        const std::int64_t patience = kForgotten * posted.head.deadline_us;
        const bool forgotten = now - posted.posted_us >= patience;
        if (!forgotten && is_here(posted)) return false;
        answer(posted, forgotten ? Status::kStale : Status::kNotHere, 0, now);
        return true;
    };
    waiting_.erase(std::remove_if(waiting_.begin(), waiting_.end(), over), waiting_.end());
}

// The layer that is due first, and whatever else is here of it.
bool Inbox::fill_batch(std::int64_t now, BatchView* view) {
    if (waiting_.empty()) return false;
    if (waiting_.size() > 1) {
        std::stable_sort(waiting_.begin(), waiting_.end(), [](const Posted& a, const Posted& b) {
            return a.deadline_us < b.deadline_us;
        });
    }
    const std::uint16_t layer = waiting_.front().head.layer;
    *view = {layer, 0, 0, 0, nullptr};
    batch_.clear(), shards_.clear();
    later_.clear();
    for (Posted& posted : waiting_) {
        const RequestHeader& head = posted.head;
        const bool fits = batch_.empty() || view->cells + head.num_cells <= shape_.max_cells;
        if (head.layer != layer || !fits) {
            later_.push_back(std::move(posted));
            continue;
        }
        Peer& peer = *posted.peer;
        const Segment& segment = *peer.segment;
        const bool scaled = row_scales(head.row_type, shape_.hidden) != 0;
        const float* scales = scaled ? segment.scales(posted.slot) : nullptr;
        shards_.push_back({segment.rows(posted.slot), scales, peer.cells_of(posted.slot), nullptr,
                           segment.out(posted.slot), head.row_type, head.num_rows, head.num_cells,
                           head.out_type});
        view->rows += head.num_rows, view->cells += head.num_cells;
        batch_.push_back(std::move(posted));
    }
    waiting_.swap(later_);
    view->shards = shards_.data();
    view->count = static_cast<std::int64_t>(shards_.size());
    taken_us_ = now;
    ++stats_->batches, stats_->taken += batch_.size(), stats_->cells += view->cells;
    stats_->waiting = waiting_.size();
    return true;
}

// statuses [count of the batch], or null: all are kOk.
void Inbox::reply(const std::uint8_t* statuses) {
    const std::int64_t now = now_us();
    std::int64_t cells = 0;
    for (const Posted& posted : batch_) cells += posted.head.num_cells;
    for (std::size_t i = 0; i < batch_.size(); ++i) {
        // Its share of what the batch took; while the others' rows were computed it waited.
        const std::int64_t computed = (now - taken_us_) * batch_[i].head.num_cells / cells;
        answer(batch_[i], statuses == nullptr ? Status::kOk : static_cast<Status>(statuses[i]),
               computed, now);
    }
    batch_.clear();
    ring_peers();
}

void Inbox::answer(const Posted& posted, Status status, std::int64_t computed, std::int64_t now) {
    Peer& peer = *posted.peer;
    peer.in_use[posted.slot] = 0;
    if (status != Status::kOk) ++stats_->refused[static_cast<int>(status)];
    if (peer.gone.load()) return;
    const RequestHeader& asked = posted.head;
    ResultHeader head{};
    head.magic = kRowsMagic;
    head.status = static_cast<std::uint8_t>(status);
    head.attempt = asked.attempt, head.out_type = asked.out_type;
    head.call = asked.call, head.f_inc = peer.f_inc;
    head.num_cells = status == Status::kOk ? asked.num_cells : 0;
    head.queue_us = static_cast<std::uint32_t>(now - posted.posted_us - computed);
    head.compute_us = static_cast<std::uint32_t>(computed);
    head.shard = asked.shard;
    store_result(peer.segment->result(posted.slot), head);
    peer.answers.push(posted.slot);
    if (peer.rung) to_ring_.push_back(posted.peer);
    peer.rung = false;
}

void Inbox::ring_peers() {
    for (const std::shared_ptr<Peer>& peer : to_ring_) {
        peer->bell->ring();
        peer->rung = true;
    }
    to_ring_.clear();
}

}  // namespace triptych

using namespace triptych;

extern "C" {

// `hosted` and `stats` are the caller's and outlive the inbox.
TK_EXPORT Inbox* tk_rows_inbox_new(const InboxShape* shape, const std::uint8_t* hosted,
                                   InboxStats* stats, Doorbell* bell) {
    return new Inbox(*shape, hosted, stats, bell);
}

TK_EXPORT void tk_rows_inbox_free(Inbox* inbox) { delete inbox; }

// 0, or an errno: the descriptors, which stay the caller's, cannot be mapped.
TK_EXPORT int tk_rows_add_peer(Inbox* inbox, int number, int segment_fd, const SegmentShape* shape,
                               int bell_fd, std::uint64_t a_inc, std::uint64_t f_inc) {
    std::unique_ptr<Segment> segment(Segment::map(segment_fd, *shape));
    if (segment == nullptr) return errno;
    if (shape->hidden != inbox->hidden()) return EPROTO;
    std::unique_ptr<Doorbell> bell(Doorbell::open(bell_fd));
    if (bell == nullptr) return errno;
    auto peer = std::make_shared<Peer>(segment.release(), bell.release());
    peer->a_inc = a_inc, peer->f_inc = f_inc;
    inbox->add_peer(number, std::move(peer));
    return 0;
}

TK_EXPORT void tk_rows_drop_peer(Inbox* inbox, int number) { inbox->drop_peer(number); }

TK_EXPORT int tk_rows_take(Inbox* inbox, int timeout_us, BatchView* view) {
    return inbox->take(timeout_us, view);
}

TK_EXPORT void tk_rows_reply(Inbox* inbox, const std::uint8_t* statuses) { inbox->reply(statuses); }

TK_EXPORT void tk_rows_inbox_ring(Inbox* inbox) { inbox->ring(); }

// out[i] = the row of cell i as it came: what an expert that changes nothing answers. Of shards
// whose rows and results have one type.
TK_EXPORT void tk_rows_echo(const Shard* shards, int count, int hidden) {
    for (int s = 0; s < count; ++s) {
        const Shard& shard = shards[s];
        const std::size_t bytes = row_bytes(shard.row_type, hidden);
        for (int i = 0; i < shard.num_cells; ++i) {
            std::memcpy(static_cast<std::uint8_t*>(shard.out) + i * bytes,
                        static_cast<const std::uint8_t*>(shard.rows) + shard.cells[i].row * bytes,
                        bytes);
        }
    }
}
}
