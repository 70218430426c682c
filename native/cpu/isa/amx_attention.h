// Attention of the AMX tier, for pages as the AVX512-BF16 tier writes them and scratch of its size.
#pragma once

#include "../kernels/kernels.h"

namespace manyfold::amx_attention {

void run(const AttentionArgs& args);

}  // namespace manyfold::amx_attention
