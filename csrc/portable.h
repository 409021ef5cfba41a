// Included first in each file of a wheel (ATTRDROP_PORTABLE): no symbol of glibc newer than 2.28.
#pragma once

#if defined(__x86_64__) && defined(__linux__)
// 2.29 has others, for errno alone.
__asm__(".symver exp,exp@GLIBC_2.2.5");
__asm__(".symver exp2,exp2@GLIBC_2.2.5");
__asm__(".symver log,log@GLIBC_2.2.5");
__asm__(".symver log2,log2@GLIBC_2.2.5");
__asm__(".symver pow,pow@GLIBC_2.2.5");
#endif
