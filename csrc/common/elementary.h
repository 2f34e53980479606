// Access to the kernels' elementary functions for tests and benchmarks, without torch.
#pragma once

namespace bdam_fast {

inline constexpr const char* kElementaryNames[] = {"exp2", "softplus", "sigmoid", "exp"};
inline constexpr int kElementaryCount = 4;

// Evaluations per second on one thread, from and to the L1 cache, on the instruction set in use.
double elementary_rate(int function);

}  // namespace bdam_fast
