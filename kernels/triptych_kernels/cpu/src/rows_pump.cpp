// A segment mirrored over a stream socket: each side has one, and threads carry the slots in use.
//
// Of A: requests out, results in; of F: requests in, results out. A pump of one direction is the
// other side of the ring as far as its process can see; neither the exchange nor the inbox knows.
// Whatever comes from the socket is bounded by the segment's shape before it is received.
#include <atomic>
#include <cerrno>
#include <memory>
#include <sys/socket.h>
#include <sys/uio.h>

#include "export.h"
#include "rows_doorbell.h"
#include "rows_segment.h"

namespace triptych {
namespace {

constexpr std::int64_t kSleepUs = 1'000'000;
constexpr std::size_t kParts = 5;

// In front of every slot on the wire.
struct Prefix {
    std::uint32_t magic, slot;
};

// All parts, or an errno.
int transfer(int socket, iovec* parts, std::size_t count, bool out) {
    while (count > 0) {
        if (parts->iov_len == 0) {
            ++parts, --count;
            continue;
        }
        msghdr message{};
        message.msg_iov = parts, message.msg_iovlen = count;
        const ssize_t moved = out ? sendmsg(socket, &message, MSG_NOSIGNAL)
                                  : recvmsg(socket, &message, MSG_WAITALL);
        if (moved == 0) return ECONNRESET;
        if (moved < 0 && errno != EINTR) return errno;
        for (std::size_t left = moved < 0 ? 0 : moved; left > 0;) {
            const std::size_t part = left < parts->iov_len ? left : parts->iov_len;
            parts->iov_base = static_cast<std::uint8_t*>(parts->iov_base) + part;
            parts->iov_len -= part, left -= part;
            if (parts->iov_len == 0) ++parts, --count;
        }
    }
    return 0;
}

class Pump {
  public:
    Pump(Segment* segment, int socket, Doorbell* ours, Doorbell* theirs, int spin_us)
        : segment_(segment), socket_(socket), ours_(ours), theirs_(theirs), spin_us_(spin_us) {}

    // Each ends with the errno that ended it; 0: `stop`.
    int requests_out() {
        RingReader ring(segment_->requests(), segment_->layout.ring_size);
        return carry_out(ring, [this](std::uint32_t slot) { return send_request(slot); });
    }

    int results_out() {
        RingReader ring(segment_->answers(), segment_->layout.ring_size);
        return carry_out(ring, [this](std::uint32_t slot) { return send_result(slot); });
    }

    int requests_in() {
        RingWriter ring(segment_->requests(), segment_->layout.ring_size);
        return carry_in<RequestHeader>(ring, [this](std::uint32_t slot, RequestHeader& head) {
            return receive_request(slot, head);
        });
    }

    int results_in() {
        RingWriter ring(segment_->answers(), segment_->layout.ring_size);
        return carry_in<ResultHeader>(ring, [this](std::uint32_t slot, ResultHeader& head) {
            return receive_result(slot, head);
        });
    }

    void stop() {
        stopping_.store(true);
        ours_->ring();
    }

  private:
    template <class Send>
    int carry_out(RingReader& ring, Send send) {
        while (!stopping_.load()) {
            const std::uint32_t seen = ours_->value();
            std::uint32_t slot;
            while (ring.pop(slot)) {
                if (const int error = send(slot)) return error;
            }
            const std::int64_t now = now_us();
            ours_->wait(seen, now, now + kSleepUs, spin_us_);
        }
        return 0;
    }

    template <class Header, class Receive>
    int carry_in(RingWriter& ring, Receive receive) {
        for (;;) {
            Prefix prefix;
            Header head;
            iovec parts[] = {{&prefix, sizeof prefix}, {&head, sizeof head}};
            int error = transfer(socket_, parts, 2, false);
            if (error == 0) {
                const bool known = prefix.magic == kRowsMagic && head.magic == kRowsMagic &&
                                   prefix.slot < static_cast<std::uint32_t>(shape().slots);
                error = known ? receive(prefix.slot, head) : EPROTO;
            }
            if (error != 0) return stopping_.load() ? 0 : error;
            ring.push(prefix.slot);
            theirs_->ring();
        }
    }

    // Of a slot that our own exchange filled.
    int send_request(std::uint32_t slot) {
        RequestHeader& head = *segment_->request(slot);
        Prefix prefix{kRowsMagic, slot};
        iovec parts[kParts] = {{&prefix, sizeof prefix}, {&head, sizeof head}};
        request_sections(slot, head, parts + 2);
        return transfer(socket_, parts, kParts, true);
    }

    int receive_request(std::uint32_t slot, RequestHeader& head) {
        const SegmentLayout& layout = segment_->layout;
        if (head.row_type != shape().row_type || head.out_type > 1 || head.num_rows < 1 ||
            head.num_rows > shape().slot_rows || head.num_cells < 1 ||
            head.num_cells > layout.room(head.out_type)) {
            return EPROTO;
        }
        iovec parts[kParts];
        request_sections(slot, head, parts);
        if (const int error = transfer(socket_, parts, 3, false)) return error;
        head.posted_us = now_us();  // on the clock of this host
        *segment_->request(slot) = head;
        return 0;
    }

    void request_sections(std::uint32_t slot, const RequestHeader& head, iovec* parts) const {
        const std::size_t rows = head.num_rows, cells = head.num_cells;
        parts[0] = {segment_->cells(slot), cells * sizeof(Cell)};
        parts[1] = {segment_->rows(slot), rows * row_bytes(head.row_type, shape().hidden)};
        parts[2] = {segment_->scales(slot),
                    rows * row_scales(head.row_type, shape().hidden) * sizeof(float)};
    }

    int send_result(std::uint32_t slot) {
        ResultHeader head = load_result(segment_->result(slot));
        Prefix prefix{kRowsMagic, slot};
        iovec parts[] = {{&prefix, sizeof prefix}, {&head, sizeof head}, out_section(slot, head)};
        return transfer(socket_, parts, 3, true);
    }

    int receive_result(std::uint32_t slot, ResultHeader& head) {
        if (head.out_type > 1 || head.num_cells < 0 ||
            head.num_cells > segment_->layout.room(head.out_type)) {
            return EPROTO;
        }
        iovec out = out_section(slot, head);
        if (const int error = transfer(socket_, &out, 1, false)) return error;
        store_result(segment_->result(slot), head);
        return 0;
    }

    iovec out_section(std::uint32_t slot, const ResultHeader& head) const {
        return {segment_->out(slot), head.num_cells * row_bytes(head.out_type, shape().hidden)};
    }

    const SegmentShape& shape() const { return segment_->layout.shape; }

    std::unique_ptr<Segment> segment_;
    const int socket_;
    Doorbell* const ours_;    // rung by our own exchange or inbox
    Doorbell* const theirs_;  // theirs: rung when something came
    const int spin_us_;
    std::atomic<bool> stopping_{false};
};

}  // namespace
}  // namespace triptych

using namespace triptych;

extern "C" {

// Null, and errno, when the segment cannot be mapped. Socket and bells are the caller's.
TK_EXPORT Pump* tk_rows_pump_new(int segment_fd, const SegmentShape* shape, int socket,
                                 Doorbell* ours, Doorbell* theirs, int spin_us) {
    Segment* segment = Segment::map(segment_fd, *shape);
    return segment == nullptr ? nullptr : new Pump(segment, socket, ours, theirs, spin_us);
}

// After every thread has left it.
TK_EXPORT void tk_rows_pump_free(Pump* pump) { delete pump; }

// Block until the connection ends or until stopped; then an errno, or 0.
TK_EXPORT int tk_rows_pump_requests_out(Pump* pump) { return pump->requests_out(); }
TK_EXPORT int tk_rows_pump_results_out(Pump* pump) { return pump->results_out(); }
TK_EXPORT int tk_rows_pump_requests_in(Pump* pump) { return pump->requests_in(); }
TK_EXPORT int tk_rows_pump_results_in(Pump* pump) { return pump->results_in(); }

// Ends the threads that carry out; those that carry in end with the socket.
TK_EXPORT void tk_rows_pump_stop(Pump* pump) { pump->stop(); }
}
