// What Python sees of the core. Arguments are checked in Python, and here where memory depends on them.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cmath>
#include <limits>
#include <optional>

#include "kernels.hpp"
#include "parallel.hpp"
#include "query.hpp"
#include "search.hpp"
#include "segment.hpp"
#include "topk.hpp"

namespace nb = nanobind;

namespace {

using namespace opqn;

using Codes = nb::ndarray<const std::uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Ids = nb::ndarray<const std::int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Bits = nb::ndarray<const std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Tables = nb::ndarray<const float, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
using Segments = std::vector<std::shared_ptr<const Segment>>;
// For each segment the bits of items that may be found and their number, or None for all.
using Masks = std::vector<std::optional<std::pair<Bits, std::uint32_t>>>;

template <class T>
nb::ndarray<nb::numpy, T> to_numpy(std::vector<T>&& values, std::initializer_list<std::size_t> shape) {
    auto* kept = new std::vector<T>(std::move(values));
    nb::capsule owner(kept, [](void* pointer) noexcept { delete static_cast<std::vector<T>*>(pointer); });
    return nb::ndarray<nb::numpy, T>(kept->data(), shape, owner);
}

Plan plan_named(const std::string& name) {
    for (std::size_t i = 0; i < static_cast<std::size_t>(Plan::kNumPlans); ++i) {
        if (name == name_of(static_cast<Plan>(i))) return static_cast<Plan>(i);
    }
    if (name == "any") return Plan::kNumPlans;
    throw std::invalid_argument("there is no search plan " + name);
}

std::vector<Part> parts_of(const Segments& segments, const Masks& masks) {
    if (masks.size() != segments.size()) throw std::invalid_argument("one mask, or None, for each segment");
    std::vector<Part> parts;
    for (std::size_t i = 0; i < segments.size(); ++i) {
        parts.push_back({segments[i].get(), {}, 0});
        if (!masks[i]) continue;
        const auto& [bits, count] = *masks[i];
        if (bits.size() != (static_cast<std::size_t>(segments[i]->size()) + 7) / 8) {
            throw std::invalid_argument("a mask of the wrong size");
        }
        parts.back().mask = {bits.data(), count};
    }
    return parts;
}

// Segments with the items of each that may be found, for queries with such tables.
std::vector<Group> view(const Segments& segments, const Masks& masks, const std::optional<Bits>& allowed,
                        const Tables& tables) {
    auto parts = parts_of(segments, masks);
    for (Part& part : parts) {
        const Layout& layout = part.segment->layout();
        if (layout.num_books != tables.shape(1) || layout.num_words != tables.shape(2)) {
            throw std::invalid_argument("tables and segments of different shape");
        }
        if (allowed) part.mask.ids = {allowed->data(), allowed->size()};
    }
    return Group::of(parts);
}

// Searches with the queries of each thread a few at a time. take(q, hits) is told what was found, from any thread.
template <class Take>
void search_all(const std::vector<Group>& groups, const Tables& tables, const Collector& empty, Plan only,
                unsigned num_threads, Take&& take) {
    // As many as share the work of reading a block, as long as each thread has some.
    constexpr std::size_t kMostAtOnce = 16;
    const std::size_t queries = tables.shape(0), books = tables.shape(1), words = tables.shape(2);
    if (num_threads == 0) num_threads = std::max(1u, std::thread::hardware_concurrency());
    const std::size_t at_once = std::clamp<std::size_t>(queries / num_threads, 1, kMostAtOnce);
    parallel_for((queries + at_once - 1) / at_once, num_threads, [&](std::size_t batch) {
        Scratch scratch;
        std::vector<Job> jobs;
        const std::size_t first = batch * at_once, last = std::min(first + at_once, queries);
        for (std::size_t q = first; q < last; ++q) {
            const float* table = tables.data() + q * books * words;
            jobs.push_back({Query(table, static_cast<std::uint32_t>(books), static_cast<std::uint32_t>(words)), empty});
        }
        search(groups, jobs, only, scratch);
        for (std::size_t q = first; q < last; ++q) take(q, jobs[q - first].found.take());
    });
}

nb::tuple search_best(Segments segments, Masks masks, Tables tables, std::size_t k, unsigned num_threads,
                      const std::string& only, std::optional<Bits> allowed) {
    const auto groups = view(segments, masks, allowed, tables);
    const Plan plan = plan_named(only);
    const std::size_t queries = tables.shape(0);
    std::vector<float> scores(queries * k, -std::numeric_limits<float>::infinity());
    std::vector<std::int64_t> ids(queries * k, -1);
    {
        nb::gil_scoped_release release;
        search_all(groups, tables, Collector::best(k), plan, num_threads,
                   [&](std::size_t q, const std::vector<Hit>& hits) {
                       for (std::size_t i = 0; i < hits.size(); ++i)
                           scores[q * k + i] = hits[i].score, ids[q * k + i] = hits[i].id;
                   });
    }
    return nb::make_tuple(to_numpy(std::move(scores), {queries, k}), to_numpy(std::move(ids), {queries, k}));
}

// For each query all hits that score `threshold` or more.
nb::list search_within(Segments segments, Masks masks, Tables tables, float threshold, unsigned num_threads,
                       std::optional<Bits> allowed) {
    const auto groups = view(segments, masks, allowed, tables);
    const std::size_t queries = tables.shape(0);
    std::vector<std::vector<float>> scores(queries);
    std::vector<std::vector<std::int64_t>> ids(queries);
    {
        nb::gil_scoped_release release;
        search_all(groups, tables, Collector::within(threshold), Plan::kNumPlans, num_threads,
                   [&](std::size_t q, const std::vector<Hit>& hits) {
                       for (const Hit& hit : hits) scores[q].push_back(hit.score), ids[q].push_back(hit.id);
                   });
    }
    nb::list found;
    for (std::size_t q = 0; q < queries; ++q) {
        const std::size_t count = scores[q].size();
        found.append(nb::make_tuple(to_numpy(std::move(scores[q]), {count}), to_numpy(std::move(ids[q]), {count})));
    }
    return found;
}

nb::list explain(Segments segments, Masks masks, Tables tables, std::size_t k, const std::string& only) {
    const auto groups = view(segments, masks, std::nullopt, tables);
    if (tables.shape(0) != 1) throw std::invalid_argument("one table");
    std::deque<Trace> traces;
    std::vector<Job> jobs;
    jobs.push_back(
        {Query(tables.data(), static_cast<std::uint32_t>(tables.shape(1)), static_cast<std::uint32_t>(tables.shape(2))),
         Collector::best(k), &traces});
    Scratch scratch;
    search(groups, jobs, plan_named(only), scratch);
    nb::list told;
    for (std::size_t i = 0; i < traces.size(); ++i) {
        const Trace& trace = traces[i];
        nb::dict entry;
        nb::list plans;
        for (Plan plan : trace.plans) plans.append(name_of(plan));
        nb::dict costs;
        for (std::size_t p = 0; p < trace.costs.size(); ++p) {
            if (trace.costs[p] > 0 && std::isfinite(trace.costs[p]))
                costs[name_of(static_cast<Plan>(p))] = trace.costs[p] / 1000;
        }
        entry["num_segments"] = groups[i].parts.size();
        entry["num_items"] = groups[i].num_items;
        entry["num_codes"] = groups[i].size;
        entry["plans"] = plans;
        entry["num_cells"] = trace.num_cells;
        entry["num_lists"] = trace.num_lists;
        entry["num_postings"] = trace.num_postings;
        entry["num_bounded"] = trace.num_bounded;
        entry["num_scored"] = trace.num_scored;
        entry["estimated_microseconds"] = costs;
        entry["floor_at_choice"] = trace.floor_at_choice;
        told.append(entry);
    }
    return told;
}

// Refuses tables that the score is not defined for: NaN, and +inf and -inf that some code would add up.
std::optional<std::pair<std::size_t, bool>> first_bad_table(Tables tables) {
    const std::size_t books = tables.shape(1), words = tables.shape(2);
    constexpr float inf = std::numeric_limits<float>::infinity();
    for (std::size_t q = 0; q < tables.shape(0); ++q) {
        float above = 0, below = 0;
        for (std::size_t m = 0; m < books; ++m) {
            const float* row = tables.data() + (q * books + m) * words;
            float low = row[0], high = row[0];
            bool has_nan = false;
            for (std::size_t j = 0; j < words; ++j) {
                low = row[j] < low ? row[j] : low;
                high = row[j] > high ? row[j] : high;
                has_nan |= row[j] != row[j];
            }
            if (has_nan) return std::pair(q, true);
            if (m && ((above == inf && low == -inf) || (below == -inf && high == inf))) return std::pair(q, false);
            above = m ? above + high : high;
            below = m ? below + low : low;
        }
    }
    return std::nullopt;
}

// The same segment, but whoever lets go of it last does not hold up Python: giving back gigabytes takes a while.
std::shared_ptr<const Segment> freed_aside(std::shared_ptr<const Segment> segment) {
    const Segment* plain = segment.get();
    return {plain, [segment = std::move(segment)](const Segment*) mutable {
                if (nb::is_alive() && PyGILState_Check()) {
                    nb::gil_scoped_release release;
                    segment.reset();
                } else {
                    segment.reset();
                }
            }};
}

std::shared_ptr<const Segment> build(Codes codes, Ids ids, std::uint32_t num_words, std::uint32_t clique,
                                     bool has_lists, bool has_planes, unsigned num_threads) {
    const std::size_t books = codes.shape(1);
    if (ids.shape(0) != codes.shape(0)) throw std::invalid_argument("one id for each code");
    if (books < 1 || books > 64 || num_words < 2 || num_words > 256) throw std::invalid_argument("no such codes");
    if (clique % 2 || clique > 64) throw std::invalid_argument("cliques are of an even number of books");
    const std::uint8_t* data = codes.data();
    nb::gil_scoped_release release;
    std::uint8_t highest = 0;
    for (std::size_t i = 0; i < codes.size(); ++i) highest = std::max(highest, data[i]);
    if (codes.size() && highest >= num_words) throw std::invalid_argument("a code is not below the number of words");
    const Layout layout{static_cast<std::uint32_t>(books), num_words, clique, has_lists, has_planes};
    if (codes.shape(0) > kMaxItems) throw std::invalid_argument("a segment holds at most 2^24 items");
    return freed_aside(
        Segment::build(layout, data, ids.data(), static_cast<std::uint32_t>(codes.shape(0)), num_threads));
}

// For each segment, of these ids, the positions that have them, -1 where none has.
nb::ndarray<nb::numpy, std::int64_t> find(const Segment& segment, Ids ids) {
    std::vector<std::int64_t> positions(ids.shape(0));
    {
        nb::gil_scoped_release release;
        for (std::size_t i = 0; i < positions.size(); ++i) {
            const std::uint32_t position = segment.find(ids.data()[i]);
            positions[i] = position < segment.size() ? static_cast<std::int64_t>(position) : -1;
        }
    }
    const std::size_t count = positions.size();
    return to_numpy(std::move(positions), {count});
}

// One segment of the items of several that `masks` leaves; as build() makes it. All of it without the GIL, so that
// searches go on.
std::shared_ptr<const Segment> merge(Segments segments, Masks masks, std::uint32_t clique, bool has_lists,
                                     bool has_planes, unsigned num_threads) {
    const std::vector<Part> parts = parts_of(segments, masks);
    if (parts.empty()) throw std::invalid_argument("nothing to merge");
    nb::gil_scoped_release release;
    Layout layout = segments[0]->layout();
    std::vector<std::uint8_t> codes;
    std::vector<std::int64_t> ids;
    for (const Part& part : parts) {
        const Segment& segment = *part.segment;
        if (segment.layout().num_books != layout.num_books || segment.layout().num_words != layout.num_words) {
            throw std::invalid_argument("segments of different codes");
        }
        for (std::uint32_t number = 0; number < segment.num_codes(); ++number) {
            const std::uint8_t* code = segment.code(number);
            const auto [begin, end] = segment.items(number);
            for (std::uint32_t position = begin; position < end; ++position) {
                if (!part.mask.allows(position)) continue;
                codes.insert(codes.end(), code, code + layout.num_books);
                ids.push_back(segment.id(position));
            }
        }
    }
    if (ids.size() > kMaxItems) throw std::invalid_argument("a segment holds at most 2^24 items");
    // What a damaged file says is checked once more: all else relies on it.
    for (const std::uint8_t word : codes) {
        if (word >= layout.num_words) throw CorruptError("a code of an index is none of the model's");
    }
    layout.clique = clique, layout.has_lists = has_lists, layout.has_planes = has_planes;
    return freed_aside(
        Segment::build(layout, codes.data(), ids.data(), static_cast<std::uint32_t>(ids.size()), num_threads));
}

nb::ndarray<nb::numpy, std::int64_t> ids_of(const Segment& segment) {
    std::vector<std::int64_t> ids(segment.size());
    {
        nb::gil_scoped_release release;
        for (std::uint32_t i = 0; i < segment.size(); ++i) ids[i] = segment.id(i);
    }
    const std::size_t count = ids.size();
    return to_numpy(std::move(ids), {count});
}

using Bytes = nb::ndarray<const std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

nb::dict arrays_of(const std::shared_ptr<const Segment>& segment) {
    nb::dict found;
    for (const auto& [name, bytes] : segment->arrays()) {
        auto* kept = new std::shared_ptr<const Segment>(segment);
        nb::capsule owner(kept,
                          [](void* pointer) noexcept { delete static_cast<std::shared_ptr<const Segment>*>(pointer); });
        found[name.c_str()] = nb::ndarray<nb::numpy, const std::uint8_t>(bytes.data(), {bytes.size()}, owner);
    }
    return found;
}

std::shared_ptr<const Segment> from_arrays(nb::dict arrays, std::uint32_t size, std::int64_t first_id,
                                           std::uint32_t num_books, std::uint32_t num_words, std::uint32_t clique,
                                           bool has_lists, bool has_planes) {
    if (num_books < 1 || num_books > 64 || num_words < 2 || num_words > 256)
        throw CorruptError("a segment of no such codes");
    if (clique % 2 || clique > 64) throw CorruptError("cliques are of an even number of books");
    Segment::Arrays views;
    auto kept = std::make_shared<std::vector<Bytes>>();
    for (const auto& [name, value] : arrays) {
        kept->push_back(nb::cast<Bytes>(value));
        views[nb::cast<std::string>(name)] = {kept->back().data(), kept->back().size()};
    }
    // The last search to let go of a segment may not hold the GIL, which NumPy's memory needs.
    std::shared_ptr<void> owner(kept.get(), [kept](void*) mutable {
        nb::gil_scoped_acquire acquire;
        kept.reset();
    });
    kept.reset();
    return freed_aside(
        Segment::from_arrays({num_books, num_words, clique, has_lists, has_planes}, size, first_id, views, owner));
}

}  // namespace

NB_MODULE(_native, module) {
    nb::register_exception_translator([](const std::exception_ptr& pointer, void*) {
        try {
            std::rethrow_exception(pointer);
        } catch (const CorruptError& error) {
            const nb::object type = nb::module_::import_("opqn.errors").attr("CorruptFileError");
            PyErr_SetString(type.ptr(), error.what());
        }
    });
    nb::class_<Segment>(module, "Segment")
        .def("__len__", &Segment::size)
        .def_prop_ro("num_bytes", &Segment::num_bytes)
        .def_prop_ro("first_id", &Segment::first_id)
        .def("ids", &ids_of)
        .def("find", &find, nb::arg("ids"));
    module.def("arrays_of", &arrays_of, nb::arg("segment"));
    module.def("from_arrays", &from_arrays, nb::arg("arrays"), nb::kw_only(), nb::arg("size"), nb::arg("first_id"),
               nb::arg("num_books"), nb::arg("num_words"), nb::arg("clique"), nb::arg("has_lists"),
               nb::arg("has_planes"));
    module.attr("MAX_ITEMS") = kMaxItems;
    module.def("build", &build, nb::arg("codes"), nb::arg("ids"), nb::kw_only(), nb::arg("num_words"),
               nb::arg("clique"), nb::arg("has_lists"), nb::arg("has_planes"), nb::arg("num_threads") = 1);
    module.def("search", &search_best, nb::arg("segments"), nb::arg("masks"), nb::arg("tables"), nb::arg("k"),
               nb::arg("num_threads") = 1, nb::arg("plan") = "any", nb::arg("allowed") = nb::none());
    module.def("search_within", &search_within, nb::arg("segments"), nb::arg("masks"), nb::arg("tables"),
               nb::arg("threshold"), nb::arg("num_threads") = 1, nb::arg("allowed") = nb::none());
    module.def("merge", &merge, nb::arg("segments"), nb::arg("masks"), nb::kw_only(), nb::arg("clique"),
               nb::arg("has_lists"), nb::arg("has_planes"), nb::arg("num_threads") = 1);
    module.def("explain", &explain, nb::arg("segments"), nb::arg("masks"), nb::arg("tables"), nb::arg("k"),
               nb::arg("plan") = "any");
    module.def("first_bad_table", &first_bad_table, nb::arg("tables"));
    module.def("available_kernels", [] {
        std::vector<std::string> names;
        for (const Kernel& kernel : available_kernels()) names.push_back(kernel.name);
        return names;
    });
    module.def("choose_kernel", &choose_kernel, nb::arg("name"));
}
