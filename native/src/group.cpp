#include "group.hpp"

#include <algorithm>

namespace opqn {

const char* name_of(Plan plan) {
    switch (plan) {
        case Plan::kScan:
            return "scan";
        case Plan::kBounds:
            return "bounds";
        case Plan::kLists:
            return "lists";
        case Plan::kCells:
            return "cells";
        case Plan::kCover:
            return "cover";
        case Plan::kAllowed:
            return "allowed";
        default:
            return "any";
    }
}

std::vector<Group> Group::of(const std::vector<Part>& parts) {
    std::vector<Group> groups;
    for (const Part& part : parts) {
        if (part.num_allowed() == 0) continue;
        const Layout& layout = part.segment->layout();
        auto group =
            std::find_if(groups.begin(), groups.end(), [&](const Group& other) { return other.layout == layout; });
        if (group == groups.end()) {
            groups.emplace_back().layout = layout;
            group = groups.end() - 1;
        }
        group->parts.push_back(part);
        group->parts.back().index = static_cast<std::uint32_t>(group->parts.size() - 1);
        group->size += part.segment->num_codes();
        group->num_items += part.segment->size();
        group->num_allowed += part.num_allowed();
        group->num_blocks += part.segment->num_blocks();
    }
    std::stable_sort(groups.begin(), groups.end(), [](const Group& a, const Group& b) {
        return a.layout.clique != b.layout.clique ? a.layout.clique > b.layout.clique : a.size > b.size;
    });
    return groups;
}

}  // namespace opqn
