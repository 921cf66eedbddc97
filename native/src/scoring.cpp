#include "scoring.hpp"

#include <algorithm>
#include <bit>
#include <cstring>

namespace opqn {
namespace {

constexpr std::size_t kIdsAhead = 8;  // candidates whose ids are fetched ahead, in two steps
constexpr std::size_t kAhead = 24;    // codes fetched ahead of the one being scored

}  // namespace

void Scorer::scan(const Part& part, std::uint32_t begin, std::uint32_t end) {
    const std::uint32_t books = query.num_books(), words = query.num_words();
    if (trace) trace->num_scored += end - begin;
    if (books == 8 && words == 256) return scan_shape<8, 256>(part, begin, end);
    if (books == 8 && words == 64) return scan_shape<8, 64>(part, begin, end);
    if (books == 4 && words == 256) return scan_shape<4, 256>(part, begin, end);
    if (books == 16 && words == 16) return scan_shape<16, 16>(part, begin, end);
    scan_shape<0, 0>(part, begin, end);
}

// Numbers of books and words that are known to the compiler, or 0.
template <std::uint32_t kBooks, std::uint32_t kWords>
void Scorer::scan_shape(const Part& part, std::uint32_t begin, std::uint32_t end) {
    constexpr std::uint32_t kAtOnce = 4;  // independent sums hide the latency of an addition
    const std::uint32_t books = kBooks ? kBooks : query.num_books();
    const std::uint32_t words = kWords ? kWords : query.num_words();
    const float* const table = query.table();
    const std::uint8_t* code = part.segment->code(begin);
    float floor = found.floor();
    std::int64_t floor_id = found.floor_id();
    std::uint32_t number = begin;
    for (; number + kAtOnce <= end; number += kAtOnce, code += kAtOnce * books) {
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
            if (sums[i] > floor ||
                (sums[i] == floor && part.segment->id(part.segment->items(number + i).first) <= floor_id)) {
                offer(part, sums[i], number + i);
                floor = found.floor();
                floor_id = found.floor_id();
            }
        }
    }
    for (; number < end; ++number, code += books) offer(part, query.score(code), number);
}

void Scorer::score_numbers(const Part& part) {
    auto& numbers = scratch.numbers;
    auto& candidates = scratch.candidates;
    const Segment& segment = *part.segment;
    const std::size_t count = numbers.size();
    for (std::uint32_t number : numbers) {
        if (number >= segment.num_codes()) throw CorruptError("an index names a code that does not exist");
    }
    for (std::size_t i = 0; i < std::min(kAhead, count); ++i) __builtin_prefetch(segment.code(numbers[i]));
    const float floor = found.floor();
    candidates.clear();
    const std::uint64_t tag = (first_tag_ + part.index) << 24;
    for (std::size_t i = 0; i < count; ++i) {
        if (i + kAhead < count) __builtin_prefetch(segment.code(numbers[i + kAhead]));
        std::uint64_t& recent = scratch.recent[numbers[i] % scratch.recent.size()];
        if (recent == (tag | numbers[i])) continue;
        recent = tag | numbers[i];
        const float score = query.score(segment.code(numbers[i]));
        if (score >= floor) candidates.push_back({score, numbers[i]});
    }
    if (trace) trace->num_scored += count;
    numbers.clear();
    // The best ones first: they raise the floor above most of the others, whose ids are then never read from memory.
    const std::size_t first = std::min(found.wanted(), candidates.size());
    const auto comes_first = [](const Candidate& a, const Candidate& b) { return a.score > b.score; };
    if (first < candidates.size())
        std::nth_element(candidates.begin(), candidates.begin() + first, candidates.end(), comes_first);
    offer_all(part, {candidates.begin(), candidates.begin() + first});
    const float higher = found.floor();
    const auto end = std::remove_if(candidates.begin() + first, candidates.end(),
                                    [&](const Candidate& candidate) { return candidate.score < higher; });
    offer_all(part, {candidates.begin() + first, end});
}

void Scorer::offer_all(const Part& part, std::span<const Candidate> candidates) {
    const Segment& segment = *part.segment;
    for (std::size_t i = 0; i < candidates.size() + 2 * kIdsAhead; ++i) {
        if (i < candidates.size()) segment.prefetch_items(candidates[i].number);
        if (i >= kIdsAhead && i - kIdsAhead < candidates.size()) segment.prefetch_ids(candidates[i - kIdsAhead].number);
        if (i >= 2 * kIdsAhead) offer(part, candidates[i - 2 * kIdsAhead].score, candidates[i - 2 * kIdsAhead].number);
    }
}

void Scorer::score_allowed(const Part& part) {
    const Segment& segment = *part.segment;
    if (!part.mask.bits) return scan(part, 0, segment.num_codes());
    if (trace) trace->num_scored += part.mask.num_set;
    std::uint32_t number = 0;
    for (std::uint32_t first = 0; first < segment.size(); first += 64) {
        std::uint64_t word = 0;
        std::memcpy(&word, part.mask.bits + first / 8, std::min(8u, (segment.size() - first + 7) / 8));
        for (; word; word &= word - 1) {
            const std::uint32_t position = first + static_cast<std::uint32_t>(std::countr_zero(word));
            if (position >= segment.size()) break;
            while (segment.items(number).second <= position) {
                if (++number == segment.num_codes()) throw CorruptError("an item of an index has no code");
            }
            const Hit hit{query.score(segment.code(number)), segment.id(position)};
            if (found.wants(hit) && part.mask.allows_id(hit.id)) found.offer(hit);
        }
    }
}

}  // namespace opqn
