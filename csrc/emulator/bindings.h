#pragma once
#include <pybind11/pybind11.h>

namespace attrdrop {
void bind_emulator(pybind11::module_& m);
void bind_pack_mask(pybind11::module_& m);
void bind_keep_mask(pybind11::module_& m);
void bind_occlude_blocks(pybind11::module_& m);
void bind_farthest_point_sample(pybind11::module_& m);
void bind_ball_query(pybind11::module_& m);
void bind_group_points(pybind11::module_& m);
void bind_occlude_points(pybind11::module_& m);
}
