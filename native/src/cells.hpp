// Plans that look up cells: items of a pair of books by their two words.
#pragma once

#include <cstdint>
#include <vector>

#include "group.hpp"
#include "query.hpp"
#include "scoring.hpp"

namespace opqn {

// Nanoseconds, as measured on one core of a 3 GHz x86-64 machine. Only their ratios matter, and only for speed.
struct LookUpCosts {
    double cell;  // to begin a cell in all parts
    double item;  // to score an item out of order
    double next;  // to score one after the other, as those of the first pair's cells are

    explicit LookUpCosts(const Group& group);
};

struct Cell {
    std::uint32_t a, b;    // books
    std::uint32_t number;  // of the words (i, j): i * K + j
};

// How many items the best words of a query have, to tell what plans cost: words of a trained model are not used evenly.
class Shares {
public:
    Shares(const Group& group, Query& query) : group_(group), query_(query), sums_(query.num_books()) {}
    // Items that have one of the `count` best words of a book, as a share of all; as it is in the first segment.
    double of(std::uint32_t book, std::uint32_t count);

private:
    const Group& group_;
    Query& query_;
    std::vector<std::vector<double>> sums_;  // (M, ranks asked for so far + 1)
};

// Scores the items of these cells.
void visit(const Group& group, const std::vector<Cell>& cells, Scorer& scorer);
// What that will cost. Empty cells are taken out.
double cost_of(const Group& group, std::vector<Cell>& cells, const LookUpCosts& costs);

// The cells of neighbouring pairs of books (0, 1), (2, 3), ... from high to low T[a, i] + T[b, j], in steps.
// Fagin, Lotem and Naor 2001: the threshold algorithm; a pair of books is a list, its cells are the list's entries.
class CellOrder {
public:
    CellOrder(const Group& group, Query& query, Shares& shares, const LookUpCosts& costs);

    // How many steps are taken in each pair.
    using Steps = std::vector<std::uint32_t>;
    Steps none() const { return Steps(pairs_.size(), 0); }

    // No item outside of the cells taken scores more than this, but for rounding.
    double bound(const Steps& steps) const;
    // The bound is no lower than this as long as few cells are taken: seven of each pair.
    double least_bound();
    double cost(const Steps& steps) const;
    // Takes one more step, where it lowers the bound most for its cost. False if there is none left for about this
    // cost.
    bool advance(Steps& steps, double spare);
    // The cells that `to` has and `from` has not.
    std::vector<Cell> between(const Steps& from, const Steps& to) const;

private:
    // The cells of a pair down to some value: of the word of rank i in the first book, those with the counts[i] best
    // words of the second.
    struct Stairs {
        std::vector<std::uint16_t> counts;
        double next;  // the highest value left out
        double cost;
        std::uint32_t num_cells;
    };
    struct Pair {
        std::uint32_t a, b;
        std::vector<Stairs> stairs;  // by steps taken
    };

    double value(const Pair& pair, std::uint32_t i, std::uint32_t j) const {
        return static_cast<double>(query_.ranked(pair.a, i).value) +
               static_cast<double>(query_.ranked(pair.b, j).value);
    }
    bool has(Pair& pair, std::uint32_t step, double spare);
    Stairs down_to(const Pair& pair, double least);

    double size_;
    Query& query_;
    Shares& shares_;
    LookUpCosts costs_;
    std::vector<Pair> pairs_;
    double rest_ = 0;  // the highest of a last book without a neighbour
};

// A number of best words for each book, (M,).
using Choice = std::vector<std::uint32_t>;

// Bound on items that have at most one chosen word in each set of `set_size` neighbouring books: by how much the best
// of the chosen words lifts a set above the books' best words left out.
double bound_outside(Query& query, const Choice& counts, std::uint32_t set_size);

// Chooses words, the highest entries first, until items with at most one of them in each set are ruled out; then leaves
// out the books that can be. `cost` tells what a choice costs. False if that is more than `limit`.
template <class Cost>
bool choose_words(Scorer& scorer, std::uint32_t set_size, double limit, Choice& counts, Cost&& cost) {
    Query& query = scorer.query;
    const std::uint32_t books = query.num_books();
    counts.assign(books, 0);
    std::uint32_t num_chosen = 0;
    while (!scorer.proven(bound_outside(query, counts, set_size))) {
        // A few at a time where many are needed.
        for (std::uint32_t step = 1 + num_chosen / 16; step > 0; --step) {
            std::uint32_t book = books;
            for (std::uint32_t m = 0; m < books; ++m) {
                if (counts[m] + 1 >= query.num_words()) continue;
                if (book == books || query.ranked(m, counts[m]).value > query.ranked(book, counts[book]).value)
                    book = m;
            }
            if (book == books) return false;
            ++counts[book];
            ++num_chosen;
        }
        if (cost(counts) > limit) return false;
    }
    for (;;) {
        double best = cost(counts);
        std::uint32_t spare = books;
        for (std::uint32_t m = 0; m < books; ++m) {
            if (!counts[m]) continue;
            auto fewer = counts;
            fewer[m] = 0;
            if (!scorer.proven(bound_outside(query, fewer, set_size))) continue;
            if (const double saved = cost(fewer); saved < best) best = saved, spare = m;
        }
        if (spare == books) return true;
        counts[spare] = 0;
    }
}

// The cells of each two chosen words within a set of neighbouring books; with those of the two best words, or without.
std::vector<Cell> cells_of(Query& query, const Choice& counts, std::uint32_t set_size, bool has_best);

// The cheapest cover that proves the answer and its cost, infinite if there is none within `limit`. The cells of
// each two best words within sets of `best_set` books were visited already, or those of none, if that is 0.
double plan_cover(const Group& group, Scorer& scorer, Shares& shares, const LookUpCosts& costs, std::uint32_t best_set,
                  double limit, std::vector<Cell>& cells);

}  // namespace opqn
