// How plans score items and report them.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "group.hpp"
#include "query.hpp"
#include "topk.hpp"

namespace opqn {

inline constexpr double kScanCost = 0.3;  // nanoseconds for an entry added up in a scan; see LookUpCosts

struct Candidate {
    float score;
    std::uint32_t number;  // of a code
};

// Memory that the searches of a thread use one after the other.
struct Scratch {
    std::vector<std::uint32_t> numbers;  // of codes
    std::vector<Candidate> candidates;
    // Codes scored of late, each with the tag of its query and segment: those of the best hits are met in many cells.
    std::array<std::uint64_t, 1024> recent{};
    std::uint64_t next_tag = 1;
    std::vector<std::uint32_t> masks;
    std::vector<std::uint8_t> counters;  // all 0 between uses
    std::vector<std::uint16_t> met;
};

class Scorer {
public:
    Scorer(const Group& group, Query& query, Collector& found, Scratch& scratch, Trace* trace)
        : query(query), found(found), scratch(scratch), trace(trace), first_tag_(scratch.next_tag) {
        scratch.next_tag += group.parts.size();
    }

    Query& query;
    Collector& found;
    Scratch& scratch;
    Trace* trace;  // may be null

    // Whether items that score at most `bound`, but for rounding, cannot be among the hits.
    bool proven(double bound) const { return found.full() && bound + query.slack() < found.floor(); }

    // Scores the codes [begin, end) of a part.
    void scan(const Part& part, std::uint32_t begin, std::uint32_t end);
    // Scores the codes scratch.numbers, which is empty afterwards.
    void score_numbers(const Part& part);
    // Scores the items of a part that may be found.
    void score_allowed(const Part& part);

private:
    template <std::uint32_t kBooks, std::uint32_t kWords>
    void scan_shape(const Part& part, std::uint32_t begin, std::uint32_t end);

    void offer_all(const Part& part, std::span<const Candidate> candidates);

    // Reports the items of a code.
    void offer(const Part& part, float score, std::uint32_t number) {
        if (score < found.floor()) return;
        const auto [begin, end] = part.segment->items(number);
        for (std::uint32_t position = begin; position < end; ++position) {
            if (!part.mask.allows(position)) continue;
            const Hit hit{score, part.segment->id(position)};
            if (!found.wants(hit)) return;  // those that follow have higher ids
            if (part.mask.allows_id(hit.id)) found.offer(hit);
        }
    }

    std::uint64_t first_tag_;  // of the group's first part
};

}  // namespace opqn
