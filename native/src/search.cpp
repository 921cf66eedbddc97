#include "search.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <tuple>

#include "kernels.hpp"

namespace opqn {
namespace {

// Nanoseconds, as measured on one core of a 3 GHz x86-64 machine. Only their ratios matter, and only for speed.
constexpr double kScanCost = 0.3;        // an entry added up in a plain scan
constexpr double kBoundCost = 0.03;      // a nibble of a code bounded
constexpr double kPostingCost = 1.1;     // a posting counted
constexpr double kBlockCost = 250;       // a block of lists begun
constexpr double kChoiceCost = 150;      // a cell chosen
constexpr double kCellCost = 45;         // a cell begun
constexpr double kNearItemCost = 6;      // an item scored out of order, with all codes in the cache
constexpr double kFarItemCost = 14;      // the same with codes in memory
constexpr double kCacheBytes = 16e6;

constexpr std::uint32_t kSmall = 2048;       // items that are not worth a plan
constexpr std::uint32_t kSeedStep = 1024;    // items scanned at a time until there are k hits
constexpr std::uint32_t kScannedBlocks = 16;
constexpr std::uint32_t kSampleChunks = 32, kSampleGroups = 16;  // of a sample of the items, spread evenly
constexpr double kNever = std::numeric_limits<double>::infinity();
constexpr double kLowest = -std::numeric_limits<double>::infinity();
constexpr std::size_t kAhead = 24;           // items fetched ahead of the one being scored

void prefetch(const void* address) { __builtin_prefetch(address); }

struct Cell {
    const PairCells* pair;
    std::uint32_t number;
    std::uint32_t begin, end;
};

// The cells of neighbouring pairs of books (0, 1), (2, 3), ... in falling order of T[a, i] + T[b, j].
// Fagin, Lotem and Naor 2001: the threshold algorithm; a pair of books is a list, its cells are the list's entries.
class CellOrder {
public:
    CellOrder(const Segment& segment, Query& query) : segment_(segment), query_(query) {
        const std::uint32_t books = query.num_books();
        for (std::uint32_t a = 0; a + 1 < books; a += 2) {
            const PairCells* cells = segment.pair(a, a + 1);
            if (!cells) {
                rest_ += static_cast<double>(query.highest(a)) + query.highest(a + 1);
                continue;
            }
            fronts_.push_back({cells, a, {}, {}, 0, 0});
            push(fronts_.back(), 0, 0);
            advance(fronts_.back());
        }
        if (books % 2) rest_ += query.highest(books - 1);
    }

    // No item outside of the cells taken so far scores more than this.
    double bound() const {
        double sum = rest_;
        for (const auto& front : fronts_) sum += front.current.value;
        return sum;
    }

    // Takes the cell that lowers the bound most for its cost; false if none is left.
    bool take(double item_cost, Cell& cell) {
        Front* best = nullptr;
        double best_rate = -1;
        for (auto& front : fronts_) {
            if (front.current.value == kLowest) continue;
            const double next = front.heap.empty() ? -kNever : front.heap.front().value;
            const double drop = std::min(static_cast<double>(front.current.value) - next, 1e30);
            const double rate = drop / (kCellCost + item_cost * (front.end - front.begin));
            if (rate > best_rate) best = &front, best_rate = rate;
        }
        if (!best) return false;
        cell = {best->cells, cell_number(*best), best->begin, best->end};
        advance(*best);
        return true;
    }

private:
    struct Entry {
        double value;
        std::uint32_t i, j;  // ranks of the words
        friend bool operator<(const Entry& a, const Entry& b) { return a.value < b.value; }
    };
    struct Front {
        const PairCells* cells;
        std::uint32_t book;
        Entry current;
        std::vector<Entry> heap;
        std::uint32_t begin, end;
    };

    void push(Front& front, std::uint32_t i, std::uint32_t j) {
        if (i >= query_.num_words() || j >= query_.num_words()) return;
        const double value = static_cast<double>(query_.ranked(front.book, i).value) +
                             static_cast<double>(query_.ranked(front.book + 1, j).value);
        front.heap.push_back({value, i, j});
        std::push_heap(front.heap.begin(), front.heap.end());
    }

    std::uint32_t cell_number(const Front& front) const {
        return query_.ranked(front.book, front.current.i).word * query_.num_words() +
               query_.ranked(front.book + 1, front.current.j).word;
    }

    void advance(Front& front) {
        if (front.heap.empty()) {
            front.current.value = kLowest;
            return;
        }
        std::pop_heap(front.heap.begin(), front.heap.end());
        front.current = front.heap.back();
        front.heap.pop_back();
        // Each cell has one predecessor: (i, j - 1), or (i - 1, 0) for the first of a row.
        push(front, front.current.i, front.current.j + 1);
        if (front.current.j == 0) push(front, front.current.i + 1, 0);
        std::tie(front.begin, front.end) = segment_.cell(*front.cells, cell_number(front));
    }

    const Segment& segment_;
    Query& query_;
    std::vector<Front> fronts_;
    double rest_ = 0;  // the highest of the books without cells
};

// For each book the number of its best words that are looked up.
struct Choice {
    std::vector<std::uint32_t> counts;  // (M,)
    double cost = kNever;
    double guess = kLowest;  // at the k-th score, if the choice is exact only where that is reached
};

class Search {
public:
    Search(const Segment& segment, Query& query, const Mask& mask, Collector& found, Trace* trace)
        : segment_(segment), query_(query), mask_(mask), found_(found), trace_(trace), size_(segment.size()) {
        const double bytes = static_cast<double>(size_) * query.num_books();
        item_cost_ = bytes < kCacheBytes ? kNearItemCost : kFarItemCost;
        for (std::uint32_t m = 0; m < query.num_books(); ++m) rows_[m] = query.table() + m * query.num_words();
    }

    void run(Plan only) {
        if (size_ == 0) return;
        const std::uint32_t num_allowed = mask_.bits ? mask_.num_set : size_;
        if (num_allowed == 0) return;
        std::array<double, static_cast<std::size_t>(Plan::kNumPlans)> costs;
        costs.fill(kNever);
        const auto cost = [&](Plan plan) -> double& { return costs[static_cast<std::size_t>(plan)]; };
        cost(Plan::kScan) = kScanCost * query_.num_books() * size_;
        if (mask_.bits) cost(Plan::kAllowed) = item_cost_ * num_allowed + 0.02 * size_;
        const bool can_reason = query_.is_finite();
        if (can_reason && !segment_.planes().empty()) {
            cost(Plan::kBounds) = kBoundCost * query_.num_books() * size_ + item_cost_ * 0.002 * size_;
        }
        if (only == Plan::kNumPlans && (size_ <= kSmall || !can_reason)) only = cheapest(costs);

        std::vector<Cell> cells, cover;
        Choice lists;
        const bool may_use_index = wanted(only, Plan::kCells) || wanted(only, Plan::kCover) || wanted(only, Plan::kLists);
        if (can_reason && may_use_index) {
            const double scan_cost = *std::min_element(costs.begin(), costs.end());
            const bool has_cells = segment_.layout().clique >= 2;
            CellOrder order(segment_, query_);
            if (has_cells) {
                seed(order, scan_cost / 4);
                if (proven(order.bound())) return trace_plan(Plan::kCells);
                std::vector<Cell> best;
                const double best_cost = list_best_cells(best);
                if (found_.full() && wanted(only, Plan::kCells) && plan_cells(order, best_cost, cells) < kNever) {
                    trace_plan(Plan::kCells);
                    return visit(cells);
                }
                // The first k hits are seldom the best, and with better ones plans are cheaper.
                if (best_cost < scan_cost / 4) {
                    visit(best);
                    seen_.insert(seen_.end(), best.begin(), best.end());
                }
            }
            if (found_.full()) {
                const auto limit = [&] {
                    return only == Plan::kNumPlans ? *std::min_element(costs.begin(), costs.end()) : 64 * scan_cost;
                };
                if (has_cells && wanted(only, Plan::kCover)) cost(Plan::kCover) = plan_cover(limit(), cover);
                if (segment_.layout().has_lists && wanted(only, Plan::kLists)) {
                    lists = plan_lists(limit());
                    cost(Plan::kLists) = lists.cost;
                }
                if (has_cells && wanted(only, Plan::kCells)) cost(Plan::kCells) = plan_cells(order, limit(), cells);
            }
        }
        Plan plan = only;
        if (only == Plan::kNumPlans || costs[static_cast<std::size_t>(only)] == kNever) plan = cheapest(costs);
        if (trace_) trace_->costs = costs, trace_->floor_at_choice = found_.floor();
        for (;;) {
            trace_plan(plan);
            if (plan == Plan::kCells || plan == Plan::kCover) return visit(plan == Plan::kCells ? cells : cover);
            if (plan == Plan::kBounds) return scan_bounds();
            if (plan == Plan::kAllowed) return score_allowed();
            if (plan == Plan::kScan) return scan(0, size_);
            walk_lists(lists);
            if (found_.full() && found_.floor() > lists.guess) return;
            // The guess at the k-th score was too high; what was found still helps the next plan.
            cost(plan) = kNever;
            plan = cheapest(costs);
        }
    }

private:
    using Costs = std::array<double, static_cast<std::size_t>(Plan::kNumPlans)>;

    static bool wanted(Plan only, Plan plan) { return only == Plan::kNumPlans || only == plan; }
    static Plan cheapest(const Costs& costs) {
        return static_cast<Plan>(std::min_element(costs.begin(), costs.end()) - costs.begin());
    }

    // Whether items that score at most `bound`, but for rounding, cannot be among the hits.
    bool proven(double bound) const { return found_.full() && bound + query_.slack() < found_.floor(); }

    void trace_plan(Plan plan) {
        if (trace_) trace_->plans.push_back(plan);
    }

    void offer(float score, std::uint32_t position) {
        if (score < found_.floor() || !mask_.allows(position)) return;
        const Hit hit{score, segment_.id(position)};
        if (found_.wants(hit)) found_.offer(hit);
    }

    // --- plain scans

    void scan(std::uint32_t begin, std::uint32_t end) {
        const std::uint32_t books = query_.num_books(), words = query_.num_words();
        if (trace_) trace_->num_scored += end - begin;
        if (books == 8 && words == 256) return scan_shape<8, 256>(begin, end);
        if (books == 8 && words == 64) return scan_shape<8, 64>(begin, end);
        if (books == 4 && words == 256) return scan_shape<4, 256>(begin, end);
        if (books == 16 && words == 16) return scan_shape<16, 16>(begin, end);
        scan_shape<0, 0>(begin, end);
    }

    // Numbers of books and words that are known to the compiler, or 0.
    template <std::uint32_t kBooks, std::uint32_t kWords>
    void scan_shape(std::uint32_t begin, std::uint32_t end) {
        constexpr std::uint32_t kAtOnce = 4;  // independent sums hide the latency of an addition
        const std::uint32_t books = kBooks ? kBooks : query_.num_books();
        const std::uint32_t words = kWords ? kWords : query_.num_words();
        const float* const table = query_.table();
        const std::uint8_t* code = segment_.code(begin);
        float floor = found_.floor();
        std::int64_t floor_id = found_.floor_id();
        std::uint32_t position = begin;
        for (; position + kAtOnce <= end; position += kAtOnce, code += kAtOnce * books) {
            float sums[kAtOnce];
            if constexpr (kBooks == 8) {
                std::uint64_t packed[kAtOnce];  // a code in one load: loads are what a scan is short of
                for (std::uint32_t i = 0; i < kAtOnce; ++i) {
                    std::memcpy(&packed[i], code + i * 8, 8);
                    sums[i] = table[packed[i] & 255];
                }
                for (std::uint32_t m = 1; m < 8; ++m) {
                    for (std::uint32_t i = 0; i < kAtOnce; ++i) sums[i] += table[m * words + (packed[i] >> (8 * m) & 255)];
                }
            } else {
                for (std::uint32_t i = 0; i < kAtOnce; ++i) sums[i] = table[code[i * books]];
                for (std::uint32_t m = 1; m < books; ++m) {
                    for (std::uint32_t i = 0; i < kAtOnce; ++i) sums[i] += table[m * words + code[i * books + m]];
                }
            }
            if (std::max(std::max(sums[0], sums[1]), std::max(sums[2], sums[3])) < floor) continue;
            for (std::uint32_t i = 0; i < kAtOnce; ++i) {
                // Where all scores tie, as with a table of equal entries, ids decide, and nearly all are turned down here.
                if (sums[i] > floor || (sums[i] == floor && segment_.id(position + i) <= floor_id)) {
                    offer(sums[i], position + i);
                    floor = found_.floor();
                    floor_id = found_.floor_id();
                }
            }
        }
        for (; position < end; ++position, code += books) offer(query_.score(code), position);
    }

    void score_allowed() {
        if (trace_) trace_->num_scored += mask_.num_set;
        for (std::uint32_t first = 0; first < size_; first += 64) {
            std::uint64_t word = 0;
            std::memcpy(&word, mask_.bits + first / 8, std::min(8u, (size_ - first + 7) / 8));
            for (; word; word &= word - 1) {
                const std::uint32_t position = first + static_cast<std::uint32_t>(std::countr_zero(word));
                if (position < size_) offer(query_.score(segment_.code(position)), position);
            }
        }
    }

    // --- bounds from nibbles

    void scan_bounds() {
        const std::uint32_t books = query_.num_books(), shift = segment_.layout().nibble_shift();
        std::vector<double> gaps(books * 16, kNever);  // from the highest entry of a book to that of a nibble
        double typical = 0;
        for (std::uint32_t m = 0; m < books; ++m) {
            double* own = gaps.data() + m * 16;
            for (std::uint32_t j = 0; j < query_.num_words(); ++j) {
                own[j >> shift] = std::min(own[j >> shift], static_cast<double>(query_.highest(m)) - rows_[m][j]);
            }
            std::array<double, 16> sorted{};
            const std::uint32_t num_nibbles = std::min(16u, query_.num_words());
            std::copy(own, own + num_nibbles, sorted.begin());
            std::nth_element(sorted.begin(), sorted.begin() + num_nibbles / 2, sorted.begin() + num_nibbles);
            typical += sorted[num_nibbles / 2];
        }
        // Cells would have found good hits already. Without them a guess at the k-th score rules out most of the items,
        // and where it was not too high one pass proves the answer.
        if (segment_.layout().clique == 0) {
            const double guess = guess_floor(gaps, typical);
            if (guess > found_.floor() && bound_blocks(gaps, guess) && found_.full() && found_.floor() >= guess) return;
        }
        bound_blocks(gaps, kLowest);
    }

    // The bytes by which nibbles keep a score below the highest one, at a scale at which an item that reaches the floor
    // has 254 of them at most.
    void find_deficits(const std::vector<double>& gaps, double floor) {
        const double spare = query_.sum_of_highest() - floor + query_.slack();
        const double scale = 254 / std::max(spare, 1e-300) * (1 - 1e-9);
        deficits_.assign(segment_.layout().num_rows() * 32, 0);
        for (std::size_t i = 0; i < gaps.size(); ++i) {
            deficits_[i] = static_cast<std::uint8_t>(std::min(255.0, gaps[i] * scale));
        }
    }

    // Items of num_groups groups, at most kBlock / kGroup, that may reach the floor of find_deficits; bits in masks_.
    std::size_t find_masks(std::uint32_t first_group, std::uint32_t num_groups) {
        const std::uint32_t rows = segment_.layout().num_rows();
        const std::uint8_t* planes = segment_.planes().data() + static_cast<std::size_t>(first_group) * rows * kGroup;
        masks_.resize(kBlock / kGroup);
        return kernel().deficit_masks(planes, num_groups, rows, deficits_.data(), masks_.data());
    }

    // Looks for a floor that a few more items of a sample may reach than it has a share in the k best.
    double guess_floor(const std::vector<double>& gaps, double typical) {
        const std::uint32_t num_groups = size_ / kGroup;
        if (num_groups < 4 * kSampleChunks * kSampleGroups) return kLowest;
        constexpr double kSample = kSampleChunks * kSampleGroups * kGroup;
        const double wanted = std::max(4.0, 2 * kSample * static_cast<double>(found_.wanted()) / size_);
        if (wanted > kSample / 16) return kLowest;
        double least = 0, most = 1, guess = kLowest;  // of the way from the highest score to a typical one
        for (int step = 0; step < 7; ++step) {
            const double share = step ? (least + most) / 2 : 1;
            const double floor = query_.sum_of_highest() - share * typical;
            find_deficits(gaps, floor);
            std::size_t count = 0;
            for (std::uint32_t chunk = 0; chunk < kSampleChunks; ++chunk) {
                count += find_masks(chunk * (num_groups / kSampleChunks), kSampleGroups);
            }
            if (trace_) trace_->num_bounded += static_cast<std::uint64_t>(kSample);
            if (static_cast<double>(count) >= wanted) most = share, guess = floor;
            else if (step == 0) return kLowest;
            else least = share;
        }
        return guess;
    }

    // Scores the items that may reach the floor or, if it is higher, a guess at it. False if the guess rules out too
    // little: then not all were looked at. Without a guess blocks of which little is ruled out are scanned.
    bool bound_blocks(const std::vector<double>& gaps, double guess) {
        std::uint32_t position = 0, blocks_to_scan = 0;
        std::uint64_t num_passed = 0;
        double deficits_for = kNever;
        while (position < size_) {
            const bool is_scan = guess == kLowest && (!found_.full() || blocks_to_scan);
            const std::uint32_t end = std::min(position + (is_scan && !blocks_to_scan ? kSeedStep : kBlock), size_);
            if (is_scan) {
                blocks_to_scan -= blocks_to_scan > 0;
                scan(position, end);
                position = end;
                continue;
            }
            const double floor = std::max(guess, static_cast<double>(found_.floor()));
            if (query_.sum_of_highest() - floor + query_.slack() < 0) return true;
            if (floor != deficits_for) find_deficits(gaps, floor);
            deficits_for = floor;
            const std::uint32_t num_groups = (end - position + kGroup - 1) / kGroup;
            const std::size_t num_left = find_masks(position / kGroup, num_groups);
            if (trace_) trace_->num_bounded += end - position;
            num_passed += num_left;
            if (guess != kLowest && num_passed > 4096 + position / 32) return false;
            if (num_left > kBlock / 8) {
                // Where bounds rule out little they only cost: this block is scanned, and so are a few more.
                blocks_to_scan = kScannedBlocks;
                continue;
            }
            for (std::uint32_t group = 0; group < num_groups; ++group) {
                for (std::uint32_t mask = masks_[group]; mask; mask &= mask - 1) {
                    const std::uint32_t item = position + group * kGroup + static_cast<std::uint32_t>(std::countr_zero(mask));
                    if (item < end) positions_.push_back(item);  // the last group may have empty places
                }
            }
            if (trace_) trace_->num_scored += positions_.size();
            score_positions();
            position = end;
        }
        return true;
    }

    // --- choosing words

    // Bound on items that have at most one chosen word in each set of `set_size` neighbouring books: by how much the
    // best of the chosen words lifts a set above the books' best words left out.
    double bound(const std::vector<std::uint32_t>& counts, std::uint32_t set_size) {
        double sum = 0;
        for (std::uint32_t first = 0; first < counts.size(); first += set_size) {
            double lift = 0;
            const std::uint32_t last = std::min<std::uint32_t>(first + set_size, static_cast<std::uint32_t>(counts.size()));
            for (std::uint32_t m = first; m < last; ++m) {
                const double left_out = query_.ranked(m, counts[m]).value;
                sum += left_out;
                lift = std::max(lift, query_.highest(m) - left_out);
            }
            sum += lift;
        }
        return sum;
    }

    // Chooses words, the highest entries first, until items with at most one of them in each set are ruled out; then
    // leaves out the books that can be. `cost` tells what a choice costs. False if that costs more than `limit`.
    template <class Cost>
    bool choose(std::uint32_t set_size, double limit, Choice& choice, Cost&& cost) {
        const std::uint32_t books = query_.num_books();
        choice.counts.assign(books, 0);
        while (!proven(bound(choice.counts, set_size))) {
            std::uint32_t book = books;
            for (std::uint32_t m = 0; m < books; ++m) {
                if (choice.counts[m] + 1 >= query_.num_words()) continue;
                if (book == books || query_.ranked(m, choice.counts[m]).value > query_.ranked(book, choice.counts[book]).value) {
                    book = m;
                }
            }
            if (book == books) return false;
            ++choice.counts[book];
            if (cost(choice.counts) > limit) return false;
        }
        for (;;) {
            double best = cost(choice.counts);
            std::uint32_t spare = books;
            for (std::uint32_t m = 0; m < books; ++m) {
                if (!choice.counts[m]) continue;
                auto fewer = choice.counts;
                fewer[m] = 0;
                if (!proven(bound(fewer, set_size))) continue;
                if (const double saved = cost(fewer); saved < best) best = saved, spare = m;
            }
            if (spare == books) break;
            choice.counts[spare] = 0;
        }
        return true;
    }

    // --- cells

    // Takes cells until there are k hits, or `limit` is spent.
    void seed(CellOrder& order, double limit) {
        double spent = 0;
        Cell cell;
        while (!found_.full() && spent < limit && order.take(item_cost_, cell)) {
            spent += kCellCost + item_cost_ * (cell.end - cell.begin);
            visit({cell});
            seen_.push_back(cell);
        }
    }

    // The cell of the two best words of every pair.
    double list_best_cells(std::vector<Cell>& cells) {
        return list_cells(std::vector<std::uint32_t>(query_.num_books(), 1), segment_.layout().clique, cells);
    }

    double plan_cells(CellOrder order, double limit, std::vector<Cell>& cells) {
        double cost = 0;
        Cell cell;
        cells.clear();
        while (!proven(order.bound())) {
            if (cost > limit || !order.take(item_cost_, cell)) return kNever;
            cost += kChoiceCost + kCellCost + item_cost_ * (cell.end - cell.begin);
            cells.push_back(cell);
        }
        return cost;
    }

    double plan_cover(double limit, std::vector<Cell>& cells) {
        double best = kNever;
        const double average = kCellCost + item_cost_ * size_ / query_.num_words() / query_.num_words();
        // Large sets rule out most and come first: they are cheap wherever the hits stand out.
        for (std::uint32_t set_size = segment_.layout().clique; set_size >= 2; set_size /= 2) {
            Choice choice;
            const auto cost = [&](const std::vector<std::uint32_t>& counts) {
                double num_cells = 0;
                for (std::uint32_t first = 0; first < counts.size(); first += set_size) {
                    double sum = 0, squares = 0;
                    for (std::uint32_t m = first; m < std::min<std::size_t>(first + set_size, counts.size()); ++m) {
                        sum += counts[m];
                        squares += static_cast<double>(counts[m]) * counts[m];
                    }
                    num_cells += (sum * sum - squares) / 2;
                }
                return num_cells * average;
            };
            if (!choose(set_size, std::min(limit, best), choice, cost)) continue;
            std::vector<Cell> own;
            const double exact = list_cells(choice.counts, set_size, own);
            if (exact < best) best = exact, cells = std::move(own);
        }
        return best;
    }

    double list_cells(const std::vector<std::uint32_t>& counts, std::uint32_t set_size, std::vector<Cell>& cells) {
        const auto books = static_cast<std::uint32_t>(counts.size());
        double cost = 0;
        for (std::uint32_t a = 0; a < books; ++a) {
            for (std::uint32_t b = a + 1; b < std::min(a / set_size * set_size + set_size, books); ++b) {
                if (!counts[a] || !counts[b]) continue;
                const PairCells* pair = segment_.pair(a, b);
                for (std::uint32_t i = 0; i < counts[a]; ++i) {
                    const std::uint32_t first = query_.ranked(a, i).word * query_.num_words();
                    for (std::uint32_t j = 0; j < counts[b]; ++j) {
                        const std::uint32_t number = first + query_.ranked(b, j).word;
                        const auto [begin, end] = segment_.cell(*pair, number);
                        if (begin == end || was_seen(pair, number)) continue;
                        cells.push_back({pair, number, begin, end});
                        cost += kCellCost + item_cost_ * (end - begin);
                    }
                }
            }
        }
        return cost;
    }

    bool was_seen(const PairCells* pair, std::uint32_t number) const {
        return seen_.size() <= 64 && std::any_of(seen_.begin(), seen_.end(), [&](const Cell& cell) {
                   return cell.pair == pair && cell.number == number;
               });
    }

    void visit(const std::vector<Cell>& cells) {
        for (const Cell& cell : cells) {
            if (!cell.pair->is_implicit()) prefetch(cell.pair->positions.data() + 3 * static_cast<std::size_t>(cell.begin));
            else prefetch(segment_.code(cell.begin));
        }
        for (const Cell& cell : cells) {
            if (cell.pair->is_implicit()) {
                scan(cell.begin, cell.end);
                continue;
            }
            for (std::uint32_t place = cell.begin; place < cell.end; ++place) {
                positions_.push_back(cell.pair->position(place));
            }
        }
        if (trace_) trace_->num_cells += cells.size(), trace_->num_scored += positions_.size();
        score_positions();
    }

    void score_positions() {
        const std::size_t count = positions_.size();
        for (std::uint32_t position : positions_) {
            if (position >= size_) throw CorruptError("a cell of an index names an item that does not exist");
        }
        for (std::size_t i = 0; i < std::min(kAhead, count); ++i) prefetch(segment_.code(positions_[i]));
        for (std::size_t i = 0; i < count; ++i) {
            if (i + kAhead < count) prefetch(segment_.code(positions_[i + kAhead]));
            offer(query_.score(segment_.code(positions_[i])), positions_[i]);
        }
        positions_.clear();
    }

    // --- lists

    Choice plan_lists(double limit) {
        Choice choice;
        const double blocks = kBlockCost * segment_.num_blocks();
        const auto cost = [&](const std::vector<std::uint32_t>& counts) {
            double words = 0;
            for (std::uint32_t count : counts) words += count;
            return blocks + words * kPostingCost * size_ / query_.num_words();
        };
        // Items with a single chosen word are so many that they must be ruled out.
        if (choose(query_.num_books(), limit, choice, cost)) {
            choice.cost = cost(choice.counts);
            return choice;
        }
        // The hits found so far are not good enough to rule them out. Where items with two best words are far above all
        // those with one, guess that there are k of them.
        choice.counts.assign(query_.num_books(), 1);
        choice.guess = bound(choice.counts, query_.num_books()) + query_.slack();
        const double lift = (query_.sum_of_highest() - query_.sum_of_means()) / query_.num_books();
        if (query_.sum_of_means() + 2 * lift > choice.guess) choice.cost = 1.5 * cost(choice.counts);
        return choice;
    }

    struct List {
        std::uint32_t book, word;
        double lift;  // above the best word left out of its book
    };

    void walk_lists(const Choice& choice) {
        double left_out = 0, lifts = 0;
        std::vector<List> lists;
        for (std::uint32_t m = 0; m < query_.num_books(); ++m) {
            const double rest = query_.ranked(m, choice.counts[m]).value;
            left_out += rest;
            lifts += query_.highest(m) - rest;
            for (std::uint32_t i = 0; i < choice.counts[m]; ++i) {
                const Word word = query_.ranked(m, i);
                lists.push_back({m, word.word, word.value - rest});
            }
        }
        // An item adds at most one list of each book, so counters end at 255.
        const double scale = (255 - query_.num_books()) / std::max(lifts, 1e-300);
        std::vector<std::uint8_t> weights;
        for (const List& list : lists) weights.push_back(static_cast<std::uint8_t>(std::ceil(list.lift * scale)));
        std::vector<std::uint8_t> counters(kBlock, 0);
        std::vector<std::uint16_t> met(kBlock + 1);
        const std::uint32_t num_blocks = segment_.num_blocks();
        if (trace_) trace_->num_lists += lists.size();
        for (std::uint32_t block = 0; block < num_blocks; ++block) {
            const double floor = std::max(static_cast<double>(found_.floor()), choice.guess);
            const double needed = std::ceil((floor - query_.slack() - left_out) * scale * (1 - 1e-9));
            if (needed > 255) return;
            const auto threshold = static_cast<std::uint32_t>(std::max(1.0, needed));
            const std::uint16_t* postings = segment_.postings(block);
            std::size_t num_met = 0, num_postings = 0;
            for (std::size_t l = 0; l < lists.size(); ++l) {
                const auto [begin, end] = segment_.list(block, lists[l].book, lists[l].word);
                const std::uint32_t weight = weights[l];
                num_postings += end - begin;
                for (std::uint32_t place = begin; place < end; ++place) {
                    const std::uint32_t item = postings[place] & (kBlock - 1);
                    const std::uint32_t before = counters[item];
                    const std::uint32_t sum = before + weight;
                    counters[item] = static_cast<std::uint8_t>(sum);
                    met[num_met] = static_cast<std::uint16_t>(item);
                    num_met += (sum >= threshold) & (before < threshold) & (num_met < kBlock);
                }
            }
            const std::uint32_t first = block * kBlock;
            for (std::size_t i = 0; i < num_met; ++i) {
                if (first + met[i] >= size_) throw CorruptError("a list of an index names an item that does not exist");
                positions_.push_back(first + met[i]);
            }
            if (trace_) trace_->num_postings += num_postings, trace_->num_scored += num_met;
            score_positions();
            if (num_postings > kBlock / 16) {
                std::fill(counters.begin(), counters.end(), 0);
            } else {
                for (const List& list : lists) {
                    const auto [begin, end] = segment_.list(block, list.book, list.word);
                    for (std::uint32_t place = begin; place < end; ++place) counters[postings[place] & (kBlock - 1)] = 0;
                }
            }
        }
    }

    const Segment& segment_;
    Query& query_;
    const Mask& mask_;
    Collector& found_;
    Trace* trace_;
    std::uint32_t size_;
    double item_cost_;
    std::array<const float*, 64> rows_{};
    std::vector<Cell> seen_;
    std::vector<std::uint32_t> positions_;
    std::vector<std::uint8_t> deficits_;
    std::vector<std::uint32_t> masks_;
};

}  // namespace

const char* name_of(Plan plan) {
    switch (plan) {
        case Plan::kScan: return "scan";
        case Plan::kBounds: return "bounds";
        case Plan::kLists: return "lists";
        case Plan::kCells: return "cells";
        case Plan::kCover: return "cover";
        case Plan::kAllowed: return "allowed";
        default: return "any";
    }
}

void search(const Segment& segment, Query& query, const Mask& mask, Collector& found, Plan only, Trace* trace) {
    Search(segment, query, mask, found, trace).run(only);
}

}  // namespace opqn
