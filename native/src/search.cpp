#include "search.hpp"

#include <algorithm>
#include <limits>
#include <memory>
#include <utility>

#include "cells.hpp"
#include "walks.hpp"

namespace opqn {
namespace {

constexpr std::uint32_t kSmall = 2048;  // items that are not worth a plan
constexpr double kNever = std::numeric_limits<double>::infinity();
constexpr double kWorthThinking = 30e3;  // nanoseconds: below, a plan runs sooner than a better one is found
// A costly plan may become a cheap one with better hits. So this part of its cost is spent on looking for them, as
// often as cells promise to prove the answer for so many times that cost.
constexpr double kInvested = 1.0 / 32, kPromising = 2;
constexpr double kWorthInvesting = 100e3;  // nanoseconds
constexpr std::uint32_t kBestSet = 4;      // books of which at least the cells of each two best words are visited
constexpr int kMostInvestments = 3;
constexpr double kMaskCost = 0.02;  // a bit of a mask looked at
constexpr double kAnyLimit = 64;    // times a scan, that a plan which was asked for may cost

// The search of one group for one query.
class Search {
public:
    Search(const Group& group, Job& job, Plan only, Scratch& scratch)
        : group_(group),
          query_(job.query),
          found_(job.found),
          only_(only),
          scorer_(group, job.query, job.found, scratch, job.traces ? &job.traces->emplace_back() : nullptr),
          look_up_(group),
          shares_(group, job.query) {
        costs_.fill(kNever);
    }

    // Runs what looks items up. False if items have to be gone through instead, with walk().
    bool look_up() {
        cost(Plan::kScan) = ScanWalk::most_cost(group_);
        if (group_.num_allowed < group_.num_items) {
            cost(Plan::kAllowed) = look_up_.item * static_cast<double>(group_.num_allowed) +
                                   kMaskCost * static_cast<double>(group_.num_items);
        }
        const bool can_reason = query_.is_finite();
        if (can_reason && group_.layout.has_planes) cost(Plan::kBounds) = BoundsWalk::least_cost(group_);
        if (only_ == Plan::kNumPlans && (group_.size <= kSmall || !can_reason)) only_ = cheapest();
        const bool may_look_up = wants(Plan::kCells) || wants(Plan::kCover) || wants(Plan::kLists);
        if (can_reason && may_look_up) {
            if (group_.layout.clique >= 2 ? look_up_cells() : plan_lists()) return true;
        }
        return choose();
    }

    Walk& walk() { return *walk_; }

    // After a walk has failed: true if there is nothing left to do.
    bool start_another() {
        // What was found still helps the next plan.
        if (plan_ == Plan::kBounds) {
            walk_ = std::make_unique<BoundsWalk>(group_, scorer_);
            return false;
        }
        cost(plan_) = cost(Plan::kCells) = cost(Plan::kCover) = kNever;
        return choose();
    }

private:
    double& cost(Plan plan) { return costs_[static_cast<std::size_t>(plan)]; }
    bool wants(Plan plan) const { return only_ == Plan::kNumPlans || only_ == plan; }
    Plan cheapest() const { return static_cast<Plan>(std::min_element(costs_.begin(), costs_.end()) - costs_.begin()); }
    // What a plan that looks items up may cost.
    double limit() { return only_ == Plan::kNumPlans ? cost(cheapest()) : kAnyLimit * cost(Plan::kScan); }

    void trace(Plan plan) {
        if (scorer_.trace) scorer_.trace->plans.push_back(plan);
    }

    // Visits the cells between the steps taken and these.
    void take(CellOrder& order, CellOrder::Steps& taken, const CellOrder::Steps& steps) {
        visit(group_, order.between(taken, steps), scorer_);
        taken = steps;
    }

    // The steps that prove the answer with the hits found so far, and their cost; infinite above `limit`.
    double plan_cells(CellOrder& order, const CellOrder::Steps& taken, double limit, CellOrder::Steps& steps) {
        steps = taken;
        const double paid = order.cost(taken);
        while (!scorer_.proven(order.bound(steps))) {
            const double spare = limit - (order.cost(steps) - paid);
            if (spare < 0 || !order.advance(steps, spare)) return kNever;
        }
        return order.cost(steps) - paid <= limit ? order.cost(steps) - paid : kNever;
    }

    // Looks into cells until the cheapest plan is known. True if the answer is proven.
    bool look_up_cells() {
        CellOrder order(group_, query_, shares_, look_up_);
        CellOrder::Steps taken = order.none(), steps = order.none();
        const double most = cost(Plan::kScan) / 4;
        const auto find_first = [&] {
            while (!found_.full() && order.cost(taken) < most && order.advance(steps, most)) take(order, taken, steps);
            return scorer_.proven(order.bound(taken));
        };
        // A few cells often prove the answer already.
        for (std::size_t i = 0; i < taken.size() && order.cost(taken) < most && order.advance(steps, most); ++i) {
            take(order, taken, steps);
            if (scorer_.proven(order.bound(taken))) return trace(Plan::kCells), true;
        }
        std::vector<Cell> best;
        std::uint32_t best_set = group_.layout.clique;
        const auto list_best = [&] {
            best = cells_of(query_, Choice(query_.num_books(), 1), best_set, true);
            std::erase_if(
                best, [&](const Cell& cell) { return cell.a % 2 == 0 && cell.b == cell.a + 1 && taken[cell.a / 2]; });
            return cost_of(group_, best, look_up_);
        };
        double best_cost = list_best();
        while (best_set > kBestSet && best_cost > kWorthThinking) best_set /= 2, best_cost = list_best();
        const bool may_prove = wants(Plan::kCells) && scorer_.proven(order.least_bound());
        if (may_prove && plan_cells(order, taken, best_cost / 4, steps) < kNever) {
            take(order, taken, steps);
            return trace(Plan::kCells), true;
        }
        // The first k hits are seldom the best, and with better ones plans are cheaper.
        const bool is_cheap = best_cost < most;
        if (is_cheap) visit(group_, best, scorer_);
        steps = taken;
        if (find_first()) return trace(Plan::kCells), true;
        if (!found_.full()) return false;

        std::vector<Cell> cover;
        const auto plan_cover = [&] {
            if (!wants(Plan::kCover)) return;
            cost(Plan::kCover) = kNever;  // the limit is what the others cost
            cost(Plan::kCover) =
                opqn::plan_cover(group_, scorer_, shares_, look_up_, is_cheap ? best_set : 0, limit(), cover);
        };
        plan_cover();
        if (only_ != Plan::kNumPlans || limit() > kWorthThinking) {
            if (only_ == Plan::kNumPlans && cost(Plan::kBounds) < kNever) {
                cost(Plan::kScan) = ScanWalk(group_, scorer_).cost(shares_);
                cost(Plan::kBounds) = BoundsWalk(group_, scorer_).cost(cost(Plan::kScan));
                invest(order, taken);
                plan_cover();
            }
            if (wants(Plan::kLists)) plan_lists();
            if (wants(Plan::kCells)) cost(Plan::kCells) = plan_cells(order, taken, limit(), steps);
        }
        const Plan plan = choice();
        if (plan != Plan::kCells && plan != Plan::kCover) return false;
        note_choice();
        trace(plan);
        if (plan == Plan::kCells) take(order, taken, steps);
        else visit(group_, cover, scorer_);
        return true;
    }

    // Where all plans are costly, visits some more cells: hits that are found there may make them cheap.
    void invest(CellOrder& order, CellOrder::Steps& taken) {
        CellOrder::Steps steps;
        for (int i = 0; i < kMostInvestments && limit() > kWorthInvesting; ++i) {
            const double needed = plan_cells(order, taken, kPromising * limit(), steps);
            if (i ? needed == kNever || needed < limit() : needed < kInvested * limit()) return;
            steps = taken;
            const double amount = kInvested * limit(), paid = order.cost(taken);
            while (order.cost(steps) - paid < amount) {
                if (!order.advance(steps, 2 * amount)) return;
            }
            take(order, taken, steps);
        }
    }

    // Always false: lists have to be gone through.
    bool plan_lists() {
        if (!group_.layout.has_lists || !found_.full()) return false;
        lists_ = std::make_unique<ListsWalk>(group_, scorer_, shares_, limit());
        cost(Plan::kLists) = lists_->cost();
        return false;
    }

    Plan choice() { return only_ == Plan::kNumPlans || cost(only_) == kNever ? cheapest() : only_; }

    void note_choice() {
        if (scorer_.trace) scorer_.trace->costs = costs_, scorer_.trace->floor_at_choice = found_.floor();
    }

    // Begins a walk. True if it was over at once.
    bool choose() {
        plan_ = choice();
        note_choice();
        trace(plan_);
        if (plan_ == Plan::kAllowed) {
            for (const Part& part : group_.parts) scorer_.score_allowed(part);
            return true;
        }
        if (plan_ == Plan::kLists) {
            walk_ = std::move(lists_);
        } else if (plan_ == Plan::kBounds) {
            auto bounds = std::make_unique<BoundsWalk>(group_, scorer_);
            // Cells would have found good hits already.
            if (group_.layout.clique == 0) bounds->guess_floor();
            walk_ = std::move(bounds);
        } else {
            walk_ = std::make_unique<ScanWalk>(group_, scorer_);
        }
        return false;
    }

    const Group& group_;
    Query& query_;
    Collector& found_;
    Plan only_;
    Scorer scorer_;
    LookUpCosts look_up_;
    Shares shares_;
    Costs costs_;
    Plan plan_ = Plan::kNumPlans;
    std::unique_ptr<Walk> walk_;
    std::unique_ptr<ListsWalk> lists_;
};

// One pass over the items for all of these. Leaves those that have to go through them once more, with another plan.
void walk_together(const Group& group, std::vector<std::unique_ptr<Search>>& searches) {
    std::vector<Search*> walking;
    for (const auto& search : searches) walking.push_back(search.get());
    std::vector<Search*> failed;
    const auto is_over = [&](Search* search, Walk::State state) {
        if (state == Walk::State::kFailed) failed.push_back(search);
        return state != Walk::State::kGoesOn;
    };
    for (const Part& part : group.parts) {
        const std::uint32_t size = part.segment->num_codes();
        for (std::uint32_t begin = 0; begin < size && !walking.empty(); begin += kBlock) {
            const std::uint32_t end = std::min(begin + kBlock, size);
            std::erase_if(walking,
                          [&](Search* search) { return is_over(search, search->walk().step(part, begin, end)); });
        }
    }
    for (Search* search : walking) is_over(search, search->walk().finish());
    std::erase_if(searches, [&](const std::unique_ptr<Search>& search) {
        return std::find(failed.begin(), failed.end(), search.get()) == failed.end() || search->start_another();
    });
}

}  // namespace

void search(const std::vector<Group>& groups, std::vector<Job>& jobs, Plan only, Scratch& scratch) {
    for (const Group& group : groups) {
        std::vector<std::unique_ptr<Search>> searches;
        for (Job& job : jobs) {
            auto search = std::make_unique<Search>(group, job, only, scratch);
            if (!search->look_up()) searches.push_back(std::move(search));
        }
        while (!searches.empty()) walk_together(group, searches);
    }
}

}  // namespace opqn
