// Errors of what an argument must be.
#pragma once
#include <sstream>
#include <stdexcept>

namespace attrdrop {

template <class... Parts>
inline void require(bool condition, const Parts&... message) {
  if (condition) return;
  std::ostringstream text;
  (text << ... << message);
  throw std::runtime_error(text.str());
}

}  // namespace attrdrop
