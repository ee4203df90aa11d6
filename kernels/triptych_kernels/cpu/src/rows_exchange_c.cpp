// The row exchange as Python sees it. The caller checks workers and sizes.
#include <cerrno>

#include "export.h"
#include "rows_exchange.h"

using namespace triptych;

// What a call begins with: words of eight bytes, which Python packs at once.
struct CallStruct {
    std::int64_t lane, layer;
    const float* x;
    std::int64_t rows;
    const std::int32_t* ids;
    std::int64_t k;
};

extern "C" {

// The arrays are the caller's and outlive the exchange: tables [layers, experts, replicas], which
// it may change between calls, counts [layers, experts], stats [64].
TK_EXPORT Exchange* tk_rows_exchange_new(const ExchangeShape* shape, const std::int16_t* tables,
                                         std::uint64_t* counts, WorkerStats* stats,
                                         Doorbell* bell) {
    return new Exchange(*shape, tables, counts, stats, bell);
}

TK_EXPORT void tk_rows_exchange_free(Exchange* exchange) { delete exchange; }

// 0, or an errno: the descriptors, which stay the caller's, cannot be mapped.
TK_EXPORT int tk_rows_add_worker(Exchange* exchange, int worker, int segment_fd,
                                 const SegmentShape* shape, int bell_fd, std::uint64_t a_inc,
                                 std::uint64_t f_inc) {
    Segment* segment = Segment::map(segment_fd, *shape);
    if (segment == nullptr) return errno;
    Doorbell* bell = Doorbell::open(bell_fd);
    if (bell == nullptr) {
        const int error = errno;
        delete segment;
        return error;
    }
    exchange->add_worker(worker, segment, bell, a_inc, f_inc);
    return 0;
}

TK_EXPORT int tk_rows_drop_worker(Exchange* exchange, int worker) {
    return exchange->drop_worker(worker);
}

TK_EXPORT int tk_rows_set_deadline(Exchange* exchange, int worker, std::int64_t us) {
    return exchange->set_deadline(worker, us);
}

// Parked cells; -1: an id is out of range; -2: no such lane, layer, rows or k, or the lane is in
// use. Less than 0: nothing has begun.
TK_EXPORT int tk_rows_begin(Exchange* exchange, const CallStruct* call) {
    return exchange->begin(static_cast<int>(call->lane), static_cast<int>(call->layer), call->x,
                           static_cast<int>(call->rows), call->ids, static_cast<int>(call->k));
}

// Rows and k of a lane's call. 0: it has none.
TK_EXPORT int tk_rows_call_shape(Exchange* exchange, int lane, std::int32_t* shape) {
    return exchange->call_shape(lane, shape);
}

TK_EXPORT int tk_rows_issue(Exchange* exchange, int lane, int forgiving) {
    return exchange->issue(lane, forgiving != 0);
}

TK_EXPORT int tk_rows_wait(Exchange* exchange, int lanes, int timeout_us) {
    return exchange->wait(lanes, timeout_us);
}

TK_EXPORT int tk_rows_overdue(Exchange* exchange, std::int64_t now, Overdue* out, int room) {
    return exchange->overdue(now, out, room);
}

TK_EXPORT int tk_rows_abandon(Exchange* exchange, std::uint32_t shard) {
    return exchange->abandon(shard);
}

// Pairs of (cell, expert).
TK_EXPORT int tk_rows_missing(Exchange* exchange, int lane, int waiting_too, std::int32_t* out) {
    return exchange->missing(lane, waiting_too != 0, out);
}

TK_EXPORT int tk_rows_fill(Exchange* exchange, int lane, const std::int32_t* cells, int count,
                           const std::uint8_t* rows) {
    return exchange->fill(lane, cells, count, rows);
}

TK_EXPORT void* tk_rows_cells(Exchange* exchange, int lane) { return exchange->cells(lane); }

TK_EXPORT void tk_rows_end(Exchange* exchange, int lane) { exchange->end(lane); }

TK_EXPORT void tk_rows_ring(Exchange* exchange) { exchange->ring(); }
}
