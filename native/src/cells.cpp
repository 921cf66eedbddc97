#include "cells.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

namespace opqn {
namespace {

constexpr double kCellCost = 45;      // a cell begun in a segment
constexpr double kOrderCost = 90;     // a cell found to be the next in the order of its pair
constexpr double kNearItemCost = 10;  // an item scored out of order, with all codes in the cache
constexpr double kFarItemCost = 20;   // the same with codes in memory
constexpr double kCacheBytes = 16e6;
constexpr double kNever = std::numeric_limits<double>::infinity();
constexpr std::size_t kCellsAhead = 16;  // cells fetched ahead of the one being read
constexpr std::uint32_t kGather = 2048;  // positions gathered before they are scored

}  // namespace

LookUpCosts::LookUpCosts(const Group& group)
    : cell(kCellCost * static_cast<double>(group.parts.size())),
      item(static_cast<double>(group.size) * group.layout.num_books < kCacheBytes ? kNearItemCost : kFarItemCost),
      next(kScanCost * group.layout.num_books) {}

double Shares::of(std::uint32_t book, std::uint32_t count) {
    auto& sums = sums_[book];
    if (sums.empty()) sums.push_back(0);
    const Segment& segment = *group_.parts.front().segment;
    while (sums.size() <= count) {
        const std::uint32_t word = query_.ranked(book, static_cast<std::uint32_t>(sums.size()) - 1).word;
        sums.push_back(sums.back() + static_cast<double>(segment.word_count(book, word)) / segment.num_codes());
    }
    return sums[count];
}

void visit(const Group& group, const std::vector<Cell>& cells, Scorer& scorer) {
    struct Range {
        const PairCells* pair;
        std::uint32_t begin, end;
    };
    std::vector<Range> ranges;
    auto& numbers = scorer.scratch.numbers;
    for (const Part& part : group.parts) {
        const Segment& segment = *part.segment;
        ranges.clear();
        for (const Cell& cell : cells) {
            const PairCells* pair = segment.pair(cell.a, cell.b);
            const auto [begin, end] = segment.cell(*pair, cell.number);
            if (begin < end) ranges.push_back({pair, begin, end});
        }
        const auto fetch = [&](std::size_t i) {
            if (i >= ranges.size()) return;
            const Range& range = ranges[i];
            if (range.pair->is_implicit()) __builtin_prefetch(segment.code(range.begin));
            else __builtin_prefetch(range.pair->positions.data() + 3 * static_cast<std::size_t>(range.begin));
        };
        for (std::size_t i = 0; i < kCellsAhead; ++i) fetch(i);
        for (std::size_t i = 0; i < ranges.size(); ++i) {
            fetch(i + kCellsAhead);
            const auto [pair, begin, end] = ranges[i];
            if (pair->is_implicit()) {
                scorer.scan(part, begin, end);
                continue;
            }
            for (std::uint32_t place = begin; place < end; ++place) numbers.push_back(pair->position(place));
            if (numbers.size() >= kGather) scorer.score_numbers(part);
        }
        scorer.score_numbers(part);
    }
    if (scorer.trace) scorer.trace->num_cells += cells.size();
}

double cost_of(const Group& group, std::vector<Cell>& cells, const LookUpCosts& costs) {
    for (const Part& part : group.parts) {
        for (const Cell& cell : cells) __builtin_prefetch(&part.segment->pair(cell.a, cell.b)->starts[cell.number]);
    }
    double num_items = 0;
    std::erase_if(cells, [&](const Cell& cell) {
        std::uint64_t count = 0;
        for (const Part& part : group.parts) {
            const auto [begin, end] = part.segment->cell(*part.segment->pair(cell.a, cell.b), cell.number);
            count += end - begin;
        }
        num_items += static_cast<double>(count);
        return count == 0;
    });
    return costs.cell * static_cast<double>(cells.size()) + costs.item * num_items;
}

// --- neighbouring pairs

CellOrder::CellOrder(const Group& group, Query& query, Shares& shares, const LookUpCosts& costs)
    : size_(static_cast<double>(group.size)), query_(query), shares_(shares), costs_(costs) {
    const std::uint32_t books = query.num_books();
    for (std::uint32_t a = 0; a < books; a += 2) {
        if (a + 1 == books) {
            rest_ += query.highest(a);
            continue;
        }
        pairs_.push_back({a, a + 1, {}});
        pairs_.back().stairs.push_back({{}, value(pairs_.back(), 0, 0), 0, 0});
    }
}

double CellOrder::bound(const Steps& steps) const {
    double sum = rest_;
    for (std::size_t p = 0; p < pairs_.size(); ++p) sum += pairs_[p].stairs[steps[p]].next;
    return sum;
}

double CellOrder::least_bound() {
    double sum = rest_;
    for (const Pair& pair : pairs_) {
        // Eight cells at least have as high a value as the corner of a rectangle of eight.
        double corner = -kNever;
        for (const auto [i, j] :
             {std::pair(1u, 8u), std::pair(2u, 4u), std::pair(3u, 3u), std::pair(4u, 2u), std::pair(8u, 1u)}) {
            if (std::max(i, j) <= query_.num_words()) corner = std::max(corner, value(pair, i - 1, j - 1));
        }
        sum += corner;
    }
    return sum;
}

double CellOrder::cost(const Steps& steps) const {
    double sum = 0;
    for (std::size_t p = 0; p < pairs_.size(); ++p) sum += pairs_[p].stairs[steps[p]].cost;
    return sum;
}

bool CellOrder::advance(Steps& steps, double spare) {
    std::size_t best = pairs_.size();
    double best_rate = -1;
    for (std::size_t p = 0; p < pairs_.size(); ++p) {
        Pair& pair = pairs_[p];
        if (!has(pair, steps[p] + 1, spare)) continue;
        const Stairs &now = pair.stairs[steps[p]], &then = pair.stairs[steps[p] + 1];
        if (then.cost - now.cost > spare) continue;  // many cells may tie
        const double rate = std::min(now.next - then.next, 1e30) / (then.cost - now.cost);
        if (rate > best_rate) best = p, best_rate = rate;
    }
    if (best == pairs_.size()) return false;
    ++steps[best];
    return true;
}

std::vector<Cell> CellOrder::between(const Steps& from, const Steps& to) const {
    std::vector<Cell> cells;
    for (std::size_t p = 0; p < pairs_.size(); ++p) {
        const Pair& pair = pairs_[p];
        const auto &old = pair.stairs[from[p]].counts, &now = pair.stairs[to[p]].counts;
        for (std::uint32_t i = 0; i < now.size(); ++i) {
            const std::uint32_t row = query_.ranked(pair.a, i).word * query_.num_words();
            for (std::uint32_t j = i < old.size() ? old[i] : 0; j < now[i]; ++j) {
                cells.push_back({pair.a, pair.b, row + query_.ranked(pair.b, j).word});
            }
        }
    }
    return cells;
}

bool CellOrder::has(Pair& pair, std::uint32_t step, double spare) {
    while (pair.stairs.size() <= step) {
        const Stairs& last = pair.stairs.back();
        const std::uint32_t words = query_.num_words();
        if (last.next == -kNever) return false;
        // At least half as many cells again: those of a rectangle of i x j best words are no lower than its corner.
        const std::uint32_t least = last.num_cells + last.num_cells / (last.num_cells < 64 ? 2 : 1) + 1;
        if ((kOrderCost + costs_.cell) * (least - last.num_cells) > spare) return false;
        double corner = -kNever;
        for (std::uint32_t i = 1; i <= std::min(least, words); i += (i + 1) / 2) {
            const std::uint32_t j = (least + i - 1) / i;
            if (j <= words) corner = std::max(corner, value(pair, i - 1, j - 1));
        }
        pair.stairs.push_back(down_to(pair, std::min(corner, last.next)));
    }
    return true;
}

CellOrder::Stairs CellOrder::down_to(const Pair& pair, double least) {
    Stairs stairs{{}, -kNever, 0, 0};
    const std::uint32_t words = query_.num_words();
    double num_items = 0;
    std::uint32_t j = 0;
    while (j < words && value(pair, 0, j) >= least) ++j;
    for (std::uint32_t i = 0; i < words; ++i) {
        while (j > 0 && value(pair, i, j - 1) < least) --j;
        if (j < words) stairs.next = std::max(stairs.next, value(pair, i, j));
        if (j == 0) break;
        stairs.counts.push_back(static_cast<std::uint16_t>(j));
        stairs.num_cells += j;
        num_items += size_ * (shares_.of(pair.a, i + 1) - shares_.of(pair.a, i)) * shares_.of(pair.b, j);
    }
    // As if the words of the two books were independent of each other.
    const double item = pair.a == 0 ? costs_.next : costs_.item;
    stairs.cost = (kOrderCost + costs_.cell) * stairs.num_cells + item * num_items;
    return stairs;
}

// --- covers

double bound_outside(Query& query, const Choice& counts, std::uint32_t set_size) {
    double sum = 0;
    for (std::uint32_t first = 0; first < counts.size(); first += set_size) {
        double lift = 0;
        const std::uint32_t last = std::min<std::uint32_t>(first + set_size, static_cast<std::uint32_t>(counts.size()));
        for (std::uint32_t m = first; m < last; ++m) {
            const double left_out = query.ranked(m, counts[m]).value;
            sum += left_out;
            lift = std::max(lift, query.highest(m) - left_out);
        }
        sum += lift;
    }
    return sum;
}

std::vector<Cell> cells_of(Query& query, const Choice& counts, std::uint32_t set_size, bool has_best) {
    std::vector<Cell> cells;
    const auto books = static_cast<std::uint32_t>(counts.size());
    for (std::uint32_t a = 0; a < books; ++a) {
        for (std::uint32_t b = a + 1; b < std::min(a / set_size * set_size + set_size, books); ++b) {
            for (std::uint32_t i = 0; i < counts[a]; ++i) {
                const std::uint32_t row = query.ranked(a, i).word * query.num_words();
                for (std::uint32_t j = i || has_best ? 0 : 1; j < counts[b]; ++j) {
                    cells.push_back({a, b, row + query.ranked(b, j).word});
                }
            }
        }
    }
    return cells;
}

double plan_cover(const Group& group, Scorer& scorer, Shares& shares, const LookUpCosts& costs, std::uint32_t best_set,
                  double limit, std::vector<Cell>& cells) {
    double best = kNever;
    const auto size = static_cast<double>(group.size);
    // Large sets rule out most and come first: they are cheap wherever the hits stand out.
    for (std::uint32_t set_size = group.layout.clique; set_size >= 2; set_size /= 2) {
        const auto cost = [&](const Choice& counts) {
            double num_cells = 0, num_items = 0;
            for (std::uint32_t first = 0; first < counts.size(); first += set_size) {
                double words = 0, squared_words = 0, items = 0, squared_items = 0;
                for (std::uint32_t m = first; m < std::min<std::size_t>(first + set_size, counts.size()); ++m) {
                    const double share = shares.of(m, counts[m]);
                    words += counts[m], squared_words += static_cast<double>(counts[m]) * counts[m];
                    items += share, squared_items += share * share;
                }
                // The sum of the products of each two.
                num_cells += (words * words - squared_words) / 2;
                num_items += size * (items * items - squared_items) / 2;
            }
            return costs.cell * num_cells + costs.item * num_items;
        };
        Choice choice;
        if (!choose_words(scorer, set_size, std::min(limit, best), choice, cost)) continue;
        std::vector<Cell> own = cells_of(scorer.query, choice, set_size, set_size > best_set);
        const double exact = cost_of(group, own, costs);
        if (exact < best) best = exact, cells = std::move(own);
    }
    return best;
}

}  // namespace opqn
