// The segments that a search goes through together, and what it may find in each.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "segment.hpp"

namespace opqn {

enum class Plan { kScan, kBounds, kLists, kCells, kCover, kAllowed, kNumPlans };

const char* name_of(Plan plan);

using Costs = std::array<double, static_cast<std::size_t>(Plan::kNumPlans)>;  // estimated, in nanoseconds

// Which items of a segment may be found: bit i % 8 of byte i / 8 for position i, of which only those with ids[id] != 0
// count, none from ids.size() on. Null bits mean all, and so does a null ids.
struct Mask {
    const std::uint8_t* bits = nullptr;
    std::uint32_t num_set = 0;
    std::span<const std::uint8_t> ids{};

    bool allows_id(std::int64_t id) const {
        return !ids.data() || (static_cast<std::uint64_t>(id) < ids.size() && ids[static_cast<std::size_t>(id)]);
    }

    bool allows(std::uint32_t position) const { return !bits || (bits[position >> 3] >> (position & 7) & 1); }
};

struct Part {
    const Segment* segment;
    Mask mask;
    std::uint32_t index = 0;  // in its group

    std::uint32_t num_allowed() const { return mask.bits ? mask.num_set : segment->size(); }
};

// Segments of the same structures. Cells of a query's words are looked up in all of them before the costly plans are
// considered, since the best hits, which rule out most of the rest, may lie in any of them.
struct Group {
    Layout layout;
    std::vector<Part> parts;
    std::uint64_t size = 0;  // codes
    std::uint64_t num_items = 0;
    std::uint64_t num_allowed = 0;  // of the items
    std::uint32_t num_blocks = 0;

    // Divides parts into groups; those with cells come first. Parts in which nothing may be found are left out.
    static std::vector<Group> of(const std::vector<Part>& parts);
};

// What the search of a group did, for people.
struct Trace {
    std::vector<Plan> plans;  // in the order they ran
    std::uint64_t num_cells = 0;
    std::uint64_t num_lists = 0;
    std::uint64_t num_postings = 0;
    std::uint64_t num_bounded = 0;  // codes whose bound was computed
    std::uint64_t num_scored = 0;   // codes whose score was computed
    Costs costs{};                  // 0: not possible
    double floor_at_choice = 0;     // the score that an item had to reach when the plan was chosen
};

}  // namespace opqn
