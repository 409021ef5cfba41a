// Errors of what an argument must be, and of what a kernel finds in its data.
#pragma once
#include <sstream>
#include <stdexcept>
#include <string>

namespace attrdrop {

template <class... Parts>
std::string joined(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  return text.str();
}

template <class... Parts>
inline void require(bool condition, const Parts&... message) {
  if (!condition) throw std::runtime_error(joined(message...));
}

// A ValueError in Python, and the message alone: data are at fault, not their shape or type.
template <class... Parts>
inline void check_data(bool is_good, const Parts&... message) {
  if (!is_good) throw std::invalid_argument(joined(message...));
}

}  // namespace attrdrop
