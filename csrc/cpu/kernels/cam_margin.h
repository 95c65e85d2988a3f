// The vector code of cam_margin.cpp, where the formulas stand. Textual, see each_isa.h.
#include "rows.h"

namespace dfkd::cpu::DFKD_ISA {

constexpr int64_t kRun = 64;  // channels summed in float before they join a longer sum: error grows with the run

// map[pixel] = sum_k weights[k] * features[k, pixel]; features (channels, pixels), or (pixels, channels) channels-last.
template <typename T>
void class_map(const T* features, const float* weights, int64_t channels, int64_t pixels, bool channels_last,
               float* map) {
  if (channels_last) {
    for (int64_t pixel = 0; pixel < pixels; ++pixel) {
      F32 total{};
      for (int64_t first = 0; first < channels; first += kRun * kLanes) {
        F32 run{};
        each_vector(first, std::min(first + kRun * kLanes, channels),
                    [&](int64_t k, auto n) { run += load(features + pixel * channels + k, n) * load(weights + k, n); });
        total += run;
      }
      map[pixel] = sum_lanes(total);
    }
    return;
  }
  each_vector(0, pixels, [&](int64_t pixel, auto n) {
    F32 total{};
    for (int64_t first = 0; first < channels; first += kRun) {
      F32 run{};
      for (int64_t k = first; k < std::min(first + kRun, channels); ++k) {
        run += load(features + k * pixels + pixel, n) * weights[k];
      }
      total += run;
    }
    store(map + pixel, total, n);
  });
}

// gradient = -weights x pixel_gradient, in the same two layouts.
template <typename T>
void spread_gradient(const float* pixel_gradient, const float* weights, int64_t channels, int64_t pixels,
                     bool channels_last, T* gradient) {
  const int64_t outer = channels_last ? pixels : channels, inner = channels_last ? channels : pixels;
  const float *row_factor = channels_last ? pixel_gradient : weights,
              *values = channels_last ? weights : pixel_gradient;
  for (int64_t row = 0; row < outer; ++row) {
    const F32 factor = splat(-row_factor[row]);
    each_vector(0, inner,
                [&](int64_t i, auto n) { store(gradient + row * inner + i, factor * load(values + i, n), n); });
  }
}

}  // namespace dfkd::cpu::DFKD_ISA
