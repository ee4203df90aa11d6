// Drafts from a suffix tree, and what Python sees of it.
#include <algorithm>
#include <queue>
#include <vector>

#include "export.h"
#include "suffix_tree.h"

namespace triptych {
namespace {

constexpr int kRoot = -1;

struct Limits {
    int max_nodes;
    double factor, offset, min_prob;
    bool tree;
};

struct Guess {
    std::vector<std::int32_t> tokens, parents;
    std::vector<double> probabilities;
    double score = 0.0;
};

// A node that may be drafted.
struct Step {
    double p;  // of the path
    int order;
    std::int32_t token;
    double probability;
    int parent;
    bool copied;       // the context occurs once only: its text is all there is to say
    std::uint32_t at;  // then the token's position
};

struct Later {
    bool operator()(const Step& a, const Step& b) const {
        return a.p != b.p ? a.p < b.p : a.order > b.order;
    }
};

// Best first from one match: the likeliest node that is left is drafted next.
class Walk {
  public:
    // backwards[length]: the match, last token first.
    Walk(SuffixTree& source, const std::int32_t* backwards, int length, const Limits& limits)
        : source_(source), backwards_(backwards), length_(length), limits_(limits) {}

    // Gives up once the score cannot exceed `to_beat`: no later node is likelier.
    Guess draft(std::uint32_t node, int budget, double to_beat) {
        offer_followers(node, kRoot, 1.0);
        for (int left = budget; !heap_.empty() && left > 0; --left) {
            const Step step = heap_.top();
            heap_.pop();
            if (guess_.score + left * step.p <= to_beat) return {};
            guess_.tokens.push_back(step.token);
            guess_.parents.push_back(step.parent);
            guess_.probabilities.push_back(step.probability);
            guess_.score += step.p;
            if (left > 1) offer_after(step);
        }
        return std::move(guess_);
    }

  private:
    void offer_after(const Step& step) {
        const int drafted = static_cast<int>(guess_.tokens.size()) - 1;
        const std::uint32_t after = step.at + 1;
        if (step.copied && source_.has(after) && source_.token(after) != kBorder) {
            offer(source_.token(after), 1.0, drafted, step.p, true, after);
            return;
        }
        const std::uint32_t node = locate(drafted);
        if (node != kNoNode) offer_followers(node, drafted, step.p);
    }

    // The node of the match and the path behind it, as far back as the tree looks.
    std::uint32_t locate(int drafted) {
        context_.clear();
        const auto depth = static_cast<std::size_t>(source_.depth());
        for (int at = drafted; at != kRoot && context_.size() < depth; at = guess_.parents[at]) {
            context_.push_back(guess_.tokens[at]);
        }
        for (int i = 0; i < length_ && context_.size() < depth; ++i) {
            context_.push_back(backwards_[i]);
        }
        return source_.locate(context_.data(), static_cast<int>(context_.size()));
    }

    void offer_followers(std::uint32_t id, int parent, double p) {
        const Node& node = source_.node(id);
        if (node.followers.size == 0) {
            offer(source_.token(node.last), 1.0, parent, p, node.count == 1, node.last);
            return;
        }
        const Follower* first = source_.followers_begin(node);
        const Follower* end = first + node.followers.size;
        const auto likelier = [&](const Follower& a, const Follower& b) {
            if (a.count != b.count) return a.count > b.count;
            return source_.age_order(a.last) > source_.age_order(b.last);
        };
        if (!limits_.tree) {
            offer_one(*std::min_element(first, end, likelier), node, parent, p);
            return;
        }
        ranked_.clear();
        for (; first != end; ++first) {
            if (p * share(*first, node) >= limits_.min_prob) ranked_.push_back(*first);
        }
        std::sort(ranked_.begin(), ranked_.end(), likelier);
        for (const Follower& follower : ranked_) offer_one(follower, node, parent, p);
    }

    static double share(const Follower& follower, const Node& node) {
        return static_cast<double>(follower.count) / static_cast<double>(node.count);
    }

    void offer_one(const Follower& follower, const Node& node, int parent, double p) {
        offer(follower.token, share(follower, node), parent, p, false, 0);
    }

    void offer(std::int32_t token, double probability, int parent, double p, bool copied,
               std::uint32_t at) {
        if (p * probability < limits_.min_prob) return;
        heap_.push({p * probability, num_steps_++, token, probability, parent, copied, at});
    }

    SuffixTree& source_;
    const std::int32_t* backwards_;
    int length_;
    const Limits& limits_;
    Guess guess_;
    std::priority_queue<Step, std::vector<Step>, Later> heap_;
    int num_steps_ = 0;
    std::vector<std::int32_t> context_;
    std::vector<Follower> ranked_;
};

// Tries each match, longest first; the longest also wins ties.
Guess propose(SuffixTree& source, const std::int32_t* pattern, int count, const Limits& limits) {
    std::vector<std::int32_t> backwards;
    for (int i = count - 1; i >= std::max(0, count - source.depth()); --i) {
        backwards.push_back(pattern[i]);
    }
    const auto found = source.match(backwards.data(), static_cast<int>(backwards.size()));
    Guess best;
    for (auto match = found.rbegin(); match != found.rend(); ++match) {
        const double earned = match->length * limits.factor + limits.offset;
        const int budget = static_cast<int>(std::min<double>(limits.max_nodes, earned));
        if (budget <= best.score) break;  // a score is at most the number of nodes
        Walk walk(source, backwards.data(), match->length, limits);
        Guess guess = walk.draft(match->node, budget, best.score);
        if (guess.score > best.score) best = std::move(guess);
    }
    return best;
}

// Into an ask's part of the results: tokens and parents [stride], probabilities [stride], score.
int write(const Guess& guess, int stride, std::int32_t* tokens, std::int32_t* parents,
          double* probabilities) {
    std::copy(guess.tokens.begin(), guess.tokens.end(), tokens);
    std::copy(guess.parents.begin(), guess.parents.end(), parents);
    std::copy(guess.probabilities.begin(), guess.probabilities.end(), probabilities);
    probabilities[stride] = guess.score;
    return static_cast<int>(guess.tokens.size());
}

}  // namespace
}  // namespace triptych

extern "C" {

TK_EXPORT void* tk_suffix_new(int depth, int max_tokens, int segment_tokens) {
    return new triptych::SuffixTree(depth, max_tokens, segment_tokens);
}

TK_EXPORT void tk_suffix_free(void* tree) { delete static_cast<triptych::SuffixTree*>(tree); }

TK_EXPORT void tk_suffix_start(void* tree, const std::int32_t* context, int count) {
    static_cast<triptych::SuffixTree*>(tree)->start(context, count);
}

TK_EXPORT void tk_suffix_push(void* tree, const std::int32_t* tokens, int count) {
    for (int i = 0; i < count; ++i) static_cast<triptych::SuffixTree*>(tree)->push(tokens[i]);
}

// Nodes into tokens, parents and probabilities [max_nodes]; the score behind the probabilities, at
// max_nodes. Returns the number of nodes.
TK_EXPORT int tk_suffix_propose(void* tree, const std::int32_t* pattern, int count, int max_nodes,
                                double factor, double offset, double min_prob, int branches,
                                std::int32_t* tokens, std::int32_t* parents,
                                double* probabilities) {
    const triptych::Limits limits{max_nodes, factor, offset, min_prob, branches != 0};
    const auto guess =
        triptych::propose(*static_cast<triptych::SuffixTree*>(tree), pattern, count, limits);
    return triptych::write(guess, max_nodes, tokens, parents, probabilities);
}

// For many sequences at once. The first of an ask's trees holds the sequence's own text: it is
// lengthened by `added`, then its end is what all of them continue; of equal guesses the first
// tree's stays. trees, added: those of all asks one behind the other. Nodes of ask i into tokens and
// parents [asks, stride] and probabilities [asks, stride + 1] (last: the score); their number into
// counts [asks].
TK_EXPORT void tk_suffix_propose_all(int asks, void* const* trees, const std::int32_t* num_trees,
                                     const std::int32_t* added, const std::int32_t* num_added,
                                     const std::int32_t* max_nodes, double factor, double offset,
                                     double min_prob, int branches, int stride,
                                     std::int32_t* counts, std::int32_t* tokens,
                                     std::int32_t* parents, double* probabilities) {
    for (int ask = 0; ask < asks; ++ask) {
        auto& own = *static_cast<triptych::SuffixTree*>(trees[0]);
        for (int i = 0; i < num_added[ask]; ++i) own.push(*added++);
        const auto pattern = own.tail();
        const triptych::Limits limits{max_nodes[ask], factor, offset, min_prob, branches != 0};
        triptych::Guess best;
        for (int i = 0; i < num_trees[ask]; ++i) {
            auto& tree = *static_cast<triptych::SuffixTree*>(*trees++);
            auto guess =
                triptych::propose(tree, pattern.data(), static_cast<int>(pattern.size()), limits);
            if (guess.score > best.score) best = std::move(guess);
        }
        counts[ask] = triptych::write(best, stride, tokens, parents, probabilities);
        tokens += stride;
        parents += stride;
        probabilities += stride + 1;
    }
}

TK_EXPORT std::int64_t tk_suffix_tokens(void* tree) {
    return static_cast<triptych::SuffixTree*>(tree)->num_tokens();
}

TK_EXPORT std::int64_t tk_suffix_bytes(void* tree) {
    return static_cast<std::int64_t>(static_cast<triptych::SuffixTree*>(tree)->num_bytes());
}
}
