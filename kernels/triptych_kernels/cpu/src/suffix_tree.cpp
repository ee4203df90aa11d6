#include "suffix_tree.h"

namespace triptych {

SuffixTree::SuffixTree(int depth, int max_tokens, int segment_tokens)
    : depth_(depth),
      max_tokens_(static_cast<std::uint32_t>(max_tokens)),
      segment_tokens_(static_cast<std::uint32_t>(segment_tokens)),
      text_(64),
      mask_(63) {
    nodes_.push_back(Node{});
}

std::size_t SuffixTree::num_bytes() const {
    return text_.capacity() * sizeof(text_[0]) + nodes_.capacity() * sizeof(Node) +
           free_nodes_.capacity() * sizeof(free_nodes_[0]) + followers_.num_bytes() +
           children_.num_bytes();
}

void SuffixTree::start(const std::int32_t* context, int count) {
    const std::uint32_t need = segment_tokens_ + static_cast<std::uint32_t>(depth_) + 1;
    while (!segments_.empty() && num_tokens() + need > max_tokens_) drop_segment();
    const std::uint32_t begin = end_;
    append(kBorder);
    for (int i = std::max(0, count - depth_); i < count; ++i) append(context[i]);
    segments_.push_back({begin, end_});
}

void SuffixTree::push(std::int32_t token) {
    if (end_ - segments_.back().first >= segment_tokens_) {
        const auto context = tail();
        start(context.data(), static_cast<int>(context.size()));
    }
    append(token);
    count(end_ - 1, context_length(end_ - 1, segments_.back()));
}

std::vector<std::int32_t> SuffixTree::tail() const {
    std::vector<std::int32_t> tokens;
    const std::uint32_t held = end_ - segments_.back().begin - 1;
    for (std::uint32_t left = std::min<std::uint32_t>(depth_, held); left > 0; --left) {
        tokens.push_back(token(end_ - left));
    }
    return tokens;
}

void SuffixTree::append(std::int32_t token) {
    if (num_tokens() == text_.size()) {
        std::vector<std::int32_t> larger(2 * text_.size());
        const auto mask = static_cast<std::uint32_t>(larger.size() - 1);
        for (std::uint32_t at = begin_; at != end_; ++at) larger[at & mask] = this->token(at);
        text_.swap(larger);
        mask_ = mask;
    }
    text_[end_++ & mask_] = token;
}

void SuffixTree::drop_segment() {
    const Segment old = segments_.front();
    segments_.pop_front();
    const std::uint32_t end = segments_.empty() ? end_ : segments_.front().begin;
    for (std::uint32_t at = old.first; at != end; ++at) uncount(at, context_length(at, old));
    begin_ = end;
}

// A context that reaches the border includes it, so that none is the beginning of another.
int SuffixTree::context_length(std::uint32_t position, const Segment& segment) const {
    const std::uint32_t tokens = position - segment.begin;
    if (tokens == 1) return 0;  // the border alone: nobody asks for it
    return static_cast<int>(std::min<std::uint32_t>(tokens, depth_));
}

// Up to where the context of a node is that of a position; known to be equal up to `from`.
int SuffixTree::common(std::uint32_t node, std::uint32_t position, int from, int to) const {
    while (from < to && label(nodes_[node], from) == token(position - 1 - from)) ++from;
    return from;
}

void SuffixTree::count(std::uint32_t position, int length) {
    std::uint32_t node = 0;
    int depth = 0;
    while (depth < length) {
        const std::int32_t first = token(position - 1 - depth);
        const Child* child = children_.find(nodes_[node].children, first);
        if (child == nullptr) {
            const auto bottom = static_cast<std::uint32_t>(length);
            const std::uint32_t leaf = make_node({position, 1, bottom, {}, {}});
            children_.insert(nodes_[node].children, {first, leaf});
            return;
        }
        std::uint32_t next = child->node;
        const int bottom = static_cast<int>(nodes_[next].depth);
        depth = common(next, position, depth + 1, bottom);
        if (depth < bottom) next = split(node, next, depth);
        add_follower(next, position);
        node = next;
    }
}

void SuffixTree::uncount(std::uint32_t position, int length) {
    std::uint32_t grandparent = 0, parent = 0, node = 0;
    int depth = 0;
    while (depth < length) {
        grandparent = parent;
        parent = node;
        const std::int32_t first = token(position - 1 - depth);
        node = children_.find(nodes_[node].children, first)->node;
        remove_follower(node, token(position));
        depth = static_cast<int>(nodes_[node].depth);
    }
    if (node != 0 && nodes_[node].count == 0) remove_leaf(grandparent, parent, node);
}

void SuffixTree::add_follower(std::uint32_t id, std::uint32_t position) {
    Node& node = nodes_[id];
    const std::int32_t added = token(position);
    if (node.followers.size > 0) {
        if (Follower* known = followers_.find(node.followers, added)) {
            ++known->count;
            known->last = position;
        } else {
            followers_.insert(node.followers, {added, 1, position});
        }
    } else if (token(node.last) != added) {
        followers_.insert(node.followers, {token(node.last), node.count, node.last});
        followers_.insert(node.followers, {added, 1, position});
    }
    ++node.count;
    node.last = position;
}

void SuffixTree::remove_follower(std::uint32_t id, std::int32_t token) {
    Node& node = nodes_[id];
    --node.count;
    if (node.followers.size == 0) return;
    Follower* follower = followers_.find(node.followers, token);
    if (--follower->count > 0) return;
    followers_.erase(node.followers, follower);
    // The one that is left is the one that came last.
    if (node.followers.size == 1) followers_.clear(node.followers);
}

std::uint32_t SuffixTree::make_node(const Node& node) {
    if (free_nodes_.empty()) {
        nodes_.push_back(node);
        return static_cast<std::uint32_t>(nodes_.size() - 1);
    }
    const std::uint32_t id = free_nodes_.back();
    free_nodes_.pop_back();
    nodes_[id] = node;
    return id;
}

// Puts a node of this depth between a node and its parent.
std::uint32_t SuffixTree::split(std::uint32_t parent, std::uint32_t id, int depth) {
    Node upper = nodes_[id];
    const std::int32_t first = label(upper, static_cast<int>(nodes_[parent].depth));
    upper.depth = static_cast<std::uint32_t>(depth);
    upper.followers = followers_.copy(upper.followers);
    upper.children = List{};
    children_.insert(upper.children, {label(upper, depth), id});
    const std::uint32_t made = make_node(upper);
    children_.find(nodes_[parent].children, first)->node = made;
    return made;
}

// A parent that is left with one child occurs where the child does, so it goes too.
void SuffixTree::remove_leaf(std::uint32_t grandparent, std::uint32_t parent, std::uint32_t leaf) {
    List& siblings = nodes_[parent].children;
    const std::int32_t first = label(nodes_[leaf], static_cast<int>(nodes_[parent].depth));
    children_.erase(siblings, children_.find(siblings, first));
    free_nodes_.push_back(leaf);
    if (parent == 0 || siblings.size > 1) return;
    const std::uint32_t only = children_.begin(siblings)->node;
    const auto above = static_cast<int>(nodes_[grandparent].depth);
    children_.find(nodes_[grandparent].children, label(nodes_[only], above))->node = only;
    children_.clear(siblings);
    followers_.clear(nodes_[parent].followers);
    free_nodes_.push_back(parent);
}

// One node down, to where the context leaves its label or ends; false if there is no such node.
bool SuffixTree::descend(Match& at, const std::int32_t* backwards, int count) {
    const Child* child = children_.find(nodes_[at.node].children, backwards[at.length]);
    if (child == nullptr) return false;
    at.node = child->node;
    const Node& node = nodes_[at.node];
    const int bottom = std::min(static_cast<int>(node.depth), count);
    do {
        ++at.length;
    } while (at.length < bottom && label(node, at.length) == backwards[at.length]);
    return true;
}

std::uint32_t SuffixTree::locate(const std::int32_t* backwards, int count) {
    Match at{0, 0};
    while (at.length == static_cast<int>(nodes_[at.node].depth) &&
           descend(at, backwards, count)) {
        if (at.length == count) return at.node;
    }
    return kNoNode;
}

std::vector<SuffixTree::Match> SuffixTree::match(const std::int32_t* backwards, int count) {
    std::vector<Match> found;
    Match at{0, 0};
    while (at.length < count && at.length == static_cast<int>(nodes_[at.node].depth) &&
           descend(at, backwards, count)) {
        found.push_back(at);
    }
    return found;
}

}  // namespace triptych
