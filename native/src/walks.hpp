// Plans that go through all items, block by block.
#pragma once

#include <cstdint>
#include <vector>

#include "cells.hpp"
#include "group.hpp"
#include "scoring.hpp"

namespace opqn {

// A plan under way. Several queries go through the items together: each looks at a block while that is in the cache.
class Walk {
public:
    virtual ~Walk() = default;

    enum class State {
        kGoesOn,
        kProven,  // nothing more is to be found
        kFailed,  // the plan guessed wrong: another has to go through the items
    };
    // Looks at items [begin, end) of a part: the next block, of at most kBlock items.
    virtual State step(const Part& part, std::uint32_t begin, std::uint32_t end) = 0;
    // What is proven when all blocks were looked at.
    virtual State finish() { return State::kProven; }
};

// Every item is scored, but for cells of the first pair, in whose order items lie, that are ruled out as a whole.
class ScanWalk : public Walk {
public:
    ScanWalk(const Group& group, Scorer scorer);
    State step(const Part& part, std::uint32_t begin, std::uint32_t end) override;

    // The cost if no cell is ruled out.
    static double most_cost(const Group& group);
    // The cost with the floor that was found.
    double cost(Shares& shares);

private:
    // A cell of word i and a word whose entry is below this is ruled out.
    float least_second(std::uint32_t i) const;

    Scorer scorer_;
    double size_;
    bool has_cells_;
    double rest_ = 0;    // the highest of all books but the first two
    std::uint32_t gap_;  // of items that take as long to scan as a new run takes to begin
    std::uint32_t plain_blocks_ = 0;
};

// Bounds from the high four bits of each word.
class BoundsWalk : public Walk {
public:
    BoundsWalk(const Group& group, Scorer scorer);

    // The cost at best, when hardly an item can reach the floor.
    static double least_cost(const Group& group);
    // The cost as a sample of the items tells it, for the floor that was found; `scan` is that of a scan.
    double cost(double scan);
    // Walks with a floor that was guessed from a sample, if there is none to start with that rules out most. What was
    // found is exact if k hits reach it; finish() tells.
    void guess_floor();

    State step(const Part& part, std::uint32_t begin, std::uint32_t end) override;
    State finish() override;

private:
    void find_deficits(double floor);
    std::size_t find_masks(const Part& part, std::uint32_t first_group, std::uint32_t num_groups);
    double sample(std::size_t& count);

    const Group& group_;
    Scorer scorer_;
    ScanWalk scan_;
    std::vector<double> gaps_;  // (M * 16,) from the highest entry of a book to that of a nibble
    double typical_ = 0;        // the sum of the books' middle gaps
    std::vector<std::uint8_t> deficits_;
    double deficits_for_;  // the floor that they belong to
    double guess_;
    std::uint32_t blocks_to_scan_ = 0;
    std::uint64_t num_seen_ = 0, num_passed_ = 0;
};

// Counters over the lists of chosen words.
class ListsWalk : public Walk {
public:
    // Chooses words; cost() is infinite if that takes more than `limit`.
    ListsWalk(const Group& group, Scorer scorer, Shares& shares, double limit);

    double cost() const { return cost_; }
    State step(const Part& part, std::uint32_t begin, std::uint32_t end) override;
    State finish() override;

private:
    struct List {
        std::uint32_t book, word;
        double lift;  // above the best word left out of its book
        std::uint8_t weight;
    };

    Scorer scorer_;
    std::vector<List> lists_;
    double left_out_ = 0;  // the sum of the books' best words left out
    double scale_ = 0;
    double cost_;
    double guess_;  // at the k-th score, if the walk is exact only where that is exceeded
};

}  // namespace opqn
