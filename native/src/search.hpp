// Exact search of one segment: five plans, and the choice among them.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "query.hpp"
#include "segment.hpp"
#include "topk.hpp"

namespace opqn {

enum class Plan { kScan, kBounds, kLists, kCells, kCover, kAllowed, kNumPlans };

const char* name_of(Plan plan);

// Which items of a segment may be found: bit i % 8 of byte i / 8 for position i. Null bits mean all.
struct Mask {
    const std::uint8_t* bits = nullptr;
    std::uint32_t num_set = 0;

    bool allows(std::uint32_t position) const { return !bits || (bits[position >> 3] >> (position & 7) & 1); }
};

// What a search did, for people.
struct Trace {
    std::vector<Plan> plans;       // in the order they ran
    std::uint64_t num_cells = 0;
    std::uint64_t num_lists = 0;
    std::uint64_t num_postings = 0;
    std::uint64_t num_bounded = 0; // items whose bound was computed
    std::uint64_t num_scored = 0;  // items whose score was computed
    std::array<double, static_cast<std::size_t>(Plan::kNumPlans)> costs{};  // estimated, in nanoseconds; 0: not possible
    double floor_at_choice = 0;    // the score that an item had to reach when the plan was chosen
};

// Offers every item of the segment that can change the result.
//
// only: a plan to run instead of the cheapest, if it can prove its answer; Plan::kNumPlans leaves the choice free.
// trace: is told what was done, if not null.
void search(const Segment& segment, Query& query, const Mask& mask, Collector& found, Plan only, Trace* trace);

}  // namespace opqn
