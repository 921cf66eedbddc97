// Exact search: the choice among the plans.
#pragma once

#include <deque>
#include <vector>

#include "group.hpp"
#include "query.hpp"
#include "scoring.hpp"
#include "topk.hpp"

namespace opqn {

// A query and what was found for it so far.
struct Job {
    Query query;
    Collector found;
    std::deque<Trace>* traces = nullptr;  // if not null, one is added for each group
};

// Offers every item of the groups that can change a result to each of the jobs, which share the work of reading items.
//
// only: a plan to run instead of the cheapest, if it can prove its answer; Plan::kNumPlans leaves the choice free.
void search(const std::vector<Group>& groups, std::vector<Job>& jobs, Plan only, Scratch& scratch);

}  // namespace opqn
