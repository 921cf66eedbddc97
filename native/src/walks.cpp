#include "walks.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>

#include "kernels.hpp"

namespace opqn {
namespace {

// Nanoseconds; see LookUpCosts.
constexpr double kRunCost = 40;       // a run of items begun to be scanned
constexpr double kBoundCost = 0.03;   // a nibble of a code bounded
constexpr double kPassCost = 5;       // an item scored that bounds did not rule out
constexpr double kPostingCost = 1.1;  // a posting counted
constexpr double kBlockCost = 250;    // a block of lists begun

constexpr std::uint32_t kSeedStep = 1024;  // items scanned at a time until there are k hits
constexpr std::uint32_t kScannedBlocks = 16;
constexpr std::uint32_t kMostPassing = kBlock / 8;
constexpr std::uint32_t kSampleChunks = 128, kSampleGroups = 4;  // of a sample; neighbours are alike
constexpr double kSample = kSampleChunks * kSampleGroups * static_cast<double>(kGroup);
constexpr double kNever = std::numeric_limits<double>::infinity();
constexpr double kLowest = -std::numeric_limits<double>::infinity();

}  // namespace

// --- scan

ScanWalk::ScanWalk(const Group& group, Scorer scorer)
    : scorer_(scorer),
      size_(static_cast<double>(group.size)),
      has_cells_(group.layout.clique >= 2 && group.layout.num_books >= 2 && scorer.query.is_finite()) {
    for (std::uint32_t m = 2; m < group.layout.num_books; ++m) rest_ += scorer_.query.highest(m);
    gap_ = static_cast<std::uint32_t>(kRunCost / (kScanCost * group.layout.num_books)) + 1;
}

double ScanWalk::most_cost(const Group& group) {
    return kScanCost * group.layout.num_books * static_cast<double>(group.size);
}

double ScanWalk::cost(Shares& shares) {
    Query& query = scorer_.query;
    const double most = kScanCost * query.num_books() * size_;
    if (!has_cells_ || !scorer_.found.full()) return most;
    const std::uint32_t words = query.num_words();
    double num_cells = 0, share = 0;
    std::uint32_t j = words;
    for (std::uint32_t i = 0; i < words && j > 0; ++i) {
        const float least = least_second(query.ranked(0, i).word);
        while (j > 0 && query.ranked(1, j - 1).value < least) --j;
        num_cells += j;
        share += (shares.of(0, i + 1) - shares.of(0, i)) * shares.of(1, j);
    }
    return std::min(most, share * most + kRunCost * num_cells);
}

float ScanWalk::least_second(std::uint32_t i) const {
    const Query& query = scorer_.query;
    const double least = static_cast<double>(scorer_.found.floor()) - query.slack() - rest_ - query.table()[i];
    // Rounded down, so that nothing is ruled out by rounding.
    const auto rounded = static_cast<float>(least);
    return rounded > least ? std::nextafter(rounded, -std::numeric_limits<float>::infinity()) : rounded;
}

Walk::State ScanWalk::step(const Part& part, std::uint32_t begin, std::uint32_t end) {
    if (!has_cells_ || !scorer_.found.full() || plain_blocks_) {
        plain_blocks_ -= plain_blocks_ > 0;
        scorer_.scan(part, begin, end);
        return State::kGoesOn;
    }
    const std::uint32_t words = scorer_.query.num_words();
    const float* second = scorer_.query.table() + words;
    const auto starts = part.segment->pair(0, 1)->starts;
    // The cell that holds the item `begin`: the last one that does not start after it.
    auto cell = static_cast<std::uint32_t>(std::upper_bound(starts.begin(), starts.end(), begin) - starts.begin()) - 1;
    // Cells that are left are scanned together with short gaps between them.
    std::uint32_t num_runs = 0, num_left = 0, place = begin, run_begin = begin, run_end = begin;
    const auto scan_run = [&] {
        if (run_begin == run_end) return;
        scorer_.scan(part, run_begin, run_end);
        ++num_runs;
        num_left += run_end - run_begin;
    };
    for (std::uint32_t i = cell / words; i < words && place < end; ++i) {
        const float least = least_second(i);
        for (std::uint32_t j = cell % words; j < words && place < end; ++j, ++cell) {
            const std::uint32_t next = std::max(place, std::min(starts[cell + 1], end));
            if (second[j] >= least && next > place) {
                if (place > run_end + gap_) {
                    scan_run();
                    run_begin = place;
                }
                run_end = next;
            }
            place = next;
        }
    }
    scan_run();
    // Where many are left it pays to go straight on.
    if (end - begin - num_left < gap_ * num_runs) plain_blocks_ = kScannedBlocks;
    return State::kGoesOn;
}

// --- bounds

BoundsWalk::BoundsWalk(const Group& group, Scorer scorer)
    : group_(group),
      scorer_(scorer),
      scan_(group, scorer),
      gaps_(group.layout.num_books * 16, kNever),
      deficits_for_(kNever),
      guess_(kLowest) {
    const Query& query = scorer_.query;
    const std::uint32_t words = query.num_words(), shift = group.layout.nibble_shift();
    for (std::uint32_t m = 0; m < query.num_books(); ++m) {
        double* own = gaps_.data() + m * 16;
        const float* row = query.table() + m * words;
        for (std::uint32_t j = 0; j < words; ++j) {
            own[j >> shift] = std::min(own[j >> shift], static_cast<double>(query.highest(m)) - row[j]);
        }
        std::array<double, 16> sorted{};
        const std::uint32_t num_nibbles = std::min(16u, words);
        std::copy(own, own + num_nibbles, sorted.begin());
        std::nth_element(sorted.begin(), sorted.begin() + num_nibbles / 2, sorted.begin() + num_nibbles);
        typical_ += sorted[num_nibbles / 2];
    }
}

double BoundsWalk::least_cost(const Group& group) {
    return kBoundCost * group.layout.num_books * static_cast<double>(group.size);
}

double BoundsWalk::cost(double scan) {
    const double least = least_cost(group_);
    if (!scorer_.found.full()) return least + scan / kScannedBlocks;
    find_deficits(scorer_.found.floor());
    std::size_t count = 0;
    const double size = sample(count);
    if (size == 0) return least;
    const double share = static_cast<double>(count) / size;
    if (share > static_cast<double>(kMostPassing) / kBlock) return scan + least / kScannedBlocks;
    return least + kPassCost * share * static_cast<double>(group_.size);
}

// The bytes by which nibbles keep a score below the highest one, at a scale at which an item that reaches the floor has
// 254 of them at most.
void BoundsWalk::find_deficits(double floor) {
    const double spare = scorer_.query.sum_of_highest() - floor + scorer_.query.slack();
    const double scale = 254 / std::max(spare, 1e-300) * (1 - 1e-9);
    deficits_.assign(group_.layout.num_rows() * 32, 0);
    for (std::size_t i = 0; i < gaps_.size(); ++i) {
        deficits_[i] = static_cast<std::uint8_t>(std::min(255.0, gaps_[i] * scale));
    }
    deficits_for_ = floor;
}

// Items of num_groups groups, at most kBlock / kGroup, that may reach the floor of find_deficits; bits in
// scratch.masks.
std::size_t BoundsWalk::find_masks(const Part& part, std::uint32_t first_group, std::uint32_t num_groups) {
    const std::uint32_t rows = group_.layout.num_rows();
    const std::uint8_t* planes = part.segment->planes().data() + static_cast<std::size_t>(first_group) * rows * kGroup;
    scorer_.scratch.masks.resize(kBlock / kGroup);
    return kernel().deficit_masks(planes, num_groups, rows, deficits_.data(), scorer_.scratch.masks.data());
}

// Counts the items of a sample that may reach the floor of find_deficits; returns the sample's size, 0 if there are too
// few items for one.
double BoundsWalk::sample(std::size_t& count) {
    count = 0;
    double size = 0;
    for (const Part& part : group_.parts) {
        const std::uint32_t num_groups = part.segment->num_codes() / kGroup;
        const auto num_chunks = static_cast<std::uint32_t>(std::ceil(
            kSampleChunks * static_cast<double>(part.segment->num_codes()) / static_cast<double>(group_.size)));
        if (num_groups < 4 * num_chunks * kSampleGroups) continue;
        for (std::uint32_t chunk = 0; chunk < num_chunks; ++chunk) {
            count += find_masks(part, chunk * (num_groups / num_chunks), kSampleGroups);
        }
        size += num_chunks * kSampleGroups * static_cast<double>(kGroup);
    }
    if (scorer_.trace) scorer_.trace->num_bounded += static_cast<std::uint64_t>(size);
    return size;
}

// Looks for a floor that a few more items of a sample may reach than it has a share in the k best.
void BoundsWalk::guess_floor() {
    const double wanted =
        std::max(8.0, 3 * kSample * static_cast<double>(scorer_.found.wanted()) / static_cast<double>(group_.size));
    if (wanted > kSample / 16) return;
    double least = 0, most = 1, guess = kLowest;  // of the way from the highest score to a typical one
    for (int step = 0; step < 7; ++step) {
        const double share = step ? (least + most) / 2 : 1;
        const double floor = scorer_.query.sum_of_highest() - share * typical_;
        find_deficits(floor);
        std::size_t count = 0;
        if (sample(count) == 0) return;
        if (static_cast<double>(count) >= wanted) most = share, guess = floor;
        else if (step == 0) return;
        else least = share;
    }
    if (guess > scorer_.found.floor()) guess_ = guess;
}

// Without a guess blocks of which little is ruled out are scanned, and so are those before there are k hits.
Walk::State BoundsWalk::step(const Part& part, std::uint32_t begin, std::uint32_t end) {
    const Query& query = scorer_.query;
    Collector& found = scorer_.found;
    if (blocks_to_scan_) {
        --blocks_to_scan_;
        return scan_.step(part, begin, end);
    }
    // Groups of items begin at multiples of their size, and so does what is left of a block.
    for (; guess_ == kLowest && !found.full() && begin < end; begin = std::min(begin + kSeedStep, end)) {
        scorer_.scan(part, begin, std::min(begin + kSeedStep, end));
    }
    if (begin == end) return State::kGoesOn;
    const double floor = std::max(guess_, static_cast<double>(found.floor()));
    if (query.sum_of_highest() - floor + query.slack() < 0) return finish();
    if (floor != deficits_for_) find_deficits(floor);
    const std::uint32_t num_groups = (end - begin + kGroup - 1) / kGroup;
    const std::size_t num_left = find_masks(part, begin / kGroup, num_groups);
    if (scorer_.trace) scorer_.trace->num_bounded += end - begin;
    num_seen_ += end - begin;
    num_passed_ += num_left;
    if (guess_ != kLowest && num_passed_ > 4096 + num_seen_ / 32) return State::kFailed;
    if (num_left > kMostPassing) {
        // Where bounds rule out little they only cost.
        blocks_to_scan_ = kScannedBlocks;
        return scan_.step(part, begin, end);
    }
    for (std::uint32_t group = 0; group < num_groups; ++group) {
        for (std::uint32_t mask = scorer_.scratch.masks[group]; mask; mask &= mask - 1) {
            const std::uint32_t item = begin + group * kGroup + static_cast<std::uint32_t>(std::countr_zero(mask));
            if (item < end) scorer_.scratch.numbers.push_back(item);  // the last group may have empty places
        }
    }
    scorer_.score_numbers(part);
    return State::kGoesOn;
}

Walk::State BoundsWalk::finish() {
    const bool was_exact = guess_ == kLowest || (scorer_.found.full() && scorer_.found.floor() >= guess_);
    return was_exact ? State::kProven : State::kFailed;
}

// --- lists

ListsWalk::ListsWalk(const Group& group, Scorer scorer, Shares& shares, double limit)
    : scorer_(scorer), cost_(kNever), guess_(kLowest) {
    Query& query = scorer_.query;
    const std::uint32_t books = query.num_books();
    const auto cost = [&](const Choice& counts) {
        // Shares of items with none and with one of the words, as if books were independent; those with more are
        // scored.
        double postings = 0, none = 1, one = 0;
        for (std::uint32_t m = 0; m < books; ++m) {
            const double share = shares.of(m, counts[m]);
            postings += share;
            one = one * (1 - share) + none * share;
            none *= 1 - share;
        }
        const double for_item = kPostingCost * postings + kPassCost * std::max(0.0, 1 - none - one);
        return kBlockCost * group.num_blocks + for_item * static_cast<double>(group.size);
    };
    // Items with a single chosen word are so many that they must be ruled out.
    Choice choice;
    if (choose_words(scorer_, books, limit, choice, cost)) {
        cost_ = cost(choice);
    } else {
        // The hits found so far are not good enough to rule them out. Where items with two best words are far above all
        // those with one, guess that there are k of them.
        choice.assign(books, 1);
        guess_ = bound_outside(query, choice, books) + query.slack();
        const double lift = (query.sum_of_highest() - query.sum_of_means()) / books;
        if (query.sum_of_means() + 2 * lift > guess_) cost_ = 1.5 * cost(choice);
    }
    if (cost_ == kNever) return;
    double lifts = 0;
    for (std::uint32_t m = 0; m < books; ++m) {
        const double rest = query.ranked(m, choice[m]).value;
        left_out_ += rest;
        lifts += query.highest(m) - rest;
        for (std::uint32_t i = 0; i < choice[m]; ++i) {
            const Word word = query.ranked(m, i);
            lists_.push_back({m, word.word, word.value - rest, 0});
        }
    }
    // An item adds at most one list of each book, so counters end at 255.
    scale_ = (255 - books) / std::max(lifts, 1e-300);
    for (List& list : lists_) list.weight = static_cast<std::uint8_t>(std::ceil(list.lift * scale_));
    if (scorer_.trace) scorer_.trace->num_lists += lists_.size();
}

Walk::State ListsWalk::step(const Part& part, std::uint32_t begin, std::uint32_t) {
    const double floor = std::max(static_cast<double>(scorer_.found.floor()), guess_);
    const double needed = std::ceil((floor - scorer_.query.slack() - left_out_) * scale_ * (1 - 1e-9));
    if (needed > 255) return finish();
    const auto threshold = static_cast<std::uint32_t>(std::max(1.0, needed));
    const Segment& segment = *part.segment;
    const std::uint32_t block = begin / kBlock;
    const std::uint16_t* postings = segment.postings(block);
    auto& counters = scorer_.scratch.counters;
    auto& met = scorer_.scratch.met;
    counters.resize(kBlock);
    met.resize(kBlock + 1);
    std::size_t num_met = 0, num_postings = 0;
    for (const List& list : lists_) {
        const auto [first, last] = segment.list(block, list.book, list.word);
        const std::uint32_t weight = list.weight;
        num_postings += last - first;
        for (std::uint32_t place = first; place < last; ++place) {
            const std::uint32_t item = postings[place] & (kBlock - 1);
            const std::uint32_t before = counters[item];
            const std::uint32_t sum = before + weight;
            counters[item] = static_cast<std::uint8_t>(sum);
            met[num_met] = static_cast<std::uint16_t>(item);
            num_met += (sum >= threshold) & (before < threshold) & (num_met < kBlock);
        }
    }
    if (num_postings > kBlock / 16) {
        std::fill(counters.begin(), counters.end(), 0);
    } else {
        for (const List& list : lists_) {
            const auto [first, last] = segment.list(block, list.book, list.word);
            for (std::uint32_t place = first; place < last; ++place) counters[postings[place] & (kBlock - 1)] = 0;
        }
    }
    for (std::size_t i = 0; i < num_met; ++i) scorer_.scratch.numbers.push_back(begin + met[i]);
    if (scorer_.trace) scorer_.trace->num_postings += num_postings;
    scorer_.score_numbers(part);
    return State::kGoesOn;
}

Walk::State ListsWalk::finish() {
    const bool was_exact = guess_ == kLowest || (scorer_.found.full() && scorer_.found.floor() > guess_);
    return was_exact ? State::kProven : State::kFailed;
}

}  // namespace opqn
