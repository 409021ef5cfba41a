// What newer C++ and C libraries than manylinux_2_28's would be asked for, defined here (ATTRDROP_PORTABLE).
#include <new>
#include <sstream>

// glibc 2.32 tells libstdc++ so whether there is one thread; a wheel always counts references atomically.
extern "C" {
__attribute__((visibility("hidden"))) char __libc_single_threaded = 0;
}

// Their constructors and str() are newer than GLIBCXX_3.4.24.
template class std::basic_stringbuf<char>;
template class std::basic_ostringstream<char>;
template class std::basic_stringstream<char>;

namespace std {
void __throw_bad_array_new_length() { throw bad_array_new_length(); }
} // namespace std
