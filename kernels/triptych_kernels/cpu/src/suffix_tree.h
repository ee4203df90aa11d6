// What followed which context how often: the fast twin of triptych_kernels.suffix_tree.
//
// A compressed tree of the text read backwards. A node is a set of places where one context ended,
// and counts the tokens that followed; contexts between two nodes occurred where the lower one did.
// Read backwards, a new token is the new first one of the text: one path from the root holds all
// its contexts, and everything is counted once it is known. Read forwards (Ukkonen) the newest
// `depth` starts would stay open and be touched by each token.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <vector>

#include "slabs.h"

namespace triptych {

constexpr std::int32_t kBorder = -1;  // stands in the text before each segment; no token
constexpr std::uint32_t kNoNode = ~0u;

struct Follower {
    std::int32_t token;
    std::uint32_t count;
    std::uint32_t last;  // position of the newest occurrence
};

struct Child {
    std::int32_t token;  // first of the label
    std::uint32_t node;
};

struct Node {
    std::uint32_t last;   // position of what followed this context last: text before it is a label
    std::uint32_t count;  // occurrences that were followed
    std::uint32_t depth;  // tokens of the context
    List followers;       // empty while there is only one: text[last], `count` times
    List children;
};

// Newest text, up to max_tokens; dropped by the segment, oldest first. So whatever still has an
// occurrence has its newest one, and labels point at that. Positions wrap around at 2³².
class SuffixTree {
  public:
    SuffixTree(int depth, int max_tokens, int segment_tokens);

    void start(const std::int32_t* context, int count);
    void push(std::int32_t token);

    int depth() const { return depth_; }
    std::vector<std::int32_t> tail() const;  // the newest text's end, `depth` tokens at most
    std::uint32_t num_tokens() const { return end_ - begin_; }
    std::size_t num_bytes() const;

    // The node that holds a context, or kNoNode. backwards[count > 0]: its tokens, last one first.
    std::uint32_t locate(const std::int32_t* backwards, int count);

    // One entry for each node that an end of the pattern leads to, shortest first.
    struct Match {
        int length;
        std::uint32_t node;
    };
    std::vector<Match> match(const std::int32_t* backwards, int count);

    const Node& node(std::uint32_t id) const { return nodes_[id]; }
    // Of a node with several.
    const Follower* followers_begin(const Node& node) { return followers_.begin(node.followers); }
    std::int32_t token(std::uint32_t position) const { return text_[position & mask_]; }
    bool has(std::uint32_t position) const { return position - begin_ < end_ - begin_; }
    std::uint32_t age_order(std::uint32_t position) const { return position - begin_; }

  private:
    struct Segment {
        std::uint32_t begin;  // position of its border
        std::uint32_t first;  // of its first counted token
    };

    bool descend(Match& at, const std::int32_t* backwards, int count);
    void append(std::int32_t token);
    void drop_segment();
    int context_length(std::uint32_t position, const Segment& segment) const;
    int common(std::uint32_t node, std::uint32_t position, int from, int to) const;
    void count(std::uint32_t position, int length);
    void uncount(std::uint32_t position, int length);
    void add_follower(std::uint32_t node, std::uint32_t position);
    void remove_follower(std::uint32_t node, std::int32_t token);
    std::uint32_t make_node(const Node& node);
    std::uint32_t split(std::uint32_t parent, std::uint32_t node, int depth);
    void remove_leaf(std::uint32_t grandparent, std::uint32_t parent, std::uint32_t leaf);
    // Of the label of the node below `depth`.
    std::int32_t label(const Node& node, int depth) const { return token(node.last - 1 - depth); }

    int depth_;
    std::uint32_t max_tokens_;
    std::uint32_t segment_tokens_;
    std::vector<std::int32_t> text_;  // a ring
    std::uint32_t mask_;
    std::uint32_t begin_ = 0;  // position of the first token kept
    std::uint32_t end_ = 0;
    std::deque<Segment> segments_;
    std::vector<Node> nodes_;  // the first is the root; it counts nothing
    std::vector<std::uint32_t> free_nodes_;
    Slabs<Follower> followers_;
    Slabs<Child> children_;
};

}  // namespace triptych
