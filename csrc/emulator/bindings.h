#pragma once
#include <pybind11/pybind11.h>

namespace attrdrop {
void bind_emulator(pybind11::module_& m);
void bind_keep_mask(pybind11::module_& m);
void bind_occlude_blocks(pybind11::module_& m);
void bind_sampling(pybind11::module_& m);
void bind_occlude_points(pybind11::module_& m);
}
