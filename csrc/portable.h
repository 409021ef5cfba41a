// Included first in each file of a wheel (ATTRDROP_PORTABLE): no symbol of glibc newer than 2.28.
#pragma once

#if defined(__x86_64__) && defined(__linux__)
__asm__(".symver exp,exp@GLIBC_2.2.5"); // 2.29 has another one, for errno alone
#endif
