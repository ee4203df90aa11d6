#include "experts.h"

#include <algorithm>
#include <vector>

#include "export.h"
#include "memory.h"
#include "norms.h"
#include "wire_rows.h"

namespace triptych {
namespace {

constexpr int kRowsOfPiece = 256;  // as in `apply`
constexpr int kRunsOfThread = 4;   // enough for a thread that is slower to do less
// Reading a panel from memory takes about as long as the products of so many tiles of rows.
constexpr int kReadingCost = 16;

enum class Stage { kGateUp, kDown };

// All rows that meet in one unit.
struct Group {
    const Unit* unit;
    int first, rows;  // in the batch's order
    Operand x, gated;

    const Linear& linear(Stage stage) const {
        return stage == Stage::kGateUp ? *unit->gate_up : *unit->down;
    }
    int panel_cost() const { return kReadingCost + x.tiles(); }
};

// Where a row of the batch comes from.
struct Source {
    const Shard* shard;
    int row, group;
};

// Some panels of a unit, over some of its rows.
struct Piece {
    int group;
    Part part;
};

// What `linear` reads, without memory yet. A row of floats has room for `width`.
Operand shape_of(const Linear& linear, int rows, int width) {
    Operand x;
    x.rows = rows, x.in = linear.in;
    x.depth = linear.kind == Kind::kFloat ? std::max(linear.depth, width) : linear.depth;
    return x;
}

// Gives it memory from `at` on, which moves behind it.
void place(Operand& x, Kind kind, std::size_t& at, std::uint8_t* memory) {
    const std::size_t lines = kind == Kind::kFloat ? x.rows : x.tiles() * kRowTile;
    if (kind == Kind::kFloat) {
        x.floats = reinterpret_cast<float*>(memory + at);
    } else {
        x.halves = reinterpret_cast<Bf16*>(memory + at);
    }
    const std::size_t bytes = lines * x.depth * (kind == Kind::kFloat ? 4 : 2);
    at += (bytes + 63) / 64 * 64;
}

// A batch on its way; its memory is kept between calls.
class Batch {
  public:
    void collect(const Unit* units, const Shard* shards, int count);
    void gather();
    void multiply(Stage stage, Epilogue::Action action);

  private:
    void count_cells(const Shard* shards, int count);
    void make_groups(const Unit* units);
    void place_operands();
    void cut(Stage stage);
    void run(const Piece& piece, Stage stage, Epilogue::Action action);

    std::vector<int> starts_, group_of_;  // by expert
    std::vector<Group> groups_;
    std::vector<Source> sources_;
    std::vector<Target> targets_;
    std::vector<Piece> pieces_;
    Buffer<std::uint8_t> memory_;
};

// starts_[expert]: how many cells belong to experts before it.
void Batch::count_cells(const Shard* shards, int count) {
    int experts = 0;
    for (const Shard* shard = shards; shard < shards + count; ++shard) {
        if (shard->num_cells == 0) continue;
        experts = std::max(experts, shard->cells[shard->num_cells - 1].expert + 1);
    }
    starts_.assign(experts + 1, 0);
    for (const Shard* shard = shards; shard < shards + count; ++shard) {
        for (int i = 0; i < shard->num_cells; ++i) ++starts_[shard->cells[i].expert + 1];
    }
    for (int expert = 0; expert < experts; ++expert) starts_[expert + 1] += starts_[expert];
}

void Batch::make_groups(const Unit* units) {
    const int experts = static_cast<int>(starts_.size()) - 1;
    groups_.clear();
    group_of_.assign(experts, -1);
    for (int expert = 0; expert < experts; ++expert) {
        const int rows = starts_[expert + 1] - starts_[expert];
        if (rows == 0) continue;
        const Unit& unit = units[expert];
        const int width = unit.gate_up->panels * kLanes;
        group_of_[expert] = static_cast<int>(groups_.size());
        groups_.push_back({&unit, starts_[expert], rows, shape_of(*unit.gate_up, rows, 0),
                           shape_of(*unit.down, rows, width)});
    }
}

void Batch::place_operands() {
    std::uint8_t* memory = nullptr;
    for (bool sizing : {true, false}) {
        std::size_t at = 0;
        for (Group& group : groups_) {
            place(group.x, group.unit->gate_up->kind, at, memory);
            place(group.gated, group.unit->down->kind, at, memory);
        }
        if (sizing) memory = memory_.take(at);
    }
}

void Batch::collect(const Unit* units, const Shard* shards, int count) {
    count_cells(shards, count);
    make_groups(units);
    place_operands();
    sources_.resize(starts_.back());
    targets_.resize(starts_.back());
    for (const Shard* shard = shards; shard < shards + count; ++shard) {
        const bool halves = static_cast<RowType>(shard->out_type) == RowType::kBf16;
        for (int i = 0; i < shard->num_cells; ++i) {
            const Cell cell = shard->cells[i];
            const int group = group_of_[cell.expert], at = starts_[cell.expert]++;
            const std::size_t size = groups_[group].unit->down->out;
            const std::size_t row = shard->places == nullptr ? i : shard->places[i];
            const std::size_t offset = row * size * (halves ? sizeof(Bf16) : sizeof(float));
            sources_[at] = {shard, cell.row, group};
            targets_[at] = {static_cast<std::uint8_t*>(shard->out) + offset, halves};
        }
    }
}

void Batch::gather() {
    for_rows(static_cast<int>(sources_.size()), [&](int index) {
        const Source& from = sources_[index];
        Group& group = groups_[from.group];
        const int row = index - group.first;
        clear_tail(group.x, row);
        clear_tail(group.gated, row);
        put_wire_row(group.x, row, *from.shard, from.row);
    });
}

// Into pieces of about the same cost. Those that share weights stand side by side.
void Batch::cut(Stage stage) {
    std::int64_t total = 0;
    for (const Group& group : groups_) total += group.linear(stage).panels * group.panel_cost();
    const std::int64_t cost = total / (kRunsOfThread * num_threads()) + 1;
    pieces_.clear();
    for (const Group& group : groups_) {
        const int panels = group.linear(stage).panels, index = &group - groups_.data();
        const int length = static_cast<int>(std::max<std::int64_t>(1, cost / group.panel_cost()));
        for (int first = 0; first < panels; first += length) {
            const int last = std::min(panels, first + length);
            for (int begin = 0; begin < group.rows; begin += kRowsOfPiece) {
                const int end = std::min(group.rows, begin + kRowsOfPiece);
                pieces_.push_back({index, {first, last, begin, end}});
            }
        }
    }
}

void Batch::run(const Piece& piece, Stage stage, Epilogue::Action action) {
    Group& group = groups_[piece.group];
    const Linear& linear = group.linear(stage);
    const auto kernel = linear.kind == Kind::kFloat ? apply_float : apply_bf16;
    Epilogue to;
    if (stage == Stage::kDown) {
        to.action = Epilogue::Action::kScatter;
        to.targets = targets_.data() + group.first;
        return kernel(linear, group.gated, piece.part, to);
    }
    to.action = action;
    to.out = group.gated.floats, to.stride = group.gated.depth;
    to.next = group.gated.halves == nullptr ? nullptr : &group.gated;
    kernel(linear, group.x, piece.part, to);
}

void Batch::multiply(Stage stage, Epilogue::Action action) {
    cut(stage);
    parallel_for(static_cast<int>(pieces_.size()),
                 [&](int index) { run(pieces_[index], stage, action); });
}

}  // namespace

void run_shards(const Unit* units, int action, const Shard* shards, int count) {
    static thread_local Batch own;
    Batch& batch = own;  // the caller's, in every thread
    batch.collect(units, shards, count);
    batch.gather();
    batch.multiply(Stage::kGateUp, static_cast<Epilogue::Action>(action));
    batch.multiply(Stage::kDown, Epilogue::Action::kScatter);
}

}  // namespace triptych

extern "C" {

TK_EXPORT void tk_run_shards(const triptych::Unit* units, int action,
                             const triptych::Shard* shards, int count) {
    triptych::run_shards(units, action, shards, count);
}

}  // extern "C"
