// The one loop that is written for each instruction set: bounds on the scores of 32 codes at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace opqn {

inline constexpr std::size_t kGroup = 32;  // codes of which the planes keep the same book side by side

// Finds the codes whose score may reach a floor.
//
// planes: num_groups x num_rows x 32 bytes. Byte i of row p holds a nibble of book 2p of code i (low) and one of book
//         2p + 1 (high).
// deficits: num_rows x 2 x 16 bytes: by how much, at least, a nibble keeps a score below the highest possible one.
// masks: num_groups words; bit i is set if the deficits of code i add up to 254 or less, with saturation at 255.
// Returns the number of bits set.
using DeficitMasks = std::size_t (*)(const std::uint8_t* planes, std::size_t num_groups, std::size_t num_rows,
                                     const std::uint8_t* deficits, std::uint32_t* masks);

struct Kernel {
    std::string name;
    DeficitMasks deficit_masks;
};

// What this processor can run, the fastest first; the last is plain C++.
const std::vector<Kernel>& available_kernels();

// The kernel in use: the fastest, or the one a test chose.
const Kernel& kernel();
void choose_kernel(const std::string& name);  // throws std::invalid_argument on a name that is not available

}  // namespace opqn
